//! Prints the time of one token of a model directory, on one thread: decoding at several places of the context,
//! prompts, and small batches.
//!
//!     cargo run --release -p inference-worker --example forward_time -- MODEL_DIR [more dirs] [--portable]

use inference_worker::kernels::Kernels;
use inference_worker::model::{KvCache, LoadOptions, Model, Step, Want};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const REPEATS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, dirs): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let kernels = flags.iter().any(|flag| flag == "--portable").then(Kernels::portable);
    println!("microseconds per token, fastest / median of {REPEATS}");
    for dir in &dirs {
        let model = Model::load(Path::new(dir), &LoadOptions { kernels, ..LoadOptions::default() })?;
        let config = model.config();
        let context = config.context;
        println!("{dir}: {}, {}", model.precision(), model.kernel());
        for len in [0, context / 2, context - 1] {
            println!("  decode at {len:<4} {}", time(&model, 1, len, 1)?);
        }
        for tokens in [32, context / 2] {
            println!("  prompt of {tokens:<4} {}", time(&model, 1, 0, tokens)?);
        }
        for batch in [2, 4, 8] {
            println!("  batch {batch} at {:<4} {}", context / 2, time(&model, batch, context / 2, 1)?);
        }
    }
    Ok(())
}

/// Microseconds per token of `batch` sequences that hold `len` tokens and get `tokens` more.
fn time(model: &Model, batch: usize, len: usize, tokens: usize) -> Result<String, Box<dyn Error>> {
    let vocab = model.config().vocab_size as u32;
    let text = |count: usize| -> Vec<u32> { (0..count as u32).map(|i| (i * 37 + 11) % vocab).collect() };
    let (before, new) = (text(len), text(tokens));
    let mut caches: Vec<KvCache> = (0..batch).map(|_| model.new_cache(len + tokens)).collect();
    for cache in &mut caches {
        model.forward(&mut [Step::new(cache, &before, Want::Nothing)])?;
    }
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        let start = Instant::now();
        let mut steps: Vec<Step<'_>> = caches.iter_mut().map(|cache| Step::new(cache, &new, Want::Last)).collect();
        model.forward(&mut steps)?;
        times.push(start.elapsed().as_secs_f64() * 1e6 / (batch * tokens) as f64);
        for cache in &mut caches {
            cache.truncate(len);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(format!("{:6.0} / {:.0}", times[0], times[REPEATS / 2]))
}
