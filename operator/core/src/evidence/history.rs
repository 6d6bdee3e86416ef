use super::{
    Gate, Histogram, LiveArm, Tick,
    codec::{CodecError, Reader, Writer},
    traffic::{Arms, Counts, sane},
};
use crate::stats::{
    histogram::{FIRST, OVERFLOW, Window},
    thinning::{Draws, thin},
};

/// Requests of stable from which error rate and latency edges are taken.
pub(super) const REQUESTS: u64 = 1_000;

/// Generations that stand in for them where there is no traffic: enough for a scale of the error votes.
const GENERATIONS: u64 = 100;

/// Observations of a metric below which it has no edges: answers of one token have no time per output token.
const FEWEST: u64 = REQUESTS / 2;

/// Stable's expected requests at the last step from which live latency is asked of a promotion: fewer cannot prove it.
const LIVE_REQUESTS: f64 = 6_000.0;

/// The smallest error rate that history can show: a scale of exactly 0 would make a single error infinitely surprising.
const LEAST_RATE: f64 = 0.000_5;

/// What stable did before it is used in a test: the scale of the error votes, and the edges of the latency votes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    /// The cumulative counters of stable's pods were taken.
    taken: bool,
    /// Errors and requests of stable.
    pub(super) stable: (u64, u64),
    seconds: f64,
    /// Stable's error rate; `Some` once the history is complete.
    pub(super) rate: Option<f64>,
    /// Latencies being collected, and the requests that brought them: for the first edges, or for those of a new weight.
    collecting: Option<Collecting>,
    /// Requests that stable is expected to get between the earliest start of the last step and the deadline.
    pub(super) live_expected: u64,
    /// Live latency is asked of a promotion.
    pub(super) live_required: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Collecting {
    requests: u64,
    /// Time to first token, time per output token.
    latencies: [Histogram; 2],
}

/// New edges.
pub(super) struct Edges {
    pub(super) windows: [Option<Window>; 2],
    /// They were taken at the current weight.
    pub(super) current: bool,
}

impl History {
    /// Edges are taken anew at the new weight, unless the first ones are still being collected.
    pub(super) fn weight_changed(&mut self) {
        if self.rate.is_some() {
            self.collecting = Some(Collecting::default());
        }
    }

    /// Takes a tick after its counts were tested: what it completes is in force from the next tick on.
    pub(super) fn step(
        &mut self,
        gate: &Gate,
        tick: &Tick,
        ticks: u32,
        arms: Option<Arms>,
        pairs: Option<Counts>,
    ) -> Option<Edges> {
        let stable = arms.map(|arms| arms.1);
        if self.rate.is_some() { self.refresh(tick, stable) } else { self.fill(gate, tick, ticks, stable, pairs) }
    }

    fn fill(
        &mut self,
        gate: &Gate,
        tick: &Tick,
        ticks: u32,
        stable: Option<&LiveArm>,
        pairs: Option<Counts>,
    ) -> Option<Edges> {
        let total = tick.stable_total.as_ref().filter(|(arm, age)| !self.taken && sane_total(arm) && *age >= 0.0);
        if let Some((arm, age)) = total {
            // Cumulative: whatever was collected before is in it.
            self.taken = true;
            self.stable = (arm.errors, arm.requests);
            self.seconds = age.min(1e12);
            self.collecting = Some(Collecting::default());
            self.collect(arm, tick.seed);
        } else if let Some(stable) = stable {
            let seconds = tick.live.as_ref().map_or(0.0, |l| l.2);
            self.stable.0 += stable.errors;
            self.stable.1 += stable.requests;
            self.seconds += if seconds > 0.0 { seconds.min(1e6) } else { 0.0 };
            self.collect(stable, tick.seed);
        }
        let enough = if let Some(counts) = pairs {
            self.stable.0 += counts.stable.0;
            self.stable.1 += counts.stable.1;
            GENERATIONS
        } else {
            REQUESTS
        };
        let (errors, requests) = self.stable;
        if requests < enough {
            return None;
        }
        self.rate = Some(((errors as f64 + 0.5) / (requests as f64 + 1.0)).max(LEAST_RATE));
        self.forecast(gate, tick, ticks, requests);
        let collected = self.collecting.take().unwrap_or_default();
        if tick.weight.is_some_and(|w| w > 0) {
            // Collected over weights: good enough to watch with, to be taken anew for a promotion.
            self.collecting = Some(Collecting::default());
        }
        Some(Edges { windows: windows(&collected), current: false })
    }

    fn refresh(&mut self, tick: &Tick, stable: Option<&LiveArm>) -> Option<Edges> {
        if self.collecting.is_none() || tick.weight.is_none_or(|w| w >= 100) {
            return None;
        }
        self.collect(stable?, tick.seed);
        self.collecting.as_ref().filter(|c| c.requests >= REQUESTS)?;
        let collected = self.collecting.take().unwrap_or_default();
        Some(Edges { windows: windows(&collected), current: true })
    }

    fn collect(&mut self, stable: &LiveArm, seed: u64) {
        let collecting = self.collecting.get_or_insert_default();
        collecting.requests = collecting.requests.saturating_add(stable.requests);
        let complete = collecting.requests >= REQUESTS;
        for (m, (sum, now)) in collecting.latencies.iter_mut().zip([&stable.ttft, &stable.tpot]).enumerate() {
            if sum.total() >= REQUESTS {
                continue;
            }
            if complete || now.total() <= REQUESTS {
                sum.merge(now);
            } else {
                // Many first tokens, few finished requests: a sample keeps the state short.
                sum.merge(&sample(now, seed, m));
            }
        }
    }

    fn forecast(&mut self, gate: &Gate, tick: &Tick, ticks: u32, requests: u64) {
        let per_second = if self.seconds > 0.0 { requests as f64 / self.seconds } else { 0.0 };
        let left = i64::from(gate.horizon().saturating_sub(ticks)).saturating_mul(gate.interval.0.max(1));
        let seconds = left.saturating_sub(tick.until_last_step.0.max(0)).max(0) as f64 / 1000.0;
        let share = f64::from(100 - tick.last_weight.min(100)) / 100.0;
        let expected = per_second * share * seconds;
        self.live_expected = expected.min(1e15) as u64;
        self.live_required = expected >= LIVE_REQUESTS;
    }

    /// Requests collected towards the edges of the current weight.
    pub(super) fn collected(&self) -> Option<u64> {
        self.collecting.as_ref().map(|c| c.requests)
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        w.bool(self.taken);
        w.u64(self.stable.0);
        w.u64(self.stable.1);
        w.f64(self.seconds);
        w.option(self.rate, Writer::f64);
        w.option(self.collecting.as_ref(), |w, c| {
            w.u64(c.requests);
            for histogram in &c.latencies {
                encode_histogram(histogram, w);
            }
        });
        w.u64(self.live_expected);
        w.bool(self.live_required);
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self {
            taken: r.bool()?,
            stable: (r.u64()?, r.u64()?),
            seconds: r.f64()?,
            rate: r.option(Reader::f64)?,
            collecting: r.option(|r| {
                Ok(Collecting { requests: r.u64()?, latencies: [decode_histogram(r)?, decode_histogram(r)?] })
            })?,
            live_expected: r.u64()?,
            live_required: r.bool()?,
        })
    }
}

/// Cumulative counters have no upper limit of their own; far above any real service they are garbage.
fn sane_total(arm: &LiveArm) -> bool {
    const MOST: u64 = 1 << 50;
    sane(arm) || arm.requests <= MOST && arm.errors <= arm.requests && arm.ttft.total().max(arm.tpot.total()) <= MOST
}

fn windows(collected: &Collecting) -> [Option<Window>; 2] {
    let of = |h: &Histogram| if h.total() >= FEWEST { Window::of(h) } else { None };
    [of(&collected.latencies[0]), of(&collected.latencies[1])]
}

fn sample(histogram: &Histogram, seed: u64, metric: usize) -> Histogram {
    let mut counts: Vec<u64> = histogram.0.values().copied().collect();
    thin(&mut counts, REQUESTS, &mut Draws::new(seed, 5 + metric as u64));
    Histogram(histogram.0.keys().copied().zip(counts).filter(|c| c.1 > 0).collect())
}

/// First bucket and every count from it to the last one: at most 181 counts, mostly of one byte.
fn encode_histogram(histogram: &Histogram, w: &mut Writer) {
    let (Some((&first, _)), Some((&last, _))) = (histogram.0.first_key_value(), histogram.0.last_key_value()) else {
        w.u32(0);
        return;
    };
    w.u32((last - first) as u32 + 1);
    w.i64(i64::from(first));
    for bucket in first..=last {
        w.u64(histogram.0.get(&bucket).copied().unwrap_or(0));
    }
}

fn decode_histogram(r: &mut Reader) -> Result<Histogram, CodecError> {
    let mut histogram = Histogram::default();
    let length = i64::from(r.u32()?);
    if length == 0 {
        return Ok(histogram);
    }
    let first = r.i64()?;
    if first < i64::from(FIRST) || first > i64::from(OVERFLOW) - length + 1 {
        return Err(CodecError::Garbled("a bucket is out of range"));
    }
    for bucket in first..first + length {
        let n = r.u64()?;
        if n > 0 {
            histogram.0.insert(bucket as i16, n);
        }
    }
    Ok(histogram)
}
