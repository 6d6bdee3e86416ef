//! Bad model directories and bad batches: each is refused with the place, the rule and the remedy, and nothing panics.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inference_worker::model::{ForwardError, LoadError, LoadOptions, Model, Step, TensorFault, Text, Want};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::error::Error;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A healthy model directory to spoil.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn load(dir: &Path) -> Result<Model, LoadError> {
    Model::load(dir, &LoadOptions::default())
}

fn refusal(dir: &Path) -> LoadError {
    load(dir).map(|_| ()).expect_err("the model must be refused")
}

/// The whole chain, as the command line prints it.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Rewrites the weights; `None` drops a tensor.
type Stored = (Dtype, Vec<usize>, Vec<u8>);
fn rewrite(dir: &Path, change: impl Fn(&str, Stored) -> Option<Stored>, more: &[(&str, Stored)]) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    let mut new: Vec<(String, Stored)> = old
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| {
            let stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            change(&name, stored).map(|stored| (name, stored))
        })
        .collect();
    new.extend(more.iter().map(|(name, stored)| ((*name).to_owned(), stored.clone())));
    let views =
        new.iter().map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Spoils one tensor of `autobitlinear` and returns the tensor and fault that the refusal names.
fn fault_of(name: &str, change: impl Fn(Stored) -> Option<Stored>) -> TensorFault {
    let dir = copy("autobitlinear");
    rewrite(dir.path(), |found, stored| if found == name { change(stored) } else { Some(stored) }, &[]);
    match refusal(dir.path()) {
        LoadError::Tensor { tensor, fault, .. } => {
            assert_eq!(tensor, name);
            fault
        }
        other => panic!("{other:?}"),
    }
}

const PROJECTION: &str = "model.layers.1.mlp.down_proj.weight";
const SCALE: &str = "model.layers.0.self_attn.k_proj.weight_scale";

#[test]
fn missing_and_malformed_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    assert!(text(&refusal(empty.path())).contains("config.json"));
    assert!(text(&refusal(&empty.path().join("nowhere"))).contains("nowhere/config.json"));

    let dir = copy("autobitlinear");
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let said = text(&refusal(dir.path()));
    assert!(said.contains("model.safetensors") && said.contains("weights must be safetensors"), "{said}");

    let dir = copy("autobitlinear");
    fs::write(dir.path().join("config.json"), "{\"model_type\": ").unwrap();
    assert!(matches!(refusal(dir.path()), LoadError::Json { .. }));

    let dir = copy("autobitlinear");
    edit(&dir.path().join("config.json"), |config| config["model_type"] = "mamba".into());
    let said = text(&refusal(dir.path()));
    assert!(said.contains("`model_type`") && said.contains("bitnet, llama") && said.contains("mamba"), "{said}");

    let dir = copy("autobitlinear");
    edit(&dir.path().join("config.json"), |config| config["quantization_config"]["use_rms_norm"] = true.into());
    assert!(text(&refusal(dir.path())).contains("use_rms_norm"));
}

#[test]
fn a_weight_file_cut_anywhere_is_refused() {
    let dir = copy("autobitlinear");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let cuts = [0, 1, 7, 8, 9, 100, 2000, whole.len() / 2, whole.len() - 1];
    for cut in cuts {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = refusal(dir.path());
        assert!(matches!(error, LoadError::Safetensors { .. }), "cut at {cut}: {error:?}");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(matches!(refusal(dir.path()), LoadError::Safetensors { .. }), "a byte too many");
}

#[test]
fn hostile_headers_are_refused_without_allocating_what_they_claim() {
    let file = |header: &str, data: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    };
    let huge = u64::MAX;
    let cases = [
        u64::MAX.to_le_bytes().to_vec(),
        [&(1_u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        file("[]", 0),
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8),
        file(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{huge},{huge}],\"data_offsets\":[0,8]}}}}"), 8),
        file(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[{huge},{huge}]}}}}"), 8),
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8),
        file("{\"a\":{\"dtype\":\"Q9\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8),
    ];
    for (i, bytes) in cases.iter().enumerate() {
        let dir = copy("autobitlinear");
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let error = refusal(dir.path());
        assert!(matches!(error, LoadError::Safetensors { .. }), "case {i}: {error:?}");
    }
}

#[test]
fn a_configuration_of_another_size_is_refused_before_memory_is_taken() {
    for (field, value) in [
        ("num_hidden_layers", 4_000_000_u64),
        ("vocab_size", 4_000_000),
        ("intermediate_size", 4_000_000),
        ("hidden_size", 1 << 20),
    ] {
        for name in ["autobitlinear", "bitnet-fp16"] {
            let dir = copy(name);
            edit(&dir.path().join("config.json"), |config| config[field] = value.into());
            assert!(matches!(refusal(dir.path()), LoadError::Tensor { .. }), "{name} {field}");
        }
    }
}

#[test]
fn tensors_that_break_a_rule_are_named() {
    assert_eq!(fault_of(PROJECTION, |_| None), TensorFault::Missing);
    assert_eq!(fault_of("model.embed_tokens.weight", |_| None), TensorFault::Missing);
    assert_eq!(fault_of(SCALE, |_| None), TensorFault::Missing);
    assert_eq!(
        fault_of(PROJECTION, |(dtype, _, data)| Some((dtype, vec![80, 16], data))),
        TensorFault::Shape { expected: vec![16, 80], found: vec![80, 16] }
    );
    assert!(matches!(
        fault_of(PROJECTION, |(_, shape, data)| Some((Dtype::I8, shape, data))),
        TensorFault::Dtype { .. }
    ));
    assert!(matches!(
        fault_of("model.norm.weight", |(_, shape, data)| Some((Dtype::I16, shape, data))),
        TensorFault::Dtype { .. }
    ));
    // Row 2 of the packed file, third field: logical row 2 + 2 · 16.
    let code_three = |(dtype, shape, mut data): Stored| {
        data[2 * 80 + 5] |= 0b11 << 4;
        Some((dtype, shape, data))
    };
    assert_eq!(fault_of(PROJECTION, code_three), TensorFault::Code { row: 34, column: 5 });
}

#[test]
fn scales_must_be_finite_and_positive() {
    for bad in [f32::NAN, f32::INFINITY, 0.0, -0.5] {
        let bytes = half::bf16::from_f32(bad).to_le_bytes().to_vec();
        match fault_of(SCALE, move |(dtype, shape, _)| Some((dtype, shape, bytes.clone()))) {
            TensorFault::Scale(found) => assert!(found == bad || bad.is_nan() && found.is_nan()),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn weights_that_nothing_uses_are_refused() {
    let vector: Stored = (Dtype::F32, vec![64], vec![0; 256]);
    for name in ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.bias", "model.layers.2.x"] {
        let dir = copy("autobitlinear");
        rewrite(dir.path(), |_, stored| Some(stored), &[(name, vector.clone())]);
        match refusal(dir.path()) {
            LoadError::Tensor { tensor, fault: TensorFault::Unexpected, .. } => assert_eq!(tensor, name),
            other => panic!("{other:?}"),
        }
    }
    let dir = copy("autobitlinear");
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    rewrite(dir.path(), |_, stored| Some(stored), &[(name, vector)]);
    load(dir.path()).expect("frequencies are computed, and harmless");
}

#[test]
fn packed_and_full_weights_are_not_mistaken_for_each_other() {
    let dir = copy("online-bf16");
    edit(&dir.path().join("config.json"), |config| {
        config["quantization_config"]["quantization_mode"] = "offline".into();
    });
    assert!(text(&refusal(dir.path())).contains("quantization_mode online"));
    let dir = copy("autobitlinear");
    edit(&dir.path().join("config.json"), |config| {
        config["quantization_config"]["quantization_mode"] = "online".into();
    });
    assert!(text(&refusal(dir.path())).contains("quantization_mode offline"));
}

#[test]
fn a_tied_head_may_be_stored_twice_but_not_differently() {
    let dir = copy("autobitlinear");
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor("model.embed_tokens.weight").unwrap();
    let mut head: Stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    rewrite(dir.path(), |_, stored| Some(stored), &[("lm_head.weight", head.clone())]);
    load(dir.path()).unwrap();
    let dir = copy("autobitlinear");
    head.2[0] ^= 1;
    rewrite(dir.path(), |_, stored| Some(stored), &[("lm_head.weight", head)]);
    assert!(matches!(refusal(dir.path()), LoadError::Tensor { fault: TensorFault::TiedButDifferent, .. }));
}

#[test]
fn an_index_that_lies_is_refused() {
    let index = "model.safetensors.index.json";
    let shard = |n: usize| format!("model-0000{n}-of-00002.safetensors");
    let tensor = "model.norm.weight";

    let dir = copy("llama-fp16");
    edit(&dir.path().join(index), |value| {
        let other = if value["weight_map"][tensor] == shard(1) { shard(2) } else { shard(1) };
        value["weight_map"][tensor] = other.into();
    });
    assert!(matches!(refusal(dir.path()), LoadError::Tensor { fault: TensorFault::NotInShard, .. }));

    let dir = copy("llama-fp16");
    edit(&dir.path().join(index), |value| value["weight_map"][tensor] = "../../secret".into());
    let said = text(&refusal(dir.path()));
    assert!(said.contains("weight_map") && said.contains("../../secret"), "{said}");

    let dir = copy("llama-fp16");
    fs::remove_file(dir.path().join(shard(2))).unwrap();
    assert!(text(&refusal(dir.path())).contains(&shard(2)));

    let dir = copy("llama-fp16");
    fs::copy(dir.path().join(shard(1)), dir.path().join(shard(2))).unwrap();
    assert!(matches!(refusal(dir.path()), LoadError::Tensor { fault: TensorFault::Twice(_), .. }));
}

#[test]
fn the_context_can_be_lowered_and_not_raised() {
    let dir = copy("autobitlinear");
    let with = |context| Model::load(dir.path(), &LoadOptions { context: Some(context), ..LoadOptions::default() });
    let model = with(16).unwrap();
    assert_eq!((model.config().context, model.new_cache(1000).capacity()), (16, 16));
    for context in [0, 65] {
        assert!(matches!(with(context), Err(LoadError::Config { .. })), "{context}");
    }
}

#[test]
fn a_bad_step_is_refused_and_leaves_all_caches_alone() {
    let model = load(copy("autobitlinear").path()).unwrap();
    let other = load(copy("llama-fp16").path()).unwrap();
    let good = [1, 2, 3];
    let far = [3];
    let cases: [(&[u32], Want<'_>, ForwardError); 4] = [
        (&[5, 128], Want::All, ForwardError::Token { step: 1, token: 128, vocab_size: 128 }),
        (&[5; 5], Want::All, ForwardError::Capacity { step: 1, len: 0, tokens: 5, capacity: 4 }),
        (&good, Want::Positions(&far), ForwardError::Position { step: 1, position: 3, tokens: 3 }),
        (&[], Want::Positions(&[0]), ForwardError::Position { step: 1, position: 0, tokens: 0 }),
    ];
    for (tokens, want, expected) in cases {
        let (mut first, mut second) = (model.new_cache(4), model.new_cache(4));
        let mut steps = [Step::new(&mut first, &good, Want::Last), Step::new(&mut second, tokens, want)];
        assert_eq!(model.forward(&mut steps), Err(expected));
        assert!(first.is_empty() && second.is_empty());
    }
    let mut config = model.new_cache(4);
    assert_eq!(other.forward(&mut [Step::new(&mut config, &good, Want::Last)]), Ok(()), "same shape, same cache");
    let empty = &mut [Step::new(&mut config, &[], Want::Last)];
    model.forward(empty).unwrap();
    assert!(empty[0].logits.is_empty(), "no token, no logits");
    model.forward(&mut []).unwrap();
}

#[test]
fn weights_that_are_not_finite_give_logits_that_are_not_finite() {
    let dir = copy("autobitlinear");
    rewrite(
        dir.path(),
        |name, (dtype, shape, mut data)| {
            if name == "model.layers.0.mlp.ffn_sub_norm.weight" {
                data[..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
            }
            Some((dtype, shape, data))
        },
        &[],
    );
    let model = load(dir.path()).unwrap();
    let mut cache = model.new_cache(8);
    let mut steps = [Step::new(&mut cache, &[1, 2], Want::All)];
    model.forward(&mut steps).unwrap();
    assert!(steps[0].logits.iter().all(|value| value.is_nan()), "NaN must reach whoever counts it");
}

/// A word-level tokenizer with these many words.
fn tokenizer(words: usize) -> String {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..words).map(|i| (format!("w{i}"), i.into())).collect();
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    })
    .to_string()
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let dir = copy("autobitlinear");
    let load = || Text::load(dir.path()).map(|_| ()).map_err(|error| text(&error));
    assert!(load().unwrap_err().contains("tokenizer.json"));
    fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
    assert!(load().unwrap_err().contains("not a usable tokenizer"));
    fs::write(dir.path().join("tokenizer.json"), tokenizer(129)).unwrap();
    let said = load().unwrap_err();
    assert!(said.contains("id 128") && said.contains("128 rows"), "{said}");
    fs::write(dir.path().join("tokenizer.json"), tokenizer(128)).unwrap();
    load().unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{% for m in messages %}").unwrap();
    assert!(load().unwrap_err().contains("chat template does not compile"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes, loading ends with a model or a refusal.
    #[test]
    fn damaged_weight_files_never_panic(at in 0_usize..4000, byte in any::<u8>(), cut in 0_usize..40_000) {
        let dir = copy("autobitlinear");
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        fs::write(&path, bytes).unwrap();
        let _ = load(dir.path());
    }

    #[test]
    fn damaged_configurations_never_panic(at in 0_usize..560, byte in any::<u8>()) {
        let dir = copy("autobitlinear");
        let path = dir.path().join("config.json");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] = byte;
        fs::write(&path, bytes).unwrap();
        if let Ok(model) = load(dir.path()) {
            let mut cache = model.new_cache(4);
            let _ = model.forward(&mut [Step::new(&mut cache, &[1, 2], Want::Last)]);
        }
    }
}
