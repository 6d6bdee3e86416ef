//! The memory plan beside what the process takes when every sequence that it allows has filled its context, and prefixes
//! are kept: the largest number of resident bytes against the planned ones. Weights come from a cache, because making
//! them takes more memory than serving them.
//!
//!     cargo run --release -p inference-worker --example packed_checkpoint -- DIR
//!     cargo run --release -p inference-worker --example memory_plan -- DIR CACHE [CONTEXT] [SEQUENCES] [THREADS] [KV_BITS]

use inference_worker::engine::{Engine, MemoryPlan, Options};
use inference_worker::kernels::Kernels;
use inference_worker::model::{HeadMode, KvBits, LoadOptions, Model, WeightsCache, digest};
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_hours(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("name the model directory")?);
    let cache = PathBuf::from(args.next().ok_or("name the directory of the weights cache")?);
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (context, sequences, threads) = (number(512)?, number(4)?, number(2)?);
    let kv_bits: KvBits = args.next().unwrap_or_else(|| "16".to_owned()).parse()?;
    let weights_cache = WeightsCache { dir: cache, digest: digest(&dir)? };
    if !weights_cache.file(Kernels::detect().name(), HeadMode::Exact).exists() {
        return Err("the cache has no weights of this model yet: run `bench --model DIR --weights-cache CACHE`".into());
    }
    let options = LoadOptions {
        context: Some(context),
        threads: Some(threads),
        kv_bits,
        weights_cache: Some(weights_cache),
        ..LoadOptions::default()
    };
    let model = Model::load(&dir, &options)?;
    let options = Options { max_batch: sequences, prefix_tokens: Some(context), ..Options::default() };
    let plan = MemoryPlan::of(&model, &options, None)?;
    let vocabulary = model.config().vocab_size as u32;
    let engine = Engine::start(model, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let half = context / 2;
    let answer = |first: u32| {
        let prompt = (0..half as u32).map(|i| (i * 37 + 11 + first) % vocabulary).collect();
        engine.generate(prompt, context - half, Vec::new(), LIMIT)
    };
    // One whose keys and values are kept; then all at once, which begin differently.
    runtime.block_on(answer(0))?;
    let all = futures::future::join_all((1..=sequences as u32).map(answer));
    for answer in runtime.block_on(all) {
        answer?;
    }
    let (resident, peak) = (status("VmRSS:")?, status("VmHWM:")?);
    let percent = |bytes: usize| 100.0 * (bytes as f64 / plan.total() as f64 - 1.0);
    println!(
        "{context} x {sequences} at {kv_bits} bits: planned {} ({plan}), resident {resident} ({:+.1} %), peak {peak} ({:+.1} %)",
        plan.total(),
        percent(resident),
        percent(peak)
    );
    engine.close();
    while engine.is_alive() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A line of what the system says of this process, in bytes.
fn status(name: &str) -> Result<usize, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the system does not say")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<usize>()? * 1024)
}
