use super::checkout;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// The programs of this checkout, built in the release profile.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The operator.
    pub operator: PathBuf,
    /// The inference worker.
    pub worker: PathBuf,
    /// `kubectl bitnet`.
    pub kubectl_bitnet: PathBuf,
}

impl Binaries {
    /// The programs beside this one, as an earlier [`Binaries::build`] of the same run left them.
    pub fn built() -> Result<Self> {
        let here = std::env::current_exe().context("finding this program's own file")?;
        let folder =
            here.ancestors().find(|a| a.ends_with("release")).context("this program is in no folder `release`")?;
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(path.is_file(), "{} is not built", path.display());
            Ok(path)
        };
        Ok(Self {
            operator: program("operator")?,
            worker: program("inference-worker")?,
            kubectl_bitnet: program("kubectl-bitnet")?,
        })
    }

    /// Builds what has changed and says where the programs are.
    pub fn build() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(checkout())
            // The whole workspace, as every other command: a smaller selection would resolve other features and build
            // the libraries again.
            .args(["build", "--release", "--locked", "--workspace", "--bins"])
            .arg("--message-format=json-render-diagnostics")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("running cargo: install Rust (rustup) so that `cargo` is on PATH")?;
        ensure!(output.status.success(), "cargo build failed; its messages stand above");
        let messages = String::from_utf8_lossy(&output.stdout);
        let executable = |name: &str| {
            messages
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|m| m["target"]["name"] == name && m["target"]["kind"][0] == "bin")
                .filter_map(|m| m["executable"].as_str().map(PathBuf::from))
                .next_back()
                .with_context(|| format!("cargo did not say where the program `{name}` is"))
        };
        Ok(Self {
            operator: executable("operator")?,
            worker: executable("inference-worker")?,
            kubectl_bitnet: executable("kubectl-bitnet")?,
        })
    }
}
