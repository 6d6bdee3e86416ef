//! The workshop's tools on tiny models: inspect, package, evaluate.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use inference_worker::model::digest;
use inference_worker::workshop::WorkshopError;
use inference_worker::workshop::evaluate::{Order, Verdict, evaluate};
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::inspect::{inspect, pair_rules};
use inference_worker::workshop::package::package;
use inference_worker::workshop::report::{html, markdown, picture};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{damage, tiny_model};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn model(root: &TempDir, name: &str, seed: u64) -> PathBuf {
    let dir = root.path().join(name);
    fs::create_dir(&dir).unwrap();
    tiny_model(&dir, seed);
    dir
}

fn probes(root: &TempDir) -> PathBuf {
    let line = |i: usize| json!({"id": format!("q{i}"), "prompt": format!("SECRET {i}")}).to_string();
    let lines: Vec<String> = (0..24).map(line).collect();
    let path = root.path().join("probes.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn worker(args: &[&str]) -> (Option<i32>, String) {
    let run = Command::new(env!("CARGO_BIN_EXE_inference-worker")).args(args).output().unwrap();
    (run.status.code(), String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr))
}

#[test]
fn every_tensor_is_listed_with_its_precision() {
    for (name, linear) in [
        ("autobitlinear", "packed, scale multiplies"),
        ("bitlinear", "packed, scale divides"),
        ("online-bf16", "ternary when loaded"),
        ("llama-fp16", "plain"),
    ] {
        let found = inspect(&fixture(name)).unwrap();
        assert_eq!(found.model.linear, linear, "{name}");
        assert_eq!(found.digest, digest(&fixture(name)).unwrap());
        let packed: Vec<_> = found.tensors.iter().filter(|t| t.precision == "ternary").collect();
        let projections = 7 * found.model.layers;
        assert_eq!(packed.len(), if name.ends_with("bitlinear") { projections } else { 0 }, "{name}");
        for tensor in packed {
            assert!(tensor.scale.unwrap() > 0.0 && tensor.broken == 0, "{tensor:?}");
            // Absmean rounding of normal weights leaves about .31 zeros.
            assert!((0.2..0.45).contains(&tensor.zeros), "{tensor:?}");
            assert_eq!(tensor.weights, tensor.shape.iter().product::<usize>() as u64);
        }
        let m = &found.model;
        let gate = found.tensors.iter().find(|t| t.name == "model.layers.0.mlp.gate_proj.weight").unwrap();
        assert_eq!(gate.shape, [m.ffn, m.width], "{name}");
        let kv = found.memory.kv.iter().find(|kv| kv.bits == 8).unwrap();
        assert_eq!(kv.bytes_per_token, (m.layers * 2 * m.kv_heads * m.head_dim) as f64);
        assert_eq!(found.precisions.values().map(|t| t.bytes).sum::<u64>(), found.bytes);
        assert!(found.memory.weights <= found.bytes, "{name}");
    }
}

#[test]
fn damage_to_weights_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let dir = model(&root, "m", 1);
    let name = "model.layers.1.mlp.up_proj.weight";
    damage(&dir, 1, name, |x| if x > 0.0 { f32::NAN } else { 0.0 });
    let found = inspect(&dir).unwrap();
    let tensor = found.tensors.iter().find(|t| t.name == name).unwrap();
    assert_eq!(tensor.broken + (tensor.zeros * tensor.weights as f64).round() as u64, tensor.weights);
    assert!(found.tensors.iter().filter(|t| t.name != name).all(|t| t.broken == 0));

    let weights = dir.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    let error = inspect(&dir).unwrap_err();
    assert!(matches!(error, WorkshopError::Load { .. }), "{error}");
}

#[test]
fn a_pair_is_told_from_what_is_none() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (model(&root, "a", 1), model(&root, "b", 2));
    let broken = |change: &dyn Fn(&Path)| -> Vec<&'static str> {
        let dir = root.path().join("changed");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        tiny_model(&dir, 2);
        change(&dir);
        let rules = pair_rules(&inspect(&a).unwrap(), &inspect(&dir).unwrap());
        rules.into_iter().filter(|rule| !rule.met).map(|rule| rule.field).collect()
    };
    let config = |dir: &Path, key: &str, value: Value| {
        let path = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    };
    assert!(broken(&|_| ()).is_empty());
    assert_eq!(broken(&|dir| fs::write(dir.join("chat_template.jinja"), "x").unwrap()), ["chatTemplate"]);
    assert_eq!(broken(&|dir| config(dir, "eos_token_id", json!(7))), ["eos"]);
    assert_eq!(broken(&|dir| config(dir, "max_position_embeddings", json!(255))), ["context"]);
    assert!(broken(&|dir| config(dir, "max_position_embeddings", json!(300))).is_empty(), "longer is fine");
    let tokenizer = |dir: &Path| {
        fs::write(dir.join("tokenizer.json"), fs::read_to_string(dir.join("tokenizer.json")).unwrap() + " ").unwrap();
    };
    assert_eq!(broken(&tokenizer), ["tokenizer"]);
    assert_eq!(broken(&|dir| fs::remove_file(dir.join("tokenizer.json")).unwrap()), ["tokenizer", "chatTemplate"]);

    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let (status, text) = worker(&["inspect", a, b, "-o", "json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &value["comparable"]), (Some(0), &json!(true)));
    assert_eq!(value["baseline"]["tensors"].as_array().unwrap().len(), 2 + 9 * 2 + 1);
    let changed = root.path().join("changed");
    let (status, text) = worker(&["inspect", a, changed.to_str().unwrap(), "--summary"]);
    assert!(status == Some(1) && text.contains("tokenizer     DIFFERS") && text.contains("NotComparable"), "{text}");
    let (status, text) = worker(&["inspect", b, "-o", "yaml"]);
    assert!(status == Some(0) && text.contains("precision: fp32"), "{text}");
    let (status, text) = worker(&["inspect", "/nowhere"]);
    assert!(status == Some(1) && text.contains("/nowhere"), "{text}");
}

fn blob(layout: &Path, digest: &str) -> Vec<u8> {
    let hex = digest.strip_prefix("sha256:").unwrap();
    let bytes = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
    assert_eq!(format!("{:x}", Sha256::digest(&bytes)), hex);
    bytes
}

#[test]
fn a_layout_holds_the_model_and_its_digest_depends_on_the_files_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = model(&root, "m", 3);
    fs::create_dir(dir.join("extra")).unwrap();
    fs::write(dir.join("extra/note"), "x").unwrap();
    // As in a hub's cache: a link to a file elsewhere.
    fs::rename(dir.join("tokenizer.json"), root.path().join("blob")).unwrap();
    std::os::unix::fs::symlink(root.path().join("blob"), dir.join("tokenizer.json")).unwrap();
    let out = root.path().join("image");
    let made = package(&dir, &out, "v1").unwrap();

    let index: Value = serde_json::from_slice(&fs::read(out.join("index.json")).unwrap()).unwrap();
    let entry = &index["manifests"][0];
    assert_eq!(
        (entry["digest"].as_str(), &entry["annotations"]["org.opencontainers.image.ref.name"]),
        (Some(made.digest.as_str()), &json!("v1"))
    );
    let manifest = blob(&out, &made.digest);
    assert_eq!(entry["size"], json!(manifest.len()));
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let config: Value = serde_json::from_slice(&blob(&out, manifest["config"]["digest"].as_str().unwrap())).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([made.layer]));
    let layer = blob(&out, &made.layer);
    assert_eq!(manifest["layers"][0]["size"], json!(layer.len()));

    let unpacked = root.path().join("unpacked");
    tar::Archive::new(layer.as_slice()).unpack(&unpacked).unwrap();
    assert_eq!(digest(&unpacked).unwrap(), made.model_digest);
    assert_eq!(digest(&dir).unwrap(), made.model_digest);
    assert_eq!(made.files, ["chat_template.jinja", "config.json", "extra/note", "model.safetensors", "tokenizer.json"]);
    for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
        let header = entry.unwrap().header().clone();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
        assert_eq!(header.mode().unwrap() & 0o444, 0o444, "everyone may read it");
    }

    // A copy made at another time gives the same image; another byte another one; a layout is replaced.
    assert_eq!(package(&unpacked, &root.path().join("again"), "v1").unwrap().digest, made.digest);
    fs::write(unpacked.join("extra/note"), "y").unwrap();
    assert_ne!(package(&unpacked, &out, "v1").unwrap().digest, made.digest);
    let (status, text) = worker(&["package", dir.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(status == Some(0) && text.starts_with(&made.digest), "{text}");
}

#[test]
fn what_is_no_model_or_no_place_is_not_packaged() {
    let root = tempfile::tempdir().unwrap();
    let dir = model(&root, "m", 3);
    let out = root.path().join("image");
    let refused = |model: &Path, out: &Path, name: &str| package(model, out, name).unwrap_err().to_string();
    assert!(refused(&dir, &out, "a/b").contains("--name"));
    assert!(refused(&dir, &dir.join("image"), "m").contains("must not lie in the model directory"));
    fs::create_dir(root.path().join("full")).unwrap();
    fs::write(root.path().join("full/precious"), "x").unwrap();
    assert!(refused(&dir, &root.path().join("full"), "m").contains("is no image layout"));
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert!(refused(&dir, &out, "m").contains("does not load"));
    let mut names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["full", "m"], "nothing is left");
}

fn order(root: &TempDir, baseline: &Path, candidate: &Path) -> Order {
    Order {
        baseline: baseline.to_path_buf(),
        candidate: candidate.to_path_buf(),
        probes: probes(root),
        gate: read_gate(None).unwrap(),
        rollouts: 20,
        threads: 2,
    }
}

#[test]
fn a_model_is_promoted_beside_itself_and_another_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (model(&root, "a", 1), model(&root, "b", 2));
    let same = evaluate(&order(&root, &a, &a)).unwrap();
    let measured = same.measured.as_ref().unwrap();
    assert_eq!((same.verdict, measured.rollouts.promoted), (Verdict::Promoted, 1.0));
    assert!((measured.similarity.mean - 1.0).abs() < 1e-9 && measured.floor.mean > 0.9999, "{}", measured.floor);
    assert_eq!((measured.prompts.len(), measured.similarity.prompts), (24, 24));

    let other = evaluate(&order(&root, &a, &b)).unwrap();
    assert_eq!(other.verdict, Verdict::RolledBack);
    let measured = other.measured.as_ref().unwrap();
    assert!(measured.prompts.windows(2).all(|p| p[0].cosine <= p[1].cosine), "the worst come first");
    let mean = measured.prompts.iter().map(|p| p.cosine).sum::<f64>() / 24.0;
    assert!((mean - measured.similarity.mean).abs() < 1e-9, "prompts and summary are one comparison");

    // Reports name prompts by id, and show their texts only where asked.
    let texts: Vec<String> = (0..24).map(|i| format!("SECRET {i} <b>|")).collect();
    for (plain, full) in [
        (markdown(&other, "p.svg", None), markdown(&other, "p.svg", Some(&texts))),
        (html(&other, None), html(&other, Some(&texts))),
    ] {
        assert!(plain.contains(&measured.prompts[0].id) && !plain.contains("SECRET"), "{plain}");
        assert!(full.contains("SECRET") && full.contains("&lt;b&gt;") && !full.contains("<b>"));
    }
    assert!(picture(&other).unwrap().starts_with("<svg"));
    assert!(!serde_json::to_string(&other).unwrap().contains("SECRET"));
}

#[test]
fn the_exit_status_tells_the_verdict() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (model(&root, "a", 1), model(&root, "b", 2));
    let probes = probes(&root);
    let report = root.path().join("report.md");
    let run = |candidate: &Path, more: &[&str]| {
        let mut args = vec!["evaluate", "--baseline", a.to_str().unwrap(), "--rollouts", "8"];
        args.extend(["--candidate", candidate.to_str().unwrap(), "--probes", probes.to_str().unwrap()]);
        args.extend(more);
        worker(&args)
    };
    let (status, text) = run(&a, &["--report", report.to_str().unwrap()]);
    assert!(status == Some(0) && text.starts_with("promoted:"), "{text}");
    assert!(fs::read_to_string(&report).unwrap().contains("(report.svg)") && root.path().join("report.svg").exists());
    assert_eq!(run(&b, &[]).0, Some(10));

    // With ten seconds of evidence nothing can be known.
    let gate = root.path().join("gate.yaml");
    let short = "kind: QualityGate\nspec: {probes: {configMap: p}, interval: 10s, deadline: 10s}\n";
    fs::write(&gate, short).unwrap();
    assert_eq!(run(&a, &["--gate", gate.to_str().unwrap()]).0, Some(11));

    fs::write(b.join("chat_template.jinja"), "another").unwrap();
    let (status, text) = run(&b, &["--report", report.to_str().unwrap()]);
    assert!(status == Some(12) && text.contains("chatTemplate"), "{text}");
    assert!(fs::read_to_string(&report).unwrap().contains("not comparable"));

    for (more, part) in [(["--report", "x.pdf"], ".md, .html or .json"), (["--gate", "/nowhere.yaml"], "/nowhere.yaml")]
    {
        let (status, text) = run(&a, &more);
        assert!(status == Some(1) && text.contains(part), "{text}");
    }
    fs::write(&probes, "no json SECRET").unwrap();
    let (status, text) = run(&a, &[]);
    assert!(status == Some(1) && text.contains("line 1") && !text.contains("SECRET"), "{text}");
    fs::write(&probes, json!({"prompt": "x".repeat(300)}).to_string()).unwrap();
    let (status, text) = run(&a, &[]);
    assert!(status == Some(1) && text.contains("probe 1 must have from 1 to 255 tokens"), "{text}");
}
