//! What choosing a token costs: milliseconds per token of an engine whose model gives the same row of logits at once, for
//! each way of choosing.
//!
//!     cargo run --release -p inference-worker --example sampling_time -- [VOCABULARY] [BATCH] [TOKENS]
//!
//! Logits are normal with a deviation of 2.5; a row is copied for each token, which is in all figures.

use inference_worker::engine::random::Random;
use inference_worker::engine::{Class, Engine, Event, Job, Network, Options, Sampling, Turn, Work};
use std::error::Error;
use std::time::Instant;

struct Fixed(Vec<f32>);

impl Network for Fixed {
    type Cache = ();

    fn vocabulary(&self) -> usize {
        self.0.len()
    }

    fn new_cache(&self, _capacity: usize) {}

    fn fork(&self, (): &(), _len: usize, _capacity: usize) {}

    fn bytes_per_pass(&self) -> usize {
        0
    }

    fn forward(&self, turns: &mut [Turn<'_, ()>]) -> Result<(), String> {
        for turn in turns {
            for _ in turn.want {
                turn.logits.extend_from_slice(&self.0);
            }
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (vocabulary, batch, tokens) = (number(128_256)?, number(1)?, number(200)?);
    let mut random = Random::from_seed(1);
    let mut normal = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
    let logits = (0..vocabulary).map(|_| 2.5 * normal() as f32).collect();
    let engine = Engine::start(Fixed(logits), Options { max_batch: batch, ..Options::default() })?;
    let all = Sampling { temperature: 1.0, seed: Some(1), ..Sampling::GREEDY };
    println!("{vocabulary} logits, {batch} sequences, {tokens} tokens each; ms per token of all");
    for (name, sampling) in [
        ("greedy", Sampling::GREEDY),
        ("temperature 1", all),
        ("temperature 1, top-k 50", Sampling { top_k: 50, ..all }),
        ("temperature .6, top-p .9", Sampling { temperature: 0.6, top_p: 0.9, ..all }),
        ("temperature 1, top-p .9", Sampling { top_p: 0.9, ..all }),
    ] {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let begin = Instant::now();
            let (jobs, events): (Vec<_>, Vec<_>) = (0..batch).map(|_| job(sampling, tokens)).unzip();
            engine.submit_all(jobs)?;
            for mut events in events {
                while let Some(event) = events.blocking_recv() {
                    if let Event::Failed(failure) = event {
                        return Err(failure.into());
                    }
                }
            }
            best = best.min(begin.elapsed().as_secs_f64());
        }
        println!("{name:26} {:8.3}", 1e3 * best / (tokens * batch) as f64);
    }
    Ok(())
}

fn job(sampling: Sampling, max_tokens: usize) -> (Job, tokio::sync::mpsc::UnboundedReceiver<Event>) {
    let (stop, likelihood, grammar, processors) = (Vec::new(), None, None, None);
    let work = Work::Generate { max_tokens, sampling, stop, likelihood, grammar, processors };
    Job::new(Class::Live, vec![0], work, Instant::now())
}
