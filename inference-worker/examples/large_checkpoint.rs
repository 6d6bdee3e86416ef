//! Writes a plain bf16 checkpoint of the shape of BitNet b1.58 2B-4T (4.8 GB) with random weights: what the time and the
//! memory of a conversion depend on, without a download.
//!
//!     cargo run --release -p inference-worker --example large_checkpoint -- DIR
//!     inference-worker convert DIR --out OUT

mod shape_2b;

use half::bf16;
use inference_worker::engine::random::Random;
use inference_worker::workshop::export::StoredTensor;
use safetensors::Dtype;
use shape_2b::{HIDDEN, MATRICES, NORMS, VOCABULARY};
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("name the directory to make")?);
    std::fs::create_dir(&dir)?;
    let mut random = Random::from_seed(1);
    let top = [
        tensor(&mut random, "model.embed_tokens", &[VOCABULARY, HIDDEN]),
        tensor(&mut random, "model.norm", &[HIDDEN]),
    ];
    shape_2b::write(&dir, &shape_2b::config(), &top, |prefix| {
        let norms = NORMS.iter().map(|(part, width)| (part, vec![*width]));
        let matrices = MATRICES.iter().map(|(part, rows, columns)| (part, vec![*rows, *columns]));
        norms.chain(matrices).map(|(part, shape)| tensor(&mut random, &format!("{prefix}{part}"), &shape)).collect()
    })
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
