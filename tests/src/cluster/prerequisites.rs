//! What the host must offer, checked before anything starts, with the remedy in the error.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{command, host};

const GIB: u64 = 1 << 30;

/// A program that a box runs and the Debian package that brings it.
struct Program {
    name: &'static str,
    package: &'static str,
}

const PROGRAMS: &[Program] = &[
    Program { name: "runc", package: "runc" },
    Program { name: "nft", package: "nftables" },
    Program { name: "conntrack", package: "conntrack" },
    Program { name: "ip", package: "iproute2" },
    Program { name: "openssl", package: "openssl" },
    Program { name: "nsenter", package: "util-linux" },
    Program { name: "setsid", package: "util-linux" },
    Program { name: "mount", package: "mount" },
    Program { name: "kill", package: "procps" },
    Program { name: "sysctl", package: "procps" },
    Program { name: "ldd", package: "libc-bin" },
];

/// Checks what running a box needs, and installs missing Debian packages.
pub(super) fn for_cluster(dir: &Path) -> Result<()> {
    ensure!(
        is_root()?,
        "a box needs root: it creates a network namespace, mounts and cgroups. Run the same command as root (sudo -E)"
    );
    ensure!(
        cfg!(target_os = "linux") && Path::new("/sys/fs/cgroup").is_dir(),
        "a box needs Linux with cgroups mounted at /sys/fs/cgroup"
    );
    ensure!(
        !host::is_a_node(),
        "this host is a Kubernetes node itself (/var/lib/kubelet/config.yaml): use a machine or container that is not"
    );
    let missing: Vec<&Program> = PROGRAMS.iter().filter(|program| !on_path(program.name)).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    // Images, their unpacked copies and logs of a demo with two small models.
    disk(dir, 5)
}

/// Checks what building the tools needs.
pub(super) fn for_tools(dir: &Path) -> Result<()> {
    for (program, remedy) in [
        ("go", "install Go 1.26.7 or newer (https://go.dev/dl)"),
        ("cc", "install a C compiler (apt-get install gcc libc6-dev)"),
        ("python3", "install Python 3 with pip (apt-get install python3-pip)"),
    ] {
        ensure!(on_path(program), "`{program}` is missing, the box's tools are built with it: {remedy}");
    }
    // 1 GB of programs; the rest are the compiler's caches.
    disk(dir, 15)
}

fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn install(missing: &[&Program]) -> Result<()> {
    let mut packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    packages.dedup();
    let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
    if !on_path("apt-get") {
        bail!(
            "missing on PATH: {}. Install them with your package manager (Debian packages: {})",
            names.join(", "),
            packages.join(" ")
        );
    }
    eprintln!("installing with apt-get: {}", packages.join(" "));
    let apt = |args: &[&str]| {
        command::run(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
            .with_context(|| format!("install these packages by hand and try again: {}", packages.join(" ")))
    };
    apt(&["update", "-q"])?;
    apt(&[&["install", "-qy", "--no-install-recommends"], packages.as_slice()].concat())?;
    Ok(())
}

fn disk(dir: &Path, gib: u64) -> Result<()> {
    let said = command::run(Command::new("df").args(["--output=avail", "-B1"]).arg(dir))?;
    let free: u64 = said.lines().nth(1).and_then(|line| line.trim().parse().ok()).context("could not read `df`")?;
    ensure!(
        free >= gib * GIB,
        "{} has {} GiB free and {gib} GiB are needed: free some space, or point BITNET_CACHE or --dir elsewhere",
        dir.display(),
        free / GIB
    );
    Ok(())
}
