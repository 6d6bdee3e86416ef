//! The judge of an A/B test: which model do users do better with? Two-sided, per user, with a check that the users
//! arrived in the arms as they were assigned.
//!
//! The unit is the *user*: one outcome for each, taken when it is final. Users are assigned by lot, so they are
//! independent; requests of one user are not.

use super::codec::{CodecError, Fnv, Reader, Writer};
use crate::stats::{
    asymptotic::{self, Moments},
    bets::BETS,
    intervals::share_interval,
    label_odds::Odds,
    sample_ratio::{self, RATIOS},
    wealth::Wealth,
};

/// Users of stable whose outcomes only teach the guess of its rate; the test begins after them.
const LEARNING: u64 = 100;

/// Most users of one arm in one tick; more are no count.
const MOST: u64 = 20_000_000;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AbMetric {
    /// A share: each user's outcome is 0 or 1. Exact at any size.
    Conversion,
    /// A mean: each user's value, winsorised to `[low, high]` where it is counted. Larger is better. For large samples
    /// only ([`asymptotic::LEAST`] users per arm before any verdict), at a constant split.
    Mean {
        /// Least value.
        low: f64,
        /// Greatest value.
        high: f64,
    },
}

/// An A/B test as declared before it begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AbSettings {
    /// What is compared.
    pub metric: AbMetric,
    /// 1 − confidence of "better" and "worse" together (`.05`).
    pub alpha: f64,
    /// 1 − confidence of a sample-ratio mismatch (`.001`).
    pub alpha_ratio: f64,
    /// Users of both arms that are planned: where the mean's interval is narrowest.
    pub planned: u64,
}

impl AbSettings {
    /// A conversion at level .05, mismatch at .001.
    pub fn conversion() -> Self {
        Self { metric: AbMetric::Conversion, alpha: 0.05, alpha_ratio: 0.001, planned: 10_000 }
    }

    fn parameters(&self) -> u64 {
        let (kind, low, high) = match self.metric {
            AbMetric::Conversion => (0u8, 0.0, 1.0),
            AbMetric::Mean { low, high } => (1, low, high),
        };
        let hash = Fnv::default().bytes(b"ab-1").bytes(&[kind]).bytes(&self.planned.to_le_bytes());
        let values = [low, high, self.alpha, self.alpha_ratio];
        values.iter().fold(hash, |h, v| h.bytes(&v.to_bits().to_le_bytes())).finish()
    }

    fn bounds(&self) -> (f64, f64) {
        match self.metric {
            AbMetric::Conversion => (0.0, 1.0),
            AbMetric::Mean { low, high } => (low, high),
        }
    }
}

/// What one interval of an A/B test saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AbTick {
    /// Number of the tick, rising; one that is not above the last changes nothing.
    pub number: u64,
    /// Share of users whom the split sends to the candidate during the whole interval, in (0, 1).
    pub share: f64,
    /// Users newly assigned in the interval, `(candidate, stable)`.
    pub assigned: (u64, u64),
    /// Users whose outcome became final in the interval, `(candidate, stable)`: their number, the sum of their values and
    /// of the squares (for a conversion, twice the number of those who converted).
    pub outcomes: (Moments, Moments),
    /// The test's duration ends with this tick.
    pub last: bool,
}

/// Verdict of an A/B test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbVerdict {
    /// Users do better with the candidate: proven.
    CandidateBetter,
    /// Users do worse with the candidate: proven.
    CandidateWorse,
    /// The duration ended and no difference was proven. That is not "there is none": the interval tells how large it can
    /// be.
    NoDifferenceProven,
    /// Users did not arrive as assigned: no comparison counts. Wins over every other verdict.
    SampleRatioMismatch,
    /// The test goes on.
    Undecided,
}

/// Where an A/B test stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AbAssessment {
    /// The verdict; once another than [`AbVerdict::Undecided`], it changes only to a mismatch.
    pub verdict: AbVerdict,
    /// Candidate − stable.
    pub difference: Option<f64>,
    /// Confidence sequence of the difference at the test's level; `None` before it says anything.
    pub interval: Option<(f64, f64)>,
    /// Rate or mean of the arms, `(candidate, stable)`.
    pub arms: (Option<f64>, Option<f64>),
    /// Users with an outcome, `(candidate, stable)`.
    pub users: (u64, u64),
    /// Users assigned, `(candidate, stable)`.
    pub assigned: (u64, u64),
    /// ln E of "the arms differ" (conversion), 0 for a mean.
    pub ln_e: f64,
    /// ln E of the sample-ratio test.
    pub ln_ratio: f64,
}

/// State of one A/B test.
#[derive(Clone, Debug, PartialEq)]
pub struct Ab {
    parameters: u64,
    last_number: u64,
    assigned: (u64, u64),
    ratio: Wealth<RATIOS>,
    arms: (Moments, Moments),
    conversion: Wealth<{ 2 * BETS }>,
    /// The split of the mean's outcomes: those of another are left out.
    share: Option<f64>,
    /// Decided, but for a mismatch.
    decided: Option<AbVerdict>,
    mismatch: bool,
}

impl Ab {
    /// Most bytes that [`Ab::encode_into`] writes.
    pub const MAX_BYTES: usize = 400;

    /// A test before its first tick.
    pub fn new(settings: &AbSettings) -> Self {
        Self {
            parameters: settings.parameters(),
            last_number: 0,
            assigned: (0, 0),
            ratio: Wealth::default(),
            arms: (Moments::default(), Moments::default()),
            conversion: Wealth::default(),
            share: None,
            decided: None,
            mismatch: false,
        }
    }

    /// The state was gathered under these settings. [`Ab::step`] with others begins a new test by itself: the caller then
    /// halves the levels.
    pub fn is_of(&self, settings: &AbSettings) -> bool {
        self.parameters == settings.parameters()
    }

    /// Takes a tick. Total: counts that cannot be counts and sums that cannot be sums of as many values are left out.
    pub fn step(&mut self, settings: &AbSettings, tick: &AbTick) -> AbAssessment {
        if !self.is_of(settings) {
            *self = Self { last_number: self.last_number, ..Self::new(settings) };
        }
        if tick.number <= self.last_number {
            return self.assess(settings);
        }
        self.last_number = tick.number;
        let (c, b) = tick.assigned;
        if c <= MOST && b <= MOST {
            self.assigned = (self.assigned.0.saturating_add(c), self.assigned.1.saturating_add(b));
            self.ratio.add(&sample_ratio::increments(tick.share, c, b));
            self.ratio.settle();
            self.mismatch |= self.ratio.ln_e() >= bound(settings.alpha_ratio);
        }
        self.take_outcomes(settings, tick);
        if self.decided.is_none() {
            self.decided = self.proven(settings).or(tick.last.then_some(AbVerdict::NoDifferenceProven));
        }
        self.assess(settings)
    }

    /// What the state says, without a new tick.
    pub fn summary(&self, settings: &AbSettings) -> AbAssessment {
        if self.is_of(settings) { self.assess(settings) } else { Self::new(settings).assess(settings) }
    }

    fn take_outcomes(&mut self, settings: &AbSettings, tick: &AbTick) {
        let (c, b) = tick.outcomes;
        let fine = |m: &Moments| m.n <= MOST && m.are_of(settings.bounds());
        if !(fine(&c) && fine(&b) && tick.share > 0.0 && tick.share < 1.0) {
            return;
        }
        if let AbMetric::Conversion = settings.metric {
            let whole = |m: &Moments| m.sum.fract() == 0.0 && m.sum == m.squares;
            if !(whole(&c) && whole(&b)) {
                return;
            }
            let before = self.arms.1;
            if before.n >= LEARNING {
                // Only what was known before this tick may shape its bet.
                let guess = (before.sum + 0.5) / (before.n as f64 + 1.0);
                let odds = Odds::different(guess);
                self.conversion.add(&odds.increments((c.sum as u64, c.n), (b.sum as u64, b.n)));
                self.conversion.settle();
            }
        } else if *self.share.get_or_insert(tick.share) != tick.share {
            return;
        }
        self.arms.0.merge(&c);
        self.arms.1.merge(&b);
    }

    fn proven(&self, settings: &AbSettings) -> Option<AbVerdict> {
        let of = |difference: f64| {
            if difference > 0.0 { AbVerdict::CandidateBetter } else { AbVerdict::CandidateWorse }
        };
        match settings.metric {
            AbMetric::Conversion => {
                let crossed = self.conversion.ln_e() >= bound(settings.alpha);
                crossed.then(|| of(self.direction()))
            }
            AbMetric::Mean { .. } => {
                let (difference, half) = self.mean_difference(settings)?;
                (difference.abs() > half).then(|| of(difference))
            }
        }
    }

    /// The side whose bets hold more wealth.
    fn direction(&self) -> f64 {
        let ln = self.conversion.ln_each();
        let side = |ln: &[f64]| crate::stats::logspace::log_sum_exp(ln);
        side(&ln[..BETS]) - side(&ln[BETS..])
    }

    fn mean_difference(&self, settings: &AbSettings) -> Option<(f64, f64)> {
        let alpha = level(settings.alpha);
        let rho = asymptotic::narrowest_at(settings.planned as f64, alpha);
        asymptotic::difference(&self.arms.0, &self.arms.1, rho, alpha)
    }

    fn assess(&self, settings: &AbSettings) -> AbAssessment {
        let (c, b) = &self.arms;
        let interval = match settings.metric {
            AbMetric::Conversion => (c.n > 0 && b.n > 0).then(|| {
                let half = level(settings.alpha) / 2.0;
                let c = share_interval(c.sum as u64, c.n, half);
                let b = share_interval(b.sum as u64, b.n, half);
                (c.0 - b.1, c.1 - b.0)
            }),
            AbMetric::Mean { .. } => self.mean_difference(settings).map(|(d, half)| (d - half, d + half)),
        };
        let verdict =
            if self.mismatch { AbVerdict::SampleRatioMismatch } else { self.decided.unwrap_or(AbVerdict::Undecided) };
        AbAssessment {
            verdict,
            difference: c.mean().zip(b.mean()).map(|(c, b)| c - b),
            interval,
            arms: (c.mean(), b.mean()),
            users: (c.n, b.n),
            assigned: self.assigned,
            ln_e: self.conversion.ln_e(),
            ln_ratio: self.ratio.ln_e(),
        }
    }

    /// Writes the state (at most [`Ab::MAX_BYTES`]).
    pub fn encode_into(&self, w: &mut Writer) {
        w.fixed_u64(self.parameters);
        w.u64(self.last_number);
        w.u64(self.assigned.0);
        w.u64(self.assigned.1);
        for steps in self.ratio.to_steps().iter().chain(&self.conversion.to_steps()) {
            w.i64(*steps);
        }
        for arm in [&self.arms.0, &self.arms.1] {
            w.u64(arm.n);
            w.f64(arm.sum);
            w.f64(arm.squares);
        }
        w.option(self.share, Writer::f64);
        w.option(self.decided, |w, verdict| w.u8(verdict as u8));
        w.bool(self.mismatch);
    }

    /// Reads what [`Ab::encode_into`] wrote.
    pub fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self {
            parameters: r.fixed_u64()?,
            last_number: r.u64()?,
            assigned: (r.u64()?, r.u64()?),
            ratio: Wealth::from_steps(super::claim::read_steps(r)?),
            conversion: Wealth::from_steps(super::claim::read_steps(r)?),
            arms: (moments(r)?, moments(r)?),
            share: r.option(Reader::f64)?,
            decided: r.option(|r| match r.u8()? {
                0 => Ok(AbVerdict::CandidateBetter),
                1 => Ok(AbVerdict::CandidateWorse),
                2 => Ok(AbVerdict::NoDifferenceProven),
                _ => Err(CodecError::Garbled("an unknown verdict")),
            })?,
            mismatch: r.bool()?,
        })
    }
}

fn moments(r: &mut Reader) -> Result<Moments, CodecError> {
    Ok(Moments { n: r.u64()?, sum: r.f64()?, squares: r.f64()? })
}

/// A level within the range in which tests mean something.
fn level(alpha: f64) -> f64 {
    super::rules::within(alpha, 1e-30, 0.5)
}

fn bound(alpha: f64) -> f64 {
    -level(alpha).ln()
}
