use super::{Course, End, at_split};
use crate::{
    Span,
    evidence::{Assessment, Evidence, Finding, Gate, OnInconclusive, OnNoTraffic},
    model::Pace,
    plan::ab_asked,
};

/// Ticks of rest after a tripped wire.
const REST: u32 = 2;

/// The third tripped wire rolls back.
pub(super) const TRIPS: u32 = 3;

/// Shortest block of the rollback tests, in milliseconds: with less, a raise by evidence would rest on nothing.
const BLOCK_MS: i64 = 10_000;

/// A candidate's place between ticks: what the planner remembers, without a cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    course: Course,
    /// 0: weight 0; i: the i-th step.
    step: usize,
    changes: u32,
    /// Ticks at the current weight, counted from its acceptance.
    dwell: u32,
    /// Of these, ticks with live counts.
    counted: u32,
    confirming: u32,
    trips: u32,
    resting: u32,
}

impl Place {
    pub(super) fn new(course: &Course) -> Self {
        let course = course.clone();
        Self { course, step: 0, changes: 0, dwell: 0, counted: 0, confirming: 0, trips: 0, resting: 0 }
    }

    fn weights(&self) -> usize {
        match &self.course {
            Course::Steps(steps, _) => steps.len(),
            Course::Switch { .. } | Course::Test(_) => 1,
        }
    }

    fn weight_of(&self, step: usize) -> u32 {
        match (&self.course, step) {
            (_, 0) => 0,
            (Course::Steps(steps, _), i) => steps.get(i - 1).map_or(0, |s| s.weight),
            (Course::Switch { .. }, _) => 100,
            (Course::Test(test), _) => test.weight(),
        }
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight_of(self.step)
    }

    pub(super) fn last_weight(&self) -> u32 {
        self.weight_of(self.weights())
    }

    pub(super) fn changes(&self) -> u32 {
        self.changes
    }

    pub(super) fn confirmed(&self) -> bool {
        self.confirming == 0
    }

    fn go(&mut self, step: usize, confirm: u32) {
        self.step = step;
        self.changes += 1;
        self.dwell = 0;
        self.counted = 0;
        self.confirming = confirm;
    }

    /// To the last weight at once.
    pub(super) fn go_to_last(&mut self) {
        self.go(self.weights(), 0);
    }

    /// A tick has passed.
    pub(super) fn pass(&mut self) {
        if self.confirming > 0 {
            self.confirming -= 1;
        } else {
            self.dwell += 1;
            self.counted += u32::from(self.step > 0);
        }
    }

    /// Least time at the i-th weight, from 1.
    fn least(&self, gate: &Gate, step: usize) -> Span {
        match &self.course {
            Course::Switch { beside } => *beside,
            Course::Test(test) => at_split(test, gate),
            Course::Steps(_, Pace::Evidence) => {
                Span(gate.interval.0.max(1).saturating_mul(i64::from(block_ticks(gate))))
            }
            Course::Steps(steps, Pace::Time) => steps.get(step - 1).map_or(Span(0), |s| s.duration),
        }
    }

    fn dwelt(&self, gate: &Gate) -> bool {
        self.step > 0 && i64::from(self.dwell) * gate.interval.0 >= self.least(gate, self.step).0
    }

    pub(super) fn last(&self) -> bool {
        self.step == self.weights()
    }

    pub(super) fn step_duration(&self) -> Span {
        match &self.course {
            Course::Steps(steps, _) => steps.get(self.step.saturating_sub(1)).map_or(Span(0), |s| s.duration),
            Course::Switch { .. } => Span(0),
            Course::Test(test) => test.duration(),
        }
    }

    /// Least time before the last step.
    pub(super) fn until_last(&self, gate: &Gate) -> Span {
        if self.last() || matches!(self.course, Course::Test(_)) {
            return Span(0);
        }
        let before = self.step.max(1)..self.weights();
        let all = before.fold(0i64, |sum, step| sum.saturating_add(self.least(gate, step).0));
        Span((all - i64::from(self.dwell) * gate.interval.0).max(0))
    }

    /// What the strategy asks of a promotion: a switch at weight 0 has no live requests to ask anything of.
    pub(super) fn asked(&self, gate: &Gate, evidence: &Evidence, assessment: Assessment) -> Assessment {
        match &self.course {
            Course::Steps(..) => assessment,
            Course::Switch { .. } => evidence.for_switch(gate, assessment),
            Course::Test(test) => ab_asked(test, evidence, gate, assessment),
        }
    }

    /// Pace by evidence: something leans against the candidate, or there is too little to lean either way.
    fn leaning(&self, gate: &Gate, assessment: &Assessment) -> bool {
        if !matches!(self.course, Course::Steps(_, Pace::Evidence)) {
            return false;
        }
        let few = self.step > 0 && self.counted < block_ticks(gate) && !assessment.no_traffic;
        few || assessment.signals.iter().any(|s| s.ln_rollback > 0.0)
    }

    /// One decision; `Some` ends the run.
    pub(super) fn decide(&mut self, gate: &Gate, assessment: &Assessment, confirm: u32) -> Option<End> {
        let beyond_deadline = !matches!(self.course, Course::Steps(..)) && self.step > 0;
        match &assessment.finding {
            Finding::RollBack { signal, .. } => return Some(End::RolledBack(*signal)),
            Finding::Tripwire { .. } => {
                self.trips += 1;
                self.resting = REST;
                if self.step > 0 {
                    self.go(0, confirm);
                }
                // A switch that was tripped waits for a person.
                let most = if matches!(self.course, Course::Switch { .. }) { 1 } else { TRIPS };
                return (self.trips >= most).then_some(End::Tripped);
            }
            Finding::Promote if self.last() && self.dwelt(gate) && !self.leaning(gate, assessment) => {
                return Some(End::Promoted);
            }
            // The split lasts as long as it lasts, whatever is proven.
            Finding::Inconclusive | Finding::Continue
                if matches!(self.course, Course::Test(_)) && self.last() && self.dwelt(gate) =>
            {
                return Some(End::Inconclusive(assessment.missing.clone()));
            }
            Finding::Inconclusive if !beyond_deadline && gate.on_inconclusive != OnInconclusive::Extend => {
                return Some(End::Inconclusive(assessment.missing.clone()));
            }
            Finding::Promote | Finding::Inconclusive | Finding::Continue => {}
        }
        if self.resting > 0 {
            self.resting -= 1;
        } else if self.may_rise(gate, assessment) {
            self.go(self.step + 1, confirm);
        }
        None
    }

    fn may_rise(&self, gate: &Gate, assessment: &Assessment) -> bool {
        if self.last() || !assessment.preflight_done || self.leaning(gate, assessment) {
            return false;
        }
        match self.course {
            Course::Switch { .. } => assessment.finding == Finding::Promote,
            Course::Test(_) => assessment.quality_proven,
            Course::Steps(..) if self.step == 0 => true,
            Course::Steps(..) => {
                let silent = assessment.no_traffic && gate.on_no_traffic == OnNoTraffic::Probe;
                self.dwelt(gate) && assessment.quality_proven && (assessment.fresh && !assessment.no_traffic || silent)
            }
        }
    }
}

/// Ticks of a whole rollback block.
fn block_ticks(gate: &Gate) -> u32 {
    let interval = gate.interval.0.max(1);
    u32::try_from((BLOCK_MS + interval - 1) / interval).unwrap_or(u32::MAX).max(1)
}
