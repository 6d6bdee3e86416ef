//! `inference-worker logits`.

/// Arguments of `logits`.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("logits is not built yet")
}
