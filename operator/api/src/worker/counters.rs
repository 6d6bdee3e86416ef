use super::Buckets;
use serde::{Deserialize, Serialize};

/// Errors by class. All of these count against a revision; other 4xx and client disconnects count nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorCounts {
    /// Answers with a 5xx status, except time-outs.
    pub server: u64,
    /// Refused because the queue was full (429).
    pub overloaded: u64,
    /// Deadline passed before the answer was complete.
    pub timeout: u64,
    /// Streams that broke after their first byte.
    pub broken_stream: u64,
    /// Logits that were not finite.
    pub non_finite: u64,
    /// Answered by another tier because this one failed.
    pub fallback: u64,
}

impl ErrorCounts {
    /// All classes together.
    pub fn total(&self) -> u64 {
        self.server + self.overloaded + self.timeout + self.broken_stream + self.non_finite + self.fallback
    }
}

/// Users who are told apart by a header fall into this many groups by their hash; a group as a whole belongs to one arm.
pub const USER_GROUPS: usize = 16_384;

/// Users of an A/B test that this process met, cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Users {
    /// Users who were given a cookie of this revision.
    pub assigned: u64,
    /// Groups of users of this revision that came, as a bit set in hexadecimal (bit i of byte j: group 8 j + i); empty for
    /// none.
    pub groups: String,
    /// First feedback of users, by the revision that answered.
    pub feedback: Vec<Feedback>,
}

/// First feedback of users about answers of one revision. Values are counted in thousandths, so that sums are exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Feedback {
    /// The revision.
    pub revision: String,
    /// Users.
    pub count: u64,
    /// Sum of their values, in thousandths.
    pub sum: u64,
    /// Sum of the squares, in millionths.
    pub squares: u64,
}

/// Cumulative, exact counters of one worker process, live requests only: internal traffic (compare, score, generate)
/// is not in them. A new `process` means the counters started again at zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Random id of this process.
    pub process: String,
    /// Seconds since the process became ready for the first time (0 before).
    pub ready_seconds: f64,
    /// Time from the arrival of a request to its first token.
    pub ttft: Buckets,
    /// Mean time per output token after the first, one observation per finished request with at least two tokens.
    pub tpot: Buckets,
    /// Requests that were accepted for counting (client errors and disconnects are taken out again).
    pub started: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that ended in an error, by class.
    pub errors: ErrorCounts,
    /// Requests running now: those of a crashed process count as errors.
    pub in_flight: u64,
    /// Prompt tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Answers without a token (shown, not judged).
    pub empty_answers: u64,
    /// Answers that ended in a loop of repeated tokens (shown, not judged).
    pub degenerate_answers: u64,
    /// Seconds in which the engine worked, all requests and internal work.
    pub busy_seconds: f64,
    /// Joules that the host's CPU packages and GPUs used since the process began, whoever used them; `None`: the host counts
    /// none, or does not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Users of an A/B test.
    #[serde(default)]
    pub users: Users,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_that_is_not_known_is_absent_and_may_be() {
        let without = serde_json::to_value(Counters::default()).unwrap();
        assert_eq!(without.get("energyJoules"), None);
        let older: Counters = serde_json::from_value(without).unwrap();
        assert_eq!(older.energy_joules, None);
        let with = Counters { energy_joules: Some(2.5), ..older };
        let text = serde_json::to_value(&with).unwrap();
        assert_eq!(text["energyJoules"], 2.5);
        assert_eq!(serde_json::from_value::<Counters>(text).unwrap(), with);
    }
}
