//! What each way to a BitNet model comes to: makes the demo pair's students, one `inference-worker` command each, and
//! measures them alike.
//!
//!     cargo build --release -p inference-worker
//!     cargo run --release -p inference-worker --example workshop_table -- --pair PAIR --out DIR [ROW…]
//!
//! `PAIR` is what `inference-worker distill --out PAIR` made. A row that is there already is only measured, so an
//! interrupted run goes on. Without rows, all of them; `--list` prints their commands. A row that fails does not end
//! the others, but the exit status.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use inference_worker::model::Text;
use inference_worker::workshop::gate::read_gate;
use inference_worker::workshop::inspect::inspect;
use inference_worker::workshop::probing::{Baseline, Loaded, perplexity};
use inference_worker::workshop::student::{DataSource, Text as Ids};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Names of the rows, and what `inference-worker` is told; PAIR is the pair's directory. `--steps` and the rest of
/// [`STUDENT`] are the same for all students but one. Phase 3 is the row `distill`.
const ROWS: &[(&str, &str)] = &[
    ("ptq-phase-1", "convert PAIR/fp16 --phase 1"),
    ("ptq-phase-2", "convert PAIR/fp16 --phase 2"),
    ("ptq-phase-3", "convert PAIR/fp16 --phase 3"),
    ("ptq-phase-4", "convert PAIR/fp16 --phase 4"),
    ("ptq-hybrid", "convert PAIR/fp16 --precision mlp=binary"),
    ("ptq-int8", "convert PAIR/fp16 --precision layers=int8"),
    ("ptq-int4", "convert PAIR/fp16 --precision layers=int4"),
    ("qat", "distill --teacher PAIR/fp16 --kl 0 --cross-entropy 1"),
    ("qat-distill", "distill --teacher PAIR/fp16"),
    ("distill", "distill --teacher PAIR/fp16 --cross-entropy 0"),
    ("progressive", "distill --teacher PAIR/fp16 --cross-entropy 0 --progressive 30,60,90"),
    // As many steps at the last precision as the others have, and the steps before it on top.
    ("progressive-210", "distill --teacher PAIR/fp16 --cross-entropy 0 --progressive 30,60,90 --steps 210"),
    ("noise", "distill --teacher PAIR/fp16 --cross-entropy 0 --noise 0.1"),
    ("hidden", "distill --teacher PAIR/fp16 --cross-entropy 0 --hidden 1"),
    ("phase-1", "distill --teacher PAIR/fp16 --cross-entropy 0 --phase 1"),
    ("phase-2", "distill --teacher PAIR/fp16 --cross-entropy 0 --phase 2"),
    ("phase-4", "distill --teacher PAIR/fp16 --cross-entropy 0 --phase 4"),
    ("hybrid", "distill --teacher PAIR/fp16 --cross-entropy 0 --precision layers.0=full --precision layers.3=full"),
    ("binary-ffn", "distill --teacher PAIR/fp16 --cross-entropy 0 --precision mlp=binary"),
    ("federated-4", "federated coordinator --model PAIR/fp16 --clients 4 --cross-entropy 0 --generate 40"),
];

/// What every student is told besides, where its row does not say it.
const STUDENT: [&str; 2] = ["--steps 120", "--validate 120"];
/// What each of the four clients is told besides; its text is its own.
const CLIENT: &str = "federated client --model PAIR/fp16 --generate 10";
const CLIENTS: usize = 4;

/// Text that nobody was trained on: a seed of the generator that no command uses.
const HELD_OUT: DataSource = DataSource::BuiltIn { bytes: 60_000, seed: 77_777 };

#[derive(Parser)]
struct Args {
    /// Directory of a pair, as `inference-worker distill --out` makes it.
    #[arg(long, required_unless_present = "list")]
    pair: Option<PathBuf>,
    /// Directory of the rows' models.
    #[arg(long, required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Threads of training and measuring; speed is measured with one.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prints the commands and does nothing.
    #[arg(long)]
    list: bool,
    /// Rows to make.
    rows: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.list {
        for (name, command) in ROWS {
            println!("{name:<12} inference-worker {}", words(command, "PAIR").join(" "));
        }
        return Ok(());
    }
    let (pair, out) = (args.pair.context("--pair is missing")?, args.out.context("--out is missing")?);
    if let Some(name) = args.rows.iter().find(|name| !ROWS.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
        bail!("there is no row {name}: rows are {}", known.join(", "));
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let worker = worker()?;
    let measure = Measure::new(&pair, &worker, args.threads)?;
    println!("| row | cosine mean | 5th percentile | KL | top-1 | perplexity | bytes | tok/s | default gate |");
    println!("|---|---|---|---|---|---|---|---|---|");
    println!("{}", measure.line("fp16 (teacher)", &pair.join("fp16"))?);
    let mut failed = 0;
    for (name, command) in ROWS.iter().filter(|(name, _)| args.rows.is_empty() || args.rows.iter().any(|r| r == name)) {
        let dir = out.join(name);
        let made = if dir.exists() { Ok(()) } else { make(&worker, command, &pair, &dir, args.threads) };
        match made.and_then(|()| measure.line(name, &dir)) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed += 1;
            }
        }
    }
    ensure!(failed == 0, "{failed} row(s) failed");
    Ok(())
}

/// The program beside this example.
fn worker() -> Result<PathBuf> {
    let here = std::env::current_exe().context("cannot find this program")?;
    let worker = here.parent().and_then(Path::parent).map(|dir| dir.join("inference-worker"));
    let worker = worker.filter(|worker| worker.exists());
    worker.context("there is no inference-worker beside this program: cargo build --release -p inference-worker")
}

/// Words of a row's command, the common ones included.
fn words(command: &str, pair: &str) -> Vec<String> {
    let mut all = command.to_owned();
    for common in STUDENT.iter().filter(|_| command.starts_with("distill")) {
        let option = common.split(' ').next().unwrap_or(common);
        if !command.contains(option) {
            all.push(' ');
            all.push_str(common);
        }
    }
    all.split_whitespace().map(|word| word.replace("PAIR", pair)).collect()
}

fn make(worker: &Path, command: &str, pair: &Path, out: &Path, threads: usize) -> Result<()> {
    let pair = pair.display().to_string();
    let mut main = Command::new(worker);
    main.args(words(command, &pair)).arg("--out").arg(out).stdin(Stdio::null()).stdout(Stdio::null());
    let mut clients = Vec::new();
    if command.starts_with("federated") {
        let token = out.with_extension("token");
        fs::write(&token, "a-token-of-this-table-alone").context("cannot write the token")?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("no free port")?.port();
        main.arg("--token-file").arg(&token).arg(format!("--listen=127.0.0.1:{port}")).arg("--threads=1");
        for index in 0..CLIENTS {
            let mut client = Command::new(worker);
            client.args(words(CLIENT, &pair)).arg("--token-file").arg(&token);
            client.args([format!("--coordinator=http://127.0.0.1:{port}"), format!("--name=client-{index}")]);
            client.args([format!("--seed={}", 100 + index), "--threads=1".to_owned()]);
            clients.push(client);
        }
    } else {
        main.arg(format!("--threads={threads}"));
    }
    let mut main = Ended(main.spawn().context("cannot start inference-worker")?);
    let mut running = Vec::new();
    for mut client in clients {
        let child = client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        running.push(Ended(child.context("cannot start a client")?));
    }
    let status = main.0.wait().context("cannot wait for inference-worker")?;
    ensure!(status.success(), "inference-worker ended with {status}; its message stands above");
    Ok(())
}

/// A process that does not outlive this one's interest in it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One comparison for all rows: the default gate's, on the pair's probes, and perplexity on held-out text.
struct Measure {
    /// Least mean and least 5th percentile of the default gate.
    least: (f64, f64),
    baseline: Baseline,
    ids: Vec<u32>,
    sequence: usize,
    worker: PathBuf,
}

impl Measure {
    fn new(pair: &Path, worker: &Path, threads: usize) -> Result<Self> {
        let fp16 = pair.join("fp16");
        let gate = read_gate(None)?;
        let baseline = Baseline::new(&fp16, &pair.join("probes.jsonl"), gate.probes.max_tokens as usize, threads)?;
        let text = Ids::read(&HELD_OUT, &Text::load(&fp16)?)?;
        let sequence = Loaded::open(&fp16)?.model.config().context;
        let least = (gate.min_mean, gate.tail_min);
        Ok(Self {
            least,
            baseline,
            ids: [text.training, text.held_out].concat(),
            sequence,
            worker: worker.to_path_buf(),
        })
    }

    fn line(&self, name: &str, dir: &Path) -> Result<String> {
        let loaded = Loaded::open(dir)?;
        let s = self.baseline.compare(&loaded)?;
        let perplexity = perplexity(&loaded, &self.ids, self.sequence)?;
        let bytes = inspect(dir)?.bytes;
        let speed = self.speed(dir)?;
        Ok(format!(
            "| {name} | {:.4} | {:.4} | {:.4} | {:.3} | {perplexity:.3} | {bytes} | {speed:.0} | {} |",
            s.mean,
            s.fifth_percentile,
            s.kl,
            s.top1,
            if s.mean >= self.least.0 && s.fifth_percentile >= self.least.1 { "passes" } else { "fails" }
        ))
    }

    /// Decoded tokens per second, one sequence, one thread, the fastest of five times.
    fn speed(&self, dir: &Path) -> Result<f64> {
        let output = Command::new(&self.worker)
            .args(["bench", "-p", "0", "-n", "64", "-t", "1", "-o", "json", "--model"])
            .arg(dir)
            .output()
            .context("cannot start inference-worker bench")?;
        ensure!(output.status.success(), "bench failed: {}", String::from_utf8_lossy(&output.stderr));
        let lines: serde_json::Value = serde_json::from_slice(&output.stdout).context("bench wrote no JSON")?;
        lines[0]["best_ts"].as_f64().context("bench wrote no best_ts")
    }
}
