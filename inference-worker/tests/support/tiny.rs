//! Tiny model directories from a seed: a byte-level tokenizer and a Llama of some thousand parameters.

use inference_worker::engine::random::Random;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// 256 bytes and one end-of-text.
pub const VOCABULARY: usize = 257;
pub const EOS: u32 = 256;

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 48;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// Writes what a tokenizer needs: each byte is a token whose id is the byte.
pub fn tiny_tokenizer(dir: &Path) {
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocabulary.insert(byte_character(byte).to_string(), json!(byte));
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [{
            "id": EOS, "content": "<eos>", "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let config = json!({
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 256,
        "eos_token_id": EOS,
    });
    write(dir, "tokenizer.json", &tokenizer.to_string());
    write(dir, "config.json", &config.to_string());
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    write(dir, "chat_template.jinja", template);
}

/// GPT-2's printable stand-ins for bytes.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + before).expect("a character")
}

/// Writes a whole model whose weights depend on `seed` alone.
pub fn tiny_model(dir: &Path, seed: u64) {
    tiny_tokenizer(dir);
    let mut random = Random::from_seed(seed);
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: Vec<usize>, scale: f32| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|_| if scale == 0.0 { 1.0 } else { scale * (random.unit() as f32 - 0.5) }).collect();
        tensors.insert(name, (shape, values));
    };
    add("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN], 2.0);
    add("lm_head.weight".into(), vec![VOCABULARY, HIDDEN], 2.0);
    add("model.norm.weight".into(), vec![HIDDEN], 0.0);
    let head = HIDDEN / HEADS;
    for layer in 0..LAYERS {
        let p = format!("model.layers.{layer}");
        add(format!("{p}.input_layernorm.weight"), vec![HIDDEN], 0.0);
        add(format!("{p}.post_attention_layernorm.weight"), vec![HIDDEN], 0.0);
        add(format!("{p}.self_attn.q_proj.weight"), vec![HIDDEN, HIDDEN], 1.0);
        add(format!("{p}.self_attn.k_proj.weight"), vec![KV_HEADS * head, HIDDEN], 1.0);
        add(format!("{p}.self_attn.v_proj.weight"), vec![KV_HEADS * head, HIDDEN], 1.0);
        add(format!("{p}.self_attn.o_proj.weight"), vec![HIDDEN, HIDDEN], 1.0);
        add(format!("{p}.mlp.gate_proj.weight"), vec![INTERMEDIATE, HIDDEN], 1.0);
        add(format!("{p}.mlp.up_proj.weight"), vec![INTERMEDIATE, HIDDEN], 1.0);
        add(format!("{p}.mlp.down_proj.weight"), vec![HIDDEN, INTERMEDIATE], 1.0);
    }
    save(dir, &tensors);
}

/// Writes the model of `seed` into `dir` with one tensor changed by `change`.
pub fn damage(dir: &Path, seed: u64, tensor: &str, change: impl Fn(f32) -> f32) {
    tiny_model(dir, seed);
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("the model");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        tensors.insert(name, (view.shape().to_vec(), values.collect()));
    }
    let (_, values) = tensors.get_mut(tensor).expect("the tensor exists");
    for x in values {
        *x = change(*x);
    }
    save(dir, &tensors);
}

fn save(dir: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).expect("shape and data agree"))
    });
    let file = safetensors::serialize(views, None).expect("safetensors");
    std::fs::write(dir.join("model.safetensors"), file).expect("the temporary directory takes it");
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("the temporary directory takes it");
}
