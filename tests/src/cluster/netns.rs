//! The network namespace that holds the whole cluster: host and box never see each other's addresses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::command::run;
use super::layout::{Layout, NODE_IP};

/// Creates the namespace with the node's address and a default route.
///
/// A veth pair inside the namespace carries the address, because kernels without the `dummy` link type exist.
pub(super) fn create(layout: &Layout) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", layout.name()]))?;
    let address = format!("{NODE_IP}/16");
    for args in [
        &["ip", "link", "set", "lo", "up"] as &[&str],
        &["ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0p"],
        &["ip", "link", "set", "node0p", "up"],
        &["ip", "addr", "add", &address, "dev", "node0"],
        &["ip", "link", "set", "node0", "up"],
        &["ip", "route", "add", "default", "dev", "node0"],
        &["sysctl", "-qw", "net.ipv4.ip_forward=1"],
    ] {
        run(&mut inside(layout, args[0], &args[1..]))?;
    }
    Ok(())
}

/// A command that runs in the namespace.
///
/// `nsenter --net` changes the network alone; `ip netns exec` would also mount another /sys and hide the cgroups.
pub(super) fn inside(layout: &Layout, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", layout.netns().display())).arg("--").arg(program).args(args);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

/// Whether this process is in the namespace.
pub(super) fn is_inside(layout: &Layout) -> bool {
    contains(layout, std::process::id())
}

/// Whether that process is in the namespace; a namespace that is gone holds nobody.
pub(super) fn contains(layout: &Layout, pid: u32) -> bool {
    let (Ok(ours), Ok(its)) = (fs::metadata(layout.netns()), fs::metadata(format!("/proc/{pid}/ns/net"))) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (its.dev(), its.ino())
}

/// Puts this process into the namespace by running it again from its first instruction, with the same arguments.
///
/// Returns at once if it is inside already, so the second run passes through.
pub(super) fn enter(layout: &Layout) -> Result<()> {
    if is_inside(layout) {
        return Ok(());
    }
    ensure!(layout.netns().exists(), "the box at {} is not up: run `cargo box up`", layout.dir().display());
    let program = std::env::current_exe().context("could not find this program's own file")?;
    let mut command = inside(layout, program, &[]);
    let error = command.args(std::env::args_os().skip(1)).exec();
    bail!("could not enter the network namespace with nsenter (package util-linux): {error}");
}

/// Removes the namespace if it is there.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    if layout.netns().exists() {
        run(Command::new("ip").args(["netns", "del", layout.name()]))?;
    }
    Ok(())
}

/// Whether the namespace's file is there.
pub(super) fn exists(layout: &Layout) -> bool {
    Path::exists(&layout.netns())
}
