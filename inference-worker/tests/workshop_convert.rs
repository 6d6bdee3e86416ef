//! Conversion of plain checkpoints: what is written loads, and computes what its weights say.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use inference_worker::compare::similarity::compare_rows;
use inference_worker::model::{KvBits, LoadOptions, Model, ScaleRule, Step, Want};
use inference_worker::workshop::WorkshopError;
use inference_worker::workshop::convert::{Converted, Order, Phase, PrecisionRule, Storage, convert};
use inference_worker::workshop::export::{StoredTensor, read_tensors, write_tensors};
use inference_worker::workshop::inspect::inspect;
use inference_worker::workshop::ternary::{Ternary, pack};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{damage, tiny_model};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn order(model: &Path, out: &Path) -> Order {
    let storage = safetensors(ScaleRule::Multiply);
    Order { model: model.into(), out: out.into(), phase: None, rules: Vec::new(), storage }
}

fn safetensors(scale: ScaleRule) -> Storage {
    Storage::Safetensors { scale, shard: u64::MAX }
}

fn rules(texts: &[&str]) -> Vec<PrecisionRule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn logits(dir: &Path) -> Vec<f32> {
    logits_of(&Model::load(dir, &LoadOptions::default()).unwrap())
}

fn logits_of(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..24).map(|i| i * 5 % model.config().vocab_size as u32).collect();
    let mut cache = model.new_cache(tokens.len());
    let mut steps = [Step::new(&mut cache, &tokens, Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits
}

fn cosine(a: &Path, b: &Path) -> f64 {
    compare_rows(&logits(a), &logits(b)).cosine
}

fn precision_of(dir: &Path, part: &str) -> Vec<&'static str> {
    inspect(dir).unwrap().tensors.iter().filter(|t| t.name.contains(part)).map(|t| t.precision).collect()
}

#[test]
fn packed_weights_equal_those_that_the_loader_makes_of_the_plain_ones() {
    let root = tempfile::tempdir().unwrap();
    // The fixture becomes ternary when it is loaded; converted, it must be the same model.
    let online = fixture("online-bf16");
    for (name, scale) in [("m", ScaleRule::Multiply), ("d", ScaleRule::Divide)] {
        let out = root.path().join(name);
        let made = convert(&Order { storage: safetensors(scale), ..order(&online, &out) }).unwrap();
        let layers = inspect(&out).unwrap().model.layers;
        assert_eq!(made.layers.into_iter().collect::<Vec<_>>(), [("ternary", 7 * layers)]);
        let (want, got) = (logits(&online), logits(&out));
        let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(worst <= 2e-5 * size, "{name}: {worst} of {size}");
    }
    let scale = |name: &str| {
        let tensors = read_tensors(&root.path().join(name).join("model.safetensors")).unwrap();
        let scale = tensors.into_iter().find(|t| t.name.ends_with("0.mlp.up_proj.weight_scale")).unwrap();
        f32::from_le_bytes(*scale.bytes.first_chunk().unwrap())
    };
    assert!((scale("m") * scale("d") - 1.0).abs() < 1e-6);
}

#[test]
fn codes_are_those_of_the_training_tools_on_any_number_of_rows() {
    // Rows that do not divide by four, and values on the border between two codes.
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("m");
    fs::create_dir(&dir).unwrap();
    tiny_model(&dir, 4);
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["intermediate_size"] = json!(46);
    fs::write(&path, config.to_string()).unwrap();
    let weights = dir.join("model.safetensors");
    let mut tensors = read_tensors(&weights).unwrap();
    for t in &mut tensors {
        if t.name.contains("mlp.") {
            let [rows, columns] = t.shape[..] else { panic!() };
            let down = t.name.contains("down_proj");
            t.shape = if down { vec![rows, 46] } else { vec![46, columns] };
            // Mean |w| is exactly 1: borders lie at one half.
            let grid = [0.5f32, -0.5, 1.5, -1.5, 0.25, 1.75, -1.0, 1.0];
            t.bytes = (0..t.shape[0] * t.shape[1]).flat_map(|i| grid[i % 8].to_le_bytes()).collect();
        }
    }
    write_tensors(&weights, &tensors).unwrap();
    let out = root.path().join("out");
    convert(&order(&dir, &out)).unwrap();
    let made = read_tensors(&out.join("model.safetensors")).unwrap();
    for t in tensors.iter().filter(|t| t.name.contains("_proj.")) {
        let values: Vec<f32> = t.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let want = Ternary::of(&values);
        let find = |name: &str| made.iter().find(|m| m.name == name).unwrap();
        assert_eq!(find(&t.name).bytes, pack(&want.weights, t.shape[1]), "{}", t.name);
        let scale = find(&t.name.replace(".weight", ".weight_scale"));
        assert_eq!(scale.bytes, want.scale.to_le_bytes(), "{}", t.name);
    }
    Model::load(&out, &LoadOptions::default()).unwrap();
}

#[test]
fn every_phase_loads_and_the_first_costs_least() {
    let root = tempfile::tempdir().unwrap();
    let model = fixture("bitnet-fp16");
    let mut costs = Vec::new();
    for (name, phase, ternary) in
        [("1", Phase::FeedForward, 3), ("2", Phase::Attention, 6), ("3", Phase::SubNorms, 7), ("4", Phase::FourBits, 7)]
    {
        let out = root.path().join(name);
        let made = convert(&Order { phase: Some(phase), ..order(&model, &out) }).unwrap();
        let found = inspect(&out).unwrap();
        assert_eq!((made.layers["ternary"], made.new_norms), (ternary * found.model.layers, 0));
        assert!(made.bytes.1 < made.bytes.0 && found.bytes == made.bytes.1);
        let served = Model::load(&out, &LoadOptions::default()).unwrap();
        assert_eq!(served.precision(), if ternary == 7 { "ternary" } else { "mixed" });
        costs.push(1.0 - cosine(&model, &out));
    }
    // The later ones are not ordered for random weights: errors of more layers may cancel.
    assert!(costs[0] > 1e-4 && costs[1..].iter().all(|cost| costs[0] < *cost), "{costs:?}");
}

#[test]
fn phase_4_is_phase_3_with_what_serving_reads() {
    let root = tempfile::tempdir().unwrap();
    let model = fixture("bitnet-fp16");
    let (third, fourth) = (root.path().join("3"), root.path().join("4"));
    convert(&Order { phase: Some(Phase::SubNorms), ..order(&model, &third) }).unwrap();
    convert(&Order { phase: Some(Phase::FourBits), ..order(&model, &fourth) }).unwrap();
    let bytes = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&third), bytes(&fourth), "weights are the same");
    let config: Value = serde_json::from_slice(&fs::read(fourth.join("config.json")).unwrap()).unwrap();
    let quantization = &config["quantization_config"];
    assert_eq!((&quantization["activation_bits"], &quantization["kv_bits"]), (&json!(4), &json!(3)));
    // More bits of the cache cannot be asked for; and it is both that make the difference.
    let at = |dir: &Path, kv_bits| {
        let model = Model::load(dir, &LoadOptions { kv_bits, ..LoadOptions::default() }).unwrap();
        (model.kv_bits(), logits_of(&model))
    };
    let made = at(&fourth, KvBits::ThirtyTwo);
    assert_eq!((made.0, &made.1), (KvBits::Three, &at(&fourth, KvBits::Sixteen).1));
    let before = at(&third, KvBits::Three);
    let cosine = compare_rows(&before.1, &made.1).cosine;
    assert!((0.5..0.9999).contains(&cosine), "{cosine}");
    assert_ne!(at(&third, KvBits::ThirtyTwo).1, before.1);
    let found = inspect(&fourth).unwrap();
    assert_eq!((found.model.activation_bits, found.model.kv_bits), (4, 3));
    assert_eq!(found.memory.kv.iter().map(|kv| kv.bits).collect::<Vec<_>>(), [3]);
    // In another form it stays what it is; a Llama becomes a BitNet as in phase 3; GGUF has no fields for it.
    let again = root.path().join("again");
    convert(&Order { storage: safetensors(ScaleRule::Divide), ..order(&fourth, &again) }).unwrap();
    assert_eq!(inspect(&again).unwrap().model.kv_bits, 3);
    let llama = root.path().join("llama");
    let made = convert(&Order { phase: Some(Phase::FourBits), ..order(&fixture("llama-fp16"), &llama) }).unwrap();
    assert!(made.new_norms > 0 && logits(&llama).iter().all(|x| x.is_finite()));
    let gguf = Order { storage: Storage::Gguf, ..order(&fourth, &root.path().join("gguf")) };
    let text = convert(&gguf).unwrap_err().to_string();
    assert!(text.contains("activations of 4 bits and keys and values of 3"), "{text}");
}

#[test]
fn a_layer_that_stays_plain_is_computed_in_float() {
    // Feed-forward weights that are ternary already: packing them changes only their activations to int8; packing
    // nothing changes nothing at all.
    let root = tempfile::tempdir().unwrap();
    let model = fixture("bitnet-fp16");
    let none = root.path().join("none");
    let made = convert(&Order { rules: rules(&["layers=full"]), ..order(&model, &none) }).unwrap();
    assert_eq!(made.layers.keys().collect::<Vec<_>>(), [&"full"]);
    assert_eq!(logits(&none), logits(&model));

    let down = root.path().join("down");
    convert(&Order { rules: rules(&["layers=full", "layers.0.mlp.down_proj=ternary"]), ..order(&model, &down) })
        .unwrap();
    assert_eq!(precision_of(&down, "down_proj.weight").iter().filter(|p| **p == "ternary").count(), 1);
    assert_eq!(
        precision_of(&down, "gate_proj.weight").iter().filter(|p| **p == "fp16").count(),
        precision_of(&down, "gate_proj.weight").len()
    );
    let one = cosine(&model, &down);
    assert!(one < 0.99999 && one > cosine_of_all(&root, &model), "{one}");
}

fn cosine_of_all(root: &TempDir, model: &Path) -> f64 {
    let out = root.path().join("all");
    convert(&order(model, &out)).unwrap();
    cosine(model, &out)
}

#[test]
fn hybrids_have_the_precision_that_their_rules_say() {
    let root = tempfile::tempdir().unwrap();
    let model = fixture("llama-fp16");
    let out = root.path().join("out");
    let rules = rules(&["mlp=binary", "self_attn=int8", "o_proj=int4"]);
    let made = convert(&Order { rules, ..order(&model, &out) }).unwrap();
    let layers = inspect(&out).unwrap().model.layers;
    let count = |n: usize| n * layers;
    let want = [("binary", count(3)), ("int4", count(1)), ("int8", count(3))];
    assert_eq!(made.layers.into_iter().collect::<Vec<_>>(), want);
    assert!(precision_of(&out, "mlp.").iter().all(|p| *p == "binary"));
    assert!(precision_of(&out, "q_proj.weight").iter().all(|p| *p == "int8"));
    assert!(precision_of(&out, "o_proj.weight").iter().all(|p| *p == "int4"));
    assert_eq!(Model::load(&out, &LoadOptions::default()).unwrap().precision(), "mixed");
    // True bytes: one, four and eight bits per weight, a factor per row or a scale.
    let (before, after) = (inspect(&model).unwrap(), inspect(&out).unwrap());
    for tensor in after.tensors.iter().filter(|t| t.name.contains("_proj.")) {
        let rows = tensor.shape[0] as u64;
        let want = match tensor.precision {
            "int8" => tensor.weights + 4 * rows,
            "int4" => tensor.weights / 2 + 4 * rows,
            _ => tensor.weights / 8 + 4,
        };
        assert_eq!(tensor.bytes, want, "{tensor:?}");
        let plain = before.tensors.iter().find(|t| t.name == tensor.name).unwrap();
        assert_eq!((&plain.shape, tensor.broken), (&tensor.shape, 0));
    }
    let whole = fs::metadata(out.join("model.safetensors")).unwrap().len();
    assert!(after.bytes < whole && whole < after.bytes + 20_000, "{} {whole}", after.bytes);
    let int8 = root.path().join("int8");
    let rules = self::rules(&["layers=int8"]);
    convert(&Order { rules, ..order(&model, &int8) }).unwrap();
    assert!(cosine(&model, &int8) > 0.995, "{}", cosine(&model, &int8));
}

#[test]
fn codes_of_integers_mean_the_weights_that_they_came_from() {
    let root = tempfile::tempdir().unwrap();
    let model = fixture("bitnet-fp16");
    let plain = all_tensors(&model);
    for (name, bits) in [("int8", 8), ("int4", 4), ("binary", 1)] {
        let out = root.path().join(name);
        convert(&Order { rules: rules(&[&format!("layers={name}")]), ..order(&model, &out) }).unwrap();
        let made = all_tensors(&out);
        let find = |name: &str| made.iter().find(|t| t.name == name).unwrap();
        for t in plain.iter().filter(|t| t.name.contains("_proj.")) {
            let [rows, columns] = t.shape[..] else { panic!() };
            let values: Vec<f32> =
                t.bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect();
            let (codes, scales) = (&find(&t.name).bytes, &find(&t.name.replace(".weight", ".weight_scale")).bytes);
            let scales: Vec<f32> = scales.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let plane = rows.div_ceil(8 / bits);
            for (row, values) in values.chunks(columns).enumerate() {
                for (column, value) in values.iter().enumerate() {
                    let byte = codes[row % plane * columns + column];
                    let code = (u32::from(byte) >> (bits * (row / plane))) & ((1 << bits) - 1);
                    let (weight, scale) = match bits {
                        8 => (f32::from(byte.cast_signed()), scales[row]),
                        4 => (code as f32 - 8.0, scales[row]),
                        _ => (2.0 * code as f32 - 1.0, scales[0]),
                    };
                    let meant = weight * scale;
                    let near = if bits == 1 { meant * value >= 0.0 } else { (meant - value).abs() <= 0.501 * scale };
                    assert!(near, "{name} {} [{row}, {column}]: {meant} for {value}", t.name);
                }
            }
        }
    }
}

fn all_tensors(dir: &Path) -> Vec<StoredTensor> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.iter().flat_map(|path| read_tensors(path).unwrap()).collect()
}

#[test]
fn sharded_in_and_out_is_one_model() {
    let root = tempfile::tempdir().unwrap();
    let model = fixture("llama-fp16");
    let (one, many) = (root.path().join("one"), root.path().join("many"));
    assert_eq!(convert(&order(&model, &one)).unwrap().files, 1);
    let storage = Storage::Safetensors { scale: ScaleRule::Multiply, shard: 20_000 };
    let made = convert(&Order { storage, ..order(&model, &many) }).unwrap();
    assert!(made.files > 2 && many.join("model.safetensors.index.json").exists());
    assert_eq!(logits(&one), logits(&many));
    assert!(!one.join("model.safetensors.index.json").exists(), "an index of the input is not copied");
}

#[test]
fn a_llama_becomes_a_bitnet_in_phase_3() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let model = fixture("llama-fp16");
    let Converted { new_norms, .. } = convert(&Order { phase: Some(Phase::SubNorms), ..order(&model, &out) }).unwrap();
    let (before, after) = (inspect(&model).unwrap().model, inspect(&out).unwrap().model);
    assert_eq!((before.class, after.class, after.activation), ("llama", "bitnet", before.activation));
    assert_eq!((after.rope_theta, after.eos, after.kv_heads), (before.rope_theta, before.eos, before.kv_heads));
    assert_eq!(new_norms, 2 * before.layers);
    assert!(logits(&out).iter().all(|x| x.is_finite()));
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("m");
    fs::create_dir(&model).unwrap();
    tiny_model(&model, 1);
    let out = root.path().join("out");
    let refused = |order: Order| convert(&order).unwrap_err().to_string();
    let with = |texts: &[&str]| refused(Order { rules: rules(texts), ..order(&model, &out) });
    assert!(with(&["embed_tokens=int8"]).contains("embed_tokens=int8 fits no linear layer"));
    assert!(with(&["q_proj=full"]).contains("self_attn.q_proj is to be full and self_attn.k_proj ternary"));
    assert!(with(&["layers=int8", "up_proj=full"]).contains("make all or none of them full"));
    let packed = refused(Order { rules: rules(&["mlp=binary"]), ..order(&fixture("autobitlinear"), &out) });
    assert!(packed.contains("is packed already"), "{packed}");
    assert!(refused(order(&model, &model)).contains("exists: choose another --out"));
    let name = "model.layers.1.mlp.up_proj.weight";
    damage(&model, 1, name, |_| f32::NAN);
    let nan = refused(order(&model, &out));
    assert!(nan.contains(name) && nan.contains("no finite numbers"), "{nan}");
    assert!(matches!(convert(&order(Path::new("/nowhere"), &out)), Err(WorkshopError::Load { .. })));
    let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["m"]);

    let run = Command::new(env!("CARGO_BIN_EXE_inference-worker"))
        .args(["convert", model.to_str().unwrap(), "--phase", "5", "--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && text.contains("5 is not in 1..=4"), "{text}");
    assert!(!out.exists());
}

#[test]
fn a_disk_that_takes_no_more_is_said_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("m");
    fs::create_dir(&model).unwrap();
    tiny_model(&model, 1);
    let out = root.path().join("out");
    // Files may have at most 32 blocks: the write of the weights fails as on a full disk.
    let script = "trap '' XFSZ; ulimit -f 32; exec \"$0\" convert \"$1\" --out \"$2\"";
    let run = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_inference-worker")])
        .args([&model, &out])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && text.contains("cannot write") && text.contains("model.safetensors"), "{text}");
    assert!(text.contains("(raise the limit of file sizes, `ulimit -f`, and run the command again)"), "{text}");
    let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["m"]);
}

#[test]
fn packed_models_are_stored_in_another_form_without_a_change() {
    let root = tempfile::tempdir().unwrap();
    for name in ["autobitlinear", "bitlinear"] {
        let model = fixture(name);
        let (there, back) = (root.path().join(format!("{name}-there")), root.path().join(format!("{name}-back")));
        let (own, other) = match inspect(&model).unwrap().model.linear {
            "packed, scale multiplies" => (ScaleRule::Multiply, ScaleRule::Divide),
            _ => (ScaleRule::Divide, ScaleRule::Multiply),
        };
        let storage = safetensors(other);
        let made = convert(&Order { storage, ..order(&model, &there) }).unwrap();
        assert_eq!(made.layers.keys().collect::<Vec<_>>(), [&"ternary"], "{name}");
        convert(&Order { storage: safetensors(own), ..order(&there, &back) }).unwrap();
        // Codes are equal bytes; a scale that was inverted twice may have lost its last bit.
        let (first, last) = (all_tensors(&model), all_tensors(&back));
        for t in first.iter().filter(|t| t.name.ends_with("_proj.weight")) {
            assert_eq!(t.bytes, last.iter().find(|l| l.name == t.name).unwrap().bytes, "{}", t.name);
        }
        let same = compare_rows(&logits(&model), &logits(&there)).cosine;
        assert!(same > 0.999_99, "{name}: {same}");
    }
}

#[test]
fn hybrids_are_stored_in_another_form_without_a_change() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    let rules = rules(&["mlp=binary", "self_attn=int8", "o_proj=int4", "layers.1.mlp.down_proj=ternary"]);
    let model = fixture("bitnet-fp16");
    let first = convert(&Order { rules, ..order(&model, &at("first")) }).unwrap();
    let storage = safetensors(ScaleRule::Divide);
    let there = convert(&Order { storage, ..order(&at("first"), &at("there")) }).unwrap();
    convert(&order(&at("there"), &at("back"))).unwrap();
    assert_eq!(first.layers, there.layers);
    let (first, last) = (all_tensors(&at("first")), all_tensors(&at("back")));
    assert_eq!(first.len(), last.len());
    for (a, b) in first.iter().zip(&last) {
        // A scale that was inverted twice may have lost its last bit.
        let scale = a.name.ends_with("_scale") && a.shape == [1];
        assert!(scale || a.bytes == b.bytes, "{}", a.name);
        assert_eq!((&a.name, a.dtype, &a.shape), (&b.name, b.dtype, &b.shape));
    }
    let same = compare_rows(&logits(&at("first")), &logits(&at("there"))).cosine;
    assert!(same > 0.999_99, "{same}");
}
