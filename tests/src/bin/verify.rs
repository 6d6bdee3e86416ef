//! `cargo verify`: every check of this repository, from formatting to the tests on a real cluster.

use anyhow::{Context, Result, bail};
use clap::Parser;
use e2e::{
    cluster::image_size,
    stage::{Binaries, checkout},
};
use std::{
    process::{Command, Stdio},
    time::Instant,
};

/// Run all checks and tests, cheapest first: format, lints, crate boundaries, unit and property tests, tests on a
/// real one-node Kubernetes in a network namespace of its own. Stops at the first stage that fails.
#[derive(Parser)]
#[command(name = "cargo verify", version)]
struct Args {
    /// Leave out the cluster (needs root, Go, Python and about 30 minutes the first time).
    #[arg(long)]
    no_cluster: bool,
    /// Leave out a part that needs a program of Debian's: may be given more than once.
    #[arg(long, value_enum, value_name = "PART")]
    without: Vec<Part>,
    /// Also run the long tests on the cluster: steps, fallback, federated, shadow, GPU, upgrade, and twenty kills of the
    /// operator in the middle of four rollouts.
    #[arg(long)]
    long: bool,
    /// Run only tests of the cluster whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// What can be left out.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The dashboard's test in a browser (chromium, chromium-driver).
    Browser,
    /// The alert rules' unit tests, and dashboards and rules against a real scrape (promtool and prometheus).
    Promtool,
    /// The worker's kernels for AArch64, in an emulator (qemu-user-static, and Rust's target for it).
    Aarch64,
}

/// A stage: its name, and the arguments of cargo.
type Stage = (&'static str, &'static [&'static str]);

const STAGES: &[Stage] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--release", "--", "-D", "warnings"]),
    // Not among "all targets", because it needs a machine of its own and so is no test of `cargo test`.
    (
        "lints of the cluster's tests",
        &["clippy", "--locked", "--release", "--workspace", "--test", "cluster", "--", "-D", "warnings"],
    ),
    // Types and lints of the GPU backend, whose kernels need a toolkit that this machine need not have (see `cargo`).
    (
        "lints of the GPU backend",
        &[
            "clippy",
            "--workspace",
            "--lib",
            "--bins",
            "--features",
            "inference-worker/cuda",
            "--locked",
            "--release",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "the worker's API needs no Kubernetes",
        &["check", "--locked", "--release", "-p", "bitnet-api", "--no-default-features", "--features", "worker,gate"],
    ),
    ("unit, property and scenario tests", &["test", "--workspace", "--locked", "--release"]),
];

fn main() -> Result<()> {
    let args = Args::parse();
    let begin = Instant::now();
    if args.only.is_none() {
        for (name, stage) in STAGES {
            cargo(name, stage, &begin)?;
        }
        one_of_each(&["kube", "kube-core", "k8s-openapi", "safetensors"])?;
        operator_image(&begin)?;
        if !args.without.contains(&Part::Aarch64) {
            aarch64(&begin)?;
        }
        if !args.without.contains(&Part::Browser) {
            browser(&begin)?;
        }
        if !args.without.contains(&Part::Promtool) {
            promtool(&begin)?;
            monitoring(&begin)?;
        }
    }
    if !args.no_cluster {
        let mut stage = vec!["test", "--workspace", "--locked", "--release", "--test", "cluster", "--"];
        stage.extend(args.only.as_deref());
        if args.long {
            stage.push("--include-ignored");
        }
        cargo("tests on a real cluster", &stage, &begin)?;
    }
    println!("verified in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The worker's kernels compiled for AArch64, their tests in an emulator.
fn aarch64(begin: &Instant) -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-musl";
    let dir = checkout().join("inference-worker/aarch64");
    let left_out = "or leave it out with --without aarch64";
    let added = Command::new("rustup").args(["target", "add", TARGET]).current_dir(&dir).stdin(Stdio::null()).status();
    if !added.with_context(|| format!("rustup is missing: install Rust with it, {left_out}"))?.success() {
        bail!("`rustup target add {TARGET}` failed: see above, {left_out}");
    }
    let emulator = Command::new("qemu-aarch64-static").arg("--version").stdout(Stdio::null()).status();
    emulator.with_context(|| format!("the emulator is missing: `apt-get install qemu-user-static`, {left_out}"))?;
    let args = ["test", "--release", "--locked", "--target", TARGET];
    println!("== kernels on AArch64: cargo {} ({:.0} s)", args.join(" "), begin.elapsed().as_secs_f64());
    // An emulator takes some forty times as long for a case.
    let status = Command::new(program())
        .args(args)
        .env("PROPTEST_CASES", "16")
        .current_dir(&dir)
        .stdin(Stdio::null())
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("kernels on AArch64 failed: `cd inference-worker/aarch64 && cargo {}` shows it alone", args.join(" "));
    }
    Ok(())
}

/// The dashboard in a real Chromium. Its test is ignored elsewhere, because it needs one.
fn browser(begin: &Instant) -> Result<()> {
    let axe = e2e::stage::browser::axe()?;
    // One browser at a time: the first paint is measured.
    let args = [
        "test",
        "--workspace",
        "--locked",
        "--release",
        "--lib",
        "--",
        "--ignored",
        "in_a_browser",
        "--nocapture",
        "--test-threads=1",
    ];
    println!("== the dashboard in a browser: cargo {} ({:.0} s)", args.join(" "), begin.elapsed().as_secs_f64());
    let run = Command::new(program())
        .args(args)
        .env("BITNET_AXE", &axe)
        .current_dir(checkout())
        .stdin(Stdio::null())
        .output();
    let run = run.context("running cargo")?;
    let said = String::from_utf8_lossy(&run.stdout);
    print!("{said}");
    // A filter that finds nothing succeeds, too: both tests must have run.
    if !run.status.success() || !said.contains("2 passed") {
        eprint!("{}", String::from_utf8_lossy(&run.stderr));
        bail!("the dashboard in a browser failed: BITNET_AXE={} cargo {}", axe.display(), args.join(" "));
    }
    Ok(())
}

/// Each alert fires where it must and stays quiet where it must.
fn promtool(begin: &Instant) -> Result<()> {
    println!("== alert rules: promtool test rules ({:.0} s)", begin.elapsed().as_secs_f64());
    let mut run = Command::new("promtool");
    run.args(["test", "rules", "rules-test.yaml"]).current_dir(checkout().join("charts/tests")).stdin(Stdio::null());
    let status = run
        .status()
        .context("promtool is missing: `apt-get install prometheus`, or leave it out with --without promtool")?;
    if !status.success() {
        bail!("the alert rules failed: `cd charts/tests && promtool test rules rules-test.yaml` shows it alone");
    }
    Ok(())
}

/// Dashboards and alert rules against what the programs export, in a real Prometheus. Its test is ignored elsewhere.
fn monitoring(begin: &Instant) -> Result<()> {
    let args = ["test", "--workspace", "--locked", "--release", "--test", "monitoring", "--", "--include-ignored"];
    cargo("dashboards and alerts in a real Prometheus", &args, begin)
}

/// The cargo that runs this program.
fn program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo(name: &str, args: &[&str], begin: &Instant) -> Result<()> {
    println!("== {name}: cargo {} ({:.0} s)", args.join(" "), begin.elapsed().as_secs_f64());
    let status = Command::new(program())
        .args(args)
        // Only the feature `cuda` looks at it: types without kernels.
        .env("CUDA_KERNELS", "none")
        .current_dir(checkout())
        .stdin(Stdio::null())
        .status()
        .context("running cargo: install Rust (rustup) so that `cargo` is on PATH")?;
    if !status.success() {
        bail!("{name} failed: run `cargo {}` to see it alone", args.join(" "));
    }
    Ok(())
}

/// Largest image of the operator on a node's disk.
const OPERATOR_IMAGE: u64 = 25_000_000;

/// The operator stays small: it is pulled wherever it is scheduled.
fn operator_image(begin: &Instant) -> Result<()> {
    println!("== size of the operator's image ({:.0} s)", begin.elapsed().as_secs_f64());
    let size = image_size(&Binaries::build()?.operator)?;
    println!("{:.1} of {:.1} MB", size as f64 / 1e6, OPERATOR_IMAGE as f64 / 1e6);
    if size > OPERATOR_IMAGE {
        bail!(
            "the operator's image has {size} bytes and may have {OPERATOR_IMAGE}: `cargo tree -p bitnet-operator -e normal` \
             shows what came in; opt-level \"s\" for what only waits is in Cargo.toml"
        );
    }
    Ok(())
}

/// The lock file resolves each of these to one version: two kubes would be two worlds of types.
fn one_of_each(names: &[&str]) -> Result<()> {
    let lock = std::fs::read_to_string(checkout().join("Cargo.lock")).context("reading Cargo.lock")?;
    for name in names {
        let count = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
        if count != 1 {
            bail!("Cargo.lock holds {count} versions of {name}, it must be one: see docs/adr");
        }
    }
    Ok(())
}
