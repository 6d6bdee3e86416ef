//! When the evidence of an attempt is expected to be complete, at the pace of the last ticks. It is a forecast for people:
//! the judge does not know it.

use super::ticks::Point;
use serde::Serialize;

/// Ticks that the pace is measured over.
const PACE: usize = 30;

/// What is expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Forecast {
    /// Every signal is proven: only steps, pauses and pods are waited for.
    Proven,
    /// All signals that are not proven have their samples after so many seconds.
    Seconds(f64),
    /// Nothing can be said, because of this signal: its estimate lies on the margin, or it gets no samples.
    Unknown(&'static str),
}

/// `None` before there is a pace.
pub(super) fn forecast(points: &[Point]) -> Option<Forecast> {
    let last = points.last()?;
    let first = &points[points.len().saturating_sub(PACE)];
    let seconds = (last.at - first.at) as f64 / 1000.0;
    if seconds <= 0.0 {
        return None;
    }
    let mut longest = 0.0f64;
    let mut open = false;
    for signal in &last.signals {
        if signal.support >= last.promote_at {
            continue;
        }
        open = true;
        let before = first.signals.iter().find(|before| before.name == signal.name).map_or(0, |before| before.samples);
        let pace = signal.samples.saturating_sub(before) as f64 / seconds;
        let Some(required) = signal.required.filter(|_| pace > 0.0) else {
            return Some(Forecast::Unknown(signal.name));
        };
        longest = longest.max(required.saturating_sub(signal.samples) as f64 / pace);
    }
    Some(if open { Forecast::Seconds(longest) } else { Forecast::Proven })
}

#[cfg(test)]
mod tests {
    use super::{super::ticks::SignalPoint, *};

    fn point(second: i64, signals: &[(&'static str, u64, f64, Option<u64>)]) -> Point {
        let signals = signals.iter().map(|&(name, samples, support, required)| SignalPoint {
            name,
            samples,
            estimate: None,
            against: 0.0,
            support,
            required,
        });
        Point {
            at: second * 1000,
            attempt: 1,
            tick: second as u32,
            weight: 5,
            against: 0.0,
            rollback_at: 4.6,
            promote_at: 3.0,
            signals: signals.collect(),
            live: None,
        }
    }

    #[test]
    fn the_slowest_signal_that_is_not_proven_decides() {
        let begin = point(0, &[("cosine", 0, 0.0, None), ("errors", 0, 0.0, None)]);
        let of = |signals: &[(&'static str, u64, f64, Option<u64>)]| forecast(&[begin.clone(), point(10, signals)]);
        assert_eq!(forecast(std::slice::from_ref(&begin)), None);
        // 8 prompts and 100 requests per second: 20 s and 30 s more.
        let both = [("cosine", 80, 1.0, Some(240)), ("errors", 1000, 1.0, Some(4000))];
        assert_eq!(of(&both), Some(Forecast::Seconds(30.0)));
        assert_eq!(of(&[("cosine", 80, 1.0, Some(240)), ("errors", 1000, 3.5, None)]), Some(Forecast::Seconds(20.0)));
        assert_eq!(of(&[("cosine", 80, 3.0, None), ("errors", 1000, 3.5, None)]), Some(Forecast::Proven));
        assert_eq!(of(&[("cosine", 80, 1.0, None), ("errors", 9, 9.0, None)]), Some(Forecast::Unknown("cosine")));
        assert_eq!(of(&[("cosine", 80, 9.0, None), ("errors", 0, 0.0, Some(9))]), Some(Forecast::Unknown("errors")));
        // It has more than it was expected to need, and is not proven yet: any moment.
        assert_eq!(of(&[("cosine", 80, 1.0, Some(50)), ("errors", 9, 9.0, None)]), Some(Forecast::Seconds(0.0)));
    }
}
