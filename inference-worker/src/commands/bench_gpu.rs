//! `inference-worker bench --device cuda`: the same tests as on the CPU, through what the engine uses.

use super::bench::{Args, Line, Subject, Test};
use anyhow::{Context, bail, ensure};
use inference_worker::device::{Cache, GpuKv, Runner};
use inference_worker::engine::{Network, Turn};
use inference_worker::model::LoadOptions;
use std::time::Instant;

/// One model on one GPU; lines as they come.
pub(super) fn run(
    subject: &Subject<'_>,
    args: &Args,
    tests: &[Test],
    mut take: impl FnMut(Line),
) -> anyhow::Result<()> {
    let start = Instant::now();
    // Threads are for the check against the CPU.
    let model = subject.load(&LoadOptions { threads: Some(super::cpus()), ..LoadOptions::default() })?;
    let loaded = start.elapsed();
    let precision = model.precision();
    let runner = Runner::place(model, args.device, args.gpu_kv, None)?;
    let Runner::Cuda(gpu) = &runner else { bail!("--device must be cuda or cuda:N here") };
    let placed = start.elapsed();
    // As `serve` does before it is ready: the first pass of a prompt, and the graph of one sequence.
    let mut cache = Network::new_cache(&runner, 8);
    pass(&runner, std::slice::from_mut(&mut cache), &[0, 1], true)?;
    pass(&runner, std::slice::from_mut(&mut cache), &[2], true)?;
    let ready = start.elapsed();
    eprintln!(
        "{}: in host memory after {:.2} s, on {} and checked {:.2} s later, warm {:.2} s later; {} bytes of keys and values per position",
        subject.name(),
        loaded.as_secs_f64(),
        gpu.gpu_name(),
        placed.saturating_sub(loaded).as_secs_f64(),
        ready.saturating_sub(placed).as_secs_f64(),
        gpu.kv_bytes_per_position(),
    );
    let read = gpu.read_bandwidth(args.repetitions)?;
    for test in tests {
        let samples = time(&runner, test, args)?;
        take(Line::new(
            subject.name(),
            precision,
            runner.kernel().to_owned(),
            test,
            args,
            samples,
            (Network::bytes_per_pass(&runner), runner.products_per_token()),
            (read, None, 0, if args.gpu_kv == GpuKv::Int8 { 8 } else { 16 }),
        ));
    }
    Ok(())
}

/// Tokens per second of each repetition.
fn time(runner: &Runner, test: &Test, args: &Args) -> anyhow::Result<Vec<f64>> {
    let (n_prompt, n_gen, batch, depth) = test.sizes(args);
    let room = depth + n_prompt + n_gen;
    let context = runner.config().context;
    ensure!(room <= context, "{room} positions are asked for but the model's context is {context}; ask for fewer");
    let vocabulary = runner.config().vocab_size as u32;
    let text: Vec<u32> = (0..room as u32).map(|i| (i * 37 + 11) % vocabulary).collect();
    let mut caches: Vec<Cache> = (0..batch).map(|_| Network::new_cache(runner, room)).collect();
    for cache in &mut caches {
        for tokens in text[..depth].chunks(args.chunk) {
            pass(runner, std::slice::from_mut(cache), tokens, false)?;
        }
    }
    let mut samples = Vec::with_capacity(args.repetitions);
    // The first round records graphs and grows buffers; it is not counted.
    for round in 0..=args.repetitions {
        let start = Instant::now();
        match test {
            Test::Prompt(_) => {
                let mut chunks = text.chunks(args.chunk).peekable();
                while let Some(tokens) = chunks.next() {
                    pass(runner, &mut caches, tokens, chunks.peek().is_none())?;
                }
            }
            Test::Decode { .. } => {
                for token in &text[depth..] {
                    pass(runner, &mut caches, std::slice::from_ref(token), true)?;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if round > 0 {
            samples.push(((n_prompt + n_gen) * batch) as f64 / seconds);
        }
        for cache in &mut caches {
            cache.truncate(depth);
        }
    }
    Ok(samples)
}

/// The same tokens for all sequences; logits of the last one come back to the host, as in serving.
fn pass(runner: &Runner, caches: &mut [Cache], tokens: &[u32], last: bool) -> anyhow::Result<()> {
    let want = [tokens.len() as u32 - 1];
    let want = if last { want.as_slice() } else { &[] };
    let mut turns: Vec<Turn<'_, Cache>> =
        caches.iter_mut().map(|cache| Turn { cache, tokens, want, logits: Vec::new() }).collect();
    runner.forward(&mut turns).map_err(anyhow::Error::msg).context("a pass failed")
}
