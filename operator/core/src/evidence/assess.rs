//! From the state of the tests to what people and the planner read.

use super::{
    Assessment, Evidence, Finding, Gate, OnNoTraffic, Signal, SignalKind, SignalState,
    claim::Claim,
    combine,
    history::REQUESTS,
    paired::{pair_moments, shown_ratio},
    quality::DISPLAY_ALPHA,
    rules::Rules,
    traffic::share,
};
use crate::stats::{forecast, intervals::share_interval};

/// A promotion test of one part of a signal.
struct Part<'a> {
    name: &'static str,
    claim: &'a Claim,
    live: bool,
}

/// Names of the parts of latency: by metric (time to first token, time per output token), and body, p95, p99 of live
/// requests.
const PAIRED: [&str; 2] = ["paired ttft", "paired tpot"];
const LIVE: [[&str; 3]; 2] =
    [["live ttft body", "live ttft p95", "live ttft p99"], ["live tpot body", "live tpot p95", "live tpot p99"]];

impl Evidence {
    /// `ln_e`: of the rollback tests in the order of [`SignalKind::ALL`]; `trip`: why the wire tripped in this tick.
    pub(super) fn assess(&self, gate: &Gate, rules: &Rules, ln_e: &[f64; 4], trip: Option<String>) -> Assessment {
        let parts = self.latency_parts(gate);
        let signals = vec![
            self.cosine(rules, ln_e[0]),
            self.tail(rules, ln_e[1]),
            self.latency(&parts, rules, ln_e[2]),
            self.failures(rules, ln_e[3]),
        ];
        let missing = self.missing(gate, rules, &signals, &parts);
        let finding = match (self.rejected, trip) {
            (Some((signal, ln_e)), _) => Finding::RollBack { signal, ln_e },
            (None, Some(reason)) => Finding::Tripwire { reason },
            (None, None) if missing.is_empty() => Finding::Promote,
            (None, None) if self.ticks >= gate.horizon() => Finding::Inconclusive,
            (None, None) => Finding::Continue,
        };
        Assessment {
            finding,
            signals,
            prompts: self.quality.prompts,
            preflight_done: self.preflight.done && self.rejected.is_none(),
            quality_proven: self.quality.proven(),
            fresh: self.traffic.fresh(),
            no_traffic: self.traffic.none,
            history_pending: self.history.rate.is_none(),
            missing,
            ln_rollback: combine::ln_rollback(ln_e),
            exposed_requests: self.traffic.exposed,
        }
    }

    fn state(&self, kind: SignalKind, samples: u64, proven: bool) -> SignalState {
        match self.rejected {
            Some((signal, _)) if signal == kind => SignalState::Failed,
            _ if samples == 0 => SignalState::NoData,
            _ if proven => SignalState::Proven,
            _ => SignalState::Continue,
        }
    }

    fn cosine(&self, rules: &Rules, ln_rollback: f64) -> Signal {
        let quality = &self.quality;
        let samples = u64::from(quality.prompts);
        let estimate = quality.shown.mean();
        let required = estimate.zip(quality.shown.variance()).and_then(|(mean, variance)| {
            let gap = mean - rules.mean_threshold;
            if gap > 0.0 {
                forecast::bounded_mean(rules.alpha_promote, gap, variance, rules.mean_threshold)
            } else {
                let alpha = rules.alpha_rollback * combine::WEIGHTS[0];
                forecast::bounded_mean(alpha, -gap, variance, 1.0 - rules.mean_threshold)
            }
        });
        Signal {
            kind: SignalKind::Cosine,
            state: self.state(SignalKind::Cosine, samples, quality.mean.proven()),
            samples,
            required,
            estimate,
            interval: estimate.map(|_| quality.shown.interval(DISPLAY_ALPHA)),
            ln_rollback,
            ln_promote: quality.mean.ln_promote(),
            detail: format!("mean of {samples} prompts"),
        }
    }

    fn tail(&self, rules: &Rules, ln_rollback: f64) -> Signal {
        let quality = &self.quality;
        let samples = u64::from(quality.prompts);
        let low = u64::from(quality.low);
        let estimate = share((low, samples));
        let required = estimate.and_then(|theta| {
            let alpha =
                if theta < rules.tail_share { rules.alpha_promote } else { rules.alpha_rollback * combine::WEIGHTS[1] };
            forecast::share(alpha, theta, rules.tail_share)
        });
        Signal {
            kind: SignalKind::CosineTail,
            state: self.state(SignalKind::CosineTail, samples, quality.tail.proven()),
            samples,
            required,
            estimate,
            interval: estimate.map(|_| share_interval(low, samples, DISPLAY_ALPHA)),
            ln_rollback,
            ln_promote: quality.tail.ln_promote(),
            detail: format!("{low} of {samples} prompts under {}", rules.tail_min),
        }
    }

    /// The parts that a promotion asks of latency.
    fn latency_parts(&self, gate: &Gate) -> Vec<Part<'_>> {
        let paired = PAIRED.into_iter().zip(&self.paired.claims);
        let mut parts: Vec<Part> = paired.map(|(name, claim)| Part { name, claim, live: false }).collect();
        if !self.live_latency_asked(gate) {
            return parts;
        }
        let wanted = [gate.percentiles.body, gate.percentiles.p95, gate.percentiles.p99];
        for (m, names) in LIVE.into_iter().enumerate() {
            // A metric without a history (answers of one token) cannot be tested live.
            if self.live.windows[m].is_none() {
                continue;
            }
            let claims = self.live.claims[m].iter().zip(names).zip(wanted);
            parts.extend(claims.filter(|c| c.1).map(|((claim, name), _)| Part { name, claim, live: true }));
        }
        parts
    }

    fn live_latency_asked(&self, gate: &Gate) -> bool {
        let replaced = self.traffic.none && gate.on_no_traffic == OnNoTraffic::Probe;
        self.history.live_required && !replaced
    }

    fn latency(&self, parts: &[Part], rules: &Rules, ln_rollback: f64) -> Signal {
        let weakest = parts.iter().min_by(|a, b| {
            (a.claim.proven(), a.claim.ln_promote())
                .partial_cmp(&(b.claim.proven(), b.claim.ln_promote()))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let counted = self.paired.counted();
        let samples = counted[0].max(counted[1]);
        // Of the two metrics, the one in which the candidate looks worse.
        let worse = usize::from(self.paired.shown[1].mean() > self.paired.shown[0].mean());
        let shown = &self.paired.shown[worse];
        let blocks = f64::from((self.ticks / rules.block).max(1));
        let per_block = (samples as f64 / blocks).max(1.0);
        let required = pair_moments(shown, rules.ln_ratio).and_then(|(mean, variance)| {
            let alpha = if mean < 0.0 { rules.alpha_promote } else { rules.alpha_rollback * combine::WEIGHTS[2] / 4.0 };
            let blocks = forecast::votes(alpha, mean.abs().min(1.0), variance / per_block)?;
            Some((blocks as f64 * per_block).ceil() as u64)
        });
        let detail = match (self.rejected, weakest) {
            (Some((SignalKind::Latency, _)), _) => self.worst_latency(rules).into(),
            (_, Some(part)) => part.name.into(),
            (_, None) => String::new(),
        };
        Signal {
            kind: SignalKind::Latency,
            state: self.state(
                SignalKind::Latency,
                samples + self.errors.total.candidate.1,
                parts.iter().all(|p| p.claim.proven()),
            ),
            samples,
            required,
            estimate: shown.mean().map(shown_ratio),
            interval: shown.mean().map(|_| {
                let (low, high) = shown.interval(DISPLAY_ALPHA);
                (shown_ratio(low), shown_ratio(high))
            }),
            ln_rollback,
            ln_promote: weakest.map_or(0.0, |p| p.claim.ln_promote()),
            detail,
        }
    }

    /// The part of latency that speaks loudest against the candidate.
    fn worst_latency(&self, rules: &Rules) -> &'static str {
        let paired = self.paired.claims.iter().zip(PAIRED);
        let live = self.live.claims.as_flattened().iter().zip(LIVE.into_iter().flatten());
        let ln_e = |claim: &Claim| claim.ln_rollback(rules.prior, self.ticks);
        let worst = paired.chain(live).max_by(|a, b| ln_e(a.0).total_cmp(&ln_e(b.0)));
        worst.map_or("", |w| w.1)
    }

    fn failures(&self, rules: &Rules, ln_rollback: f64) -> Signal {
        let total = self.errors.total;
        let ((s_c, n_c), (s_b, n_b)) = (total.candidate, total.stable);
        let rates = share(total.candidate).zip(share(total.stable));
        let required = rates.and_then(|(candidate, stable)| {
            let worse = candidate - stable > rules.excess;
            let alpha = if worse { rules.alpha_rollback * combine::WEIGHTS[3] } else { rules.alpha_promote };
            forecast::error_excess(alpha, candidate, stable, rules.excess)
        });
        Signal {
            kind: SignalKind::Errors,
            state: self.state(SignalKind::Errors, n_c.min(n_b), self.errors.claim.proven()),
            samples: n_c,
            required,
            estimate: rates.map(|(candidate, stable)| candidate - stable),
            interval: rates.map(|_| {
                let candidate = share_interval(s_c, n_c, DISPLAY_ALPHA / 2.0);
                let stable = share_interval(s_b, n_b, DISPLAY_ALPHA / 2.0);
                (candidate.0 - stable.1, candidate.1 - stable.0)
            }),
            ln_rollback,
            ln_promote: self.errors.claim.ln_promote(),
            detail: format!("{s_c} of {n_c} requests failed, {s_b} of {n_b} at stable"),
        }
    }

    /// What promotion waits for; empty: nothing (but the dwell time, which the caller knows).
    fn missing(&self, gate: &Gate, rules: &Rules, signals: &[Signal], parts: &[Part]) -> Vec<String> {
        let mut missing = self.missing_quality(gate, rules, signals);
        if self.history.rate.is_none() {
            missing.push(format!(
                "history: {} of {REQUESTS} requests of stable, live tests start after that",
                self.history.stable.1
            ));
        }
        self.missing_latency(rules, &signals[2], parts, &mut missing);
        if !self.errors.claim.proven() {
            let signal = &signals[3];
            missing.push(format!(
                "errors: {}, {} blocks so far",
                progress(signal, signal.ln_promote, rules, "requests of the candidate"),
                self.errors.blocks
            ));
        }
        if !self.last_step {
            missing.push("the last step is still to come".into());
        } else if !self.traffic.fresh() {
            missing.push("no live request of both arms at this weight yet".into());
        }
        missing
    }

    /// What of it rests on prompts alone.
    fn missing_quality(&self, gate: &Gate, rules: &Rules, signals: &[Signal]) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.preflight.done {
            missing.push(format!(
                "preflight: {} of {} prompts compared before the first live request",
                self.preflight.prompts, gate.preflight
            ));
        }
        for (signal, unit) in signals.iter().zip(["prompts", "prompts", "", ""]) {
            let (proven, name) = match signal.kind {
                SignalKind::Cosine => (self.quality.mean.proven(), "cosine mean"),
                SignalKind::CosineTail => (self.quality.tail.proven(), "cosine tail"),
                SignalKind::Latency | SignalKind::Errors => continue,
            };
            if !proven {
                missing.push(format!("{name}: {}", progress(signal, signal.ln_promote, rules, unit)));
            }
        }
        if self.quality.prompts < gate.min_samples {
            missing.push(format!("samples: {} of {} prompts", self.quality.prompts, gate.min_samples));
        }
        missing
    }

    /// The assessment of a switch at weight 0: quality, paired latency and the number of prompts.
    pub(super) fn without_live(&self, gate: &Gate, rules: &Rules, assessment: Assessment) -> Assessment {
        let paired = PAIRED.into_iter().zip(&self.paired.claims);
        let parts: Vec<Part> = paired.map(|(name, claim)| Part { name, claim, live: false }).collect();
        let mut missing = self.missing_quality(gate, rules, &assessment.signals);
        if let Some(latency) = assessment.signals.iter().find(|s| s.kind == SignalKind::Latency) {
            self.missing_latency(rules, latency, &parts, &mut missing);
        }
        let finding = match assessment.finding {
            against @ (Finding::RollBack { .. } | Finding::Tripwire { .. }) => against,
            _ if missing.is_empty() => Finding::Promote,
            _ if self.ticks >= gate.horizon() => Finding::Inconclusive,
            _ => Finding::Continue,
        };
        Assessment { finding, missing, ..assessment }
    }

    fn missing_latency(&self, rules: &Rules, signal: &Signal, parts: &[Part], missing: &mut Vec<String>) {
        for part in parts {
            if part.claim.proven() {
                continue;
            }
            let live = part.live;
            let ln_e = part.claim.ln_promote();
            missing.push(if live && !self.last_step {
                format!("{}: counted at the last step only", part.name)
            } else if live && !self.live.current {
                let collected = self.history.collected().unwrap_or(0);
                format!("{}: {collected} of {REQUESTS} requests of stable at this weight for its edges", part.name)
            } else if live {
                format!("{}: evidence {ln_e:.2} of {:.2}", part.name, rules.promote_bound)
            } else if signal.samples == 0 && self.paired.finished() > 0 {
                format!(
                    "{}: none of {} pairs counted, an engine was busy with other requests in each",
                    part.name,
                    self.paired.finished()
                )
            } else {
                format!("{}: {}", part.name, progress(signal, ln_e, rules, "pairs"))
            });
        }
    }
}

/// How far a promotion test is, and how far it is expected to go.
fn progress(signal: &Signal, ln_e: f64, rules: &Rules, unit: &str) -> String {
    let so_far = format!("evidence {ln_e:.2} of {:.2} after {} {unit}", rules.promote_bound, signal.samples);
    match (signal.required, signal.estimate) {
        (Some(required), Some(_)) if required > signal.samples && ln_e > 0.0 => {
            format!("{so_far}, about {} more expected", required - signal.samples)
        }
        _ => so_far,
    }
}
