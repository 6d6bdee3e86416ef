//! Conversion to GGUF: the file computes what the safetensors form of the same conversion computes, bit for bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use half::bf16;
use inference_worker::engine::random::Random;
use inference_worker::model::{LoadOptions, Model, ModelConfig, ScaleRule, Step, Text, Want};
use inference_worker::workshop::convert::{Order, Phase, Storage, convert};
use inference_worker::workshop::export::{StoredTensor, write_tensors};
use inference_worker::workshop::inspect::{inspect, pair_rules};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use support::tiny_tokenizer;

const HIDDEN: usize = 128;
const INNER: usize = 256;
const VOCABULARY: usize = 260;
const LAYERS: usize = 2;

/// A plain model of widths that I2_S can hold, in bf16, with a tokenizer that GGUF can name.
fn model(dir: &Path, family: &str) {
    fs::create_dir(dir).unwrap();
    tiny_tokenizer(dir);
    let path = dir.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["pre_tokenizer"]["use_regex"] = json!(true);
    tokenizer["model"]["merges"] = json!([["t", "h"]]);
    // Every id has its token, or the tokenizer would number added ones anew.
    tokenizer["model"]["vocab"]["<eos>"] = json!(256);
    tokenizer["model"]["vocab"]["th"] = json!(257);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let bitnet = family == "bitnet";
    let config = json!({
        "model_type": family, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": INNER, "head_dim": 32,
        "max_position_embeddings": 64, "tie_word_embeddings": bitnet, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
        "bos_token_id": 256, "eos_token_id": [256, 258],
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut random = Random::from_seed(9);
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let low = if shape.len() == 1 { 0.5 } else { -0.5 };
        let values = (0..count).flat_map(|_| bf16::from_f64(low + random.unit()).to_le_bytes()).collect();
        let name = format!("{name}.weight");
        tensors.push(StoredTensor { name, dtype: Dtype::BF16, shape: shape.to_vec(), bytes: values });
    };
    add("model.embed_tokens", &[VOCABULARY, HIDDEN]);
    add("model.norm", &[HIDDEN]);
    if !bitnet {
        add("lm_head", &[VOCABULARY, HIDDEN]);
    }
    for layer in 0..LAYERS {
        let mut add = |part: &str, shape: &[usize]| add(&format!("model.layers.{layer}.{part}"), shape);
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        if bitnet {
            add("self_attn.attn_sub_norm", &[HIDDEN]);
            add("mlp.ffn_sub_norm", &[INNER]);
        }
        add("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        add("self_attn.k_proj", &[HIDDEN / 2, HIDDEN]);
        add("self_attn.v_proj", &[HIDDEN / 2, HIDDEN]);
        add("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        add("mlp.gate_proj", &[INNER, HIDDEN]);
        add("mlp.up_proj", &[INNER, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INNER]);
    }
    write_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
}

const SAFETENSORS: Storage = Storage::Safetensors { scale: ScaleRule::Multiply, shard: u64::MAX };

fn order(model: &Path, out: &Path, rules: &[&str], storage: Storage) -> Order {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Order { model: model.into(), out: out.into(), phase: None, rules, storage }
}

fn logits(dir: &Path) -> Vec<f32> {
    let model = Model::load(dir, &LoadOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| i * 7 % 250).collect();
    let mut cache = model.new_cache(tokens.len());
    let mut steps = [Step::new(&mut cache, &tokens, Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits
}

#[test]
fn the_file_computes_what_the_safetensors_form_computes() {
    let root = tempfile::tempdir().unwrap();
    for family in ["bitnet", "llama"] {
        let model_dir = root.path().join(family);
        model(&model_dir, family);
        // All ternary; binary beside ternary, also within a layer; a plain layer beside both; plain throughout.
        let cases: [&[&str]; 5] = [&[], &["mlp=binary"], &["up_proj=binary"], &["self_attn=full"], &["layers=full"]];
        for (number, rules) in cases.into_iter().enumerate() {
            let at = |form: &str| root.path().join(format!("{family}-{number}-{form}"));
            let (plain, file) = (at("safetensors"), at("gguf"));
            let one = convert(&order(&model_dir, &plain, rules, SAFETENSORS)).unwrap();
            let two = convert(&order(&model_dir, &file, rules, Storage::Gguf)).unwrap();
            assert_eq!(one.layers, two.layers);
            assert!(!file.join("config.json").exists() && file.join("model.gguf").exists());
            assert_eq!(logits(&plain), logits(&file), "{family} {rules:?}");
            // What is listed of both forms is the same but for names, and for norms, which GGUF has in f32.
            let listed = |dir: &Path| {
                let found = inspect(dir).unwrap();
                let matrices = found.tensors.iter().filter(|t| t.shape.len() == 2);
                let mut facts: Vec<_> =
                    matrices.map(|t| (t.precision, t.weights, t.zeros.to_bits(), t.broken)).collect();
                facts.sort_unstable();
                (facts, found.weights)
            };
            assert_eq!(listed(&plain), listed(&file), "{family} {rules:?}");
            let rules_of_a_pair = pair_rules(&inspect(&plain).unwrap(), &inspect(&file).unwrap());
            assert!(rules_of_a_pair.iter().all(|rule| rule.met), "{rules_of_a_pair:?}");
            let (a, b) = (ModelConfig::load(&plain).unwrap(), ModelConfig::load(&file).unwrap());
            assert_eq!((a.eos, a.bos, a.context, a.tied), (b.eos, b.bos, b.context, b.tied));
            // A packed checkpoint gives the same file as the plain one that it was packed from.
            let again = at("again");
            if one.layers.contains_key("ternary") {
                convert(&order(&plain, &again, &[], Storage::Gguf)).unwrap();
                assert_eq!(logits(&file), logits(&again), "{family} {rules:?}");
            }
        }
    }
}

#[test]
fn the_tokenizer_is_in_the_file_too() {
    let root = tempfile::tempdir().unwrap();
    let (plain, file) = (root.path().join("m"), root.path().join("gguf"));
    model(&plain, "bitnet");
    convert(&order(&plain, &file, &[], Storage::Gguf)).unwrap();
    let before = Text::load(&file).unwrap();
    fs::remove_file(file.join("tokenizer.json")).unwrap();
    fs::remove_file(file.join("chat_template.jinja")).unwrap();
    let carried = Text::load(&file).unwrap();
    for text in ["the thing, then 12 of them: über", "<eos>th  \n\n x", ""] {
        assert_eq!(before.encode(text).unwrap(), carried.encode(text).unwrap(), "{text}");
    }
    assert!(before.encode("th").unwrap().contains(&257));
    assert!(carried.has_template());
}

#[test]
fn what_the_format_cannot_hold_is_refused_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let llama = root.path().join("m");
    model(&llama, "llama");
    let out = root.path().join("out");
    let refused = |order: &Order| convert(order).unwrap_err().to_string();
    let text = refused(&order(&llama, &out, &["mlp=int4"], Storage::Gguf));
    assert!(text.contains("mlp.down_proj is to be int4") && text.contains("I2_S (ternary, binary)"), "{text}");
    // A Llama with the norms of the BitNet class is neither architecture.
    let mixed = Order { phase: Some(Phase::SubNorms), ..order(&llama, &out, &[], Storage::Gguf) };
    assert!(refused(&mixed).contains("mixes them"));
    let path = llama.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["eos_token_id"] = json!([1, 2, 3]);
    fs::write(&path, config.to_string()).unwrap();
    assert!(refused(&order(&llama, &out, &[], Storage::Gguf)).contains("3 ids that end a text"));
    let narrow = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bitnet-fp16");
    let text = refused(&order(&narrow, &out, &[], Storage::Gguf));
    assert!(text.contains("multiples of 128") || text.contains("ids that end"), "{text}");
    let names: Vec<_> = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["m"]);
}
