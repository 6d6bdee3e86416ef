//! Where a box keeps its files, and the names that follow from that place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::tools::hex_digest;

/// The node's address; the API server and DNS listen on it.
///
/// 198.18.0.0/15 is the benchmarking range of RFC 2544: no real network is there, so a mistake reaches nobody.
pub const NODE_IP: &str = "198.18.255.1";
/// Addresses of pods.
pub(super) const POD_CIDR: &str = "198.18.0.0/24";
/// Addresses of Services.
pub(super) const SERVICE_CIDR: &str = "198.19.0.0/16";
/// The Service `kubernetes`.
pub(super) const API_IP: &str = "198.19.0.1";
/// The only node's name.
pub const NODE_NAME: &str = "box";
/// Processes of a box carry this variable with the run folder as its value; `down` finds them by it.
pub(super) const MARKER: &str = "BITNET_BOX";

/// Unix sockets allow 107 bytes; the longest path below the box's folder takes 45.
const LONGEST_DIR: usize = 62;

/// The cache of this project: `$BITNET_CACHE`, else `$HOME/.cache/bitnet-rollouts`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BITNET_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home =
        std::env::var_os("HOME").context("neither BITNET_CACHE nor HOME is set: set BITNET_CACHE to a folder")?;
    Ok(Path::new(&home).join(".cache/bitnet-rollouts"))
}

/// The folder of one box and everything named after it.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
    name: String,
}

impl Layout {
    /// Creates the folder if it is missing: names are derived from its real path.
    pub fn at(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let bytes = dir.as_os_str().len();
        ensure!(
            bytes <= LONGEST_DIR,
            "the box's folder {} is {bytes} characters long, sockets inside allow {LONGEST_DIR}: choose a shorter --dir",
            dir.display()
        );
        let text = dir.to_str().context("the box's folder must be valid UTF-8")?;
        ensure!(!text.contains(char::is_whitespace), "the box's folder {text:?} must not contain spaces");
        let name = format!("bitnet-box-{}", &hex_digest(text.as_bytes())[..8]);
        Ok(Self { dir, name })
    }

    /// The box's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name of the network namespace, the cgroup and the CNI network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that lives and dies with the cluster.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The network namespace as a file.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.user_config("admin")
    }

    /// Logs of the cluster's own processes.
    pub fn logs(&self) -> PathBuf {
        self.run().join("log")
    }

    /// The API server's audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.log")
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.run().join("pki")
    }

    pub(super) fn user_config(&self, user: &str) -> PathBuf {
        self.pki().join(format!("{user}.conf"))
    }

    pub(super) fn pids(&self) -> PathBuf {
        self.run().join("pids")
    }

    /// Written last by `up`: the box is complete, made by these tools.
    pub(super) fn ready(&self) -> PathBuf {
        self.run().join("ready")
    }

    pub(super) fn containerd_socket(&self) -> PathBuf {
        self.run().join("containerd.sock")
    }

    /// Held by whoever starts or stops this box.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("another command starts or stops this box; waiting for {}", path.display());
            file.lock()?;
        }
        Ok(file)
    }

    /// Fills `{run}`, `{name}` and the addresses into a template.
    pub(super) fn fill(&self, template: &str) -> String {
        template
            .replace("{run}", &self.run().to_string_lossy())
            .replace("{name}", &self.name)
            .replace("{node}", NODE_IP)
            .replace("{pods}", POD_CIDR)
    }
}
