//! Who takes part, who delivered, when a round ends. Pure: times are given.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// When rounds begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Rounds in all.
    pub rounds: usize,
    /// Clients that the first round waits for.
    pub clients: usize,
    /// Fewest deliveries that make an average.
    pub quorum: usize,
    /// A round with a quorum ends at the latest after this time; so does the wait for the first clients.
    pub deadline: Duration,
}

/// A round without a quorum is given up after this many deadlines.
pub(super) const STARVED_AFTER: u32 = 10;

/// What is remembered, also over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// SHA-256 over everything that decides the result.
    pub(super) recipe: String,
    /// Rounds that are averaged.
    pub(super) done: usize,
    /// The first round has begun.
    pub(super) begun: bool,
    /// Clients that ever joined.
    pub(super) clients: BTreeMap<String, Member>,
    /// Samples of those that delivered in the running round.
    pub(super) delivered: BTreeMap<String, u64>,
}

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    /// Tokens that it trains on per epoch.
    pub(super) samples: u64,
    /// A round waits for it: it delivered in the last one, or was heard of since.
    pub(super) awaited: bool,
}

/// What is to be done about the running round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Wait.
    Nothing,
    /// Begin the first round.
    Begin,
    /// Average what was delivered.
    Close,
    /// Give up.
    GiveUp,
}

/// Why a delivery does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// The client never joined.
    Stranger,
    /// Another round runs.
    OtherRound,
    /// It counts already.
    Again,
}

impl State {
    pub(super) fn new(recipe: String) -> Self {
        Self { recipe, done: 0, begun: false, clients: BTreeMap::new(), delivered: BTreeMap::new() }
    }

    /// A client presents itself, for the first time or after a restart of its own.
    pub(super) fn join(&mut self, name: &str, samples: u64) {
        self.clients.insert(name.to_owned(), Member { samples, awaited: true });
    }

    /// A client was heard of. Whether that is news.
    pub(super) fn heard_of(&mut self, name: &str) -> bool {
        self.clients.get_mut(name).is_some_and(|member| !std::mem::replace(&mut member.awaited, true))
    }

    /// Whether masters of this client and round would count now.
    pub(super) fn expects(&self, name: &str, round: usize, rules: &Rules) -> Result<u64, Late> {
        let member = self.clients.get(name).ok_or(Late::Stranger)?;
        if !self.begun || round != self.done || self.done >= rules.rounds {
            Err(Late::OtherRound)
        } else if self.delivered.contains_key(name) {
            Err(Late::Again)
        } else {
            Ok(member.samples)
        }
    }

    /// Masters of this client are stored.
    pub(super) fn deliver(&mut self, name: &str, samples: u64) {
        self.delivered.insert(name.to_owned(), samples);
        self.heard_of(name);
    }

    /// What is due `waited` after the round began (before the first: after the coordinator did).
    pub(super) fn due(&self, waited: Duration, rules: &Rules) -> Due {
        if self.done >= rules.rounds {
            return Due::Nothing;
        }
        let late = waited >= rules.deadline;
        let starved = waited >= rules.deadline * STARVED_AFTER;
        if !self.begun {
            return match self.clients.len() {
                n if n >= rules.clients || late && n >= rules.quorum => Due::Begin,
                _ if starved => Due::GiveUp,
                _ => Due::Nothing,
            };
        }
        let all = self.clients.iter().filter(|(_, m)| m.awaited).all(|(name, _)| self.delivered.contains_key(name));
        match self.delivered.len() {
            n if n >= rules.quorum && (all || late) => Due::Close,
            _ if starved => Due::GiveUp,
            _ => Due::Nothing,
        }
    }

    /// Names of the clients that the round waits for.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = self.clients.iter().filter(|(name, m)| m.awaited && !self.delivered.contains_key(*name));
        missing.map(|(name, _)| name.clone()).collect()
    }

    /// The average is stored: the next round begins. Who did not deliver is not waited for until it is heard of.
    pub(super) fn close(&mut self) {
        for (name, member) in &mut self.clients {
            member.awaited = self.delivered.contains_key(name);
        }
        self.delivered.clear();
        self.done += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { rounds: 2, clients: 3, quorum: 2, deadline: Duration::from_secs(10) };
    const SOON: Duration = Duration::from_secs(1);

    fn three() -> State {
        let mut state = State::new("r".into());
        for name in ["a", "b", "c"] {
            state.join(name, 5);
        }
        state.begun = true;
        state
    }

    #[test]
    fn the_first_round_waits_for_its_clients_and_then_for_a_quorum() {
        let mut state = State::new("r".into());
        state.join("a", 1);
        assert_eq!(state.due(SOON, &RULES), Due::Nothing);
        assert_eq!(state.due(RULES.deadline, &RULES), Due::Nothing, "one is no quorum");
        assert_eq!(state.due(RULES.deadline * 10, &RULES), Due::GiveUp);
        state.join("b", 1);
        assert_eq!((state.due(SOON, &RULES), state.due(RULES.deadline, &RULES)), (Due::Nothing, Due::Begin));
        state.join("c", 1);
        assert_eq!(state.due(SOON, &RULES), Due::Begin);
        assert_eq!(state.expects("a", 0, &RULES), Err(Late::OtherRound), "it has not begun");
    }

    #[test]
    fn a_round_ends_with_all_or_at_the_deadline_with_a_quorum() {
        let mut state = three();
        state.deliver("a", 5);
        assert_eq!((state.due(SOON, &RULES), state.due(RULES.deadline, &RULES)), (Due::Nothing, Due::Nothing));
        state.deliver("b", 5);
        assert_eq!((state.due(SOON, &RULES), state.due(RULES.deadline, &RULES)), (Due::Nothing, Due::Close));
        assert_eq!(state.missing(), ["c"]);
        state.deliver("c", 5);
        assert_eq!(state.due(SOON, &RULES), Due::Close);
    }

    #[test]
    fn a_client_that_failed_is_not_waited_for_until_it_is_heard_of() {
        let mut state = three();
        state.deliver("a", 5);
        state.deliver("b", 5);
        state.close();
        assert_eq!((state.done, state.delivered.len()), (1, 0));
        state.deliver("a", 5);
        state.deliver("b", 5);
        assert_eq!(state.due(SOON, &RULES), Due::Close, "c is not waited for");
        assert!(state.heard_of("c") && !state.heard_of("c") && !state.heard_of("nobody"));
        assert_eq!(state.due(SOON, &RULES), Due::Nothing, "now it is");
        state.close();
        assert_eq!(state.due(RULES.deadline * 99, &RULES), Due::Nothing, "all rounds are done");
    }

    #[test]
    fn masters_count_once_and_in_their_round_only() {
        let mut state = three();
        assert_eq!(state.expects("a", 0, &RULES), Ok(5));
        assert_eq!(state.expects("a", 1, &RULES), Err(Late::OtherRound));
        assert_eq!(state.expects("x", 0, &RULES), Err(Late::Stranger));
        state.deliver("a", 5);
        assert_eq!(state.expects("a", 0, &RULES), Err(Late::Again));
        state.close();
        assert_eq!(state.expects("b", 0, &RULES), Err(Late::OtherRound));
        assert_eq!(state.expects("a", 1, &RULES), Ok(5));
    }

    #[test]
    fn nobody_at_all_is_given_up_and_never_averaged() {
        let state = three();
        assert_eq!(state.due(RULES.deadline * 9, &RULES), Due::Nothing);
        assert_eq!(state.due(RULES.deadline * 10, &RULES), Due::GiveUp);
    }
}
