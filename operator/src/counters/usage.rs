//! What the pods of an arm spent in one interval: work, energy, and the tokens that came of it. For people, never for
//! decisions.

use bitnet_api::worker::Counters;

/// Tokens of an arm and what they took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Tokens generated for live requests.
    pub tokens: u64,
    /// Seconds in which engines worked, comparisons included.
    pub busy_seconds: f64,
    /// Joules of the hosts' packages and GPUs, whoever used them; `None`: not every pod's host shows them.
    pub joules: Option<f64>,
}

impl Usage {
    /// What nobody used.
    pub(super) const NONE: Self = Self { tokens: 0, busy_seconds: 0.0, joules: Some(0.0) };

    /// What a process has used since it began.
    pub(super) fn of(counters: &Counters) -> Self {
        let Counters { generated_tokens, busy_seconds, energy_joules, .. } = *counters;
        Self { tokens: generated_tokens, busy_seconds, joules: energy_joules }
    }

    /// What was used since `previous`; everything, where the process is another one or a counter fell.
    pub(super) fn since(&self, previous: Option<&Self>) -> Self {
        previous.and_then(|previous| self.minus(previous)).unwrap_or(*self)
    }

    fn minus(&self, previous: &Self) -> Option<Self> {
        let rose = |now: f64, before: f64| (now >= before).then_some(now - before);
        let joules = match (self.joules, previous.joules) {
            (Some(now), Some(before)) => Some(rose(now, before)?),
            // A host that stopped to show its counter, or began to: nothing is known of this interval.
            _ => None,
        };
        Some(Self {
            tokens: self.tokens.checked_sub(previous.tokens)?,
            busy_seconds: rose(self.busy_seconds, previous.busy_seconds)?,
            joules,
        })
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.busy_seconds += other.busy_seconds;
        // Half of a sum is no sum.
        self.joules = self.joules.zip(other.joules).map(|(a, b)| a + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tokens: u64, busy_seconds: f64, joules: Option<f64>) -> Usage {
        Usage { tokens, busy_seconds, joules }
    }

    #[test]
    fn an_interval_is_the_difference_or_everything_since_a_restart() {
        let before = usage(100, 5.0, Some(40.0));
        assert_eq!(usage(130, 6.5, Some(70.0)).since(Some(&before)), usage(30, 1.5, Some(30.0)));
        let anew = usage(7, 0.5, Some(2.0));
        assert_eq!(anew.since(Some(&before)), anew, "counters fell");
        assert_eq!(anew.since(None), anew);
        assert_eq!(usage(130, 6.5, None).since(Some(&before)), usage(30, 1.5, None), "unknown is not zero");
    }

    #[test]
    fn energy_of_an_arm_is_known_where_that_of_every_pod_is() {
        let mut all = Usage::NONE;
        all.add(&usage(10, 1.0, Some(20.0)));
        all.add(&usage(5, 0.5, Some(0.0)));
        assert_eq!(all, usage(15, 1.5, Some(20.0)));
        all.add(&usage(1, 0.5, None));
        assert_eq!(all, usage(16, 2.0, None));
    }

    #[test]
    fn what_a_worker_counts_is_taken_as_it_is() {
        let counters = Counters {
            generated_tokens: 9,
            prompt_tokens: 100,
            busy_seconds: 2.5,
            energy_joules: Some(11.0),
            ..Counters::default()
        };
        assert_eq!(Usage::of(&counters), usage(9, 2.5, Some(11.0)));
    }
}
