//! A real one-node Kubernetes, built from pinned source and run from one folder, in one network namespace.
//!
//! Nothing is simulated: etcd, API server, controllers, scheduler, kubelet, containerd, kube-proxy, CoreDNS and Envoy
//! Gateway are the released ones, and models are mounted as image volumes. The box touches no network but its own and
//! leaves nothing behind. One cluster serves one test run; each test takes a namespace.
//!
//! ```no_run
//! use e2e::cluster::{Cluster, Config, Progress};
//!
//! fn main() -> anyhow::Result<()> {
//!     // Before any thread or runtime starts: this process runs again from here, inside the box's network.
//!     let cluster = Cluster::up(&Config::default_place()?, &Progress::visible())?;
//!     cluster.enter_netns()?;
//!     // From here on, addresses of pods, Services and gateways are plain sockets.
//!     let image = cluster.load_image("operator", "target/release/operator".as_ref(), &[])?;
//!     println!("{}", image.pinned());
//!     Ok(())
//! }
//! ```
//!
//! Invariants: everything is below one folder or found from it; `down` needs nothing of the cluster to work; nothing
//! is fetched at `up`, so it works without a network once the tools are built.

mod audit;
mod command;
mod control_plane;
mod down;
mod gateway;
mod host;
mod images;
mod layout;
mod netns;
mod node;
mod pki;
mod prerequisites;
mod processes;
mod progress;
mod tools;
mod up;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use audit::AuditEvent;
pub use images::{IMAGE_USER, ImageRef, image_size, publish_model, publish_program};
pub use layout::{Layout, NODE_IP, NODE_NAME, cache_dir};
pub use pki::USERS;
pub use processes::{Process, pids};
pub use progress::Progress;
pub use tools::Tools;

use images::Contents;
use processes::Supervisor;

/// Which box, and what is in it.
#[derive(Debug, Clone)]
pub struct Config {
    /// The box's folder; two folders are two boxes that can stand side by side.
    pub dir: PathBuf,
    /// Whether to install Envoy Gateway with GatewayClass `eg`.
    pub gateway: bool,
}

impl Config {
    /// The box that everybody uses: `$BITNET_CACHE/box`, with the gateway.
    pub fn default_place() -> Result<Self> {
        Ok(Self::at(cache_dir()?.join("box")))
    }

    /// A box in another folder.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), gateway: true }
    }
}

/// A box that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    tools: Tools,
}

impl Cluster {
    /// Brings the box up, or returns at once if it is; what an interrupted or broken `up` left is removed first.
    pub fn up(config: &Config, progress: &Progress) -> Result<Self> {
        let layout = Layout::at(&config.dir)?;
        prerequisites::for_cluster(layout.dir())?;
        let tools = Tools::ensure(progress)?;
        let cluster = Self { layout, tools };
        let _lock = cluster.layout.lock()?;
        if up::is_up(&cluster.layout, &cluster.tools)? {
            return Ok(cluster);
        }
        if down::assert_gone(&cluster.layout).is_err() {
            progress.stage("remains of an earlier box removed", || down::down(&cluster.layout))?;
        }
        up::up(&cluster.layout, &cluster.tools, config.gateway, progress)?;
        Ok(cluster)
    }

    /// The box in that folder if it is up, an error otherwise; starts nothing.
    pub fn attach(config: &Config) -> Result<Self> {
        let layout = Layout::at(&config.dir)?;
        let tools = Tools::ensure(&Progress::visible())?;
        if !up::is_up(&layout, &tools)? {
            bail!("the box at {} is not up: run `cargo box up`", layout.dir().display());
        }
        Ok(Self { layout, tools })
    }

    /// Takes down whatever is in that folder: a box, a broken one, or nothing. Complete, or an error says what is left.
    pub fn down_at(config: &Config) -> Result<()> {
        let layout = Layout::at(&config.dir)?;
        let _lock = layout.lock()?;
        down::down(&layout)
    }

    /// Takes this box down. A caller inside its network namespace stays alive, but nothing answers there any more.
    pub fn down(&self) -> Result<()> {
        let _lock = self.layout.lock()?;
        down::down(&self.layout)
    }

    /// Fails with a list if any process, mount, cgroup, namespace or file of the box in that folder is left.
    pub fn assert_gone(config: &Config) -> Result<()> {
        down::assert_gone(&Layout::at(&config.dir)?)
    }

    /// Where the box keeps its files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The box's programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The processes that make up the cluster (not its pods).
    pub fn processes(&self) -> Result<Vec<Process>> {
        processes::list(&self.layout)
    }

    /// Puts this process into the box's network by running it again from the start with the same arguments.
    ///
    /// Call it early in `main`, before threads, sockets or a runtime exist: they do not survive. The second run finds
    /// itself inside and returns.
    pub fn enter_netns(&self) -> Result<()> {
        netns::enter(&self.layout)
    }

    /// Fails at once, with the remedy, where this machine lacks something that a box needs; builds its tools once.
    pub fn prerequisites(config: &Config, progress: &Progress) -> Result<()> {
        prerequisites::for_cluster(Layout::at(&config.dir)?.dir())?;
        Tools::ensure(progress).map(drop)
    }

    /// Whether this process is already in the network of the box in that folder: the second run of `enter_netns`.
    pub fn entered(config: &Config) -> bool {
        Layout::at(&config.dir).is_ok_and(|layout| netns::is_inside(&layout))
    }

    /// A command inside the box's network, with `KUBECONFIG` and the box's tools on `PATH`; works from anywhere.
    pub fn command_in(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = netns::inside(&self.layout, program, &[]);
        command.env("KUBECONFIG", self.kubeconfig()).env("PATH", self.tools.search_path()?);
        Ok(command)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// The kubeconfig of one of [`USERS`]; all but `admin` have no rights until a test binds some.
    pub fn user(&self, name: &str) -> Result<PathBuf> {
        if !USERS.contains(&name) {
            bail!("there is no user {name:?} in the box, only {}: add it to the accounts in pki.rs", USERS.join(", "));
        }
        Ok(self.layout.user_config(name))
    }

    /// A client for the administrator; the caller must be inside the box's network.
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_as("admin").await
    }

    /// A client for one of [`USERS`]; the caller must be inside the box's network.
    pub async fn client_as(&self, user: &str) -> Result<kube::Client> {
        if !netns::is_inside(&self.layout) {
            bail!("this process is outside the box's network: call `enter_netns` at the start of main");
        }
        let kubeconfig = Kubeconfig::read_from(self.user(user)?)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Runs `kubectl` as the administrator and returns what it prints.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.supervisor().kubectl(args)
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.supervisor().apply(manifest)
    }

    /// Runs `helm` as the administrator and returns what it prints.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        command::run(&mut self.supervisor().helm_command(args)?)
    }

    /// Makes an image of a program, its shared libraries and more files (source, path in the image), and loads it.
    pub fn load_image(&self, name: &str, binary: &Path, files: &[(PathBuf, String)]) -> Result<ImageRef> {
        images::load(&self.supervisor(), name, &Contents::program(binary, files)?)
    }

    /// Makes an image whose root holds a model's files, to be mounted as an image volume, and loads it.
    pub fn load_model(&self, name: &str, dir: &Path) -> Result<ImageRef> {
        images::load(&self.supervisor(), name, &Contents::folder(dir)?)
    }

    /// All writes at the API server that arrived at `since` or later.
    pub fn audit_writes(&self, since: Timestamp) -> Result<Vec<AuditEvent>> {
        audit::writes(&self.layout.audit_log(), since)
    }

    /// Waits until the Gateway is programmed and returns where its first listener answers, inside the box's network.
    pub fn gateway_address(&self, namespace: &str, gateway: &str) -> Result<SocketAddr> {
        gateway::address(&self.supervisor(), namespace, gateway, up::GATEWAY_LIMIT)
    }

    /// Gives the node that many `nvidia.com/gpu`; the scheduler counts them like real ones.
    pub fn set_gpus(&self, count: u32) -> Result<()> {
        // kubelet copies capacity to what can be allocated at its next report only.
        let gpus = format!(r#"{{"nvidia.com/gpu":"{count}"}}"#);
        let patch = format!(r#"{{"status":{{"capacity":{gpus},"allocatable":{gpus}}}}}"#);
        self.kubectl(&["patch", "node", NODE_NAME, "--subresource=status", "--type=merge", "-p", &patch])
            .map(drop)
            .context("could not add GPUs to the node")
    }

    fn supervisor(&self) -> Supervisor<'_> {
        Supervisor { layout: &self.layout, tools: &self.tools }
    }
}
