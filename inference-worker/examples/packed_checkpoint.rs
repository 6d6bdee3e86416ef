//! Writes a packed checkpoint of the shape of BitNet b1.58 2B-4T (1.2 GB) with random weights and a tokenizer that has a
//! word for each id: what the start and the memory of a server depend on, without a download.
//!
//!     cargo run --release -p inference-worker --example packed_checkpoint -- DIR
//!     inference-worker serve --model DIR --weights-cache CACHE

use half::f16;
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
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        },
    });
    write_json(&dir.join("config.json"), &config)?;
    let words: Map<_, _> = (0..VOCABULARY).map(|id| (format!("w{id}"), json!(id))).collect();
    let bytewise = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "pre_tokenizer": bytewise, "decoder": bytewise,
        "model": {"type": "BPE", "vocab": words, "merges": []},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    let mut index = Map::new();
    let mut random = Random::from_seed(1);
    let mut save = |name: String, tensors: Vec<StoredTensor>| {
        index.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
        write_tensors(&dir.join(&name), &tensors)
    };
    let top = vec![embedding(&mut random), norm("model.norm", HIDDEN)];
    save("model-embedding.safetensors".to_owned(), top)?;
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let mut tensors = vec![
            norm(&name("input_layernorm"), HIDDEN),
            norm(&name("post_attention_layernorm"), HIDDEN),
            norm(&name("self_attn.attn_sub_norm"), HIDDEN),
            norm(&name("mlp.ffn_sub_norm"), INNER),
        ];
        for (part, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KEYS, HIDDEN),
            ("self_attn.v_proj", KEYS, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            tensors.extend(packed(&mut random, &name(part), rows, columns));
        }
        save(format!("model-{layer:02}.safetensors"), tensors)?;
    }
    write_json(&dir.join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": index}))?;
    Ok(())
}

fn norm(module: &str, width: usize) -> StoredTensor {
    let bytes = std::iter::repeat_n(f16::ONE.to_le_bytes(), width).flatten().collect();
    StoredTensor { name: format!("{module}.weight"), dtype: Dtype::F16, shape: vec![width], bytes }
}

/// Magnitudes from 1/64 to 1/32, either sign.
fn embedding(random: &mut Random) -> StoredTensor {
    let mut bytes = Vec::with_capacity(2 * VOCABULARY * HIDDEN);
    while bytes.len() < 2 * VOCABULARY * HIDDEN {
        let bits = random.bits();
        bytes.extend((bits & 0x83ff_83ff_83ff_83ff | 0x2400_2400_2400_2400).to_le_bytes());
    }
    let (name, shape) = ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]);
    StoredTensor { name, dtype: Dtype::F16, shape, bytes }
}

/// Codes of 2 bits and a scale that keeps the size of what goes through.
fn packed(random: &mut Random, module: &str, rows: usize, columns: usize) -> [StoredTensor; 2] {
    let count = rows / 4 * columns;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        let bits = random.bits();
        // Where both bits of a code are set, which no code has, the upper one goes: code 1, weight 0.
        let both = bits & (bits >> 1) & 0x5555_5555_5555_5555;
        bytes.extend((bits & !(both << 1)).to_le_bytes());
    }
    bytes.truncate(count);
    let scale = (columns as f32 / 2.0).sqrt().recip();
    [
        StoredTensor { name: format!("{module}.weight"), dtype: Dtype::U8, shape: vec![rows / 4, columns], bytes },
        StoredTensor {
            name: format!("{module}.weight_scale"),
            dtype: Dtype::F32,
            shape: vec![1],
            bytes: scale.to_le_bytes().to_vec(),
        },
    ]
}
