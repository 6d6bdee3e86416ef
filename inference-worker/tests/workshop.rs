//! The workshop from end to end, on shapes that train in seconds.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use inference_worker::workshop::corpus::{Corpus, PROMPT_TOKENS};
use inference_worker::workshop::export::{read_tensors, write_tensors};
use inference_worker::workshop::progress::Silent;
use inference_worker::workshop::recipe::{ModelShape, Recipe, Schedule, Size};
use inference_worker::workshop::{Damage, Demands, Fault, Manifest, Outcome, WorkshopError, damage, distill};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

fn tiny(seed: u64) -> Recipe {
    Recipe {
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
        shares: 4,
        teacher: Schedule { steps: 4, learning_rate: 4e-3 },
        student: Schedule { steps: 3, learning_rate: 2e-3 },
        probes: 24,
        prompts: 8,
        ..Recipe::new(Size::Small, seed)
    }
}

/// What a pair of four training steps can reach: only the export must be exact.
const LENIENT: Demands = Demands { mean: -1.0, fifth_percentile: -1.0, export: 0.9999 };

fn make(recipe: &Recipe, out: &Path, threads: usize) -> Manifest {
    match distill(recipe, &LENIENT, out, threads, false, &mut Silent).unwrap() {
        Outcome::Made(manifest) => manifest,
        Outcome::Present(_) => panic!("nothing was there"),
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A pair whose projections weigh so much that damage to them shows although it is hardly trained.
fn heavy_pair() -> (TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("pair");
    make(&tiny(5), &out, 2);
    let weights = out.join("bitnet/model.safetensors");
    let mut tensors = read_tensors(&weights).unwrap();
    for scale in tensors.iter_mut().filter(|t| t.name.ends_with("weight_scale")) {
        scale.bytes = 30f32.to_le_bytes().to_vec();
    }
    write_tensors(&weights, &tensors).unwrap();
    (root, out)
}

fn order(pair: &Path, out: &Path, fault: Fault) -> Damage {
    Damage {
        baseline: pair.join("bitnet"),
        model: pair.join("bitnet"),
        probes: pair.join("probes.jsonl"),
        fault,
        tokens: 16,
        out: out.to_path_buf(),
        threads: 2,
    }
}

#[test]
fn equal_seeds_give_equal_files_whatever_the_threads() {
    let root = tempfile::tempdir().unwrap();
    let one = make(&tiny(1), &root.path().join("one"), 1);
    let three = make(&tiny(1), &root.path().join("three"), 3);
    assert_eq!(one.files, three.files);
    assert_eq!((one.loss, one.similarity, one.export), (three.loss, three.similarity, three.export));
    let other = make(&tiny(2), &root.path().join("other"), 2);
    assert_ne!(one.files["fp16/model.safetensors"], other.files["fp16/model.safetensors"]);
    assert_ne!(one.recipe_hash, other.recipe_hash);

    // The layout that others build on.
    let dir = root.path().join("one");
    assert_eq!(entries(&dir), ["bitnet", "fp16", "manifest.json", "probes.jsonl", "prompts.jsonl"]);
    let model =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(entries(&dir.join("fp16")), model);
    assert_eq!(entries(&dir.join("bitnet")), model);
    assert_eq!(
        fs::read(dir.join("fp16/tokenizer.json")).unwrap(),
        fs::read(dir.join("bitnet/tokenizer.json")).unwrap()
    );
    let packed = read_tensors(&dir.join("bitnet/model.safetensors")).unwrap();
    let gate = packed.iter().find(|t| t.name == "model.layers.1.mlp.gate_proj.weight").unwrap();
    assert_eq!((gate.dtype, gate.shape.as_slice()), (safetensors::Dtype::U8, [6, 16].as_slice()));
}

#[test]
fn what_is_served_is_what_was_trained() {
    let root = tempfile::tempdir().unwrap();
    let manifest = make(&tiny(3), &root.path().join("pair"), 2);
    assert!(manifest.export.teacher > 0.99999, "{:?}", manifest.export);
    assert!(manifest.export.student > 0.9999, "{:?}", manifest.export);
    assert_eq!(manifest.similarity.non_finite, 0);
    // The student starts as its teacher's copy: even three steps leave it closer than chance.
    assert!(manifest.similarity.mean > 0.2, "{}", manifest.similarity);
}

#[test]
fn held_out_prompts_are_new_short_and_different() {
    let mut corpus = Corpus::new(&tiny(7)).unwrap();
    assert_eq!((corpus.probes.len(), corpus.prompts.len()), (24, 8));
    let text = corpus.documents.join("\n");
    let mut all: Vec<&str> = corpus.probes.iter().chain(&corpus.prompts).map(|p| p.prompt.as_str()).collect();
    for prompt in &all {
        assert!(!text.contains(prompt), "{prompt}");
        let tokens = corpus.tokenizer.encode(*prompt, true).unwrap();
        assert!((4..=PROMPT_TOKENS).contains(&tokens.len()) && tokens.get_ids()[0] == 0, "{prompt}");
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 32);
    assert!(corpus.leak().is_none());
    let planted = corpus.probes[5].clone();
    corpus.documents[3].push_str(&planted.prompt);
    assert_eq!(corpus.leak(), Some(&planted));
}

#[test]
fn a_pair_that_misses_its_demands_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("pair");
    let error = distill(&tiny(1), &Demands::default(), &out, 2, false, &mut Silent).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, WorkshopError::Missed(_)) && text.contains("0.985") && text.contains("--steps-student"),
        "{text}"
    );
    assert!(entries(root.path()).is_empty(), "{:?}", entries(root.path()));
}

#[test]
fn a_pair_is_made_once_and_replaced_only_by_force() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("pair");
    let made = make(&tiny(1), &out, 2);
    let again = |recipe: &Recipe, force| distill(recipe, &LENIENT, &out, 2, force, &mut Silent);
    assert_eq!(again(&tiny(1), false).unwrap(), Outcome::Present(made.clone()));

    let refused = again(&tiny(2), false).unwrap_err().to_string();
    assert!(refused.contains("--force"), "{refused}");
    fs::write(out.join("probes.jsonl"), "changed").unwrap();
    assert!(again(&tiny(1), false).unwrap_err().to_string().contains("differ from its manifest"));

    let Outcome::Made(forced) = again(&tiny(1), true).unwrap() else { panic!("force makes it again") };
    assert_eq!(forced.files, made.files);

    // A pair that another version made is out of date, not precious.
    let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
    fs::write(out.join("manifest.json"), manifest.replace(&format!("\"format\": {}", Recipe::FORMAT), "\"format\": 0"))
        .unwrap();
    assert!(matches!(again(&tiny(2), false).unwrap(), Outcome::Made(_)));

    let strange = root.path().join("strange");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("precious"), "x").unwrap();
    let refused = distill(&tiny(1), &LENIENT, &strange, 2, true, &mut Silent).unwrap_err().to_string();
    assert!(refused.contains("is not a pair"), "{refused}");
    assert_eq!(entries(&strange), ["precious"]);
}

#[test]
fn a_killed_run_leaves_no_pair_and_does_not_stop_the_next() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("pair");
    let partial = root.path().join(".pair.partial");
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_inference-worker"))
        .args(["distill", "--out"])
        .arg(&out)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if partial.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(partial.exists(), "the run never began to write");
    std::thread::sleep(Duration::from_millis(100));
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(!out.exists());
    make(&tiny(1), &out, 2);
    assert_eq!(entries(root.path()), ["pair"]);
}

#[test]
fn the_wrong_bit_order_shows() {
    let (root, pair) = heavy_pair();
    let out = root.path().join("damaged");
    let Outcome::Made(report) = damage(&order(&pair, &out, Fault::Order), &mut Silent).unwrap() else {
        panic!("nothing was there")
    };
    assert!(report.healthy.mean > 0.9999 && report.damaged.mean < 0.5, "{} {}", report.healthy, report.damaged);
    assert!(out.join("damage.json").exists());
    let (before, after) = (pair.join("bitnet/model.safetensors"), out.join("model.safetensors"));
    assert_eq!(fs::metadata(before).unwrap().len(), fs::metadata(after).unwrap().len());
    // The same order again is kept; what was changed since is made anew.
    let again = || damage(&order(&pair, &out, Fault::Order), &mut Silent).unwrap();
    assert_eq!(again(), Outcome::Present(report.clone()));
    fs::write(out.join("config.json"), "{}").unwrap();
    assert_eq!(again(), Outcome::Made(report.clone()));
    assert_eq!(entries(root.path()), ["damaged", "pair"]);
}

#[test]
fn a_zeroed_projection_shows_and_must_be_one() {
    let (root, pair) = heavy_pair();
    let out = root.path().join("damaged");
    let zero = |tensor: Option<&str>| Fault::Zero { tensor: tensor.map(String::from) };
    let report = damage(&order(&pair, &out, zero(Some("layers.1.mlp.down_proj"))), &mut Silent).unwrap().into_inner();
    assert!(report.damaged.tail >= 0.08 && report.change.contains("model.layers.1.mlp.down_proj.weight"));
    let tensors = read_tensors(&out.join("model.safetensors")).unwrap();
    let zeroed = tensors.iter().filter(|t| t.dtype == safetensors::Dtype::U8 && t.bytes.iter().all(|b| *b == 0x55));
    assert_eq!(zeroed.count(), 1);

    let elsewhere = root.path().join("elsewhere");
    for (pattern, found) in [("mlp.down_proj", "2"), ("nothing", "0")] {
        let text = damage(&order(&pair, &elsewhere, zero(Some(pattern))), &mut Silent).unwrap_err().to_string();
        assert!(text.contains(&format!("part of {found}")), "{text}");
    }
    assert_eq!(entries(root.path()), ["damaged", "pair"]);
}

#[test]
fn a_fault_that_does_not_show_leaves_nothing() {
    let (root, pair) = heavy_pair();
    // All projections are zero already: neither another order nor another zero changes anything.
    let weights = pair.join("bitnet/model.safetensors");
    let mut tensors = read_tensors(&weights).unwrap();
    tensors.iter_mut().filter(|t| t.dtype == safetensors::Dtype::U8).for_each(|t| t.bytes.fill(0x55));
    write_tensors(&weights, &tensors).unwrap();
    let out = root.path().join("damaged");
    for fault in [Fault::Order, Fault::Zero { tensor: None }] {
        let error = damage(&order(&pair, &out, fault), &mut Silent).unwrap_err();
        assert!(matches!(error, WorkshopError::Missed(_)), "{error}");
        assert_eq!(entries(root.path()), ["pair"]);
    }
}

#[test]
fn damage_refuses_what_it_cannot_break_or_must_not_replace() {
    let root = tempfile::tempdir().unwrap();
    let pair = root.path().join("pair");
    make(&tiny(1), &pair, 2);
    let out = root.path().join("damaged");
    let dense = Damage { model: pair.join("fp16"), ..order(&pair, &out, Fault::Order) };
    assert!(damage(&dense, &mut Silent).unwrap_err().to_string().contains("must hold a packed BitNet model"));
    let few = damage(&order(&pair, &out, Fault::Rope), &mut Silent).unwrap_err().to_string();
    assert!(few.contains("at least 200 prompts"), "{few}");
    let precious = order(&pair, &pair.join("fp16"), Fault::Order);
    assert!(damage(&precious, &mut Silent).unwrap_err().to_string().contains("not made by this command"));
    let missing = Damage { probes: root.path().join("none"), ..order(&pair, &out, Fault::Order) };
    assert!(matches!(damage(&missing, &mut Silent).unwrap_err(), WorkshopError::File { .. }));
    assert_eq!(entries(root.path()), ["pair"]);
}
