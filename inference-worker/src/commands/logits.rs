//! `inference-worker logits`: a parity tool that needs no tokenizer.

use anyhow::{Context, ensure};
use inference_worker::device::{Device, GpuKv, Runner};
use inference_worker::engine::{Network, Turn};
use inference_worker::model::{LoadOptions, Model};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Arguments of `logits`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model directory: config.json and safetensors.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Token ids, for example 1,17,301.
    #[arg(long, value_delimiter = ',', required = true, value_name = "IDS")]
    tokens: Vec<u32>,
    /// File to write: f32 [tokens, vocabulary], NumPy format. It appears whole or not at all.
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
    /// Where the model runs: auto, cpu, cuda, cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Keys and values on a GPU.
    #[arg(long, value_enum, default_value = "f16")]
    gpu_kv: GpuKv,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { model: dir, tokens, out, device, gpu_kv } = args;
    let model = Model::load(&dir, &LoadOptions::default())
        .with_context(|| format!("cannot load the model in {}", dir.display()))?;
    let context = model.config().context;
    ensure!(
        tokens.len() <= context,
        "--tokens has {} ids but the model's context is {context}; give at most that many",
        tokens.len()
    );
    let model = Runner::place(model, device, gpu_kv, None)?;
    let mut cache = model.new_cache(tokens.len());
    let want: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut turns = [Turn { cache: &mut cache, tokens: &tokens, want: &want, logits: Vec::new() }];
    model.forward(&mut turns).map_err(anyhow::Error::msg).context("--tokens does not fit the model")?;
    let [turn] = turns;
    write_npy(&out, &turn.logits, model.config().vocab_size).with_context(|| format!("cannot write {}", out.display()))
}

/// Writes rows of f32 as NumPy format 1.0, through a temporary file beside the target.
fn write_npy(path: &Path, data: &[f32], columns: usize) -> anyhow::Result<()> {
    let name = path.file_name().context("--out must name a file")?;
    let temporary = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = write_all(&temporary, data, columns).and_then(|()| Ok(std::fs::rename(&temporary, path)?));
    if written.is_err() {
        // The error that matters is the first one; a file that is not there needs no removal.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn write_all(path: &Path, data: &[f32], columns: usize) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&npy_header(data.len() / columns, columns))?;
    for value in data {
        file.write_all(&value.to_le_bytes())?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

/// Magic, version 1.0, length, and a dictionary padded so that the data starts at a multiple of 64.
fn npy_header(rows: usize, columns: usize) -> Vec<u8> {
    const PREFIX: usize = 10;
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let total = (PREFIX + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(total - PREFIX - text.len() - 1));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}
