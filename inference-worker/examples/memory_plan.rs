//! The memory plan beside what the process takes once every sequence that it allows has filled its context, and prefixes
//! are kept: resident bytes against planned ones.
//!
//!     cargo run --release -p inference-worker --example memory_plan -- [SHAPE] [CONTEXT] [SEQUENCES] [THREADS] [KV_BITS]

use inference_worker::engine::{Engine, MemoryPlan, Options};
use inference_worker::model::{KvBits, LoadOptions, Model, Precision, Shape};
use std::error::Error;
use std::time::Duration;

const LIMIT: Duration = Duration::from_hours(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "2b-4t".to_owned());
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (context, sequences, threads) = (number(512)?, number(4)?, number(2)?);
    let kv_bits: KvBits = args.next().unwrap_or_else(|| "16".to_owned()).parse()?;
    let shape = Shape::find(&name).ok_or("there is no such shape")?;
    let options = LoadOptions { context: Some(context), threads: Some(threads), kv_bits, ..LoadOptions::default() };
    let model = Model::random(shape, Precision::Ternary, 1, &options)?;
    let options = Options { max_batch: sequences, prefix_tokens: context, ..Options::default() };
    let plan = MemoryPlan::of(&model, &options, None)?;
    let vocabulary = model.config().vocab_size as u32;
    let engine = Engine::start(model, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let whole = (0..sequences as u32).map(|sequence| {
        // Prompts that begin differently, and one token of answer: the context is full.
        let prompt = (0..context as u32 - 1).map(|i| (i * 37 + 11 + sequence) % vocabulary).collect();
        engine.generate(prompt, 1, Vec::new(), LIMIT)
    });
    for answer in runtime.block_on(futures::future::join_all(whole)) {
        answer?;
    }
    let (resident, peak) = (status("VmRSS:")?, status("VmHWM:")?);
    let percent = |bytes: usize| 100.0 * (bytes as f64 / plan.total() as f64 - 1.0);
    println!(
        "{name} {context} x {sequences} at {kv_bits} bits: planned {} ({plan}), resident {resident} ({:+.1} %), peak {peak} ({:+.1} %)",
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
