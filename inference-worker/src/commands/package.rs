//! `inference-worker package`.

use inference_worker::workshop::package::package;
use std::path::PathBuf;

/// Arguments of `package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model directory.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// OCI image layout directory to make; a layout that is there is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Reference name in the layout (a tag), for tools that copy by name.
    #[arg(long, default_value = "model")]
    name: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let package = package(&args.model, &args.out, &args.name)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&package)?);
        return Ok(());
    }
    let (out, name) = (args.out.display(), &args.name);
    println!("{}", package.digest);
    println!(
        "made {out}: {} files, {} bytes, model digest {}",
        package.files.len(),
        package.size,
        package.model_digest
    );
    println!("Copy it with: skopeo copy --preserve-digests oci:{out}:{name} docker://REGISTRY/REPOSITORY");
    println!("In a rollout: source: {{image: \"REGISTRY/REPOSITORY@{}\"}}", package.digest);
    Ok(())
}
