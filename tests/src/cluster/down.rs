//! Taking a box away completely, however it ended.
//!
//! There is one way down, and it asks nothing of the cluster: everything of ours is found by its mark, its cgroup or
//! its network namespace, killed at once, and what it leaves behind is found by the folder. So `down` after a crash is
//! the same as `down` after a good day.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::command::run;
use super::layout::Layout;
use super::{host, netns, node, processes};

/// Removes all that belongs to the box; its folder itself stays.
pub(super) fn down(layout: &Layout) -> Result<()> {
    kill_all(layout)?;
    // Read from the folder that goes last.
    let strays = host::stray_files(layout);
    unmount_all(layout)?;
    remove_cgroups(layout)?;
    netns::remove(layout)?;
    for path in strays {
        fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
    }
    host::restore_sysctls(layout)?;
    // A killed process's last file can appear while the folder goes.
    retry(|| {
        if layout.run().exists() {
            fs::remove_dir_all(layout.run()).with_context(|| format!("could not remove {}", layout.run().display()))?;
        }
        Ok(())
    })?;
    assert_gone(layout)
}

/// Fails with a list of everything of this box that is still there.
pub(super) fn assert_gone(layout: &Layout) -> Result<()> {
    let mut left: Vec<String> =
        ours(layout).iter().map(|pid| format!("process {pid} {}", command_line(*pid))).collect();
    left.extend(mounts(layout)?.iter().map(|path| format!("mount {}", path.display())));
    left.extend(node::cgroups(layout)?.iter().filter(|path| path.exists()).map(|p| format!("cgroup {}", p.display())));
    left.extend(host::stray_files(layout).iter().map(|path| format!("file {}", path.display())));
    if netns::exists(layout) {
        left.push(format!("network namespace {}", layout.name()));
    }
    if layout.run().exists() {
        left.push(format!("folder {}", layout.run().display()));
    }
    ensure!(left.is_empty(), "left over from the box at {}:\n{}", layout.dir().display(), left.join("\n"));
    Ok(())
}

/// All processes of the box but the caller and its ancestors, which may well stand inside its network.
fn ours(layout: &Layout) -> Vec<u32> {
    let spared = ancestry();
    let cgroup = format!("/{}", layout.name());
    processes::pids()
        .filter(|pid| {
            let in_cgroup = || {
                let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                cgroups.lines().any(|line| line.split('/').any(|part| part == &cgroup[1..]))
            };
            !spared.contains(pid)
                && (processes::is_marked(layout, *pid) || in_cgroup() || netns::contains(layout, *pid))
                && processes::is_running(*pid)
        })
        .collect()
}

/// This process and its ancestors.
fn ancestry() -> Vec<u32> {
    let mut pids = vec![std::process::id()];
    while let Some(&pid) = pids.last() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        match parent {
            Some(parent) if parent > 0 => pids.push(parent),
            _ => break,
        }
    }
    pids
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Kills until nobody is left: the living may start others while they are being killed.
fn kill_all(layout: &Layout) -> Result<()> {
    let begin = Instant::now();
    loop {
        let pids = ours(layout);
        if pids.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(20) {
            bail!("processes {pids:?} do not die");
        }
        // Some may have ended since they were listed; that makes kill fail and is fine.
        let _ = Command::new("kill").arg("-9").args(pids.iter().map(u32::to_string)).output();
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Mount points below the folder, deepest and newest first.
fn mounts(layout: &Layout) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts").context("could not read the mounts")?;
    let run = layout.run();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(1)).map(|path| PathBuf::from(unescape(path)));
    let mut targets: Vec<PathBuf> = targets.filter(|path| path.starts_with(&run)).collect();
    targets.reverse();
    Ok(targets)
}

/// The kernel writes spaces and the like as `\040`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        if let Some(byte) = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(char::from(byte));
            rest = &after[3..];
        } else {
            plain.push('\\');
            rest = after;
        }
    }
    plain + rest
}

fn unmount_all(layout: &Layout) -> Result<()> {
    retry(|| {
        let targets = mounts(layout)?;
        if !targets.is_empty() {
            // Lazily: the kernel finishes the last users of a file while we go on.
            run(Command::new("umount").arg("-l").args(&targets))?;
        }
        ensure!(mounts(layout)?.is_empty(), "mounts remain below {}", layout.run().display());
        Ok(())
    })
}

fn remove_cgroups(layout: &Layout) -> Result<()> {
    for folder in node::cgroups(layout)? {
        // A cgroup is busy for a moment after its last process has died.
        retry(|| remove_cgroup(&folder))?;
    }
    Ok(())
}

fn remove_cgroup(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    // Files of a cgroup cannot be deleted; they vanish with the folder.
    fs::remove_dir(folder).with_context(|| format!("could not remove the cgroup {}", folder.display()))
}

fn retry(mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    loop {
        match work() {
            Err(_) if begin.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/plain\"), r"/plain\");
    }

    #[test]
    fn a_caller_spares_itself_and_its_parents() {
        let pids = ancestry();
        assert_eq!(pids[0], std::process::id());
        assert!(pids.len() > 1);
    }
}
