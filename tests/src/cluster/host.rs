//! The few things that a node changes outside its folder and namespaces, and how they are put back.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::layout::Layout;

/// The settings as they were before the first box; shared by all boxes, and gone with a reboot like the settings.
const SAVED: &str = "/run/bitnet-box-sysctls";
/// kubelet's socket for device plugins: the one path that it does not let us move.
const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";
/// Kernel settings that kubelet sets for the whole host.
const SYSCTLS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Remembers the settings; values from an earlier, crashed box stand, because they are the original ones.
pub(super) fn save_sysctls() -> Result<()> {
    if Path::new(SAVED).exists() {
        return Ok(());
    }
    let mut saved = String::new();
    for name in SYSCTLS {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            writeln!(saved, "{name} {}", value.trim())?;
        }
    }
    fs::write(SAVED, saved)?;
    Ok(())
}

/// Puts the remembered settings back; with two boxes the last one does.
pub(super) fn restore_sysctls(layout: &Layout) -> Result<()> {
    let Ok(saved) = fs::read_to_string(SAVED) else {
        return Ok(());
    };
    if !another_box(layout) {
        for (name, value) in saved.lines().filter_map(|line| line.split_once(' ')) {
            fs::write(Path::new("/proc/sys").join(name), value)?;
        }
        fs::remove_file(SAVED)?;
    }
    Ok(())
}

/// Whether the host is itself a node of some cluster: its kubelet and ours would fight for the socket.
pub(super) fn is_a_node() -> bool {
    Path::new("/var/lib/kubelet/config.yaml").exists()
}

fn another_box(layout: &Layout) -> bool {
    fs::read_dir("/run/netns").into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("bitnet-box-") && name != layout.name()
    })
}

/// Files in places that containerd, kubelet and CNI share with the whole host; only those of this box.
pub(super) fn stray_files(layout: &Layout) -> Vec<PathBuf> {
    let run = layout.run();
    let entries =
        |dir: &str| fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()));
    // kubelet links every container's log there for log collectors.
    let logs = entries("/var/log/containers").filter(|path| fs::read_link(path).is_ok_and(|to| to.starts_with(&run)));
    // libcni remembers every address it gave, with the path of the pod's network namespace, which is below ours.
    let below = format!("{}/", run.display());
    let results = entries("/var/lib/cni/results")
        .filter(|path| fs::read_to_string(path).is_ok_and(|result| result.contains(&below)));
    let plugins = Some(PathBuf::from(DEVICE_PLUGINS)).filter(|path| path.exists() && !another_box(layout));
    logs.chain(results).chain(plugins).chain(shim_sockets(&run)).collect()
}

/// Sockets of container shims: containerd keeps them in one folder for all its instances, under hashed names.
fn shim_sockets(run: &Path) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    for container in fs::read_dir(run.join("containerd/io.containerd.runtime.v2.task/k8s.io")).into_iter().flatten() {
        let Ok(container) = container else { continue };
        for file in ["bootstrap.json", "address"] {
            let text = fs::read_to_string(container.path().join(file)).unwrap_or_default();
            let address = text.split("unix://").nth(1).unwrap_or_default();
            let end = address.find(['"', '\n']).unwrap_or(address.len());
            let socket = PathBuf::from(&address[..end]);
            if socket.exists() {
                sockets.push(socket);
            }
        }
    }
    sockets.sort();
    sockets.dedup();
    sockets
}
