//! Writes the CustomResourceDefinitions: `cargo run -p bitnet-api --example crds` from anywhere in the workspace.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    fs::create_dir_all(&folder)?;
    for (file, crd) in bitnet_api::crds::all() {
        let text = format!("{HEADER}{}", serde_yaml::to_string(&crd)?);
        fs::write(folder.join(file), &text)?;
        println!("crds/{file}: {} bytes", text.len());
    }
    Ok(())
}

const HEADER: &str = "# Written by `cargo run -p bitnet-api --example crds`; do not edit.\n";
