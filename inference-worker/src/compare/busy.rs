//! How busy engines were between two comparisons, from their cumulative busy seconds.

use std::collections::VecDeque;
use std::time::Instant;

/// Stable pods remembered.
const REMEMBERED: usize = 16;

/// The last reading of each engine.
pub(super) struct BusyMeter {
    own: (Instant, f64),
    peers: VecDeque<(String, Reading)>,
}

#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    seconds: f64,
}

impl BusyMeter {
    pub(super) fn new(now: Instant) -> Self {
        Self { own: (now, 0.0), peers: VecDeque::new() }
    }

    /// Share of the time since the last call in which our engine worked.
    pub(super) fn own(&mut self, now: Instant, seconds: f64) -> f64 {
        let (at, before) = std::mem::replace(&mut self.own, (now, seconds));
        share(now, at, seconds - before)
    }

    /// The same for a peer's process; `None` if it was not read before.
    pub(super) fn peer(&mut self, process: &str, now: Instant, seconds: f64) -> Option<f64> {
        let known = self.peers.iter().position(|(name, _)| name == process);
        let before = known.and_then(|at| self.peers.remove(at)).map(|(_, reading)| reading);
        if self.peers.len() >= REMEMBERED {
            self.peers.pop_front();
        }
        self.peers.push_back((process.to_owned(), Reading { at: now, seconds }));
        before.map(|before| share(now, before.at, seconds - before.seconds))
    }
}

fn share(now: Instant, before: Instant, worked: f64) -> f64 {
    let passed = now.saturating_duration_since(before).as_secs_f64();
    if passed > 0.0 { (worked / passed).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn shares_are_of_the_time_since_the_last_reading_of_the_same_process() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = BusyMeter::new(start);
        assert!((meter.own(at(10), 1.0) - 0.1).abs() < 1e-12);
        assert!((meter.own(at(20), 3.0) - 0.2).abs() < 1e-12);
        assert_eq!(meter.peer("p", at(10), 5.0), None);
        assert_eq!(meter.peer("q", at(11), 50.0), None);
        assert_eq!(meter.peer("p", at(20), 10.0), Some(0.5));
        assert_eq!(meter.peer("q", at(21), 99.0), Some(1.0), "clocks of two machines may differ a little");
        (0..REMEMBERED).for_each(|i| assert_eq!(meter.peer(&i.to_string(), at(30), 0.0), None));
        assert_eq!(meter.peer("p", at(40), 11.0), None, "forgotten");
        assert_eq!(meter.peers.len(), REMEMBERED);
    }
}
