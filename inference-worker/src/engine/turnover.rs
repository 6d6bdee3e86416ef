//! How soon a slot becomes free, for those who are told to come again.

use std::time::{Duration, Instant};

/// Share of the newest gap in what is known.
const NEWEST: f64 = 0.125;

/// Time between two slots that became free while others waited for one.
#[derive(Default)]
pub(super) struct Turnover {
    last: Option<Instant>,
    gap: Option<f64>,
}

impl Turnover {
    /// Notes a pass that ended `now` and after which so many slots became free; `waiting`: somebody waits for one.
    pub(super) fn passed(&mut self, freed: usize, waiting: bool, now: Instant) {
        if !waiting {
            // An idle time says nothing about a busy one.
            self.last = None;
            return;
        }
        if freed == 0 {
            self.last.get_or_insert(now);
            return;
        }
        if let Some(last) = self.last {
            let gap = now.saturating_duration_since(last).as_secs_f64() / freed as f64;
            self.gap = Some(self.gap.map_or(gap, |known| known + (gap - known) * NEWEST));
        }
        self.last = Some(now);
    }

    /// Smoothed time between two; zero while nothing is known.
    pub(super) fn gap(&self) -> Duration {
        Duration::from_secs_f64(self.gap.unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_that_of_busy_times() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut turnover = Turnover::default();
        turnover.passed(3, false, at(0));
        assert_eq!(turnover.gap(), Duration::ZERO);
        turnover.passed(0, true, at(100));
        turnover.passed(0, true, at(102));
        turnover.passed(2, true, at(108));
        assert_eq!(turnover.gap(), Duration::from_secs(4), "two in eight seconds of waiting");
        turnover.passed(1, true, at(120));
        assert_eq!(turnover.gap(), Duration::from_secs(5), "an eighth of the way from 4 to 12");
        turnover.passed(0, false, at(130));
        turnover.passed(1, true, at(900));
        assert_eq!(turnover.gap(), Duration::from_secs(5), "nobody waited meanwhile");
    }
}
