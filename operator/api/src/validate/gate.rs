#[cfg(feature = "crd")]
use super::RefusalReason;
use super::{HOUR, Refusal, integer, object_name, span};
#[cfg(feature = "crd")]
use crate::v1alpha1::{ModelRolloutSpec, QualityGate};
use crate::{
    units::Decimal,
    v1alpha1::{self as api, Percentile, QualityGateSpec},
};
use bitnet_core::evidence::{Gate, OnInconclusive, OnNoTraffic, Percentiles, ProbeSettings, Tripwire};

#[cfg(feature = "crd")]
/// The gate that a spec asks for, inline or by name.
pub(super) fn chosen_gate(
    rollout: &str,
    spec: &ModelRolloutSpec,
    found: Option<&QualityGate>,
) -> Result<Gate, Refusal> {
    match (&spec.gate, &spec.gate_spec) {
        (None, Some(inline)) => resolve_gate(rollout, inline)
            .map_err(|refusal| Refusal { field: format!("spec.gateSpec.{}", refusal.field), ..refusal }),
        (Some(reference), None) => {
            object_name("spec.gate.name", &reference.name)?;
            let Some(gate) = found else {
                return Err(Refusal::new(
                    RefusalReason::GateMissing,
                    "spec.gate.name",
                    format!("there is no QualityGate `{}` in this namespace", reference.name),
                    "create it; the rollout goes on by itself",
                ));
            };
            resolve_gate(&reference.name, &gate.spec).map_err(|refusal| {
                let reason = match refusal.reason {
                    RefusalReason::InvalidSpec => RefusalReason::InvalidGate,
                    other => other,
                };
                Refusal { reason, field: format!("QualityGate {}: spec.{}", reference.name, refusal.field), ..refusal }
            })
        }
        _ => Err(Refusal::invalid(
            "spec.gate",
            "exactly one gate decides about a rollout",
            "give either gate (the name of a QualityGate) or gateSpec",
        )),
    }
}

/// A gate with its decimals and lengths of time read and every bound checked. Fields of a refusal are relative to the
/// gate's spec.
pub fn resolve_gate(name: &str, spec: &QualityGateSpec) -> Result<Gate, Refusal> {
    let signals = &spec.signals;
    let on_inconclusive = match spec.on_inconclusive {
        api::OnInconclusive::Hold => OnInconclusive::Hold,
        api::OnInconclusive::Rollback => OnInconclusive::Rollback,
        api::OnInconclusive::Extend => OnInconclusive::Extend,
        api::OnInconclusive::PromoteIfCompatible => OnInconclusive::PromoteIfCompatible,
    };
    let interval = span("interval", &spec.interval, 1000, 600_000)?;
    let open = Bounds { least: 0.0, most: 1.0, with_least: false, with_most: false };
    let half = Bounds { most: 0.5, with_most: true, ..open };
    let confidence = Bounds { least: 0.5, with_least: true, ..open };
    Ok(Gate {
        name: name.to_owned(),
        probes: probes(&spec.probes)?,
        preflight: integer("preflight".into(), spec.preflight, 1, 10_000)?,
        interval,
        warmup: span("warmup", &spec.warmup, 0, HOUR)?,
        min_mean: open.read("signals.cosine.minMean", &signals.cosine.min_mean)?,
        tail_min: open.read("signals.cosine.tail.min", &signals.cosine.tail.min)?,
        tail_share: half.read("signals.cosine.tail.quantile", &signals.cosine.tail.quantile)?,
        max_ratio: Bounds { least: 1.0, most: 10.0, with_least: false, with_most: true }
            .read("signals.latency.maxRatio", &signals.latency.max_ratio)?,
        percentiles: percentiles(&signals.latency.percentiles)?,
        max_excess: half.read("signals.errors.maxExcess", &signals.errors.max_excess)?,
        alpha_rollback: complement(confidence.read("confidence.rollback", &spec.confidence.rollback)?),
        alpha_promote: complement(confidence.read("confidence.promote", &spec.confidence.promote)?),
        min_samples: integer("minSamples".into(), spec.min_samples, 1, 1_000_000)?,
        deadline: span("deadline", &spec.deadline, interval.0, 168 * HOUR)?,
        on_inconclusive,
        on_no_traffic: match spec.on_no_traffic {
            api::OnNoTraffic::Probe => OnNoTraffic::Probe,
            api::OnNoTraffic::Hold => OnNoTraffic::Hold,
        },
        tripwire: Tripwire {
            error_rate: Bounds { least: 0.05, most: 1.0, with_least: true, with_most: true }
                .read("tripwire.errorRate", &spec.tripwire.error_rate)?,
            min_requests: integer("tripwire.minRequests".into(), spec.tripwire.min_requests, 1, 100_000)?,
        },
        shadow: integer("shadow.percent".into(), spec.shadow.percent, 0, 10)?,
    })
}

fn probes(spec: &api::ProbeSpec) -> Result<ProbeSettings, Refusal> {
    object_name("probes.configMap", &spec.config_map)?;
    let key = spec.key.as_str();
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    // `.` and `..` are characters that the schema allows and names that a ConfigMap cannot have.
    if key.is_empty() || key.len() > 253 || !plain || key == "." || key.starts_with("..") {
        return Err(Refusal::invalid(
            "probes.key",
            "it is the key of a ConfigMap",
            "write at most 253 characters from A-Z a-z 0-9 - . _",
        ));
    }
    let max_tokens = integer("probes.maxTokens".into(), spec.max_tokens, 1, 512)?;
    let positions = integer("probes.positions".into(), spec.positions, 1, 64)?;
    if positions > max_tokens {
        return Err(Refusal::invalid(
            "probes.positions",
            "positions are drawn from the continuation",
            format!("write at most maxTokens ({max_tokens})"),
        ));
    }
    Ok(ProbeSettings {
        config_map: spec.config_map.clone(),
        key: spec.key.clone(),
        per_tick: integer("probes.perTick".into(), spec.per_tick, 1, 256)?,
        max_tokens,
        positions,
        pairs: integer("probes.pairs".into(), spec.pairs, 1, 64)?,
        pair_tokens: integer("probes.pairTokens".into(), spec.pair_tokens, 2, 256)?,
    })
}

fn percentiles(list: &[Percentile]) -> Result<Percentiles, Refusal> {
    if list.is_empty() {
        return Err(Refusal::invalid(
            "signals.latency.percentiles",
            "a promotion asks for at least one",
            "write [p50, p95], or leave it out",
        ));
    }
    Ok(Percentiles {
        body: list.contains(&Percentile::P50),
        p95: list.contains(&Percentile::P95),
        p99: list.contains(&Percentile::P99),
    })
}

/// `1 - confidence` without the noise of binary fractions: 0.99 gives 0.01 and not 0.010000000000000009.
fn complement(confidence: f64) -> f64 {
    ((1.0 - confidence) * 1e9).round() / 1e9
}

/// Bounds of a decimal.
#[derive(Clone, Copy)]
struct Bounds {
    least: f64,
    most: f64,
    with_least: bool,
    with_most: bool,
}

impl Bounds {
    fn read(self, field: &str, text: &Decimal) -> Result<f64, Refusal> {
        let number = text.number().map_err(|error| Refusal::invalid(field, error.to_string(), self.remedy()))?;
        let above = if self.with_least { number >= self.least } else { number > self.least };
        let below = if self.with_most { number <= self.most } else { number < self.most };
        if above && below {
            return Ok(number);
        }
        Err(Refusal::invalid(field, format!("{text} is out of bounds"), self.remedy()))
    }

    fn remedy(self) -> String {
        format!(
            "write a decimal {} {} and {} {}",
            if self.with_least { "of at least" } else { "above" },
            self.least,
            if self.with_most { "at most" } else { "below" },
            self.most
        )
    }
}
