use super::CanaryStep;
use crate::{Span, evidence::ab::AbMetric};

/// A fixed share of the users for a fixed time: each user stays with the arm that the first request drew.
#[derive(Clone, Debug, PartialEq)]
pub struct AbTest {
    /// The one step: the candidate's share of the users in percent (1..=99), and how long the test lasts.
    pub split: [CanaryStep; 1],
    /// Only requests with all of these headers take part; empty: all do.
    pub matches: Vec<HeaderMatch>,
    /// What keeps a user with an arm.
    pub stickiness: Stickiness,
    /// What users say through `/v1/feedback`; `None`: only the gate's signals are compared.
    pub metric: Option<AbMetric>,
    /// What follows when the time is over.
    pub on_end: OnEnd,
}

impl AbTest {
    /// The candidate's share of the users in percent.
    pub fn weight(&self) -> u32 {
        self.split[0].weight
    }

    /// How long the test lasts.
    pub fn duration(&self) -> Span {
        self.split[0].duration
    }
}

/// What keeps a user with an arm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stickiness {
    /// A cookie of this name: the worker that a new user meets sets it, later requests are routed by it.
    Cookie(String),
    /// A header of this name that says who the user is: the worker hashes it to an arm, and passes a request that came to
    /// the other arm on.
    Header(String),
}

/// What follows when the time of an A/B test is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEnd {
    /// Traffic goes back to stable, the result is recorded, a person decides.
    Report,
    /// The candidate is promoted if users do better with it, and the gate's signals are proven; else as `Report`.
    Promote,
}

/// A header that a request must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: String,
    /// Its value, or a regular expression for all of it.
    pub value: String,
    /// `value` is a regular expression.
    pub regex: bool,
}
