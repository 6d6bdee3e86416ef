use crate::{
    cluster::Place,
    output::{Format, age, print_object, table},
};
use anyhow::{Context, Result};
use bitnet_api::v1alpha1::ModelRollout;
use jiff::Timestamp;
use kube::{ResourceExt, api::ListParams};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of a rollout; default: all.
    name: Option<String>,
    /// All namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
    /// Output: json, yaml, or wide.
    #[arg(short, long)]
    output: Option<Format>,
}

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api = if args.all_namespaces { connection.everywhere() } else { connection.api::<ModelRollout>() };
    let rollouts = match &args.name {
        Some(name) => vec![api.get(name).await.with_context(|| format!("getting ModelRollout {name}"))?],
        None => api.list(&ListParams::default()).await.context("listing ModelRollouts")?.items,
    };
    match args.output {
        Some(format @ (Format::Json | Format::Yaml)) => match args.name {
            Some(_) => print_object(format, &rollouts[0])?,
            None => print_object(format, &rollouts)?,
        },
        wide => {
            if rollouts.is_empty() {
                let place = if args.all_namespaces {
                    "the cluster".into()
                } else {
                    format!("namespace {}", connection.namespace)
                };
                eprintln!("No rollouts in {place}.");
                return Ok(ExitCode::SUCCESS);
            }
            print!("{}", rows(&rollouts, args.all_namespaces, wide.is_some()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(rollouts: &[ModelRollout], namespaces: bool, wide: bool) -> String {
    let now = Timestamp::now();
    let mut header = vec!["NAME", "PHASE", "STEP", "WEIGHT", "VERDICT", "COSINE", "LATENCY", "ERRORS", "AGE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["STABLE", "CANDIDATE", "MESSAGE"]);
    }
    let rows: Vec<Vec<String>> = rollouts
        .iter()
        .map(|rollout| {
            let status = rollout.status.clone().unwrap_or_default();
            let step = status.step.clone().unwrap_or_default();
            let signal = |name: &str| {
                status.signals.iter().find(|s| s.name == name).and_then(|s| s.estimate.clone()).unwrap_or_default()
            };
            let age = rollout.creation_timestamp().map(|t| age(t.0, now)).unwrap_or_default();
            let mut row = vec![
                rollout.name_any(),
                status.phase.clone(),
                step.position,
                step.weight.to_string(),
                status.verdict.clone().unwrap_or_default(),
                signal("cosine"),
                signal("latency"),
                signal("errors"),
                age,
            ];
            if namespaces {
                row.insert(0, rollout.namespace().unwrap_or_default());
            }
            if wide {
                row.push(status.stable.map(|s| s.revision).unwrap_or_default());
                row.push(status.candidate.map(|s| s.revision).unwrap_or_default());
                row.push(status.message);
            }
            row
        })
        .collect();
    table(&header, &rows)
}
