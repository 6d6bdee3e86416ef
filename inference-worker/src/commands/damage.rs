//! `inference-worker damage`.

/// Arguments of `damage`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("damage is not built yet")
}
