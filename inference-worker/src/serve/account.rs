//! The account of live requests: exact counters, one class for each end.
//!
//! A request is counted when it is valid and asks for work; each leaves by exactly one door: finished, one class of
//! error, or withdrawn (its client went away), so that `started = finished + errors + in flight` at every moment.

use super::metrics::Metrics;
use crate::engine::{Finish, random, time_per_token};
use bitnet_api::worker::{Buckets, Counters, ErrorCounts, Users};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Which error ended a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// An answer with a 5xx status that no other class describes.
    Server,
    /// The queue was full.
    Overloaded,
    /// The deadline passed.
    Timeout,
    /// The stream ended after its first byte without its end.
    BrokenStream,
    /// The logits were not finite.
    NonFinite,
    /// Another tier answered because this one failed.
    Fallback,
}

/// Counters of one process.
pub(crate) struct Account {
    process: String,
    ready: OnceLock<Instant>,
    counts: Mutex<Counts>,
    metrics: Metrics,
}

#[derive(Default)]
struct Counts {
    ttft: Buckets,
    tpot: Buckets,
    finished: u64,
    errors: ErrorCounts,
    in_flight: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
    empty_answers: u64,
    degenerate_answers: u64,
}

impl Account {
    /// Counters at zero, under a new process id.
    pub(crate) fn new(metrics: Metrics) -> Self {
        let process = format!("{:016x}{:016x}", random::entropy(), random::entropy());
        Self { process, ready: OnceLock::new(), counts: Mutex::default(), metrics }
    }

    /// Random id of this process.
    pub(crate) fn process(&self) -> &str {
        &self.process
    }

    /// Notes that the process is ready; the first call counts.
    pub(crate) fn set_ready(&self) {
        self.ready.get_or_init(Instant::now);
    }

    /// When the process became ready first.
    pub(crate) fn ready_since(&self) -> Option<Instant> {
        self.ready.get().copied()
    }

    /// The metrics that show the same facts to dashboards.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts a request that arrived at `arrival`.
    pub(crate) fn start(self: &Arc<Self>, arrival: Instant) -> Ticket {
        self.lock().in_flight += 1;
        Ticket {
            account: Arc::clone(self),
            arrival,
            prompt_tokens: 0,
            queued: None,
            first: None,
            last: arrival,
            tokens: Vec::new(),
            others: 0,
            deferred: false,
            open: true,
        }
    }

    /// All counters now; `busy_seconds` is the engine's.
    pub(crate) fn counters(&self, busy_seconds: f64) -> Counters {
        let counts = self.lock();
        Counters {
            process: self.process.clone(),
            ready_seconds: self.ready.get().map_or(0.0, |at| at.elapsed().as_secs_f64()),
            ttft: counts.ttft.clone(),
            tpot: counts.tpot.clone(),
            started: counts.finished + counts.errors.total() + counts.in_flight,
            finished: counts.finished,
            errors: counts.errors,
            in_flight: counts.in_flight,
            prompt_tokens: counts.prompt_tokens,
            generated_tokens: counts.generated_tokens,
            empty_answers: counts.empty_answers,
            degenerate_answers: counts.degenerate_answers,
            busy_seconds,
            energy_joules: self.metrics.joules(),
            users: Users::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Plain additions: a panic elsewhere leaves no half-made change.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted request. Dropped without an end, it is withdrawn: its client went away.
pub(crate) struct Ticket {
    account: Arc<Account>,
    arrival: Instant,
    prompt_tokens: u64,
    /// From its arrival to its first forward pass.
    queued: Option<Duration>,
    first: Option<Instant>,
    last: Instant,
    tokens: Vec<u32>,
    /// Tokens of further choices.
    others: u64,
    /// The time to the first token is not on record before the answer is known to be ours.
    deferred: bool,
    open: bool,
}

impl Ticket {
    /// Notes the length of the prompt, counted once the engine has read it.
    pub(crate) fn set_prompt(&mut self, tokens: usize) {
        self.prompt_tokens = tokens as u64;
    }

    /// Notes how long the request waited for its first forward pass; the first word counts.
    pub(crate) fn begun(&mut self, queued: Duration) {
        if self.queued.is_none() {
            self.queued = Some(queued);
            self.account.metrics.queued(queued.as_secs_f64());
        }
    }

    /// Keeps the time to the first token off the record until [`Ticket::begin`] or the end, because another tier may
    /// give the answer; then it is in no histogram of ours.
    pub(crate) fn defer(&mut self) {
        self.deferred = true;
    }

    /// The answer is ours: its first byte goes out.
    pub(crate) fn begin(&mut self) {
        if std::mem::take(&mut self.deferred)
            && let Some(first) = self.first
        {
            self.record(first);
        }
    }

    /// Takes a token of the first choice, chosen at `at`. The time to the first one is on record from here on, also if
    /// the client leaves later: leaving it out would hide the answers that clients had no patience for.
    pub(crate) fn token(&mut self, id: u32, at: Instant) {
        if self.first.is_none() {
            self.first = Some(at);
            if !self.deferred {
                self.record(at);
            }
        } else {
            self.account.metrics.between_tokens(seconds(self.last, at));
        }
        self.last = at;
        self.tokens.push(id);
    }

    /// Counts a token of another choice.
    pub(crate) fn another(&mut self) {
        self.others += 1;
    }

    /// The answer is complete: the engine ended it at `at`.
    pub(crate) fn finish(mut self, finish: Finish, at: Instant) {
        self.begin();
        if self.first.is_none() {
            // The model ended the answer at once: choosing that end was its first token.
            self.first = Some(at);
            self.record(at);
        }
        let tpot = self.first.and_then(|first| time_per_token(first, self.last, self.tokens.len()));
        let mut counts = self.account.lock();
        if let Some(tpot) = tpot {
            counts.tpot.observe(tpot);
        }
        counts.finished += 1;
        let generated = self.tokens.len() as u64 + self.others;
        counts.generated_tokens += generated;
        counts.empty_answers += u64::from(self.tokens.is_empty());
        counts.degenerate_answers += u64::from(ends_in_loop(&self.tokens));
        drop(counts);
        if let (Some(queued), Some(first)) = (self.queued, self.first) {
            let prefill = seconds(self.arrival + queued, first);
            self.account.metrics.phases(prefill, seconds(first, at));
        }
        self.account.metrics.finished(finish, self.prompt_tokens, generated, seconds(self.arrival, at));
        self.close();
    }

    /// The answer failed.
    pub(crate) fn fail(mut self, class: ErrorClass) {
        if class != ErrorClass::Fallback {
            self.begin();
        }
        self.count_error(class);
        self.close();
    }

    /// Another tier answers although this one did not fail: the request leaves this account.
    pub(crate) fn hand_on(mut self) {
        self.close();
    }

    fn record(&self, at: Instant) {
        let ttft = seconds(self.arrival, at);
        let mut counts = self.account.lock();
        counts.ttft.observe(ttft);
        counts.prompt_tokens += self.prompt_tokens;
        drop(counts);
        self.account.metrics.first_token(ttft);
    }

    fn count_error(&self, class: ErrorClass) {
        let mut counts = self.account.lock();
        counts.generated_tokens += self.tokens.len() as u64 + self.others;
        let errors = &mut counts.errors;
        match class {
            ErrorClass::Server => errors.server += 1,
            ErrorClass::Overloaded => errors.overloaded += 1,
            ErrorClass::BrokenStream => errors.broken_stream += 1,
            ErrorClass::NonFinite => errors.non_finite += 1,
            ErrorClass::Fallback => errors.fallback += 1,
            ErrorClass::Timeout => {
                errors.timeout += 1;
                // The slowest of all: it must not be missing where slowness is measured. Before the first token that
                // is the time to it, afterwards the time per token.
                let slow = if self.first.is_none() { &mut counts.ttft } else { &mut counts.tpot };
                slow.observe(f64::INFINITY);
            }
        }
        drop(counts);
        self.account.metrics.failed(class);
    }

    fn close(&mut self) {
        self.open = false;
        self.account.lock().in_flight -= 1;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if std::thread::panicking() {
            // Our own fault, not the client's.
            self.count_error(ErrorClass::Server);
        } else {
            self.begin();
            self.account.metrics.withdrawn();
        }
        self.close();
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

/// A loop: the answer's last tokens are one run of at most 8 tokens, said at least 4 times over and for at least 16
/// tokens. Shorter repetitions occur in good text.
fn ends_in_loop(tokens: &[u32]) -> bool {
    (1..=8).any(|period| {
        let tail = (4 * period).max(16);
        tokens.len() >= tail && {
            let tail = &tokens[tokens.len() - tail..];
            tail.iter().zip(&tail[period..]).all(|(a, b)| a == b)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Names;
    use super::*;

    fn account() -> Arc<Account> {
        Arc::new(Account::new(Metrics::new("test", Names::Ours)))
    }

    fn balanced(account: &Account) -> Counters {
        let counters = account.counters(0.0);
        assert_eq!(counters.started, counters.finished + counters.errors.total() + counters.in_flight);
        counters
    }

    #[test]
    fn a_finished_request_leaves_both_times() {
        let account = account();
        let start = Instant::now();
        let mut ticket = account.start(start);
        assert_eq!(balanced(&account).in_flight, 1);
        ticket.set_prompt(7);
        for i in 1..=3u32 {
            ticket.token(i, start + Duration::from_millis(100 * u64::from(i)));
        }
        ticket.finish(Finish::Length, start + Duration::from_millis(300));
        let counters = balanced(&account);
        assert_eq!((counters.finished, counters.in_flight), (1, 0));
        assert_eq!((counters.prompt_tokens, counters.generated_tokens), (7, 3));
        let mut wanted = Buckets::default();
        wanted.observe(0.1);
        assert_eq!((&counters.ttft, &counters.tpot), (&wanted, &wanted));
    }

    #[test]
    fn a_client_that_leaves_is_in_no_rate() {
        let account = account();
        let mut ticket = account.start(Instant::now());
        ticket.token(1, Instant::now());
        drop(ticket);
        let counters = balanced(&account);
        assert_eq!((counters.started, counters.errors.total(), counters.ttft.total()), (0, 0, 1));
    }

    #[test]
    fn each_error_has_one_class_and_a_timeout_is_the_slowest_answer() {
        let account = account();
        for class in [ErrorClass::Server, ErrorClass::Overloaded, ErrorClass::BrokenStream, ErrorClass::NonFinite] {
            account.start(Instant::now()).fail(class);
        }
        account.start(Instant::now()).fail(ErrorClass::Timeout);
        let mut late = account.start(Instant::now());
        late.token(1, Instant::now());
        late.fail(ErrorClass::Timeout);
        let counters = balanced(&account);
        let wanted = ErrorCounts { server: 1, overloaded: 1, timeout: 2, broken_stream: 1, non_finite: 1, fallback: 0 };
        assert_eq!(counters.errors, wanted);
        let overflow =
            |buckets: &Buckets| buckets.0.iter().filter(|b| b.0 == bitnet_api::worker::OVERFLOW_BUCKET).count();
        assert_eq!((overflow(&counters.ttft), overflow(&counters.tpot)), (1, 1));
    }

    #[test]
    fn what_another_tier_answers_is_in_no_histogram_and_what_we_answer_is() {
        let account = account();
        let ask = || {
            let mut ticket = account.start(Instant::now());
            ticket.defer();
            ticket.token(1, Instant::now());
            ticket
        };
        ask().fail(ErrorClass::Fallback);
        ask().hand_on();
        let counters = balanced(&account);
        assert_eq!((counters.ttft.total(), counters.errors.fallback, counters.started), (0, 1, 1));
        ask().finish(Finish::Stop, Instant::now());
        drop(ask());
        ask().fail(ErrorClass::NonFinite);
        let mut begun = ask();
        begun.begin();
        assert_eq!(balanced(&account).ttft.total(), 4);
        begun.finish(Finish::Stop, Instant::now());
        assert_eq!(balanced(&account).ttft.total(), 4, "once each");
    }

    #[test]
    fn tokens_of_all_choices_are_counted_and_times_are_those_of_the_first() {
        let account = account();
        let mut ticket = account.start(Instant::now());
        ticket.token(1, Instant::now());
        ticket.another();
        ticket.another();
        ticket.finish(Finish::Length, Instant::now());
        let counters = balanced(&account);
        assert_eq!((counters.generated_tokens, counters.ttft.total(), counters.tpot.total()), (3, 1, 0));
    }

    #[test]
    fn a_panic_counts_as_our_error() {
        let account = account();
        let inside = Arc::clone(&account);
        let _ = std::thread::spawn(move || {
            let _ticket = inside.start(Instant::now());
            panic!("a handler breaks");
        })
        .join();
        assert_eq!(balanced(&account).errors.server, 1);
    }

    #[test]
    fn empty_and_looping_answers_are_counted_apart() {
        let account = account();
        account.start(Instant::now()).finish(Finish::Stop, Instant::now());
        let mut looping = account.start(Instant::now());
        for i in 0..40u32 {
            looping.token(if i < 20 { i } else { i % 3 }, Instant::now());
        }
        looping.finish(Finish::Length, Instant::now());
        let counters = balanced(&account);
        assert_eq!((counters.empty_answers, counters.degenerate_answers, counters.finished), (1, 1, 2));
        assert!(!ends_in_loop(&[5; 15]) && ends_in_loop(&[5; 16]));
        assert!(!ends_in_loop(&(0..64).map(|i| i % 9).collect::<Vec<_>>()));
    }
}
