//! The node: containerd, CNI and kubelet, in a cgroup of the box's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::images::{self, Contents};
use super::layout::{Layout, NODE_IP, NODE_NAME};
use super::processes::Supervisor;
use super::{command, host};

/// Starts containerd and gives it the image that every pod needs.
pub(super) fn start_runtime(supervisor: &Supervisor<'_>) -> Result<()> {
    let layout = supervisor.layout;
    let run = layout.run();
    let cni = supervisor.tools.cni()?;
    let config = layout
        .fill(include_str!("../../box/manifests/containerd.toml"))
        .replace("{cni}", cni.to_str().context("the cache's path must be UTF-8")?);
    fs::write(run.join("containerd.toml"), config)?;
    fs::create_dir_all(run.join("cni"))?;
    fs::write(run.join("cni/10-box.conflist"), layout.fill(include_str!("../../box/manifests/cni.conflist")))?;
    supervisor.start("containerd", "containerd", &["-c", "containerd.toml"])?;
    supervisor.wait("containerd", Duration::from_secs(30), |supervisor| {
        command::run(&mut supervisor.ctr(&["version"])?).map(|_| true)
    })?;
    images::load(supervisor, "pause", &Contents::program(&supervisor.tools.program("pause")?, &[])?)?;
    Ok(())
}

/// Starts kubelet; the API and the runtime answer by now.
pub(super) fn start_kubelet(supervisor: &Supervisor<'_>) -> Result<()> {
    let layout = supervisor.layout;
    let run = layout.run();
    host::save_sysctls()?;
    create_cgroup(layout)?;
    fs::write(run.join("kubelet.yaml"), layout.fill(include_str!("../../box/manifests/kubelet.yaml")))?;
    supervisor.start(
        "kubelet",
        "kubelet",
        &[
            "--config=kubelet.yaml",
            "--kubeconfig=pki/kubelet.conf",
            &format!("--root-dir={}", run.join("kubelet").display()),
            &format!("--cert-dir={}", run.join("kubelet-pki").display()),
            &format!("--hostname-override={NODE_NAME}"),
            &format!("--node-ip={NODE_IP}"),
        ],
    )
}

/// Waits until pods can be scheduled.
pub(super) fn wait_ready(supervisor: &Supervisor<'_>) -> Result<()> {
    supervisor.wait("kubelet", Duration::from_mins(1), |supervisor| {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let ready = supervisor.kubectl(&["get", "node", NODE_NAME, "-o", path])?;
        // Pods are refused until their namespace's default account exists.
        Ok(ready == "True" && supervisor.kubectl(&["get", "serviceaccount", "default"]).is_ok())
    })
}

/// The cgroup's folders: one on hosts with cgroup v2, one per controller with v1.
pub(super) fn cgroups(layout: &Layout) -> Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.join(layout.name())]);
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // "cpu" is often a link to "cpu,cpuacct": the same folder again.
        if entry.file_type()?.is_dir() {
            folders.push(entry.path().join(layout.name()));
        }
    }
    Ok(folders)
}

fn create_cgroup(layout: &Layout) -> Result<()> {
    // With v2 a folder has the controllers that its parent passes on; kubelet wants all of them.
    let root = Path::new("/sys/fs/cgroup");
    for controller in fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
        // kubelet names the controller that it misses, if one of them cannot be passed on.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    for folder in cgroups(layout)? {
        fs::create_dir_all(&folder)
            .with_context(|| format!("could not create the cgroup {}: cgroups must be writable", folder.display()))?;
        // With v1 a new cpuset is empty, and nothing can run in an empty one.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let parent = folder.parent().map(|parent| parent.join(file)).filter(|path| path.exists());
            if let Some(parent) = parent
                && !folder.join("cgroup.controllers").exists()
            {
                fs::write(folder.join(file), fs::read(parent)?)?;
            }
        }
    }
    Ok(())
}
