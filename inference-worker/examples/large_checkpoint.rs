//! Writes a plain bf16 checkpoint of the shape of BitNet b1.58 2B-4T (4.8 GB) with random weights: what the time and the
//! memory of a conversion depend on, without a download.
//!
//!     cargo run --release -p inference-worker --example large_checkpoint -- DIR
//!     inference-worker convert DIR --out OUT

use half::bf16;
use inference_worker::engine::random::Random;
use inference_worker::workshop::export::{StoredTensor, write_json, write_tensors};
use safetensors::Dtype;
use serde_json::{Map, json};
use std::error::Error;
use std::path::PathBuf;

const HIDDEN: usize = 2560;
const INNER: usize = 6912;
const LAYERS: usize = 30;
const KEYS: usize = 640;
const VOCABULARY: usize = 128_256;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("name the directory to make")?);
    std::fs::create_dir(&dir)?;
    let config = json!({
        "model_type": "bitnet", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 20, "num_key_value_heads": 5, "hidden_act": "relu2",
        "max_position_embeddings": 4096, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "bos_token_id": 128_000, "eos_token_id": 128_001,
    });
    write_json(&dir.join("config.json"), &config)?;
    let mut index = Map::new();
    let mut random = Random::from_seed(1);
    let mut save = |name: String, tensors: Vec<StoredTensor>| {
        index.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
        write_tensors(&dir.join(&name), &tensors)
    };
    let top = vec![
        tensor(&mut random, "model.embed_tokens", &[VOCABULARY, HIDDEN]),
        tensor(&mut random, "model.norm", &[HIDDEN]),
    ];
    save("model-embedding.safetensors".to_owned(), top)?;
    for layer in 0..LAYERS {
        let parts: [(&str, &[usize]); 11] = [
            ("input_layernorm", &[HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.attn_sub_norm", &[HIDDEN]),
            ("mlp.ffn_sub_norm", &[INNER]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[KEYS, HIDDEN]),
            ("self_attn.v_proj", &[KEYS, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[INNER, HIDDEN]),
            ("mlp.up_proj", &[INNER, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INNER]),
        ];
        let all = parts.map(|(part, shape)| tensor(&mut random, &format!("model.layers.{layer}.{part}"), shape));
        save(format!("model-{layer:02}.safetensors"), all.into())?;
    }
    write_json(&dir.join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": index}))?;
    Ok(())
}

fn tensor(random: &mut Random, module: &str, shape: &[usize]) -> StoredTensor {
    let count: usize = shape.iter().product();
    let low = if shape.len() == 1 { 0.5 } else { -0.5 };
    let mut bytes = Vec::with_capacity(2 * count);
    // Four numbers of 16 random bits each at a time: the generator is not what this is about.
    while bytes.len() < 2 * count {
        let bits = random.bits();
        for part in 0..4 {
            let unit = f32::from((bits >> (16 * part)) as u16) / 65536.0;
            bytes.extend(bf16::from_f32(low + unit).to_le_bytes());
        }
    }
    bytes.truncate(2 * count);
    StoredTensor { name: format!("{module}.weight"), dtype: Dtype::BF16, shape: shape.to_vec(), bytes }
}
