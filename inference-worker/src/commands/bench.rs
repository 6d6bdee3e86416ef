//! `inference-worker bench`: speed of prompts and of decoding, beside what the machine could do.

use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use inference_worker::device::{Device, GpuKv};
use inference_worker::model::{KvBits, KvCache, LoadOptions, Model, Precision, Shape, Step, Want, WeightsCache};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model directories: config.json and safetensors.
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "shape")]
    model: Vec<PathBuf>,
    /// Models with random weights: demo, large, 2b-4t, 3b, falcon-e-1b, falcon-e-3b, 8b.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    shape: Vec<String>,
    /// Weights of random models.
    #[arg(long, value_parser = precisions(), value_delimiter = ',', default_value = "ternary")]
    precision: Vec<Precision>,
    /// Lengths of prompts to time (pp); 0: none.
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "128")]
    prompt: Vec<usize>,
    /// Tokens to decode (tg); 0: none.
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "32")]
    decode: Vec<usize>,
    /// Sequences that are decoded together.
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Tokens that a sequence holds before it is decoded on.
    #[arg(short = 'd', long, default_value_t = 0)]
    pub(super) depth: usize,
    /// Bits of cached keys and values: 16, 8, 4 or 3.
    #[arg(long, default_value = "16")]
    pub(super) kv_bits: KvBits,
    /// How logits are computed.
    #[arg(long, value_enum, default_value = "exact")]
    pub(super) head: super::Head,
    /// Keep the repacked weights of model directories in this directory, as `serve` does.
    #[arg(long, value_name = "DIR")]
    weights_cache: Option<PathBuf>,
    /// Prompt tokens that one pass reads at most.
    #[arg(long, default_value_t = 512)]
    pub(super) chunk: usize,
    /// Where the model runs: cpu, cuda, cuda:N. A GPU takes no --threads.
    #[arg(long, default_value = "cpu")]
    pub(super) device: Device,
    /// Keys and values on a GPU.
    #[arg(long, value_enum, default_value = "f16")]
    pub(super) gpu_kv: GpuKv,
    /// Threads [default: the CPUs at hand].
    #[arg(short = 't', long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Repetitions; the table shows the median and the fastest.
    #[arg(short = 'r', long, default_value_t = 5)]
    pub(super) repetitions: usize,
    /// How results are written.
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    output: Output,
}

fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name)).try_map(|name| {
        Precision::ALL.into_iter().find(|precision| precision.name() == name).ok_or("it is none of these")
    })
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A model to time, not loaded yet.
pub(super) enum Subject<'a> {
    Directory(&'a Path),
    Random(Shape, Precision),
}

impl Subject<'_> {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Directory(dir) => dir.display().to_string(),
            Self::Random(shape, _) => format!("random {}", shape.name),
        }
    }

    pub(super) fn load(&self, options: &LoadOptions) -> anyhow::Result<Model> {
        match self {
            Self::Directory(dir) => {
                Model::load(dir, options).with_context(|| format!("cannot load the model in {}", dir.display()))
            }
            Self::Random(shape, precision) => Ok(Model::random(*shape, *precision, 1, options)?),
        }
    }
}

/// What the machine does at most, measured in this run.
struct Machine {
    read: f64,
    products: Option<f64>,
}

/// One line of the table.
#[derive(serde::Serialize)]
pub(super) struct Line {
    model: String,
    precision: &'static str,
    kernel: String,
    threads: usize,
    test: String,
    n_prompt: usize,
    n_gen: usize,
    batch: usize,
    depth: usize,
    kv_bits: usize,
    /// Tokens per second, all sequences together, per repetition.
    samples_ts: Vec<f64>,
    median_ts: f64,
    best_ts: f64,
    /// Bytes of weights that one pass reads.
    weight_bytes: usize,
    /// Bytes of weights over time, at the median.
    gb_per_s: f64,
    /// Memory read by the same threads in this run, nothing else done.
    read_gb_per_s: f64,
    read_share: f64,
    /// Multiply-adds of linear layers and head over time, at the median.
    gmac_per_s: f64,
    /// The instruction of ternary products alone; none for portable kernels.
    peak_gmac_per_s: Option<f64>,
    peak_share: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.repetitions > 0 && args.chunk > 0, "--repetitions and --chunk must be at least 1");
    let threads = if args.threads.is_empty() { vec![super::cpus()] } else { args.threads.clone() };
    ensure!(!threads.contains(&0) && !args.batch.contains(&0), "--threads and --batch must be at least 1");
    let mut subjects: Vec<Subject<'_>> = args.model.iter().map(|dir| Subject::Directory(dir)).collect();
    for name in &args.shape {
        let Some(shape) = Shape::find(name) else {
            let known: Vec<&str> = Shape::ALL.iter().map(|shape| shape.name).collect();
            bail!("--shape must be one of {} but is {name}", known.join(", "));
        };
        subjects.extend(args.precision.iter().map(|precision| Subject::Random(shape, *precision)));
    }
    let mut lines = Vec::new();
    if args.output == Output::Table {
        println!("{}", heading());
    }
    ensure!(args.device != Device::Auto, "--device must be cpu, cuda or cuda:N: a benchmark says what it ran on");
    if args.device != Device::Cpu {
        ensure!(
            args.threads.is_empty() && args.kv_bits == KvBits::Sixteen && args.head == super::Head::Exact,
            "--threads, --kv-bits and --head are for the CPU; leave them out with --device cuda (and see --gpu-kv)"
        );
        for subject in &subjects {
            on_gpu(subject, args, |line| {
                if args.output == Output::Table {
                    println!("{}", row(&line));
                }
                lines.push(line);
            })?;
        }
        return print_json(args, &lines);
    }
    for subject in &subjects {
        let mut model = on_cpu(subject, args)?;
        for &threads in &threads {
            model.set_threads(threads)?;
            let cpu = model.cpu();
            let machine =
                Machine { read: cpu.read_bandwidth(args.repetitions), products: cpu.peak_products(args.repetitions) };
            for test in tests(args) {
                let line = time(&model, subject.name(), &test, args, &machine)?;
                if args.output == Output::Table {
                    println!("{}", row(&line));
                }
                lines.push(line);
            }
        }
    }
    print_json(args, &lines)
}

/// Loads a model, and says on the standard error how long that took and where its weights lie.
fn on_cpu(subject: &Subject<'_>, args: &Args) -> anyhow::Result<Model> {
    let options = LoadOptions { kv_bits: args.kv_bits, head: args.head.mode(), ..LoadOptions::default() };
    let (Subject::Directory(dir), Some(cache)) = (subject, &args.weights_cache) else { return subject.load(&options) };
    let start = Instant::now();
    let digest = inference_worker::model::digest(dir)?;
    let hashed = start.elapsed();
    let weights_cache = Some(WeightsCache { dir: cache.clone(), digest });
    let model = subject.load(&LoadOptions { weights_cache, ..options })?;
    let place = match model.weights_file() {
        Some(file) => format!("mapped from {}", file.display()),
        None => format!("in memory of this process: {} takes no file", cache.display()),
    };
    let (hashed, whole) = (hashed.as_secs_f64(), start.elapsed().as_secs_f64());
    eprintln!("{}: digest {hashed:.2} s, loaded after {whole:.2} s, weights {place}", subject.name());
    Ok(model)
}

fn print_json(args: &Args, lines: &[Line]) -> anyhow::Result<()> {
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(lines)?);
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn on_gpu(subject: &Subject<'_>, args: &Args, take: impl FnMut(Line)) -> anyhow::Result<()> {
    super::bench_gpu::run(subject, args, &tests(args), take)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_subject: &Subject<'_>, _args: &Args, _take: impl FnMut(Line)) -> anyhow::Result<()> {
    Err(inference_worker::device::DeviceError::NotBuilt.into())
}

/// What is timed: a prompt, or decoding.
#[derive(Clone, Copy)]
pub(super) enum Test {
    Prompt(usize),
    Decode { tokens: usize, batch: usize },
}

fn tests(args: &Args) -> Vec<Test> {
    let prompts = args.prompt.iter().filter(|n| **n > 0).map(|n| Test::Prompt(*n));
    let decodes = args
        .decode
        .iter()
        .filter(|n| **n > 0)
        .flat_map(|tokens| args.batch.iter().map(|batch| Test::Decode { tokens: *tokens, batch: *batch }));
    prompts.chain(decodes).collect()
}

impl Test {
    /// Tokens of the prompt, tokens to decode, sequences, tokens that are there before.
    pub(super) fn sizes(&self, args: &Args) -> (usize, usize, usize, usize) {
        match *self {
            Self::Prompt(tokens) => (tokens, 0, 1, 0),
            Self::Decode { tokens, batch } => (0, tokens, batch, args.depth),
        }
    }
}

fn time(model: &Model, name: String, test: &Test, args: &Args, machine: &Machine) -> anyhow::Result<Line> {
    let (n_prompt, n_gen, batch, depth) = test.sizes(args);
    let room = depth + n_prompt + n_gen;
    let context = model.config().context;
    ensure!(room <= context, "{room} positions are asked for but the model's context is {context}; ask for fewer");
    let vocabulary = model.config().vocab_size as u32;
    let text: Vec<u32> = (0..room as u32).map(|i| (i * 37 + 11) % vocabulary).collect();
    let mut caches: Vec<KvCache> = (0..batch).map(|_| model.new_cache(room)).collect();
    for cache in &mut caches {
        read(model, cache, &text[..depth], args.chunk)?;
    }
    let mut samples_ts = Vec::with_capacity(args.repetitions);
    // The first round touches the memory of caches and buffers; it is not counted.
    for round in 0..=args.repetitions {
        let start = Instant::now();
        match *test {
            Test::Prompt(_) => read(model, &mut caches[0], &text, args.chunk)?,
            Test::Decode { .. } => {
                for token in &text[depth..] {
                    let tokens = std::slice::from_ref(token);
                    let mut steps: Vec<Step<'_>> =
                        caches.iter_mut().map(|cache| Step::new(cache, tokens, Want::Last)).collect();
                    model.forward(&mut steps)?;
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        if round > 0 {
            samples_ts.push(((n_prompt + n_gen) * batch) as f64 / seconds);
        }
        for cache in &mut caches {
            cache.truncate(depth);
        }
    }
    let weights = (model.bytes_per_pass(), model.products_per_token());
    let machine = (machine.read, machine.products, model.cpu().pool().threads(), model.kv_bits().bits());
    Ok(Line::new(name, model.precision(), model.kernel().to_owned(), test, args, samples_ts, weights, machine))
}

impl Line {
    /// `weights`: bytes of a pass, and multiply-adds per token of the layers and of the head. `machine`: bytes per second
    /// that it reads, multiply-adds per second at most, threads, bits of keys and values.
    #[expect(clippy::too_many_arguments, reason = "a line of a table")]
    pub(super) fn new(
        model: String,
        precision: &'static str,
        kernel: String,
        test: &Test,
        args: &Args,
        samples_ts: Vec<f64>,
        (weight_bytes, (layers, head)): (usize, (usize, usize)),
        (read, products, threads, kv_bits): (f64, Option<f64>, usize, usize),
    ) -> Self {
        let (n_prompt, n_gen, batch, depth) = test.sizes(args);
        let mut sorted = samples_ts.clone();
        sorted.sort_by(f64::total_cmp);
        let median_ts = sorted[sorted.len() / 2];
        // Tokens per pass, rows of logits per token.
        let (per_pass, per_token) = match *test {
            Test::Prompt(tokens) => (tokens.min(args.chunk), 1.0 / tokens as f64),
            Test::Decode { batch, .. } => (batch, 1.0),
        };
        let gb_per_s = weight_bytes as f64 * median_ts / per_pass as f64 / 1e9;
        let gmac_per_s = (layers as f64 + head as f64 * per_token) * median_ts / 1e9;
        Self {
            model,
            precision,
            kernel,
            threads,
            test: match *test {
                Test::Prompt(tokens) => format!("pp{tokens}"),
                Test::Decode { tokens, .. } if depth > 0 => format!("tg{tokens}@{depth}"),
                Test::Decode { tokens, .. } => format!("tg{tokens}"),
            },
            n_prompt,
            n_gen,
            batch,
            depth,
            kv_bits,
            median_ts,
            best_ts: sorted[sorted.len() - 1],
            samples_ts,
            weight_bytes,
            gb_per_s,
            read_gb_per_s: read / 1e9,
            read_share: gb_per_s * 1e9 / read,
            gmac_per_s,
            peak_gmac_per_s: products.map(|peak| peak / 1e9),
            peak_share: products.map(|peak| gmac_per_s * 1e9 / peak),
        }
    }
}

/// Reads a prompt in passes of at most `chunk` tokens; the last one gives logits.
fn read(model: &Model, cache: &mut KvCache, text: &[u32], chunk: usize) -> anyhow::Result<()> {
    let mut chunks = text.chunks(chunk).peekable();
    while let Some(tokens) = chunks.next() {
        let want = if chunks.peek().is_none() { Want::Last } else { Want::Nothing };
        model.forward(&mut [Step::new(cache, tokens, want)])?;
    }
    Ok(())
}

fn heading() -> String {
    let names = "| model | weights | kernel | threads | test | batch | tok/s median | best | GB/s | of read | GMAC/s | of peak |";
    let columns = names.matches('|').count() - 1;
    format!("{names}\n|{}", "---|".repeat(columns))
}

fn row(line: &Line) -> String {
    let peak = line.peak_share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    format!(
        "| {} | {}, {:.0} MB | {} | {} | {} | {} | {:.2} | {:.2} | {:.1} | {:.0} % of {:.1} | {:.1} | {peak} |",
        line.model,
        line.precision,
        line.weight_bytes as f64 / 1e6,
        line.kernel,
        line.threads,
        line.test,
        line.batch,
        line.median_ts,
        line.best_ts,
        line.gb_per_s,
        line.read_share * 100.0,
        line.read_gb_per_s,
        line.gmac_per_s,
    )
}
