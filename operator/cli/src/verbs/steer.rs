//! The verbs that steer: each is one annotation that the operator answers once, in status.

use crate::{
    cluster::Place,
    output::{Machine, print_machine},
};
use anyhow::{Context, Result, bail};
use bitnet_api::v1alpha1::ModelRollout;
use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub(crate) struct Target {
    /// Name of the rollout.
    name: String,
    /// Do not wait for the operator's answer.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for it, in seconds.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// Your name, for the record; default: the user of the kubeconfig.
    #[arg(long)]
    by: Option<String>,
    /// Output: json or yaml (what was asked, and the answer).
    #[arg(short, long)]
    output: Option<Machine>,
}

#[derive(clap::Args)]
pub(crate) struct Promote {
    #[command(flatten)]
    target: Target,
    /// Go to 100 % now, whatever the evidence lacks; recorded with your name.
    #[arg(long)]
    full: bool,
}

pub(crate) async fn promote(place: &Place, args: &Promote) -> Result<ExitCode> {
    steer(place, &args.target, if args.full { "promote-full" } else { "promote" }).await
}

pub(crate) async fn steer(place: &Place, target: &Target, verb: &str) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api = connection.api::<ModelRollout>();
    let rollout = api.get(&target.name).await.with_context(|| format!("getting ModelRollout {}", target.name))?;
    let status = rollout.status.clone().unwrap_or_default();
    let Some(candidate) = status.candidate.or(status.stable) else {
        bail!("{} has no revision yet ({}): nothing to {verb}", target.name, status.phase);
    };
    let attempt = status.attempt.unwrap_or(0);
    let id = Timestamp::now().as_nanosecond().to_string();
    let by = target.by.clone().unwrap_or(connection.user);
    let request = json!({"id": id, "revision": candidate.revision, "attempt": attempt, "by": by}).to_string();
    let patch = json!({"metadata": {
        "uid": rollout.uid(),
        "annotations": {format!("rollouts.bitnet.dev/{verb}"): request},
    }});
    api.patch(&target.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("asking for {verb}"))?;
    let mut asked = json!({
        "verb": verb, "rollout": target.name, "namespace": connection.namespace, "id": id,
        "revision": candidate.revision, "attempt": attempt, "by": by,
    });
    if target.output.is_none() {
        println!("{verb} asked of {} for {} (attempt {attempt}), by {by}", target.name, candidate.revision);
    }
    let answer = if target.no_wait { None } else { answer(&api, target, &id).await? };
    match (target.output, &answer) {
        (Some(format), _) => {
            asked["answer"] = json!(answer);
            print_machine(format, &asked)?;
        }
        (None, Some(answer)) => println!("{answer}"),
        (None, None) => {}
    }
    if answer.is_some() || target.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "no answer within {} s: is the operator running? The request stays; `kubectl bitnet status {}` shows its answer",
        target.timeout, target.name
    );
    Ok(ExitCode::from(4))
}

async fn answer(api: &Api<ModelRollout>, target: &Target, id: &str) -> Result<Option<String>> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(target.timeout) {
        let rollout = api.get(&target.name).await.context("reading the answer")?;
        let status = rollout.status.unwrap_or_default();
        if let Some(answer) = status.verbs.into_iter().find(|v| v.id == id) {
            return Ok(Some(answer.answer));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(None)
}
