//! `sbom PROGRAM`: the bill of materials of a program; `sbom --licences`: what all of them are made of.

use anyhow::Result;
use clap::{Parser, ValueEnum};
use e2e::supply::{cyclonedx, parts};
use std::collections::BTreeSet;

/// Print what a program is made of, from the lock file.
#[derive(Parser)]
#[command(name = "sbom", version, arg_required_else_help = true)]
struct Args {
    /// The program whose bill of materials (CycloneDX 1.6, JSON) is printed.
    #[arg(required_unless_present = "licences")]
    program: Option<Program>,
    /// Instead, every dependency of every program with its licence, one a line.
    #[arg(long, conflicts_with = "program")]
    licences: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Program {
    Operator,
    InferenceWorker,
    KubectlBitnet,
}

impl Program {
    fn package(self) -> &'static str {
        match self {
            Self::Operator => "bitnet-operator",
            Self::InferenceWorker => "inference-worker",
            Self::KubectlBitnet => "kubectl-bitnet",
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(program) = args.program {
        println!("{:#}", cyclonedx(&parts(program.package())?)?);
        return Ok(());
    }
    let mut lines = BTreeSet::new();
    for program in Program::value_variants() {
        let linked = parts(program.package())?;
        lines.extend(linked.iter().map(|part| format!("{} {}: {}", part.name, part.version, part.licence)));
    }
    for line in lines {
        println!("{line}");
    }
    Ok(())
}
