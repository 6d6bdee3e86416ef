//! Students of models that are there: exact resume, schedules, refusals. Tiny shapes that train in seconds.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use inference_worker::compare::similarity::compare_rows;
use inference_worker::model;
use inference_worker::workshop::convert::Phase;
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::inspect::inspect;
use inference_worker::workshop::probing::Loaded;
use inference_worker::workshop::progress::Silent;
use inference_worker::workshop::recipe::{ModelShape, Recipe, Schedule, Size};
use inference_worker::workshop::student::{
    DataSource, EXPORT, EXPORT_OF_FOUR_BITS, Form, LearningRate, Settings, Stages, Summary, Text, distill_student,
};
use inference_worker::workshop::{Demands, WorkshopError, distill};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

struct Shop {
    root: TempDir,
    text: Text,
}

impl Shop {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            shape: ModelShape {
                vocabulary: 700,
                width: 16,
                layers: 2,
                heads: 2,
                kv_heads: 1,
                head_dim: 8,
                ffn: 24,
                context: 48,
            },
            text_bytes: 60_000,
            batch: 4,
            teacher: Schedule { steps: 30, learning_rate: 8e-3 },
            student: Schedule { steps: 1, learning_rate: 2e-3 },
            probes: 24,
            prompts: 8,
            ..Recipe::new(Size::Small, 1)
        };
        let demands = Demands { mean: -1.0, fifth_percentile: -1.0, export: -1.0 };
        distill(&recipe, &demands, &root.path().join("pair"), 2, false, &mut Silent).unwrap();
        let tokenizer = model::Text::load(&root.path().join("pair/fp16")).unwrap();
        let text = Text::read(&DataSource::BuiltIn { bytes: 40_000, seed: 3 }, &tokenizer).unwrap();
        Self { root, text }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn settings(&self, name: &str) -> Settings {
        Settings {
            teacher: self.path("pair/fp16"),
            form: Form { student: self.path("pair/fp16"), phase: None, rules: Vec::new() },
            out: self.path(name),
            work: self.path(&format!("{name}.training")),
            resume: false,
            seed: 5,
            steps: 8,
            sequence: 32,
            batch: 3,
            accumulate: 1,
            learning_rate: 2e-3,
            schedule: LearningRate::Cosine,
            clip: 1.0,
            temperature: 3.0,
            weights: (1.0, 1.0),
            hidden: 0.0,
            noise: 0.1,
            stages: Stages([1, 2, 3]),
            validate: 4,
            sequences: 6,
            until: None,
            threads: 2,
        }
    }

    fn make(&self, settings: &Settings) -> Summary {
        distill_student(settings, &self.text, &mut Silent).unwrap()
    }

    fn refused(&self, change: impl Fn(&mut Settings)) -> String {
        let mut settings = self.settings("refused");
        change(&mut settings);
        let error = distill_student(&settings, &self.text, &mut Silent).unwrap_err();
        assert!(!self.path("refused").exists());
        error.to_string()
    }
}

fn log(work: &Path) -> Vec<Value> {
    let text = fs::read_to_string(work.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Leaves a run's work directory as it is after its first validation.
fn interrupted(shop: &Shop, settings: &Settings) {
    // A gate that everything passes ends it there; its model is thrown away.
    let mut gate = read_gate(None).unwrap();
    (gate.min_mean, gate.tail_min) = (1e-6, 1e-6);
    let made = shop.make(&Settings { until: Some(gate), ..settings.clone() });
    assert!(made.early && made.steps < settings.steps, "{made:?}");
    fs::remove_dir_all(&settings.out).unwrap();
}

#[test]
fn a_resumed_run_is_bit_for_bit_the_uninterrupted_one_whatever_the_threads() {
    let shop = Shop::new();
    let whole = shop.settings("whole");
    let made = shop.make(&whole);
    let cut = Settings { threads: 1, ..shop.settings("cut") };
    interrupted(&shop, &cut);
    let resumed = shop.make(&Settings { resume: true, threads: 3, ..cut.clone() });
    assert_eq!(made.validation, resumed.validation);
    assert!(resumed.tokens < made.tokens);
    let weights = |s: &Settings| fs::read(s.out.join("model.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&cut));
    let state = |s: &Settings| fs::read(s.work.join("checkpoint/state.safetensors")).unwrap();
    assert_eq!(state(&whole), state(&cut));
    assert_eq!(log(&whole.work), log(&cut.work), "the log has every step once");

    let other = Settings { seed: 6, ..shop.settings("other") };
    shop.make(&other);
    assert_ne!(weights(&whole), weights(&other));
}

#[test]
fn the_schedule_shows_in_the_log_and_the_export_is_what_was_validated() {
    let shop = Shop::new();
    let mut settings = shop.settings("s");
    settings.form.rules = vec!["mlp=binary".parse().unwrap()];
    let made = shop.make(&settings);
    let log = log(&settings.work);
    let of = |key: &str| log.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("stage"), ["full", "int8", "int4", "final", "final", "final", "final", "final"]);
    let noise: Vec<f64> = of("noise").iter().map(|n| n.as_f64().unwrap()).collect();
    assert!((noise[0] - 0.1).abs() < 1e-6 && noise[3] > 0.0 && noise[4..].iter().all(|n| *n == 0.0), "{noise:?}");
    assert!(log[3]["validation"].is_object() && log[2]["validation"].is_null());
    assert!(of("loss").iter().all(|loss| loss.as_f64().unwrap().is_finite()));
    for name in ["loss.svg", "cosine.svg"] {
        assert!(fs::read_to_string(settings.work.join(name)).unwrap().contains("<polyline"), "{name}");
    }

    let found = inspect(&settings.out).unwrap();
    let packed = |part: &str, precision: &str| {
        found
            .tensors
            .iter()
            .filter(|t| t.name.contains(part) && t.name.contains("_proj"))
            .all(|t| t.precision == precision)
    };
    assert!(packed("mlp", "binary") && packed("self_attn", "ternary"));
    // The served student on the held-out text, against the served teacher: the numbers of the last validation.
    let (teacher, student) = (Loaded::open(&settings.teacher).unwrap(), Loaded::open(&settings.out).unwrap());
    let ids = &shop.text.held_out;
    let (mut sum, mut count) = (0.0, 0);
    for index in 0..settings.sequences {
        let start = index * (ids.len() - settings.sequence - 1) / settings.sequences;
        let ids = &ids[start..start + settings.sequence];
        let (a, b) = (teacher.logits(ids).unwrap(), student.logits(ids).unwrap());
        for (a, b) in a.chunks_exact(700).zip(b.chunks_exact(700)) {
            sum += compare_rows(a, b).cosine;
            count += 1;
        }
    }
    // Embedding and norms are stored as f16, and activations on a border may round the other way.
    let served = sum / f64::from(count);
    assert!((served - made.validation.mean).abs() < 2e-3, "{served} {}", made.validation.mean);
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let shop = Shop::new();
    let plain = |name: &str, batch, accumulate| Settings {
        batch,
        accumulate,
        noise: 0.0,
        stages: Stages([0; 3]),
        steps: 2,
        validate: 2,
        ..shop.settings(name)
    };
    let (large, small) = (shop.make(&plain("large", 4, 1)), shop.make(&plain("small", 2, 2)));
    // The same sequences in the same order; only sums are cut elsewhere.
    let difference = (large.validation.mean - small.validation.mean).abs();
    assert!(difference < 1e-3, "{difference}");
    let losses = |name: &str| log(&shop.path(&format!("{name}.training")))[0]["loss"].as_f64().unwrap();
    assert!((losses("large") - losses("small")).abs() < 1e-5);
}

#[test]
fn training_brings_the_student_closer() {
    let shop = Shop::new();
    let settings = |name: &str, steps, learning_rate| Settings {
        steps,
        learning_rate,
        weights: (1.0, 0.0),
        noise: 0.0,
        stages: Stages([0; 3]),
        validate: steps,
        batch: 4,
        ..shop.settings(name)
    };
    let before = shop.make(&settings("before", 1, 1e-9)).validation;
    let after = shop.make(&settings("after", 60, 4e-3)).validation;
    assert!(after.kl < before.kl && after.mean > before.mean, "{before:?} {after:?}");
}

#[test]
fn a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint() {
    let shop = Shop::new();
    let settings = Settings { steps: 12, noise: 0.0, stages: Stages([0; 3]), ..shop.settings("nan") };
    interrupted(&shop, &settings);
    let kept = fs::read(settings.work.join("checkpoint/state.json")).unwrap();
    let broken = Settings { resume: true, learning_rate: 1e38, ..settings.clone() };
    let error = distill_student(&broken, &shop.text, &mut Silent).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, WorkshopError::Missed(_)) && text.contains("--resume") && text.contains("last good state"),
        "{text}"
    );
    assert_eq!(fs::read(settings.work.join("checkpoint/state.json")).unwrap(), kept);
    assert!(!settings.out.exists());
    let made = shop.make(&Settings { resume: true, ..settings });
    assert_eq!(made.steps, 12);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let shop = Shop::new();
    assert!(shop.refused(|s| s.sequence = 49).contains("--sequence must be from 1 to 48"));
    assert!(shop.refused(|s| s.stages = Stages([5, 2, 3])).contains("--progressive"));
    assert!(shop.refused(|s| s.stages = Stages([1, 2, 8])).contains("below --steps 8"));
    assert!(shop.refused(|s| s.weights = (0.0, 0.0)).contains("--kl and --cross-entropy"));
    assert!(shop.refused(|s| s.learning_rate = f32::NAN).contains("--learning-rate"));
    assert!(shop.refused(|s| s.batch = 0).contains("--batch"));
    assert!(shop.refused(|s| s.form.student = shop.path("pair/bitnet")).contains("be plain, not packed"));
    assert!(shop.refused(|s| s.form.rules = vec!["q_proj=full".parse().unwrap()]).contains("share one input"));
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-fp16");
    assert!(shop.refused(|s| s.form.student.clone_from(&llama)).contains("convert --phase 3"));
    let vocabulary = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/autobitlinear");
    let text = shop.refused(|s| s.teacher.clone_from(&vocabulary));
    assert!(text.contains("must have one vocabulary"), "{text}");

    let settings = shop.settings("taken");
    shop.make(&settings);
    let again = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        distill_student(&settings, &shop.text, &mut Silent).unwrap_err().to_string()
    };
    assert!(again(&|_| ()).contains("choose another --out"));
    assert!(again(&|s| s.out = shop.path("fresh")).contains("--resume"));
    let changed = again(&|s| (s.out, s.resume, s.temperature) = (shop.path("fresh"), true, 2.0));
    assert!(changed.contains("of other settings"), "{changed}");
}

#[test]
fn hidden_states_are_learned_too() {
    let shop = Shop::new();
    let settings = |name: &str, hidden| Settings {
        hidden,
        noise: 0.0,
        stages: Stages([0; 3]),
        steps: 40,
        validate: 40,
        learning_rate: 4e-3,
        ..shop.settings(name)
    };
    let (without, with) = (shop.make(&settings("without", 0.0)), shop.make(&settings("with", 1.0)));
    assert_ne!(without.validation, with.validation);
    let loss = |name: &str, line: usize| log(&shop.path(&format!("{name}.training")))[line]["loss"].as_f64().unwrap();
    // The term is there from the first step and gets smaller as the rest does.
    assert!(loss("with", 0) > loss("without", 0) + 0.01);
    assert!(loss("with", 39) < loss("with", 0));

    let packed = shop.refused(|s| (s.hidden, s.teacher) = (1.0, shop.path("pair/bitnet")));
    assert!(packed.contains("with --hidden, the teacher") && packed.contains("be plain, not packed"), "{packed}");
    assert!(shop.refused(|s| s.hidden = -1.0).contains("--hidden must be a finite number"));
}

#[test]
fn another_tokenizer_of_the_same_size_is_refused() {
    let shop = Shop::new();
    let other = shop.path("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(shop.path("pair/fp16")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let path = other.join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "\n").unwrap();
    let refused = shop.refused(|s| s.form.student.clone_from(&other));
    assert!(refused.contains("must have one tokenizer, byte for byte"), "{refused}");
}

#[test]
fn what_is_served_is_what_was_trained_in_every_form() {
    let shop = Shop::new();
    let cases: [(Option<Phase>, &[&str]); 8] = [
        (Some(Phase::FeedForward), &[]),
        (Some(Phase::Attention), &[]),
        (Some(Phase::SubNorms), &[]),
        (None, &["mlp=binary"]),
        (None, &["layers.0=full"]),
        (Some(Phase::FourBits), &[]),
        (Some(Phase::FourBits), &["mlp=binary", "o_proj=int8"]),
        (None, &["self_attn=int8", "mlp=int4"]),
    ];
    for (number, (phase, rules)) in cases.into_iter().enumerate() {
        let mut settings = Settings { steps: 6, validate: 6, ..shop.settings(&format!("form-{number}")) };
        settings.form.phase = phase;
        settings.form.rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let made = shop.make(&settings);
        println!("{phase:?} {rules:?}: served against trained {:.7}", made.export);
        let least = if phase == Some(Phase::FourBits) { EXPORT_OF_FOUR_BITS } else { EXPORT };
        assert!(made.export >= least && made.export <= 1.0 + 1e-9, "{phase:?} {rules:?}: {}", made.export);
        let found = inspect(&settings.out).unwrap().model;
        let want = if phase == Some(Phase::FourBits) { (4, 3) } else { (8, 32) };
        assert_eq!((found.activation_bits, found.kv_bits), want, "{phase:?}");
    }
}

#[test]
fn a_process_killed_while_it_replaced_the_checkpoint_loses_nothing() {
    let shop = Shop::new();
    let settings = Settings { steps: 12, noise: 0.0, stages: Stages([0; 3]), ..shop.settings("killed") };
    interrupted(&shop, &settings);
    // Between the two renames of a save: the old one is aside, the new one not yet in its place.
    let kept = settings.work.join("checkpoint");
    fs::rename(&kept, settings.work.join(".checkpoint.replaced")).unwrap();
    let made = shop.make(&Settings { resume: true, ..settings.clone() });
    assert_eq!((made.steps, made.tokens), (12, 8 * settings.batch * settings.sequence));
}

#[test]
fn a_full_disk_is_named_and_ends_the_run() {
    let shop = Shop::new();
    let settings = Settings { noise: 0.0, stages: Stages([0; 3]), ..shop.settings("full") };
    fs::create_dir(&settings.work).unwrap();
    let log = settings.work.join("log.jsonl");
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let error = distill_student(&settings, &shop.text, &mut Silent).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().contains("log.jsonl") && source.contains("No space left"), "{error}: {source}");
    assert!(!settings.out.exists());
    // With room again, nothing is in the way.
    fs::remove_file(&log).unwrap();
    assert_eq!(shop.make(&settings).steps, settings.steps);
}

#[test]
fn a_checkpoint_that_the_disk_does_not_take_leaves_the_last_one_and_the_run_goes_on() {
    let shop = Shop::new();
    let (gate, out, work) = (shop.path("gate.yaml"), shop.path("student"), shop.path("student.training"));
    // Every student passes: the first run ends at its first checkpoint.
    let spec = serde_json::json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate", "metadata": {"name": "any"},
        "spec": {"probes": {"configMap": "p"}, "signals": {"cosine": {"minMean": "0.000001", "tail": {"min": "0.000001"}}}},
    });
    fs::write(&gate, spec.to_string()).unwrap();
    let run = |limit: &str, more: &[&str]| {
        // Beyond the limit a write fails as on a full disk; with the signal ignored it is an error like any other.
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
        let made = Command::new("bash")
            .args(["-c", &script, env!("CARGO_BIN_EXE_inference-worker"), "distill", "--teacher"])
            .arg(shop.path("pair/fp16"))
            .args(["--batch", "4", "--sequence", "32", "--validate", "4", "--sequences", "4", "--steps", "12"])
            .args(["--generate", "40", "--cross-entropy", "0", "--out"])
            .arg(&out)
            .args(more)
            .output()
            .unwrap();
        (made.status.success(), String::from_utf8_lossy(&made.stderr).into_owned())
    };
    let made = run("unlimited", &["--until", &gate.display().to_string()]);
    assert!(made.0, "{}", made.1);
    fs::remove_dir_all(&out).unwrap();
    let files = || -> Vec<(String, Vec<u8>)> {
        let all = fs::read_dir(work.join("checkpoint")).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> =
            all.map(|path| (path.file_name().unwrap().display().to_string(), fs::read(&path).unwrap())).collect();
        all.sort();
        all
    };
    let before = files();
    let (went, said) = run("64", &["--resume"]);
    for part in ["checkpoint is whole", "go on from it with --resume", "cannot write", "state.safetensors", "ulimit -f"]
    {
        let part = part.replace("checkpoint is", &format!("{} is", work.join("checkpoint").display()));
        assert!(!went && said.contains(&part), "{part}: {said}");
    }
    assert!(files() == before && !out.exists(), "the old checkpoint stays whole");
    let names: Vec<_> = fs::read_dir(&work).unwrap().map(|e| e.unwrap().file_name().display().to_string()).collect();
    assert!(!names.iter().any(|name| name.starts_with('.')), "half of a new one is left: {names:?}");
    let (went, said) = run("unlimited", &["--resume"]);
    assert!(went && out.join("model.safetensors").exists(), "{said}");
    assert_eq!(log(&work).last().unwrap()["step"], 12);
}

#[test]
fn epochs_on_the_command_line_show_in_the_log() {
    let shop = Shop::new();
    let text = shop.path("text.jsonl");
    let lines: Vec<String> = (0..400)
        .map(|n| serde_json::json!({"text": format!("The {n}th of them is green. Tom has a ball.")}).to_string())
        .collect();
    fs::write(&text, lines.join("\n")).unwrap();
    let run = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .args(["distill", "--batch", "8", "--sequence", "32", "--validate", "100", "--sequences", "4", "--teacher"])
            .args([&shop.path("pair/fp16"), Path::new("--data"), &text, Path::new("--out"), &shop.path("student")])
            .args(more)
            .output()
            .unwrap()
    };
    let short = run(&["--epochs", "3", "--progressive-epochs=1,2,3"]);
    let said = String::from_utf8_lossy(&short.stderr);
    assert!(!short.status.success() && said.contains("raise --epochs or lower the schedule"), "{said}");
    let steps = run(&["--steps", "3", "--progressive", "1,2,3"]);
    let said = String::from_utf8_lossy(&steps.stderr);
    assert!(!steps.status.success() && said.contains("below --steps 3"), "{said}");
    let made = run(&["--epochs", "4", "--progressive-epochs=1,2,3"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(said.contains("tokens per second; at most") && said.contains("MB of memory"), "{said}");
    let stages = ["full", "int8", "int4", "final"];
    let log = log(&shop.path("student.training"));
    for line in &log {
        assert_eq!(line["stage"], stages[line["epoch"].as_u64().unwrap() as usize], "{line}");
    }
    assert_eq!(log.last().unwrap()["epoch"], 3);
}
