//! `inference-worker distill`: a pair from nothing, or with `--teacher` a student of a model that is there.

mod student;

use anyhow::Context as _;
use inference_worker::workshop::memory;
use inference_worker::workshop::progress::Console;
use inference_worker::workshop::recipe::{Recipe, Size};
use inference_worker::workshop::{Demands, Outcome, distill};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// Arguments of `distill`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory to make: fp16/, bitnet/, probes.jsonl, prompts.jsonl, manifest.json (an equal pair is kept); with
    /// --teacher, the student.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of text, initial weights and batches: an equal seed gives equal models.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Shape of the models.
    #[arg(long, value_enum, default_value_t = Size::Small)]
    size: Size,
    /// Training steps of the fp16 model [default: the size's].
    #[arg(long, value_name = "N")]
    steps_teacher: Option<usize>,
    /// Distillation steps of the ternary model [default: the size's].
    #[arg(long, value_name = "N")]
    steps_student: Option<usize>,
    /// Threads; they do not change the result [default: the CPUs at hand].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Make the pair even if there is one, and replace one of another recipe.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    student: student::Args,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    with_quiet_tensors()?;
    let Args { out, seed, size, steps_teacher, steps_student, threads, force, student } = args;
    if student.is_asked_for() {
        anyhow::ensure!(
            steps_teacher.is_none() && steps_student.is_none() && !force,
            "--steps-teacher, --steps-student and --force belong to a pair from nothing: with --teacher, use --steps"
        );
        return student::run(student, out, seed, threads.unwrap_or_else(super::cpus).max(1));
    }
    let mut recipe = Recipe::new(size, seed);
    recipe.teacher.steps = steps_teacher.unwrap_or(recipe.teacher.steps);
    recipe.student.steps = steps_student.unwrap_or(recipe.student.steps);
    let threads = threads.unwrap_or_else(super::cpus).max(1);
    let mut progress = Console::new();
    let outcome = distill(&recipe, &Demands::default(), &out, threads, force, &mut progress)?;
    drop(progress);
    let out = out.display();
    match outcome {
        Outcome::Present(manifest) => println!("{out} holds this pair already: {}", manifest.similarity),
        Outcome::Made(manifest) => {
            println!("made {out} in {:.0} s: {}{}", manifest.seconds, manifest.similarity, memory::sentence());
            println!(
                "In a rollout: bitnet/ beside fp16/ is promoted by a gate of .95 (mean) and .90 (5th percentile), and by\n\
                 one of .985 and .95 as well."
            );
        }
    }
    Ok(())
}

/// Candle cuts its larger element-wise operations up for one pool of threads that spin while they wait. Training has
/// threads of its own above the operations: sharing the pool, they would wait for each other, and on a busy machine for
/// everybody else (measured: 45 % of the time). The pool reads its size from the environment once, so the program starts
/// itself again with one that keeps it empty.
pub(super) fn with_quiet_tensors() -> anyhow::Result<()> {
    const POOL: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let error = Command::new(program).args(std::env::args_os().skip(1)).env(POOL, "1").exec();
    Err(error).context("cannot start this program again")
}
