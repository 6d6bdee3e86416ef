use super::{End, Step};
use crate::{
    Span,
    evidence::{Assessment, Finding, Gate},
};

/// Ticks of rest after a tripped wire.
const REST: u32 = 2;

/// The third tripped wire rolls back.
const TRIPS: u32 = 3;

/// A canary's place between ticks: what the planner remembers, without a cluster.
#[derive(Clone, Debug)]
pub(super) struct Canary {
    steps: Vec<Step>,
    /// 0: weight 0; i: the i-th step.
    step: usize,
    changes: u32,
    /// Ticks at the current weight, counted from its acceptance.
    dwell: u32,
    confirming: u32,
    trips: u32,
    resting: u32,
}

impl Canary {
    pub(super) fn new(steps: &[Step]) -> Self {
        Self { steps: steps.to_vec(), step: 0, changes: 0, dwell: 0, confirming: 0, trips: 0, resting: 0 }
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn weight(&self) -> u32 {
        if self.step == 0 { 0 } else { self.steps[self.step - 1].weight }
    }

    pub(super) fn changes(&self) -> u32 {
        self.changes
    }

    pub(super) fn confirmed(&self) -> bool {
        self.confirming == 0
    }

    pub(super) fn go(&mut self, step: usize, confirm: u32) {
        self.step = step;
        self.changes += 1;
        self.dwell = 0;
        self.confirming = confirm;
    }

    /// A tick has passed.
    pub(super) fn pass(&mut self) {
        if self.confirming > 0 {
            self.confirming -= 1;
        } else {
            self.dwell += 1;
        }
    }

    fn dwelt(&self, gate: &Gate) -> bool {
        self.step > 0 && i64::from(self.dwell) * gate.interval.0 >= self.steps[self.step - 1].duration.0
    }

    pub(super) fn last(&self) -> bool {
        self.step == self.steps.len()
    }

    pub(super) fn step_duration(&self) -> Span {
        self.steps.get(self.step.saturating_sub(1)).map_or(Span(0), |s| s.duration)
    }

    /// Dwell before the last step.
    pub(super) fn until_last(&self, gate: &Gate) -> Span {
        let before = &self.steps[self.step.saturating_sub(1)..self.steps.len().saturating_sub(1)];
        let all: i64 = if self.last() { 0 } else { before.iter().map(|s| s.duration.0).sum() };
        Span((all - i64::from(self.dwell) * gate.interval.0).max(0))
    }

    /// One decision; `Some` ends the run.
    pub(super) fn decide(&mut self, gate: &Gate, assessment: &Assessment, confirm: u32) -> Option<End> {
        match &assessment.finding {
            Finding::RollBack { signal, .. } => return Some(End::RolledBack(*signal)),
            Finding::Tripwire { .. } => {
                self.trips += 1;
                self.resting = REST;
                if self.step > 0 {
                    self.go(0, confirm);
                }
                return (self.trips >= TRIPS).then_some(End::Tripped);
            }
            Finding::Promote if self.dwelt(gate) => return Some(End::Promoted),
            Finding::Inconclusive => return Some(End::Inconclusive(assessment.missing.clone())),
            Finding::Promote | Finding::Continue => {}
        }
        if self.resting > 0 {
            self.resting -= 1;
        } else if self.step == 0 {
            if assessment.preflight_done {
                self.go(1, confirm);
            }
        } else if self.dwelt(gate)
            && !self.last()
            && assessment.quality_proven
            && (assessment.fresh || assessment.no_traffic)
        {
            self.go(self.step + 1, confirm);
        }
        None
    }
}
