//! `cargo box`: a real Kubernetes in a box, for the demo and the end-to-end tests.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use e2e::cluster::{Cluster, Config, Progress, Tools, cache_dir};

/// A real one-node Kubernetes with Envoy Gateway, built from pinned source, in its own network namespace.
///
/// Needs Linux, root, Go, a C compiler and Python with pip; no Docker. The first run compiles the tools (about a
/// quarter of an hour on two cores, into $BITNET_CACHE, default ~/.cache/bitnet-rollouts); after that a cluster is
/// ready in seconds. `down` leaves nothing behind.
///
/// A first tour:
///
///   cargo box up
///   cargo box kubectl get pods -A
///   cargo box image operator --binary target/release/operator
///   cargo box exec -- curl http://198.19.0.1
///   cargo box down
#[derive(Parser)]
#[command(name = "box", bin_name = "cargo box", verbatim_doc_comment)]
struct Args {
    /// The box's folder; every folder is a box of its own [default: $BITNET_CACHE/box]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the cluster's programs into the cache; skips what is built
    Tools,
    /// Bring the box up; does nothing if it is up, starts over if it is broken
    Up {
        /// Leave Envoy Gateway out
        #[arg(long)]
        no_gateway: bool,
    },
    /// Make an image of a program with its shared libraries, load it, and print its reference by digest
    Image {
        /// For example `operator`, which becomes localhost/operator:box
        name: String,
        /// The program; the image's entry point
        #[arg(long)]
        binary: PathBuf,
        /// One more file or folder
        #[arg(long = "file", value_name = "SRC:DST", value_parser = source_and_target)]
        files: Vec<(PathBuf, String)>,
    },
    /// Make an image of a model's folder, for an image volume, load it, and print its reference by digest
    ModelImage {
        /// For example `small-fp16`
        name: String,
        /// The folder whose files become the image's root
        folder: PathBuf,
    },
    /// Run kubectl as the box's administrator
    Kubectl {
        /// What kubectl shall do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run helm as the box's administrator
    Helm {
        /// What helm shall do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a program inside the box's network, with KUBECONFIG set and the tools on PATH
    Exec {
        /// The program and its arguments, after `--`
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the box's processes and its node
    Status,
    /// Take the box away completely, also a crashed one
    Down,
}

fn source_and_target(text: &str) -> Result<(PathBuf, String), String> {
    match text.split_once(':') {
        Some((source, target)) if target.starts_with('/') => Ok((PathBuf::from(source), target.to_owned())),
        _ => Err("write it as SRC:DST with an absolute DST, for example chat.jinja:/etc/chat.jinja".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let mut config = match args.dir {
        Some(dir) => Config::at(dir),
        None => Config::default_place()?,
    };
    let progress = Progress::visible();
    match args.verb {
        Verb::Tools => {
            Tools::ensure(&progress)?;
            progress.note(&format!("all tools are built, in {}", cache_dir()?.join("box/tools").display()));
        }
        Verb::Up { no_gateway } => {
            config.gateway = !no_gateway;
            let cluster = Cluster::up(&config, &progress)?;
            progress.note(&format!("the box is up; KUBECONFIG={}", cluster.kubeconfig().display()));
            progress.note("try `cargo box kubectl get pods -A` or `cargo box exec -- bash`");
        }
        Verb::Image { name, binary, files } => {
            println!("{}", Cluster::attach(&config)?.load_image(&name, &binary, &files)?.pinned());
        }
        Verb::ModelImage { name, folder } => {
            println!("{}", Cluster::attach(&config)?.load_model(&name, &folder)?.pinned());
        }
        Verb::Kubectl { args } => become_program(&config, "kubectl", &args)?,
        Verb::Helm { args } => become_program(&config, "helm", &args)?,
        Verb::Exec { command } => {
            let (program, args) = command.split_first().context("nothing to run")?;
            become_program(&config, program, args)?;
        }
        Verb::Status => status(&config)?,
        Verb::Down => {
            progress.stage("the box is gone", || Cluster::down_at(&config))?;
        }
    }
    Ok(())
}

/// Ends in that program, so that its input, output and exit status are the caller's.
fn become_program(config: &Config, program: &str, args: &[String]) -> Result<()> {
    let error = Cluster::attach(config)?.command_in(program)?.args(args).exec();
    bail!("could not run {program}: {error}");
}

fn status(config: &Config) -> Result<()> {
    let cluster = Cluster::attach(config)?;
    let layout = cluster.layout();
    println!("folder      {}", layout.dir().display());
    println!("network     {}", layout.netns().display());
    println!("KUBECONFIG  {}", cluster.kubeconfig().display());
    println!("logs        {}", layout.logs().display());
    for process in cluster.processes()? {
        println!("{:<20} {:>8}  {}", process.name, process.pid, if process.alive { "running" } else { "DEAD" });
    }
    print!("{}", cluster.kubectl(&["get", "node", "-o", "wide"])?);
    Ok(())
}
