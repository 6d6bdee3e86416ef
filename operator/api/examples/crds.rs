//! Writes the CustomResourceDefinitions, plain and as the chart's templates:
//! `cargo run -p bitnet-api --example crds` from anywhere in the workspace.

use bitnet_api::crds;
use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (file, crd) in crds::files() {
        let text = format!("{}{}", crds::HEADER, serde_yaml::to_string(&crd)?);
        fs::write(root.join(&file), &text)?;
        println!("{file}: {} bytes", text.len());
    }
    Ok(())
}
