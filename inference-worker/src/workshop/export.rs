//! Writes a trained model as a Hugging Face directory.

use super::WorkshopError;
use super::corpus::{END_OF_TEXT, END_OF_TEXT_ID};
use super::recipe::{ModelShape, RMS_EPS, ROPE_THETA};
use super::ternary::{Ternary, pack};
use super::weights::Weights;
use crate::model::LayerPrecision;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use tokenizers::Tokenizer;

/// Questions and answers as the training text has them; a system message is put in front as it is.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}Question: {{ message['content'] | trim }} \
{% elif message['role'] == 'assistant' %}Answer: {{ message['content'] | trim }} \
{% else %}{{ message['content'] | trim }} {% endif %}\
{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}";

/// Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
///
/// A full-precision model is stored as f16. A ternary one is stored packed (`autobitlinear`, offline): projections as
/// 2-bit codes with an f32 `weight_scale`, the rest as f16. Call [`Weights::round_to_stored`] before if the directory is
/// to equal the live network.
pub fn write_model(dir: &Path, weights: &Weights, tokenizer: &Tokenizer) -> Result<(), WorkshopError> {
    if let Some(p) = weights.all.iter().find(|p| !matches!(p.precision, LayerPrecision::Full | LayerPrecision::Ternary))
    {
        return Err(WorkshopError::Refused(format!(
            "{} is {} in training, which this form cannot store: finish its schedule",
            p.name,
            p.precision.name()
        )));
    }
    fs::create_dir_all(dir).map_err(WorkshopError::file("create", dir))?;
    write_json(&dir.join("config.json"), &config(&weights.shape, weights.precision()))?;
    let generation = json!({"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID, "do_sample": false});
    write_json(&dir.join("generation_config.json"), &generation)?;
    let special = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": weights.shape.context,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    write_json(&dir.join("tokenizer_config.json"), &special)?;
    tokenizer.save(dir.join("tokenizer.json"), true).map_err(WorkshopError::tokenizer("being saved"))?;
    write_tensors(&dir.join("model.safetensors"), &stored_tensors(weights))
}

/// Writes indented JSON with a final line break.
pub fn write_json(path: &Path, value: &Value) -> Result<(), WorkshopError> {
    fs::write(path, format!("{value:#}\n")).map_err(WorkshopError::file("write", path))
}

fn config(shape: &ModelShape, precision: LayerPrecision) -> Value {
    let quantization = match precision {
        LayerPrecision::Full => json!({"quant_method": "none"}),
        _ => {
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"})
        }
    };
    json!({
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "relu2",
        "rms_norm_eps": shorten(RMS_EPS),
        "rope_theta": shorten(ROPE_THETA),
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "torch_dtype": "float16",
        "quantization_config": quantization,
    })
}

/// The f64 whose decimal form is that of the f32: 1e-5, not 9.999999747378752e-6.
fn shorten(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// A tensor as a checkpoint stores it.
pub struct StoredTensor {
    /// Full name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape as stored.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

fn stored_tensors(weights: &Weights) -> Vec<StoredTensor> {
    let mut all = Vec::new();
    for p in &weights.all {
        if p.precision == LayerPrecision::Ternary {
            let ternary = Ternary::of(&p.master);
            let columns = p.dims[1];
            all.push(StoredTensor {
                name: p.name.clone(),
                dtype: Dtype::U8,
                shape: vec![p.dims[0].div_ceil(4), columns],
                bytes: pack(&ternary.weights, columns),
            });
            let name = p.name.strip_suffix(".weight").unwrap_or(&p.name);
            all.push(StoredTensor {
                name: format!("{name}.weight_scale"),
                dtype: Dtype::F32,
                shape: vec![1],
                bytes: ternary.scale.to_le_bytes().to_vec(),
            });
        } else {
            let bytes = p.master.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
            all.push(StoredTensor { name: p.name.clone(), dtype: Dtype::F16, shape: p.dims.clone(), bytes });
        }
    }
    all
}

/// Writes a safetensors file whose bytes depend on the tensors alone.
pub fn write_tensors(path: &Path, tensors: &[StoredTensor]) -> Result<(), WorkshopError> {
    let failed = |source| WorkshopError::Safetensors { path: path.to_path_buf(), source };
    let views = tensors
        .iter()
        .map(|t| Ok((t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(failed)?;
    // One key: a map of more would be written in an order that differs from run to run.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(failed)?;
    fs::write(path, bytes).map_err(WorkshopError::file("write", path))
}

/// Reads all tensors of a safetensors file, in the order of their names.
pub fn read_tensors(path: &Path) -> Result<Vec<StoredTensor>, WorkshopError> {
    let bytes = fs::read(path).map_err(WorkshopError::file("read", path))?;
    let failed = |source| WorkshopError::Safetensors { path: path.to_path_buf(), source };
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(failed)?;
    let mut all: Vec<StoredTensor> = file
        .iter()
        .map(|(name, view)| StoredTensor {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}
