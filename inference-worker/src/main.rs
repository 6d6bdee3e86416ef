//! Command line of the inference worker.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod commands;

/// Serve BitNet and fp16 language models, compare them, and make them.
#[derive(Parser)]
#[command(name = "inference-worker", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model directory over HTTP (OpenAI API, metrics, internal port).
    Serve(commands::serve::Args),
    /// Time prompts and decoding, beside what memory and instructions of this machine allow.
    Bench(commands::bench::Args),
    /// Compare this machine's kernels, or its GPU, with the reference; exit with an error where they differ.
    Selftest(commands::selftest::Args),
    /// Measure how often the baseline would choose a model's tokens, so that the model knows how sure it is (cascade).
    Calibrate(commands::calibrate::Args),
    /// Write the logits of a token sequence as .npy: a parity tool that needs no tokenizer.
    Logits(commands::logits::Args),
    /// Make a model pair from nothing: generated text, tokenizer, fp16 teacher, ternary student, probe prompts.
    Distill(commands::distill::Args),
    /// Make a candidate with a real fault from a healthy model, and prove on the probes that the fault shows.
    Damage(commands::damage::Args),
    /// Make a BitNet checkpoint of a plain one, without data: per phase, per layer, and what it costs.
    Convert(commands::convert::Args),
    /// Say what a model directory holds (tensors, precision, sizes, memory), and whether two of them are a pair.
    Inspect(commands::inspect::Args),
    /// Say offline whether a gate would promote a candidate: the production comparison and the production judge.
    Evaluate(commands::evaluate::Args),
    /// Distil together with others whose texts stay with them: a coordinator averages what its clients learn.
    Federated(commands::federated::Args),
    /// Make an OCI image layout of a model directory, ready for an image volume.
    Package(commands::package::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => commands::serve::run(args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Selftest(args) => commands::selftest::run(&args),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Logits(args) => commands::logits::run(args),
        Command::Distill(args) => commands::distill::run(args),
        Command::Damage(args) => commands::damage::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Evaluate(args) => commands::evaluate::run(args),
        Command::Federated(args) => commands::federated::run(args),
        Command::Package(args) => commands::package::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
