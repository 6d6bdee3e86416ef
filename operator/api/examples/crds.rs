//! Writes the CustomResourceDefinitions, plain and as the chart's templates, and the reference in `docs/`:
//! `cargo run -p bitnet-api --example crds` from anywhere in the workspace.

use bitnet_api::{crds, reference};
use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, crd) in crds::files() {
        let text = format!("{}{}", crds::HEADER, serde_yaml::to_string(&crd)?);
        fs::write(root.join(&file), &text)?;
        println!("{file}: {} bytes", text.len());
    }
    fs::write(root.join(reference::FILE), reference::markdown())?;
    println!("{}", reference::FILE);
    Ok(())
}
