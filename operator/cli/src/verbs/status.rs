use crate::{
    cluster::Place,
    output::{Machine, Paint, print_machine},
    tree,
};
use anyhow::{Context, Result, bail};
use bitnet_api::v1alpha1::ModelRollout;
use futures::TryStreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use std::{io::IsTerminal, process::ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the rollout.
    name: String,
    /// Follow it until it serves or was rolled back (or for ever with `--forever`).
    #[arg(short, long)]
    watch: bool,
    /// With `--watch`: do not stop at the end of a rollout.
    #[arg(long, requires = "watch")]
    forever: bool,
    /// Exit with 3 unless the rollout serves what its spec asks for.
    #[arg(long)]
    exit_code: bool,
    /// Output: json or yaml (the status).
    #[arg(short, long, conflicts_with = "watch")]
    output: Option<Machine>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api = connection.api::<ModelRollout>();
    let mut rollout = api.get(&args.name).await.with_context(|| format!("getting ModelRollout {}", args.name))?;
    if let Some(format) = args.output {
        print_machine(format, &rollout.status.clone().unwrap_or_default())?;
    } else {
        print!("{}", tree::render(&rollout, Paint::detect()));
    }
    if args.watch {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", args.name)).timeout(45);
        let mut changes = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
        let mut shown = rollout.status.clone();
        while let Some(change) = changes.try_next().await.context("watching the rollout")? {
            if change.metadata.deletion_timestamp.is_some() {
                bail!("ModelRollout {} is being deleted", args.name);
            }
            if change.status != shown {
                // On a terminal the picture stays in one place; in a pipe every change is printed below the last.
                let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "\n" };
                print!("{clear}{}", tree::render(&change, Paint::detect()));
                shown.clone_from(&change.status);
            }
            rollout = change;
            if !args.forever && settled(&rollout) {
                break;
            }
        }
    }
    let healthy = rollout.status.as_ref().is_some_and(|s| s.phase == "Serving") && current(&rollout);
    Ok(if args.exit_code && !healthy { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// The status speaks of the spec as it is now.
fn current(rollout: &ModelRollout) -> bool {
    rollout.status.as_ref().and_then(|s| s.observed_generation) == rollout.metadata.generation
}

/// Nothing more will happen by itself.
fn settled(rollout: &ModelRollout) -> bool {
    let phase = rollout.status.as_ref().map(|s| s.phase.as_str()).unwrap_or_default();
    current(rollout) && matches!(phase, "Serving" | "RolledBack")
}
