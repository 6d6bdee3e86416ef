//! The sequences that run, and one pass over them.

use super::Options;
use super::grammar::{Grammar, Step};
use super::job::{Class, Ended, Event, Failure, Finish, Job, Work};
use super::network::{Network, Turn};
use super::prefix::Prefixes;
use super::sampling::{NonFinite, Sampler, likelihood};
use std::time::{Duration, Instant};

/// Prompt tokens of background work in one pass: about as long as one decode, which other work that comes waits for.
const BACKGROUND_CHUNK: usize = 8;

/// One job with a slot.
pub(super) struct Sequence<C> {
    job: Job,
    cache: C,
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

/// All sequences that run, and what they share.
pub(super) struct Batch<N: Network> {
    network: N,
    running: Vec<Sequence<N::Cache>>,
    prefixes: Prefixes<N::Cache>,
    seen: Seen,
    /// Prompt tokens that one pass may read, so that a long prompt does not stall the others.
    chunk: usize,
    /// Until when the last pass worked for anybody: a job that arrives later shares nothing with those before it.
    worked_until: Option<Instant>,
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
            prefixes: Prefixes::new(options.prefix_tokens),
            seen: Seen::default(),
            chunk: options.prefill_chunk.max(1),
            worked_until: None,
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
        let mut grammar = None;
        let (prompt, room, sampler, scores) = match &mut job.work {
            Work::Generate { max_tokens, sampling, grammar: form, .. } => {
                grammar = form.take();
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
        let capacity = prompt + room;
        // Only users share: what a comparison times must not depend on what was asked before.
        let shares = self.prefixes.is_on() && is_live(&job) && matches!(job.work, Work::Generate { .. });
        let known = if shares { self.prefixes.find(&job.prompt) } else { None };
        self.seen.looked_up += if shares { job.prompt.len() as u64 } else { 0 };
        let (cache, reused) = match known {
            Some((cache, len)) => (self.network.fork(cache, len, capacity), len),
            None => (self.network.new_cache(capacity), 0),
        };
        self.seen.reused += reused as u64;
        let sequence = Sequence {
            job,
            cache,
            read: reused,
            prompt,
            last: 0,
            generated: 0,
            said: Vec::new(),
            reused,
            broken: false,
            sampler,
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
        if is_live(&sequence.job) && !sequence.broken {
            let tokens = sequence.held();
            self.prefixes.keep(tokens, sequence.cache);
        }
    }

    /// One forward pass over what runs: a token of each answer, and prompts within the chunk.
    pub(super) fn pass(&mut self) {
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
        let mut done = Vec::new();
        match outcome {
            Ok(rows) => {
                for (planned, logits) in plan.iter().zip(rows) {
                    let sequence = &mut self.running[planned.sequence];
                    if sequence.take(planned, &logits, self.network.vocabulary(), &mut self.seen) {
                        done.push(planned.sequence);
                    }
                }
            }
            Err(reason) => {
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

    fn plan(&self) -> Vec<Planned> {
        let mut left = self.chunk;
        let mut plan = Vec::with_capacity(self.running.len());
        for (at, sequence) in self.running.iter().enumerate() {
            let to_read = sequence.prompt - sequence.read;
            if to_read == 0 {
                plan.push(Planned { sequence: at, count: 1, want: vec![0] });
            } else if left > 0 {
                let most = if sequence.job.class == Class::Background { BACKGROUND_CHUNK } else { self.chunk };
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
            let tokens = if sequence.read < sequence.prompt {
                &sequence.job.prompt[sequence.read..sequence.read + next.count]
            } else {
                std::slice::from_ref(&sequence.last)
            };
            turns.push(Turn { cache: &mut sequence.cache, tokens, want: &next.want, logits: Vec::new() });
        }
        self.network.forward(&mut turns)?;
        Ok(turns.into_iter().map(|turn| turn.logits).collect())
    }
}

impl<C> Sequence<C> {
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

    /// Takes what a pass gave; `true`: the job is over.
    fn take(&mut self, planned: &Planned, logits: &[f32], vocabulary: usize, seen: &mut Seen) -> bool {
        let first = self.read;
        if self.read < self.prompt {
            self.read += planned.count;
        }
        let whole = self.read == self.prompt;
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
                whole
            }
            Work::Generate { .. } if !whole => false,
            Work::Generate { max_tokens, stop, likelihood: wanted, .. } => {
                match choose(&mut self.sampler, self.grammar.as_deref_mut(), logits) {
                    Err(failure) => {
                        if let Failure::NonFinite { count } = failure {
                            seen.non_finite += count;
                        }
                        self.fail(failure);
                        true
                    }
                    Ok((token, step)) if step == Step::End || stop.contains(&token) => {
                        self.spoke = Instant::now();
                        self.end(Finish::Stop);
                        true
                    }
                    Ok((token, step)) => {
                        let full = self.generated + 1 == *max_tokens;
                        let complete = full || step == Step::Last;
                        let likelihood = wanted.map(|count| Box::new(likelihood(logits, token, count)));
                        self.last = token;
                        self.generated += 1;
                        self.said.push(token);
                        self.spoke = Instant::now();
                        let queued = self.queued.unwrap_or_default();
                        self.send(Event::Token { id: token, at: self.spoke, queued, likelihood });
                        if complete {
                            self.end(if step == Step::Last { Finish::Stop } else { Finish::Length });
                        }
                        complete
                    }
                }
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
