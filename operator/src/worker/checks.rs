//! What a worker's numbers must be like before anything is concluded from them.

use super::Asked;
use bitnet_api::worker::{
    Buckets, CompareResult, Counters, FIRST_BUCKET, Generation, Identity, OVERFLOW_BUCKET, PromptComparison,
    SHADOW_BLOCK, ShadowResult, USER_GROUPS, Users,
};

/// Cosines and shares may leave their range by this much through rounding.
const ROUNDING: f64 = 1e-6;
/// Longest text of an answer: hashes have 64 characters.
const TEXT_LIMIT: usize = 256;
/// Most end-of-text tokens and kinds of peer errors.
const LIST_LIMIT: usize = 64;

/// A field of an answer breaks its rule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("`{field}` {rule}")]
pub struct Unusable {
    /// Name of the field.
    pub field: &'static str,
    /// What it should be.
    pub rule: &'static str,
}

fn must(holds: bool, field: &'static str, rule: &'static str) -> Result<(), Unusable> {
    if holds { Ok(()) } else { Err(Unusable { field, rule }) }
}

fn amount(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

fn share(value: f64) -> bool {
    value.is_finite() && (-ROUNDING..=1.0 + ROUNDING).contains(&value)
}

fn cosine(value: f64) -> bool {
    value.is_finite() && value.abs() <= 1.0 + ROUNDING
}

pub(super) fn identity(identity: &Identity) -> Result<(), Unusable> {
    let texts = [
        &identity.revision,
        &identity.tokenizer,
        &identity.chat_template,
        &identity.model_digest,
        &identity.precision,
        &identity.kernel,
        &identity.device,
        &identity.worker_version,
        &identity.process,
    ];
    must(texts.iter().all(|text| text.len() <= TEXT_LIMIT), "identity", "has a text longer than 256 bytes")?;
    must(identity.eos.len() <= LIST_LIMIT, "eos", "must have at most 64 tokens")?;
    must(identity.vocabulary > 0, "vocabulary", "must be positive")?;
    must(identity.context > 0, "context", "must be positive")
}

pub(super) fn counters(counters: &Counters) -> Result<(), Unusable> {
    must((1..=TEXT_LIMIT).contains(&counters.process.len()), "process", "must be an id of 1 to 256 bytes")?;
    must(amount(counters.ready_seconds), "readySeconds", "must be finite and not negative")?;
    must(amount(counters.busy_seconds), "busySeconds", "must be finite and not negative")?;
    must(counters.energy_joules.is_none_or(amount), "energyJoules", "must be finite and not negative")?;
    buckets(&counters.ttft, "ttft")?;
    buckets(&counters.tpot, "tpot")?;
    let errors = &counters.errors;
    let classes =
        [errors.server, errors.overloaded, errors.timeout, errors.broken_stream, errors.non_finite, errors.fallback];
    let total = classes.iter().chain([&counters.finished]).try_fold(0u64, |sum, count| sum.checked_add(*count));
    must(total.is_some(), "errors", "overflows")?;
    users(&counters.users)
}

/// Each user says one thing from 0 to 1.
fn users(users: &Users) -> Result<(), Unusable> {
    must(users.groups.len() <= USER_GROUPS / 4, "users.groups", "must be a bit set of all groups at most")?;
    must(users.groups.bytes().all(|b| b.is_ascii_hexdigit()), "users.groups", "must be hexadecimal")?;
    must(users.feedback.len() <= LIST_LIMIT, "users.feedback", "must be about at most 64 revisions")?;
    for about in &users.feedback {
        must(about.revision.len() <= TEXT_LIMIT, "users.feedback", "has a name longer than 256 bytes")?;
        let most = about.count.checked_mul(1_000_000);
        let sound = most.is_some_and(|most| about.sum <= most / 1000 && about.squares <= most);
        must(sound, "users.feedback", "must hold sums of values from 0 to 1")?;
    }
    Ok(())
}

fn buckets(buckets: &Buckets, field: &'static str) -> Result<(), Unusable> {
    let inside = buckets.0.iter().all(|(index, _)| (FIRST_BUCKET..=OVERFLOW_BUCKET).contains(index));
    must(inside, field, "has a bucket that does not exist")?;
    must(buckets.0.windows(2).all(|pair| pair[0].0 < pair[1].0), field, "must have its buckets in rising order")?;
    let total = buckets.0.iter().try_fold(0u64, |sum, (_, count)| sum.checked_add(*count));
    must(total.is_some(), field, "overflows")
}

pub(super) fn comparison(result: &CompareResult, asked: &Asked<'_>) -> Result<(), Unusable> {
    must(result.key == asked.key, "key", "must be the key that was asked for")?;
    must(result.tick == asked.tick, "tick", "must be the tick that was asked for")?;
    must(result.drawn <= asked.probes, "drawn", "must be at most what was asked for")?;
    must(result.prompts.len() <= result.drawn as usize, "prompts", "must be at most as many as were drawn")?;
    must(result.pairs.len() <= asked.pairs as usize, "pairs", "must be at most as many as were asked for")?;
    must(result.peer_errors.len() <= LIST_LIMIT, "peerErrors", "must have at most 64 kinds")?;
    must(
        result.peer_errors.iter().all(|(text, _)| text.len() <= TEXT_LIMIT),
        "peerErrors",
        "has a text that is too long",
    )?;
    if let Some(set) = &result.probe_set {
        must((1..=TEXT_LIMIT).contains(&set.hash.len()), "probeSet", "must have a hash of 1 to 256 bytes")?;
        must(set.size > 0, "probeSet", "must have a prompt")?;
    } else {
        must(result.prompts.is_empty() && result.pairs.is_empty(), "probeSet", "is missing beside results")?;
    }
    must(share(result.busy.candidate), "busy.candidate", "must be a share")?;
    must(result.busy.stable.is_none_or(share), "busy.stable", "must be a share")?;
    let size = result.probe_set.as_ref().map_or(0, |set| set.size);
    let inside = |prompt: &PromptComparison| prompt.probe.is_none_or(|probe| probe < size);
    must(result.prompts.iter().all(inside), "probe", "must be a place in the probe set")?;
    result.prompts.iter().try_for_each(prompt)?;
    result.pairs.iter().flat_map(|pair| [&pair.candidate, &pair.stable]).try_for_each(generation)
}

pub(super) fn shadow(result: &ShadowResult) -> Result<(), Unusable> {
    let samples = result.samples as f64;
    let within = |sum: f64, most: f64| sum.is_finite() && sum.abs() <= most * (1.0 + ROUNDING);
    must(result.samples.is_multiple_of(SHADOW_BLOCK), "samples", "must be whole blocks")?;
    must(within(result.cosine, samples), "cosine", "must be a sum of cosines")?;
    must(result.below <= result.samples, "below", "must be at most the samples")?;
    must(amount(result.kl), "kl", "must be finite and not negative")?;
    must(result.top1 >= 0.0 && within(result.top1, samples), "top1", "must be a sum of shares")?;
    must(result.dropped.len() <= LIST_LIMIT, "dropped", "must have at most 64 kinds")?;
    must(result.dropped.iter().all(|(text, _)| text.len() <= TEXT_LIMIT), "dropped", "has a text that is too long")?;
    let counts = result.dropped.iter().map(|(_, count)| count).chain([&result.samples]);
    let total = counts.copied().try_fold(0u64, u64::checked_add);
    must(total.is_some_and(|total| total < 1 << 53), "dropped", "overflows")
}

fn prompt(prompt: &PromptComparison) -> Result<(), Unusable> {
    must(cosine(prompt.cosine), "cosine", "must be a cosine")?;
    must(cosine(prompt.cosine_at), "cosineAt", "must be a cosine")?;
    must(prompt.mse.is_finite() && prompt.mse >= 0.0, "mse", "must be finite and not negative")?;
    must(prompt.kl.is_finite() && prompt.kl >= -ROUNDING, "kl", "must be finite and not negative")?;
    must(share(prompt.top1), "top1", "must be a share")
}

fn generation(generation: &Generation) -> Result<(), Unusable> {
    must(amount(generation.ttft), "ttft", "must be finite and not negative")?;
    must(amount(generation.tpot), "tpot", "must be finite and not negative")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_api::worker::{Pair, ProbeSet};

    const ASKED: Asked<'static> = Asked { key: "k", tick: 3, probes: 2, pairs: 1 };

    fn good() -> CompareResult {
        let prompt = PromptComparison {
            probe: Some(8),
            cosine: 1.0,
            cosine_at: -0.5,
            mse: 0.0,
            kl: 0.0,
            top1: 1.0,
            non_finite: 0,
        };
        let generation = Generation { ok: true, ttft: 0.01, tpot: 0.002, alone: true };
        CompareResult {
            key: "k".into(),
            tick: 3,
            probe_set: Some(ProbeSet { hash: "ab".into(), size: 9 }),
            drawn: 2,
            prompts: vec![prompt; 2],
            pairs: vec![Pair { candidate: generation, stable: generation }],
            ..CompareResult::default()
        }
    }

    #[test]
    fn a_sound_comparison_passes() {
        assert_eq!(comparison(&good(), &ASKED), Ok(()));
    }

    #[test]
    fn each_broken_field_is_named() {
        type Break = fn(&mut CompareResult);
        let cases: [(&str, Break); 13] = [
            ("probe", |r| r.prompts[1].probe = Some(9)),
            ("key", |r| r.key = "other".into()),
            ("tick", |r| r.tick = 2),
            ("drawn", |r| r.drawn = 3),
            ("prompts", |r| r.drawn = 1),
            ("pairs", |r| r.pairs.push(r.pairs[0])),
            ("cosine", |r| r.prompts[1].cosine = f64::NAN),
            ("cosineAt", |r| r.prompts[0].cosine_at = 1.01),
            ("mse", |r| r.prompts[0].mse = f64::INFINITY),
            ("kl", |r| r.prompts[0].kl = -1.0),
            ("ttft", |r| r.pairs[0].stable.ttft = -0.1),
            ("busy.candidate", |r| r.busy.candidate = f64::NAN),
            ("probeSet", |r| r.probe_set = None),
        ];
        for (field, break_it) in cases {
            let mut result = good();
            break_it(&mut result);
            assert_eq!(comparison(&result, &ASKED).unwrap_err().field, field);
        }
    }

    #[test]
    fn sums_of_live_prompts_are_whole_blocks_within_their_bounds() {
        type Break = fn(&mut ShadowResult);
        let sound = ShadowResult {
            samples: 40,
            cosine: 39.5,
            below: 2,
            kl: 0.3,
            top1: 38.0,
            dropped: vec![("busy".into(), 9)],
        };
        assert_eq!(shadow(&sound), Ok(()));
        assert_eq!(shadow(&ShadowResult::default()), Ok(()));
        let cases: [(&str, Break); 7] = [
            ("samples", |r| r.samples = 41),
            ("cosine", |r| r.cosine = 40.1),
            ("cosine", |r| r.cosine = f64::NAN),
            ("below", |r| r.below = 41),
            ("kl", |r| r.kl = -0.1),
            ("top1", |r| r.top1 = -1.0),
            ("dropped", |r| r.dropped.push(("busy".into(), u64::MAX))),
        ];
        for (field, break_it) in cases {
            let mut result = sound.clone();
            break_it(&mut result);
            assert_eq!(shadow(&result).unwrap_err().field, field);
        }
    }

    #[test]
    fn counters_with_impossible_buckets_are_refused() {
        let sound = Counters { process: "p".into(), ttft: Buckets(vec![(-3, 1), (4, 2)]), ..Counters::default() };
        assert_eq!(counters(&sound), Ok(()));
        for ttft in [vec![(4, 1), (-3, 1)], vec![(4, 1), (4, 1)], vec![(55, 1)], vec![(0, u64::MAX), (1, 1)]] {
            let broken = Counters { ttft: Buckets(ttft), ..sound.clone() };
            assert_eq!(counters(&broken).unwrap_err().field, "ttft");
        }
        assert!(counters(&Counters { process: String::new(), ..sound.clone() }).is_err());
        assert!(counters(&Counters { ready_seconds: f64::NAN, ..sound.clone() }).is_err());
        for joules in [f64::NAN, f64::INFINITY, -1.0] {
            let broken = Counters { energy_joules: Some(joules), ..sound.clone() };
            assert_eq!(counters(&broken).unwrap_err().field, "energyJoules");
        }
        assert_eq!(counters(&Counters { energy_joules: Some(0.0), ..sound }), Ok(()));
    }
}
