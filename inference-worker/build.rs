//! Compiles the CUDA kernels into one fatbin, with the feature `cuda` only.
//!
//! Wants nvcc (of `NVCC`, `$CUDA_HOME/bin`, or `PATH`) and a C++ compiler; no GPU and no driver. To check types and lints
//! without a toolkit, set `CUDA_KERNELS=none`: the program then has no kernels and says so when it is asked for a GPU.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// Compute capabilities with machine code of their own; the last also as PTX, for later GPUs.
const ARCHITECTURES: [&str; 5] = ["80", "89", "90", "100", "120"];

fn main() -> ExitCode {
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo:rerun-if-changed=build.rs");
        return ExitCode::SUCCESS;
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/cuda/kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_KERNELS", "CUDA_ARCHITECTURES"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    match kernels() {
        Ok(toolkit) => {
            println!("cargo:rustc-env=CUDA_KERNELS_TOOLKIT={toolkit}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Writes kernels.fatbin; returns the toolkit's version.
fn kernels() -> Result<String, String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run cargo")?).join("kernels.fatbin");
    match env::var("CUDA_KERNELS").as_deref() {
        Ok("none") => {
            std::fs::write(&out, []).map_err(|error| format!("cannot write {}: {error}", out.display()))?;
            return Ok("none".to_owned());
        }
        Ok(other) => return Err(format!("CUDA_KERNELS must be `none` or unset, it is `{other}`")),
        Err(_) => {}
    }
    let nvcc = nvcc();
    let version = run(Command::new(&nvcc).arg("--version"))?;
    let toolkit = version
        .split_once("release ")
        .and_then(|(_, rest)| rest.split_once(','))
        .map(|(release, _)| release.trim().to_owned())
        .ok_or_else(|| format!("{} --version names no release", nvcc.display()))?;
    let chosen = env::var("CUDA_ARCHITECTURES").unwrap_or_else(|_| ARCHITECTURES.join(","));
    let chosen: Vec<&str> = chosen.split(',').map(str::trim).filter(|arch| !arch.is_empty()).collect();
    let last = chosen.last().ok_or("CUDA_ARCHITECTURES is empty: name compute capabilities, for example 80,90")?;
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17", "--threads", "0", "-o"]).arg(&out);
    for arch in &chosen {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    run(command.arg("src/cuda/kernels/kernels.cu"))?;
    Ok(toolkit)
}

fn nvcc() -> PathBuf {
    let home = || env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc").into_os_string());
    PathBuf::from(env::var_os("NVCC").or_else(home).unwrap_or_else(|| OsString::from("nvcc")))
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| {
        format!(
            "{} does not start ({error}): the feature `cuda` needs the CUDA toolkit (set CUDA_HOME or NVCC), or CUDA_KERNELS=none to check types only",
            command.get_program().display()
        )
    })?;
    if !output.status.success() {
        return Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
