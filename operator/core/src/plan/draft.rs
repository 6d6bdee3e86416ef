use super::{
    Answered, DecisionRecord, Event, Plan, RouteWrite, Seen, State, detours,
    view::{Standing, View},
};
use crate::{
    Span, Time,
    model::Revision,
    observation::{Ledger, VerbRequest},
    report::{Note, Phase, Reason, Report},
};

/// A quiet rollout is looked at this often.
const HEARTBEAT: Span = Span::seconds(300);

/// How soon to look again for what a watch will usually report first.
pub(super) const SOON: Span = Span::seconds(1);

/// A plan in the making.
pub(super) struct Draft<'a> {
    pub(super) view: View<'a>,
    pub(super) plan: Plan,
    /// The phase and headline were set.
    pub(super) said: bool,
    /// A tick was taken in this plan.
    pub(super) ticked: bool,
    /// The weights are not those of our last write.
    pub(super) by_hand: bool,
    /// What cluster objects are waited for, decided before the rules run.
    pub(super) waiting: Option<Waiting>,
    /// A verb of this plan that asks for a write.
    pub(super) asked: Option<VerbRequest>,
    /// Pods that the candidate needs for what comes next.
    pub(super) recruits: Option<u32>,
}

/// Waiting for cluster objects: the clock of `progressDeadline` runs.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) reason: Reason,
    pub(super) object: String,
    pub(super) message: String,
}

impl<'a> Draft<'a> {
    pub(super) fn new(view: View<'a>, state: &State) -> Self {
        let headline = Note { reason: Reason::Serving, object: String::new(), message: String::new(), since: None };
        let plan = Plan {
            finalizer: true,
            grow: Vec::new(),
            regrow: None,
            shift: None,
            record: None,
            preview: None,
            shrink: Vec::new(),
            probe: None,
            events: Vec::new(),
            state: state.clone(),
            answered: Vec::new(),
            assessment: None,
            users: None,
            guard: None,
            checkpoint: false,
            report: Report { phase: Phase::Pending, headline, notes: Vec::new() },
            requeue_after: HEARTBEAT,
        };
        Self { view, plan, said: false, ticked: false, by_hand: false, waiting: None, asked: None, recruits: None }
    }

    pub(super) fn state(&mut self) -> &mut State {
        &mut self.plan.state
    }

    pub(super) fn now(&self) -> Time {
        self.view.now
    }

    /// Look again after `span` at the latest.
    pub(super) fn wake(&mut self, span: Span) {
        self.plan.requeue_after = self.plan.requeue_after.min(span);
    }

    /// Look again at `time`; what is past has been looked at.
    pub(super) fn wake_at(&mut self, time: Time) {
        if time > self.view.now {
            self.wake(time - self.view.now);
        }
    }

    /// The first call sets phase and headline, later ones add notes: rules run in the order in which they count.
    pub(super) fn say(&mut self, phase: Phase, note: Note) {
        if self.said {
            if self.plan.report.headline != note && !self.plan.report.notes.contains(&note) {
                self.plan.report.notes.push(note);
            }
        } else {
            self.said = true;
            self.plan.report.phase = phase;
            self.plan.report.headline = note;
        }
    }

    /// What is said only where nothing more important was.
    pub(super) fn otherwise(&mut self, phase: Phase, note: Note) {
        if !self.said {
            self.say(phase, note);
        }
    }

    /// Something worth saying that is never the headline.
    pub(super) fn aside(&mut self, note: Note) {
        if !self.plan.report.notes.contains(&note) {
            self.plan.report.notes.push(note);
        }
    }

    pub(super) fn event(
        &mut self,
        warning: bool,
        reason: Reason,
        object: impl Into<String>,
        message: impl Into<String>,
    ) {
        let note = Note { reason, object: object.into(), message: message.into(), since: None };
        self.plan.events.push(Event { warning, note });
    }

    /// Answers a verb; its id is remembered.
    pub(super) fn answer(&mut self, verb: &VerbRequest, outcome: impl Into<String>) {
        let outcome = outcome.into();
        let mark = verb.mark();
        let verbs = &mut self.plan.state.verbs;
        if !verbs.contains(&mark) {
            verbs.push(mark);
            let excess = verbs.len().saturating_sub(8);
            verbs.drain(..excess);
            let text = format!("{} by {}: {outcome}", verb.verb.name(), shortened(&verb.by, 64));
            self.event(false, Reason::VerbAnswered, self.view.rollout.name.clone(), text);
        }
        self.plan.answered.push(Answered { verb: verb.verb, id: verb.id.clone(), outcome });
    }

    pub(super) fn standing(&self) -> Option<Standing> {
        self.view.standing()
    }

    /// The candidate's weight in a trial, 0 otherwise.
    pub(super) fn trial_weight(&self) -> u32 {
        if self.standing() == Some(Standing::Trial) { self.view.weight(self.view.model()) } else { 0 }
    }

    /// Blue-green: the candidate on trial has all of the traffic.
    pub(super) fn switched(&self) -> bool {
        self.view.blue_green().is_some() && self.trial_weight() >= 100
    }

    pub(super) fn paused(&self) -> bool {
        self.view.rollout.paused || self.plan.state.paused
    }

    /// The gateway has accepted the last write.
    pub(super) fn confirmed(&self) -> bool {
        let state = &self.plan.state;
        self.view.route().is_some_and(|r| r.accepted)
            && state.confirmed_at.is_some()
            && self.view.ledger().is_some_and(|l| l.epoch == state.confirmed_epoch)
    }

    /// How long the gateway has been on the last write; `None`: it is not yet.
    pub(super) fn confirmed_for(&self) -> Option<Span> {
        if !self.confirmed() {
            return None;
        }
        self.plan.state.confirmed_at.map(|t| self.view.now - t)
    }

    /// How long the weights in force have been watched by ticks; `None`: the gateway is not on them yet.
    pub(super) fn watched_for(&self) -> Option<Span> {
        let unwatched = self.plan.state.attempt.as_ref().map_or(0, |a| a.unwatched.0);
        self.confirmed_for().map(|on| Span(on.0.saturating_sub(unwatched)))
    }

    /// The one write of the route: all of `weights`, then zeros for the other live revisions, at most three. The ledger
    /// is the stored one with `edit` applied and its epoch raised.
    pub(super) fn shift(
        &mut self,
        weights: &[(Revision, u32)],
        zeros: &[Revision],
        decision: Option<DecisionRecord>,
        edit: impl FnOnce(&mut Ledger),
    ) {
        let backends = self.compose(weights, zeros);
        self.shift_to(backends, decision, edit);
    }

    /// The one write of the route, with exactly these backends.
    pub(super) fn shift_to(
        &mut self,
        backends: Vec<(Revision, u32)>,
        decision: Option<DecisionRecord>,
        edit: impl FnOnce(&mut Ledger),
    ) {
        let Some(old) = self.view.ledger() else { return };
        let mut ledger = old.clone();
        edit(&mut ledger);
        ledger.epoch = old.epoch.saturating_add(1);
        self.remember(&ledger, &backends);
        let detours = detours::of_write(&self.view, &ledger, &backends);
        let decision = decision.map(Box::new);
        self.plan.shift = Some(RouteWrite::Set { backends, ledger, detours, adopt: false, decision });
    }

    /// What every write leaves in the state: the route as it will be, and clocks that start anew.
    pub(super) fn remember(&mut self, ledger: &Ledger, backends: &[(Revision, u32)]) {
        let state = &mut self.plan.state;
        state.seen = Some(Seen::of(ledger, backends.to_vec()));
        state.waiting_since = None;
        if let Some(attempt) = &mut state.attempt {
            attempt.step_since = None;
            attempt.step_ticks = 0;
            attempt.unwatched = Span(0);
        }
        self.wake(SOON);
    }

    /// Backends of a write: `weights` as they are, then a 0 for each of `zeros`, for stable and for fp16, as far as
    /// their Services exist and three refs last.
    pub(super) fn compose(&self, weights: &[(Revision, u32)], zeros: &[Revision]) -> Vec<(Revision, u32)> {
        let mut backends: Vec<(Revision, u32)> = Vec::new();
        let stable = self.view.ledger().map(|l| l.stable.clone());
        let rest = zeros.iter().cloned().chain(stable).chain([self.view.baseline.clone()]).map(|r| (r, 0));
        for (revision, weight) in weights.iter().cloned().chain(rest) {
            let service = self.view.workload(&revision).is_some_and(|w| w.service);
            let room = backends.len() < 3;
            if (weight > 0 || (service && room)) && !backends.iter().any(|(r, _)| *r == revision) {
                backends.push((revision, weight));
            }
        }
        backends
    }
}

/// A note.
pub(super) fn note(reason: Reason, object: impl Into<String>, message: impl Into<String>) -> Note {
    Note { reason, object: object.into(), message: message.into(), since: None }
}

/// A note about a state that began at `since`.
pub(super) fn since(note: Note, since: Option<Time>) -> Note {
    Note { since, ..note }
}

/// The first `limit` characters of a text that a person or a worker wrote, without control characters.
pub(super) fn shortened(text: &str, limit: usize) -> String {
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(limit).collect();
    if text.chars().count() > limit {
        out.push('…');
    }
    out
}
