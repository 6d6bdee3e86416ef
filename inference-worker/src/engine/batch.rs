//! The sequences that run, and one pass over them.

use super::Options;
use super::grammar::{Grammar, Step};
use super::job::{Class, Ended, Event, Failure, Finish, Job, Work};
use super::network::{Network, Turn};
use super::pace::Pace;
use super::prefix::Prefixes;
use super::processors::Processing;
use super::sampling::{NonFinite, Sampler, likelihood};
use super::sharing::{self, Reader, Start};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Prompt tokens of background work in one pass: about as long as one decode, which other work that comes waits for.
const BACKGROUND_CHUNK: usize = 8;
/// Failed passes in a row after which no other one is tried.
const LOST: u32 = 3;
/// Logits of a pass from which on the choice of tokens is shared among threads: before that it takes a few microseconds.
const SPREAD: usize = 1 << 15;

/// One job with a slot.
pub(super) struct Sequence<C> {
    job: Job,
    /// None before the first pass: it may begin as a copy of another one's.
    cache: Option<C>,
    capacity: usize,
    /// Prompt tokens read.
    read: usize,
    /// Prompt tokens to read: all, or up to the last position whose logits are wanted.
    prompt: usize,
    /// The token to feed next, once the prompt is read.
    last: u32,
    generated: usize,
    /// What was generated, where it may be kept for a later request.
    said: Vec<u32>,
    /// Prompt tokens that were read for an earlier request.
    reused: usize,
    /// The forward pass gave numbers that are none: nobody else may have this cache.
    broken: bool,
    sampler: Sampler,
    processing: Option<Box<Processing>>,
    grammar: Option<Box<Grammar>>,
    scores: Vec<f32>,
    alone: bool,
    queued: Option<Duration>,
    /// When the last event was about to be sent.
    spoke: Instant,
}

/// Tokens and logits rows of one turn, owned for the time of a pass.
struct Planned {
    sequence: usize,
    count: usize,
    want: Vec<u32>,
}

/// What a pass gave to one sequence.
struct Given<'a, C> {
    sequence: &'a mut Sequence<C>,
    planned: &'a Planned,
    logits: Vec<f32>,
    /// The job is over.
    over: bool,
    non_finite: u64,
}

/// All sequences that run, and what they share.
pub(super) struct Batch<N: Network> {
    network: N,
    running: Vec<Sequence<N::Cache>>,
    prefixes: Prefixes<N::Cache>,
    seen: Seen,
    /// Whether users' prompts share what was read.
    shares: bool,
    pace: Pace,
    /// Until when the last pass worked for anybody: a job that arrives later shares nothing with those before it.
    worked_until: Option<Instant>,
    /// Passes that failed since the last one that did not.
    failed: u32,
}

/// Cumulative counts.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) passes: u64,
    pub(super) reused: u64,
    pub(super) looked_up: u64,
    pub(super) non_finite: u64,
}

impl<N: Network> Batch<N> {
    pub(super) fn new(network: N, options: Options) -> Self {
        Self {
            network,
            running: Vec::new(),
            prefixes: Prefixes::new(options.prefix_tokens()),
            seen: Seen::default(),
            shares: options.prefix_tokens() > 0,
            pace: Pace::new(options.prefill_chunk, options.prefill_budget),
            worked_until: None,
            failed: 0,
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Sequences that somebody waits for.
    pub(super) fn wanted(&self) -> usize {
        self.running.iter().filter(|sequence| sequence.job.class != Class::Background).count()
    }

    /// Tokens held in caches.
    pub(super) fn cached_tokens(&self) -> usize {
        self.running.iter().map(|s| s.read + s.generated).sum()
    }

    /// Gives a job a slot. Background work has one only as long as it is by itself.
    pub(super) fn admit(&mut self, mut job: Job) {
        if job.class == Class::Background && !self.running.is_empty() {
            let _ = job.events.send(Event::Failed(Failure::Yielded));
            return;
        }
        self.running.retain_mut(|sequence| {
            let stays = sequence.job.class != Class::Background;
            if !stays {
                sequence.fail(Failure::Yielded);
            }
            stays
        });
        let (mut grammar, mut processing) = (None, None);
        let (prompt, room, sampler, scores) = match &mut job.work {
            Work::Generate { max_tokens, sampling, grammar: form, processors, .. } => {
                grammar = form.take();
                processing = processors.take().map(|processors| Box::new(Processing::new(*processors, &job.prompt)));
                (job.prompt.len(), *max_tokens, Sampler::new(*sampling), Vec::new())
            }
            Work::Score { positions } => {
                let needed = positions.iter().max().map_or(0, |&p| p as usize + 1);
                let scores = vec![0.0; positions.len() * self.network.vocabulary()];
                (needed.min(job.prompt.len()), 0, Sampler::new(super::Sampling::GREEDY), scores)
            }
        };
        let alone = self.worked_until.is_none_or(|end| end <= job.arrival);
        let spoke = job.arrival;
        let sequence = Sequence {
            job,
            cache: None,
            capacity: prompt + room,
            read: 0,
            prompt,
            last: 0,
            generated: 0,
            said: Vec::new(),
            reused: 0,
            broken: false,
            sampler,
            processing,
            grammar,
            scores,
            alone,
            queued: None,
            spoke,
        };
        self.running.push(sequence);
    }

    /// Frees the slots of callers that went away.
    pub(super) fn drop_cancelled(&mut self) {
        for at in (0..self.running.len()).rev() {
            if self.running[at].job.events.is_closed() {
                self.release(at);
            }
        }
    }

    /// Frees a slot; what the sequence has read may serve the next one that begins alike.
    fn release(&mut self, at: usize) {
        let sequence = self.running.remove(at);
        if !is_live(&sequence.job) || sequence.broken {
            return;
        }
        let tokens = sequence.held();
        if let Some(cache) = sequence.cache {
            let network = &self.network;
            self.prefixes.keep(tokens, cache, |cache, len| network.fork(cache, len, len));
        }
    }

    /// Gives a cache to each sequence that has none, unless another one is reading what it would read as well.
    fn start(&mut self) {
        for at in 0..self.running.len() {
            let sequence = &self.running[at];
            if sequence.cache.is_some() {
                continue;
            }
            let (capacity, mut start, mut kept) = (sequence.capacity, Start::Read, None);
            // Only users share: what a comparison times must not depend on what was asked before.
            let shares = self.shares && sequence.shares();
            if shares {
                let readers = self.running.iter().enumerate().filter(|(_, other)| other.shares());
                let readers = readers.map(|(sequence, other)| Reader {
                    sequence,
                    prompt: &other.job.prompt,
                    read: other.read,
                    fresh: other.cache.is_none(),
                });
                let prompt = &sequence.job.prompt;
                start = sharing::start(at, prompt, self.prefixes.shared(prompt), readers);
                if start == Start::Read {
                    kept = self.prefixes.find(prompt);
                }
            }
            let from = match start {
                Start::Wait => continue,
                Start::Copy { from, len } => self.running[from].cache.as_ref().map(|cache| (cache, len)),
                Start::Read => kept,
            };
            let (cache, reused) = match from {
                Some((cache, len)) => (self.network.fork(cache, len, capacity), len),
                None => (self.network.new_cache(capacity), 0),
            };
            let sequence = &mut self.running[at];
            self.seen.looked_up += if shares { sequence.job.prompt.len() as u64 } else { 0 };
            (sequence.cache, sequence.read, sequence.reused) = (Some(cache), reused, reused);
            self.seen.reused += reused as u64;
        }
    }

    /// One forward pass over what runs: a token of each answer, and prompts within the chunk.
    pub(super) fn pass(&mut self) {
        self.start();
        let plan = self.plan();
        if plan.is_empty() {
            return;
        }
        let started = Instant::now();
        let several = self.running.len() > 1;
        for sequence in &mut self.running {
            // The others' passes lie between this one's start and end, also those in which its prompt had to wait.
            sequence.alone &= !several;
        }
        for planned in &plan {
            let sequence = &mut self.running[planned.sequence];
            sequence.queued.get_or_insert(started.saturating_duration_since(sequence.job.arrival));
        }
        let outcome = self.forward(&plan);
        self.seen.passes += u64::from(self.wanted() > 0);
        let reading = |planned: &&Planned| self.running[planned.sequence].reads();
        let prompt = plan.iter().filter(reading).map(|planned| planned.count).sum();
        self.pace.passed(prompt, plan.iter().any(|planned| !reading(&planned)), started.elapsed());
        let mut done = Vec::new();
        match outcome {
            Ok(rows) => {
                self.failed = 0;
                done = self.take(&plan, rows);
            }
            Err(reason) => {
                self.failed += 1;
                for planned in &plan {
                    self.running[planned.sequence].fail(Failure::Forward { reason: reason.clone() });
                    done.push(planned.sequence);
                }
            }
        }
        // Who hears the end of a job may send the next one before this line: the end is where the job said it was.
        self.worked_until = if done.len() == self.running.len() {
            self.running.iter().map(|sequence| sequence.spoke).max()
        } else {
            Some(Instant::now())
        };
        for &at in done.iter().rev() {
            self.release(at);
        }
    }

    /// The device gives nothing but errors, as a GPU does after a fault until its process ends.
    pub(super) fn is_lost(&self) -> bool {
        self.failed >= LOST
    }

    /// Gives each sequence what the pass computed for it, on several threads: to draw from a large vocabulary takes up to
    /// half a millisecond. Returns the sequences whose jobs are over.
    fn take(&mut self, plan: &[Planned], rows: Vec<Vec<f32>>) -> Vec<usize> {
        let vocabulary = self.network.vocabulary();
        let logits: usize = rows.iter().map(Vec::len).sum();
        let mut next = plan.iter().zip(rows).peekable();
        let mut given = Vec::with_capacity(plan.len());
        for (at, sequence) in self.running.iter_mut().enumerate() {
            if let Some((planned, logits)) = next.next_if(|(planned, _)| planned.sequence == at) {
                given.push(Mutex::new(Given { sequence, planned, logits, over: false, non_finite: 0 }));
            }
        }
        // Each is locked once: a way to give a part its own.
        let part = |at: usize| given[at].lock().unwrap_or_else(PoisonError::into_inner).take(vocabulary);
        if logits >= SPREAD {
            self.network.spread(given.len(), &part);
        } else {
            (0..given.len()).for_each(part);
        }
        let mut done = Vec::new();
        for given in given {
            let given = given.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.seen.non_finite += given.non_finite;
            done.extend(given.over.then_some(given.planned.sequence));
        }
        done
    }

    fn plan(&self) -> Vec<Planned> {
        let started = |sequence: &&Sequence<N::Cache>| sequence.cache.is_some();
        let chunk = self.pace.chunk(self.running.iter().filter(started).any(|sequence| !sequence.reads()));
        let mut left = chunk;
        let mut plan = Vec::with_capacity(self.running.len());
        for (at, sequence) in self.running.iter().enumerate() {
            if !started(&sequence) {
                continue;
            }
            let to_read = sequence.prompt - sequence.read;
            if to_read == 0 {
                plan.push(Planned { sequence: at, count: 1, want: vec![0] });
            } else if left > 0 {
                let most = if sequence.job.class == Class::Background { BACKGROUND_CHUNK } else { chunk };
                let count = to_read.min(left).min(most);
                left -= count;
                plan.push(Planned { sequence: at, count, want: sequence.wanted(count) });
            }
        }
        plan
    }

    fn forward(&mut self, plan: &[Planned]) -> Result<Vec<Vec<f32>>, String> {
        let mut turns = Vec::with_capacity(plan.len());
        let mut planned = plan.iter().peekable();
        for (at, sequence) in self.running.iter_mut().enumerate() {
            let Some(next) = planned.next_if(|p| p.sequence == at) else { continue };
            let reads = sequence.reads();
            let Some(cache) = &mut sequence.cache else { continue };
            let tokens = if reads {
                &sequence.job.prompt[sequence.read..sequence.read + next.count]
            } else {
                std::slice::from_ref(&sequence.last)
            };
            turns.push(Turn { cache, tokens, want: &next.want, logits: Vec::new() });
        }
        self.network.forward(&mut turns)?;
        Ok(turns.into_iter().map(|turn| turn.logits).collect())
    }
}

impl<C> Given<'_, C> {
    fn take(&mut self, vocabulary: usize) {
        let Self { sequence, planned, logits, .. } = self;
        (self.over, self.non_finite) = sequence.take(planned, std::mem::take(logits), vocabulary);
    }
}

impl<C> Sequence<C> {
    /// Tokens of its prompt are to be read.
    fn reads(&self) -> bool {
        self.read < self.prompt
    }

    /// What it reads may serve others, and the other way round.
    fn shares(&self) -> bool {
        is_live(&self.job) && matches!(self.job.work, Work::Generate { .. })
    }

    /// Indices into the next `count` prompt tokens whose logits are wanted.
    fn wanted(&self, count: usize) -> Vec<u32> {
        match &self.job.work {
            Work::Generate { .. } if self.read + count == self.prompt => vec![count as u32 - 1],
            Work::Generate { .. } => Vec::new(),
            Work::Score { positions } => {
                let mut inside: Vec<u32> = positions
                    .iter()
                    .map(|&p| p as usize)
                    .filter(|p| (self.read..self.read + count).contains(p))
                    .map(|p| (p - self.read) as u32)
                    .collect();
                inside.sort_unstable();
                inside.dedup();
                inside
            }
        }
    }

    /// The tokens whose keys and values the cache holds: those read, and those generated but the last, which is fed by
    /// a pass that does not come any more.
    fn held(&self) -> Vec<u32> {
        let fed = if self.read == self.prompt { self.generated.saturating_sub(1) } else { 0 };
        let fed = &self.said[..fed.min(self.said.len())];
        self.job.prompt[..self.read].iter().chain(fed).copied().collect()
    }

    /// Takes what a pass gave; whether the job is over, and how many logits of a row to choose from were not finite.
    fn take(&mut self, planned: &Planned, logits: Vec<f32>, vocabulary: usize) -> (bool, u64) {
        let first = self.read;
        if self.reads() {
            self.read += planned.count;
        }
        let whole = !self.reads();
        match &self.job.work {
            Work::Score { positions } => {
                for (row, &p) in logits.chunks_exact(vocabulary).zip(&planned.want) {
                    let position = (first as u32) + p;
                    for (slot, _) in positions.iter().enumerate().filter(|(_, wanted)| **wanted == position) {
                        self.scores[slot * vocabulary..(slot + 1) * vocabulary].copy_from_slice(row);
                    }
                }
                if whole {
                    let scores = std::mem::take(&mut self.scores);
                    self.spoke = Instant::now();
                    self.send(Event::Scores(scores));
                    self.end(Finish::Stop);
                }
                (whole, 0)
            }
            Work::Generate { .. } if !whole => (false, 0),
            Work::Generate { .. } => self.say(logits),
        }
    }

    /// The next token of the answer.
    fn say(&mut self, logits: Vec<f32>) -> (bool, u64) {
        let Work::Generate { max_tokens, stop, likelihood: wanted, .. } = &self.job.work else { return (true, 0) };
        // Likelihoods are those of the model, before anything is changed.
        let own = wanted.filter(|_| self.processing.is_some()).map(|count| (logits.clone(), count));
        let mut logits = logits;
        if let Some(processing) = &self.processing {
            processing.apply(&mut logits, stop);
        }
        match choose(&mut self.sampler, self.grammar.as_deref_mut(), &logits) {
            Err(failure) => {
                let count = if let Failure::NonFinite { count } = failure { count } else { 0 };
                self.fail(failure);
                (true, count)
            }
            Ok((token, step)) if step == Step::End || stop.contains(&token) => {
                self.spoke = Instant::now();
                self.end(Finish::Stop);
                (true, 0)
            }
            Ok((token, step)) => {
                let full = self.generated + 1 == *max_tokens;
                let complete = full || step == Step::Last;
                let likelihood = match &own {
                    Some((own, count)) => Some(Box::new(likelihood(own, token, *count))),
                    None => wanted.map(|count| Box::new(likelihood(&logits, token, count))),
                };
                if let Some(processing) = &mut self.processing {
                    processing.take(token);
                }
                self.last = token;
                self.generated += 1;
                self.said.push(token);
                self.spoke = Instant::now();
                let queued = self.queued.unwrap_or_default();
                self.send(Event::Token { id: token, at: self.spoke, queued, likelihood });
                if complete {
                    self.end(if step == Step::Last { Finish::Stop } else { Finish::Length });
                }
                (complete, 0)
            }
        }
    }

    fn end(&self, finish: Finish) {
        let queued = self.queued.unwrap_or_default();
        let ended = Ended { finish, at: self.spoke, alone: self.alone, queued, reused: self.reused };
        self.send(Event::Ended(ended));
    }

    fn fail(&mut self, failure: Failure) {
        self.broken = true;
        self.spoke = Instant::now();
        self.send(Event::Failed(failure));
    }

    fn send(&self, event: Event) {
        // A caller that went away between two passes is noticed before the next one.
        let _ = self.job.events.send(event);
    }
}

/// The next token, of those that the answer's form allows, and what it does to the answer.
fn choose(sampler: &mut Sampler, grammar: Option<&mut Grammar>, logits: &[f32]) -> Result<(u32, Step), Failure> {
    let finite = |NonFinite(count)| Failure::NonFinite { count };
    let Some(grammar) = grammar else { return Ok((sampler.next(logits).map_err(finite)?, Step::Next)) };
    let outgrown = |reason| Failure::Grammar { reason };
    let token = sampler.next(&grammar.among(logits).map_err(outgrown)?).map_err(finite)?;
    Ok((token, grammar.take(token).map_err(outgrown)?))
}

/// Whether a job belongs to a user: only those make a batch worth waiting for.
pub(super) fn is_live(job: &Job) -> bool {
    job.class == Class::Live
}
