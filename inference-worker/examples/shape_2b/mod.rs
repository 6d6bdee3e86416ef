//! The shape of BitNet b1.58 2B-4T, and a checkpoint of that shape on the disk, a file for each layer.

use inference_worker::workshop::export::{StoredTensor, write_json, write_tensors};
use serde_json::{Map, Value, json};
use std::error::Error;
use std::path::Path;

pub(crate) const HIDDEN: usize = 2560;
const INNER: usize = 6912;
const LAYERS: usize = 30;
const KEYS: usize = 640;
pub(crate) const VOCABULARY: usize = 128_256;

/// The norms of a layer with their widths.
pub(crate) const NORMS: [(&str, usize); 4] = [
    ("input_layernorm", HIDDEN),
    ("post_attention_layernorm", HIDDEN),
    ("self_attn.attn_sub_norm", HIDDEN),
    ("mlp.ffn_sub_norm", INNER),
];

/// The matrices of a layer with their rows and columns.
pub(crate) const MATRICES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", HIDDEN, HIDDEN),
    ("self_attn.k_proj", KEYS, HIDDEN),
    ("self_attn.v_proj", KEYS, HIDDEN),
    ("self_attn.o_proj", HIDDEN, HIDDEN),
    ("mlp.gate_proj", INNER, HIDDEN),
    ("mlp.up_proj", INNER, HIDDEN),
    ("mlp.down_proj", HIDDEN, INNER),
];

pub(crate) fn config() -> Value {
    json!({
        "model_type": "bitnet", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 20, "num_key_value_heads": 5, "hidden_act": "relu2",
        "max_position_embeddings": 4096, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "bos_token_id": 128_000, "eos_token_id": 128_001,
    })
}

/// Writes the configuration, the tensors outside the layers, those that `layer` makes of each module's prefix
/// (`model.layers.0.`), and the index.
pub(crate) fn write(
    dir: &Path,
    config: &Value,
    top: &[StoredTensor],
    mut layer: impl FnMut(&str) -> Vec<StoredTensor>,
) -> Result<(), Box<dyn Error>> {
    write_json(&dir.join("config.json"), config)?;
    let mut index = Map::new();
    let mut save = |name: String, tensors: &[StoredTensor]| {
        index.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
        write_tensors(&dir.join(&name), tensors)
    };
    save("model-embedding.safetensors".to_owned(), top)?;
    for number in 0..LAYERS {
        save(format!("model-{number:02}.safetensors"), &layer(&format!("model.layers.{number}.")))?;
    }
    write_json(&dir.join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": index}))?;
    Ok(())
}
