//! `inference-worker selftest`: does this machine compute what it should?

use anyhow::{Context, bail, ensure};
use inference_worker::device::{Device, GpuKv};
use inference_worker::model::{LoadOptions, Model, Precision, Shape};
use std::path::PathBuf;

/// Arguments of `selftest`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to check against the portable kernels or, for a GPU, against the CPU: cpu, cuda, cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Model directories whose logits are compared.
    #[arg(long, value_name = "DIR")]
    model: Vec<PathBuf>,
    /// Models with random weights whose logits are compared, once for every precision.
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "demo")]
    shape: Vec<String>,
    /// Keys and values on the GPU.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f16,int8")]
    gpu_kv: Vec<GpuKv>,
    /// Threads of the CPU's side [default: the CPUs at hand].
    #[arg(short = 't', long)]
    threads: Option<usize>,
}

/// A model's name, and how it is had.
type Subject = (String, Box<dyn Fn() -> anyhow::Result<Model>>);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(super::cpus);
    ensure!(threads > 0, "--threads must be at least 1");
    let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
    let mut subjects: Vec<Subject> = Vec::new();
    for dir in &args.model {
        let (dir, options) = (dir.clone(), options.clone());
        let name = dir.display().to_string();
        let load =
            move || Model::load(&dir, &options).with_context(|| format!("cannot load the model in {}", dir.display()));
        subjects.push((name, Box::new(load)));
    }
    for name in &args.shape {
        let Some(shape) = Shape::find(name) else {
            let known: Vec<&str> = Shape::ALL.iter().map(|shape| shape.name).collect();
            bail!("--shape must be one of {} but is {name}", known.join(", "));
        };
        // A GPU runs no weights of codes.
        let on_a_gpu = matches!(args.device, Device::Cuda { .. });
        let all = Precision::ALL.into_iter();
        for precision in all.filter(|p| !(on_a_gpu && matches!(p, Precision::Codes(_)))) {
            let options = options.clone();
            subjects.push((
                format!("random {name} {}", precision.name()),
                Box::new(move || Ok(Model::random(shape, precision, 1, &options)?)),
            ));
        }
    }
    let mut failed = 0;
    println!("| model | check | numbers | found | |\n|---|---|---|---|---|");
    for (index, (name, load)) in subjects.iter().enumerate() {
        let mut model = load()?;
        failed += match args.device {
            Device::Cuda { ordinal } => on_gpu(&model, name, ordinal, &args.gpu_kv, index == 0)?,
            Device::Cpu | Device::Auto => {
                let outcome = model.self_test();
                let found = outcome.as_ref().map_or_else(ToString::to_string, |()| "agrees".to_owned());
                println!("{}", row(name, &format!("{} kernels", model.kernel()), 0, &found, outcome.is_ok()));
                usize::from(outcome.is_err())
            }
        };
    }
    ensure!(failed == 0, "{failed} checks failed: do not serve on this machine, and report its CPU, GPU and driver");
    Ok(())
}

fn row(model: &str, check: &str, numbers: usize, found: &str, passed: bool) -> String {
    format!("| {model} | {check} | {numbers} | {found} | {} |", if passed { "ok" } else { "FAILED" })
}

#[cfg(feature = "cuda")]
fn on_gpu(model: &Model, name: &str, ordinal: usize, kv: &[GpuKv], first: bool) -> anyhow::Result<usize> {
    use inference_worker::cuda::{CudaModel, KvPrecision};
    let mut failed = 0;
    for (index, kv) in kv.iter().enumerate() {
        let (precision, label) = match kv {
            GpuKv::F16 => (KvPrecision::F16, "f16"),
            GpuKv::Int8 => (KvPrecision::Int8, "int8"),
        };
        let gpu = CudaModel::new(model, ordinal, precision)?;
        // Products do not depend on the model.
        let checks = if first && index == 0 { gpu.self_test(model)? } else { vec![gpu.logits_check(model, 40, 3)?] };
        // Long enough that several blocks share the positions of a sequence.
        let long = (model.config().context > 200).then(|| gpu.logits_check(model, 180, 3)).transpose()?;
        for check in checks.iter().chain(&long) {
            let what = format!("{} ({label} keys and values)", check.name);
            println!("{}", row(name, &what, check.compared, &check.found, check.passed));
            failed += usize::from(!check.passed);
        }
    }
    Ok(failed)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_model: &Model, _name: &str, _ordinal: usize, _kv: &[GpuKv], _first: bool) -> anyhow::Result<usize> {
    Err(inference_worker::device::DeviceError::NotBuilt.into())
}
