//! `inference-worker serve`.

/// Arguments of `serve`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("serve is not built yet")
}
