//! What the workers say in a tick: counters of both arms at the same time, the outstanding comparison, identities.
//! A worker that does not answer well is data (nothing is known), never an error of the reconcile.

use super::{Sources, World};
use crate::{
    counters::{ArmScrape, Pending, Scrape},
    metrics::Metrics,
    worker::{Asked, Error, Poll},
};
use bitnet_api::worker::{CompareResult, Counters, Generation, Identity, PromptComparison};
use bitnet_core::{
    Time,
    evidence::{GenerationSample, Probes, PromptSample},
    model::{Revision, Rollout},
    observation::{Comparable, ProbeOutcome, RouteState, Sample},
    plan::{Attempt, ProbeJob},
};
use futures::{StreamExt, future, stream};
use std::net::IpAddr;

/// Pods of one arm that are scraped at the same time.
pub(super) const CONCURRENCY: usize = 16;

/// One prompt as it was compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Place of the prompt in the probe set, from 0; `None`: an older worker does not say.
    pub probe: Option<u32>,
    /// Cosine averaged over the drawn positions, 0 for logits that are no numbers.
    pub cosine: f64,
}

/// Takes the sample of a tick.
pub(super) async fn take(
    from: Sources<'_>,
    rollout: &Rollout,
    attempt: &Attempt,
    world: &World,
    now: Time,
) -> (Sample, Vec<Compared>, Pending) {
    let stable = match &world.observation.route {
        RouteState::Found(route) => route.ledger.as_ref().map(|ledger| &ledger.stable),
        _ => None,
    };
    let stable = stable.unwrap_or(&rollout.baseline.revision);
    let (candidate, stable, (probes, compared), comparable) = future::join4(
        scrape(from, world, &attempt.candidate),
        scrape(from, world, stable),
        comparison(from, rollout, world, attempt.job.as_ref()),
        identities(from, rollout, world, attempt),
    )
    .await;
    let scrape = Scrape { candidate, stable, interval: rollout.gate.interval, attempt: attempt.number };
    let stable_total = scrape.stable.total();
    let (live, pending) = from.references.difference(&rollout.uid, &scrape);
    (Sample { at: now, live, stable_total, probes, comparable }, compared, pending)
}

/// What became of the guard's comparison: nothing else is asked for it.
pub(super) async fn of_guard(
    from: Sources<'_>,
    rollout: &Rollout,
    world: &World,
    job: Option<&ProbeJob>,
    now: Time,
) -> (Sample, Vec<Compared>) {
    let (probes, compared) = comparison(from, rollout, world, job).await;
    (Sample { at: now, probes, ..Sample::default() }, compared)
}

/// Ready pods of a revision with their IPs, by name.
pub(super) fn ready_pods(world: &World, revision: &Revision) -> Vec<(String, IpAddr)> {
    let pods = world.observation.workloads.get(revision).map(|workload| workload.pods.as_slice()).unwrap_or_default();
    pods.iter()
        .filter(|pod| pod.ready_since.is_some())
        .filter_map(|pod| Some((pod.name.clone(), *world.pods.get(&pod.name)?)))
        .collect()
}

async fn scrape(from: Sources<'_>, world: &World, revision: &Revision) -> ArmScrape {
    let workload = world.observation.workloads.get(revision);
    let alive = workload.iter().flat_map(|workload| &workload.pods).map(|pod| pod.name.clone()).collect();
    let mut calls = Vec::new();
    for (name, ip) in ready_pods(world, revision) {
        calls.push(scrape_one(from, name, ip));
    }
    let answers = stream::iter(calls).buffer_unordered(CONCURRENCY).collect().await;
    ArmScrape { revision: revision.0.clone(), answers, alive }
}

async fn scrape_one(from: Sources<'_>, name: String, ip: IpAddr) -> (String, Option<Counters>) {
    (name, counted(from.metrics, "counters", from.workers.counters(ip).await))
}

/// Counts and logs the outcome of a call; what was not answered well is `None`.
pub(super) fn counted<T>(metrics: &Metrics, call: &'static str, outcome: Result<T, Error>) -> Option<T> {
    match outcome {
        Ok(value) => {
            metrics.called(call, "ok");
            Some(value)
        }
        Err(error) => {
            metrics.called(call, error.class());
            tracing::warn!(call, error = &error as &dyn std::error::Error, "a worker's answer is left out");
            None
        }
    }
}

async fn comparison(
    from: Sources<'_>,
    rollout: &Rollout,
    world: &World,
    job: Option<&ProbeJob>,
) -> (ProbeOutcome, Vec<Compared>) {
    let nothing = |outcome| (outcome, Vec::new());
    let Some(job) = job else { return nothing(ProbeOutcome::None) };
    let Some((_, ip)) = ready_pods(world, &job.candidate).into_iter().find(|(name, _)| *name == job.pod) else {
        return nothing(ProbeOutcome::Lost(format!("pod {} is gone or not ready", job.pod)));
    };
    let settings = &rollout.gate.probes;
    let asked = Asked { key: &job.key, tick: job.tick, probes: settings.per_tick, pairs: settings.pairs };
    match from.workers.poll(ip, &asked).await {
        Ok(Poll::Unknown) => nothing(ProbeOutcome::Lost(format!("pod {} does not know the job", job.pod))),
        Ok(Poll::Running) => nothing(ProbeOutcome::Running),
        Ok(Poll::Done(result)) => {
            from.metrics.called("compare", "ok");
            (ProbeOutcome::Done(probes(&result)), compared(&result))
        }
        Err(error) => {
            from.metrics.called("compare", error.class());
            tracing::warn!(pod = job.pod, error = &error as &dyn std::error::Error, "a comparison is left out");
            if error.is_bad_answer() {
                // The answer is final and nothing can be concluded from it: every prompt of it is void.
                let peer_errors = vec![(format!("unusable answer ({})", error.class()), settings.per_tick)];
                let void = Probes { drawn: settings.per_tick, peer_errors, ..Probes::default() };
                return nothing(ProbeOutcome::Done(void));
            }
            nothing(ProbeOutcome::Running)
        }
    }
}

fn compared(result: &CompareResult) -> Vec<Compared> {
    let sound = |prompt: &PromptComparison| if prompt.non_finite == 0 { prompt.cosine } else { 0.0 };
    result.prompts.iter().map(|prompt| Compared { probe: prompt.probe, cosine: sound(prompt) }).collect()
}

fn probes(result: &CompareResult) -> Probes {
    let generation = |g: &Generation| GenerationSample { ok: g.ok, ttft: g.ttft, tpot: g.tpot, alone: g.alone };
    Probes {
        probe_set: result.probe_set.as_ref().map(|set| set.hash.clone()).unwrap_or_default(),
        probe_set_size: result.probe_set.as_ref().map_or(0, |set| set.size),
        drawn: result.drawn,
        prompts: result
            .prompts
            .iter()
            .map(|prompt| {
                // Logits that are no numbers agree with nothing.
                let sound = if prompt.non_finite == 0 { 1.0 } else { 0.0 };
                PromptSample {
                    cosine: prompt.cosine * sound,
                    cosine_at: prompt.cosine_at * sound,
                    mse: prompt.mse,
                    kl: prompt.kl,
                    top1: prompt.top1 * sound,
                }
            })
            .collect(),
        pairs: result.pairs.iter().map(|pair| (generation(&pair.candidate), generation(&pair.stable))).collect(),
        busy_candidate: result.busy.candidate,
        busy_stable: result.busy.stable,
        peer_errors: result.peer_errors.clone(),
    }
}

async fn identities(from: Sources<'_>, rollout: &Rollout, world: &World, attempt: &Attempt) -> Comparable {
    if attempt.comparable {
        return Comparable::Yes;
    }
    // The baseline of the attempt, also while an edit of it waits.
    let baseline = identity(from, world, &attempt.against);
    match future::join(baseline, identity(from, world, &attempt.candidate)).await {
        (Some(baseline), Some(candidate)) => {
            // While an edit waits, the spec is about another revision.
            let said = [(&rollout.baseline, &baseline), (&rollout.model, &candidate)];
            let mut said = said.into_iter().filter(|(serving, found)| serving.revision.as_str() == found.revision);
            let other = said.find_map(|(serving, found)| other(&serving.precision, found));
            other.unwrap_or_else(|| comparable(&baseline, &candidate))
        }
        _ => Comparable::Unknown,
    }
}

async fn identity(from: Sources<'_>, world: &World, revision: &Revision) -> Option<Identity> {
    let (_, ip) = ready_pods(world, revision).into_iter().next()?;
    counted(from.metrics, "identity", from.workers.identity(ip).await)
        // Pod IPs are used again: the answer must come from a worker of this revision.
        .filter(|identity| identity.revision == revision.as_str())
}

/// The files are of another precision than the spec says.
fn other(asked: &str, found: &Identity) -> Option<Comparable> {
    let same = match asked {
        "auto" => true,
        "fp16" => ["fp16", "bf16", "fp32"].contains(&found.precision.as_str()),
        asked => asked == found.precision,
    };
    let (asked, found) = (asked.to_owned(), found.precision.clone());
    (!same).then(|| Comparable::Other { field: "precision".into(), asked, found })
}

fn comparable(baseline: &Identity, candidate: &Identity) -> Comparable {
    let list = |tokens: &[u32]| format!("{tokens:?}");
    let fields = [
        ("tokenizer", baseline.tokenizer.clone(), candidate.tokenizer.clone()),
        ("chatTemplate", baseline.chat_template.clone(), candidate.chat_template.clone()),
        ("vocabulary", baseline.vocabulary.to_string(), candidate.vocabulary.to_string()),
        ("eos", list(&baseline.eos), list(&candidate.eos)),
    ];
    for (field, baseline, candidate) in fields {
        if baseline != candidate {
            return Comparable::No { field: field.into(), baseline, candidate };
        }
    }
    if candidate.context < baseline.context {
        return Comparable::No {
            field: "context".into(),
            baseline: baseline.context.to_string(),
            candidate: candidate.context.to_string(),
        };
    }
    Comparable::Yes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            revision: "chat-a".into(),
            tokenizer: "t".into(),
            chat_template: "c".into(),
            vocabulary: 100,
            context: 64,
            eos: vec![1],
            model_digest: "m".into(),
            precision: "fp16".into(),
            kernel: "avx2".into(),
            device: "cpu".into(),
            worker_version: "1".into(),
            process: "p".into(),
        }
    }

    #[test]
    fn a_precision_that_was_asked_for_is_that_of_the_files() {
        let found = |precision: &str| Identity { precision: precision.into(), ..identity() };
        for (asked, is) in [
            ("auto", "int4"),
            ("fp16", "fp16"),
            ("fp16", "bf16"),
            ("fp16", "fp32"),
            ("ternary", "ternary"),
            ("binary", "binary"),
            ("mixed", "mixed"),
        ] {
            assert_eq!(other(asked, &found(is)), None, "{asked} {is}");
        }
        for (asked, is) in [("fp16", "ternary"), ("ternary", "fp16"), ("ternary", "mixed"), ("binary", "ternary")] {
            let told = Comparable::Other { field: "precision".into(), asked: asked.into(), found: is.into() };
            assert_eq!(other(asked, &found(is)), Some(told));
        }
    }

    #[test]
    fn only_what_makes_logits_incomparable_is_comparable() {
        let other = Identity {
            precision: "ternary".into(),
            kernel: "scalar".into(),
            device: "gpu".into(),
            model_digest: "n".into(),
            context: 128,
            ..identity()
        };
        assert_eq!(comparable(&identity(), &other), Comparable::Yes);
        let shorter = Identity { context: 32, ..identity() };
        let field = |found| match found {
            Comparable::No { field, .. } => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(comparable(&identity(), &shorter)), "context");
        assert_eq!(field(comparable(&identity(), &Identity { eos: vec![1, 2], ..identity() })), "eos");
        assert_eq!(field(comparable(&identity(), &Identity { tokenizer: "u".into(), ..identity() })), "tokenizer");
    }
}
