//! `inference-worker distill`.

/// Arguments of `distill`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("distill is not built yet")
}
