//! Settings of a worker: what is not given is the worker's own default.

use super::{HOUR, Refusal, integer, object_name, span};
use crate::units::Memory;
use crate::v1alpha1::{FallbackBalance, FallbackSpec, Head, ServingSpec, WeightsCacheSpec};
use bitnet_core::model::{self, Fallback, Settings};

pub(super) fn settings(field: &str, serving: &ServingSpec, limit: Option<u64>) -> Result<Settings, Refusal> {
    let number = |name: &str, given: Option<i32>, least, most| {
        given.map(|number| integer(format!("{field}.{name}"), number, least, most)).transpose()
    };
    let time = |name: &str, given: &Option<_>, least, most| {
        given.as_ref().map(|time| span(&format!("{field}.{name}"), time, least, most)).transpose()
    };
    Ok(Settings {
        max_batch: number("maxBatch", serving.max_batch, 1, 256)?,
        batch_wait: time("batchWait", &serving.batch_wait, 0, 1000)?,
        queue: number("queue", serving.queue, 1, 65_535)?,
        context_length: number("contextLength", serving.context_length, 16, 1_048_576)?,
        prefix_cache_tokens: number("prefixCacheTokens", serving.prefix_cache_tokens, 0, 1_048_576)?,
        kv_bits: serving.kv_bits.map(|bits| kv_bits(field, bits)).transpose()?,
        head: serving.head.map(Head::name),
        memory_budget: serving
            .memory_budget
            .as_ref()
            .map(|budget| memory_budget(format!("{field}.memoryBudget"), budget, limit))
            .transpose()?,
        weights_cache: serving
            .weights_cache
            .as_ref()
            .map(|cache| weights_cache(&format!("{field}.weightsCache"), cache))
            .transpose()?,
        request_timeout: time("requestTimeout", &serving.request_timeout, 100, HOUR)?,
        fallback: match &serving.fallback {
            Some(spec) => fallback(&format!("{field}.fallback"), spec)?,
            None => None,
        },
    })
}

fn kv_bits(field: &str, bits: i32) -> Result<u32, Refusal> {
    match bits {
        16 | 8 | 4 | 3 => Ok(bits.unsigned_abs()),
        _ => {
            let rule = format!("{bits} is no precision of the attention cache");
            Err(Refusal::invalid(format!("{field}.kvBits"), rule, "set it to 16, 8, 4 or 3, or leave it out"))
        }
    }
}

/// A worker that plans with more than its pod may have is killed in the middle of its work.
fn memory_budget(field: String, budget: &Memory, limit: Option<u64>) -> Result<u64, Refusal> {
    let bytes = budget
        .bytes()
        .map_err(|error| Refusal::invalid(&field, error.to_string(), "write an amount of memory, or leave it out"))?;
    match limit {
        Some(limit) if bytes > limit => Err(Refusal::invalid(
            field,
            format!("{budget} is {bytes} bytes, more than the memory limit of the pool, {limit} bytes"),
            "lower it, or use a pool with more memory",
        )),
        _ => Ok(bytes),
    }
}

fn weights_cache(field: &str, cache: &WeightsCacheSpec) -> Result<String, Refusal> {
    object_name(&format!("{field}.persistentVolumeClaim"), &cache.persistent_volume_claim)?;
    Ok(cache.persistent_volume_claim.clone())
}

fn fallback(field: &str, spec: &FallbackSpec) -> Result<Option<Fallback>, Refusal> {
    let to_baseline = spec.to_baseline.unwrap_or(true);
    let given = [
        ("minConfidence", spec.min_confidence.is_some()),
        ("balance", spec.balance.is_some()),
        ("firstTokenTimeout", spec.first_token_timeout.is_some()),
    ];
    if !to_baseline {
        return match given.into_iter().find(|(_, given)| *given) {
            None => Ok(None),
            Some((name, _)) => Err(Refusal::invalid(
                format!("{field}.{name}"),
                "it is about what is left to the baseline, and toBaseline is false",
                "set toBaseline to true, or leave it out",
            )),
        };
    }
    let min_confidence = spec.min_confidence.as_ref().map(|least| {
        let (field, remedy) = (format!("{field}.minConfidence"), "write a decimal above 0 and below 1");
        let number = least.number().map_err(|error| Refusal::invalid(&field, error.to_string(), remedy))?;
        if number > 0.0 && number < 1.0 {
            return Ok(number);
        }
        Err(Refusal::invalid(field, format!("{least} is out of bounds"), remedy))
    });
    let first_token = spec.first_token_timeout.as_ref();
    Ok(Some(Fallback {
        min_confidence: min_confidence.transpose()?,
        balance: spec.balance.map(|balance| match balance {
            FallbackBalance::LeastLoaded => model::FallbackBalance::LeastLoaded,
            FallbackBalance::RoundRobin => model::FallbackBalance::RoundRobin,
        }),
        first_token: first_token
            .map(|time| span(&format!("{field}.firstTokenTimeout"), time, 100, 600_000))
            .transpose()?,
    }))
}
