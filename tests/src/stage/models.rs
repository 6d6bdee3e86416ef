use crate::cluster::cache_dir;
use crate::world::demo_gate;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The demo's models: a pair that was trained here, and candidates with real faults.
#[derive(Clone, Debug)]
pub struct Models {
    /// The fp16 teacher.
    pub fp16: PathBuf,
    /// Its ternary student.
    pub bitnet: PathBuf,
    /// The student with the 2-bit fields in the wrong order: gross.
    pub order: PathBuf,
    /// The student with a wrong rope base: its mean passes, its tail does not.
    pub rope: PathBuf,
    /// Probe prompts, held out from training (JSON lines).
    pub probes: PathBuf,
    /// Prompts for live traffic (JSON lines).
    pub prompts: PathBuf,
}

impl Models {
    /// Trains and damages what is not in the cache yet.
    pub fn ensure(worker: &Path) -> Result<Self> {
        let models = Self::made()?;
        let pair = models.fp16.parent().context("the cache has no folder")?;
        run(worker, &["distill", "--out"], &[pair], &[])?;
        // The faults are to show to this gate: how far apart two models are depends on how many tokens are compared.
        let gate = pair.with_file_name("demo-gate.yaml");
        let object = json!({"kind": "QualityGate", "metadata": {"name": "demo"}, "spec": demo_gate()});
        fs::write(&gate, object.to_string()).with_context(|| format!("writing {}", gate.display()))?;
        for (fault, out) in [("order", &models.order), ("rope", &models.rope)] {
            let options: [(&str, &Path); 5] = [
                ("--baseline", &models.fp16),
                ("--model", &models.bitnet),
                ("--probes", &models.probes),
                ("--gate", &gate),
                ("--out", out),
            ];
            run(worker, &["damage", "--fault", fault], &[], &options)?;
        }
        Ok(models)
    }

    /// Where [`Models::ensure`] puts them.
    pub fn made() -> Result<Self> {
        let root = cache_dir()?.join("models");
        let pair = root.join("small");
        Ok(Self {
            fp16: pair.join("fp16"),
            bitnet: pair.join("bitnet"),
            probes: pair.join("probes.jsonl"),
            prompts: pair.join("prompts.jsonl"),
            order: root.join("small-order"),
            rope: root.join("small-rope"),
        })
    }

    /// The prompts for live traffic.
    pub fn live_prompts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.prompts).with_context(|| format!("reading {}", self.prompts.display()))?;
        let prompts: Vec<String> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                let value: Value = serde_json::from_str(line)?;
                value["prompt"].as_str().map(str::to_owned).context("a line without `prompt`")
            })
            .collect::<Result<_>>()
            .with_context(|| format!("reading {}", self.prompts.display()))?;
        ensure!(!prompts.is_empty(), "{} has no prompt", self.prompts.display());
        Ok(prompts)
    }
}

fn run(worker: &Path, verb: &[&str], paths: &[&Path], options: &[(&str, &Path)]) -> Result<()> {
    let mut command = Command::new(worker);
    command.args(verb).args(paths).stdin(Stdio::null());
    for (option, path) in options {
        command.arg(option).arg(path);
    }
    let status = command.status().with_context(|| format!("running {}", worker.display()))?;
    ensure!(status.success(), "`inference-worker {}` failed; its message stands above", verb.join(" "));
    Ok(())
}
