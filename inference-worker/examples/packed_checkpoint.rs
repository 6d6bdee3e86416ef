//! Writes a packed checkpoint of the shape of BitNet b1.58 2B-4T (1.2 GB) with random weights and a tokenizer that has a
//! word for each id: what the start and the memory of a server depend on, without a download.
//!
//!     cargo run --release -p inference-worker --example packed_checkpoint -- DIR
//!     inference-worker serve --model DIR --weights-cache CACHE

mod shape_2b;

use half::f16;
use inference_worker::engine::random::Random;
use inference_worker::workshop::export::StoredTensor;
use safetensors::Dtype;
use serde_json::{Map, json};
use shape_2b::{HIDDEN, MATRICES, NORMS, VOCABULARY};
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("name the directory to make")?);
    std::fs::create_dir(&dir)?;
    let mut config = shape_2b::config();
    config["quantization_config"] = json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
    });
    let words: Map<_, _> = (0..VOCABULARY).map(|id| (format!("w{id}"), json!(id))).collect();
    let bytewise = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "pre_tokenizer": bytewise, "decoder": bytewise,
        "model": {"type": "BPE", "vocab": words, "merges": []},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    let mut random = Random::from_seed(1);
    let top = [embedding(&mut random), norm("model.norm", HIDDEN)];
    shape_2b::write(&dir, &config, &top, |prefix| {
        let mut tensors: Vec<_> = NORMS.iter().map(|(part, width)| norm(&format!("{prefix}{part}"), *width)).collect();
        for (part, rows, columns) in MATRICES {
            tensors.extend(packed(&mut random, &format!("{prefix}{part}"), rows, columns));
        }
        tensors
    })
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
