use super::Tick;

/// Load per ready pod of both arms, as far as weights and ready pods tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Weight of one arm times the ready pods of the other: the same order as weight per pod, in whole numbers.
    candidate: u64,
    stable: u64,
}

impl Load {
    /// `None` where the weight is not known for the whole tick or says less than all, or an arm has no ready pod.
    pub(super) fn of(tick: &Tick) -> Option<Self> {
        let weight = u64::from(tick.weight?);
        if weight > 100 || tick.chosen || tick.ready_candidate == 0 || tick.ready_stable == 0 {
            return None;
        }
        Some(Self {
            candidate: weight * u64::from(tick.ready_stable),
            stable: (100 - weight) * u64::from(tick.ready_candidate),
        })
    }

    /// Latency grows with load: a candidate that is slower at no more load is slower.
    pub(super) fn candidate_at_most(self) -> bool {
        self.candidate <= self.stable
    }

    /// And one that is not slower at no less load is not slower.
    pub(super) fn candidate_at_least(self) -> bool {
        self.candidate >= self.stable
    }
}
