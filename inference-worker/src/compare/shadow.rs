//! Live prompts compared with the baseline, where that is allowed: shown, never judged.
//!
//! A permission comes from the operator, holds for a while, and names the share. A prompt is in it by the hash of its
//! request's id, waits for the engine's idle time, is compared like a probe and forgotten. What leaves this module are
//! sums over blocks of [`SHADOW_BLOCK`] prompts.

use super::forcing::{Forcing, Void};
use super::peer::{Connection, PeerSettings, Peers};
use super::request::{self, Invalid};
use crate::engine::Engine;
use bitnet_api::worker::{PromptComparison, SHADOW_BLOCK, ShadowRequest, ShadowResult};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Prompts that wait, the one that is compared included.
const PLACES: usize = 4;
/// A prompt whose engine has no idle time for so long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether the engine is idle.
const LOOK: Duration = Duration::from_millis(10);

/// Compares live prompts in idle time.
pub(crate) struct Shadow {
    engine: Engine,
    peers: Peers,
    rollout: Option<String>,
    vocabulary: usize,
    context: usize,
    limit: Duration,
    /// Share in percent as last asked for: the first thing that each request looks at.
    percent: AtomicU32,
    places: Arc<Semaphore>,
    /// One prompt at a time.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    allowed: Option<Allowed>,
    /// Blocks that are complete.
    published: Sums,
    /// The block that is not.
    open: Sums,
    /// Prompts of all complete blocks of this process.
    ever: u64,
    dropped: BTreeMap<&'static str, u64>,
}

#[derive(Clone)]
struct Allowed {
    request: Arc<ShadowRequest>,
    until: Instant,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    samples: u64,
    cosine: f64,
    below: u64,
    kl: f64,
    top1: f64,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.samples += other.samples;
        self.cosine += other.cosine;
        self.below += other.below;
        self.kl += other.kl;
        self.top1 += other.top1;
    }
}

/// A live prompt that was chosen. No `Debug`: it is text.
pub(crate) struct Chosen {
    shadow: Arc<Shadow>,
    allowed: Allowed,
    place: OwnedSemaphorePermit,
    prompt: Vec<u32>,
    positions: u64,
}

impl Shadow {
    /// One that is not allowed anything yet.
    pub(crate) fn new(
        engine: &Engine,
        rollout: Option<String>,
        vocabulary: usize,
        context: usize,
        peers: &PeerSettings,
    ) -> Result<Arc<Self>, reqwest::Error> {
        Ok(Arc::new(Self {
            engine: engine.background(),
            peers: Peers::new(peers)?,
            rollout,
            vocabulary,
            context,
            limit: peers.limit,
            percent: AtomicU32::new(0),
            places: Arc::new(Semaphore::new(PLACES)),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }))
    }

    /// Takes a permission and says what was found so far. What differs from the last one in more than its share and its
    /// time begins new sums.
    pub(crate) fn allow(&self, request: ShadowRequest) -> Result<ShadowResult, Invalid> {
        request::check_shadow(&request, self.rollout.as_deref())?;
        let mut state = self.lock();
        if !state.allowed.as_ref().is_some_and(|allowed| same(&allowed.request, &request)) {
            (state.published, state.open) = (Sums::default(), Sums::default());
        }
        self.percent.store(request.percent, Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(request.seconds.into());
        state.allowed = Some(Allowed { request: Arc::new(request), until });
        Ok(result(&state))
    }

    /// What was found so far, and in how many prompts since the process started.
    pub(crate) fn report(&self) -> (ShadowResult, u64) {
        let state = self.lock();
        (result(&state), state.ever)
    }

    /// The prompt of the request with this id, if it is to be compared. Costs a glance where nothing is allowed.
    pub(crate) fn choose(self: &Arc<Self>, id: &[u8], prompt: &[u32]) -> Option<Chosen> {
        let percent = self.percent.load(Ordering::Relaxed);
        if percent == 0 {
            return None;
        }
        let digest = Sha256::digest(id);
        let number = |at: usize| digest[at..at + 8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        if !is_in(number(0), percent) {
            return None;
        }
        let allowed = self.lock().allowed.clone().filter(|allowed| Instant::now() < allowed.until);
        let Some(allowed) = allowed else {
            self.percent.store(0, Ordering::Relaxed);
            return None;
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.dropped("queueFull");
            return None;
        };
        Some(Chosen { shadow: Arc::clone(self), allowed, place, prompt: prompt.to_vec(), positions: number(8) })
    }

    async fn compare(&self, chosen: &Chosen) -> Result<PromptComparison, &'static str> {
        let _turn = self.turn.lock().await;
        let since = Instant::now();
        while !self.engine.is_idle() {
            if since.elapsed() > PATIENCE {
                return Err(Void::Busy.reason());
            }
            tokio::time::sleep(LOOK).await;
        }
        let request = &chosen.allowed.request;
        if !self.still(request) {
            return Err("withdrawn");
        }
        let forcing = Forcing {
            engine: &self.engine,
            peers: &self.peers,
            baseline: &request.baseline,
            max_tokens: request.max_tokens,
            positions: request.positions as usize,
            vocabulary: self.vocabulary,
            context: self.context,
            limit: self.limit,
            background: true,
        };
        let compared = forcing.compare(&chosen.prompt, chosen.positions, Connection::Kept).await;
        compared.map(|(comparison, _)| comparison).map_err(|void| void.reason())
    }

    /// Whether live prompts may still be compared as `request` allowed it.
    fn still(&self, request: &ShadowRequest) -> bool {
        let state = self.lock();
        let now = state.allowed.as_ref().filter(|now| now.request.percent > 0 && Instant::now() < now.until);
        now.is_some_and(|now| same(&now.request, request))
    }

    fn count(&self, compared: PromptComparison, under: &ShadowRequest) {
        let mut state = self.lock();
        if !state.allowed.as_ref().is_some_and(|allowed| same(&allowed.request, under)) {
            return;
        }
        state.open.add(Sums {
            samples: 1,
            cosine: compared.cosine,
            below: u64::from(compared.cosine_at < under.tail_min),
            kl: compared.kl,
            top1: compared.top1,
        });
        if state.open.samples >= SHADOW_BLOCK {
            let block = std::mem::take(&mut state.open);
            state.published.add(block);
            state.ever += block.samples;
        }
    }

    fn dropped(&self, reason: &'static str) {
        *self.lock().dropped.entry(reason).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section is a few sums; a panic inside one is not possible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chosen {
    /// Compares it in the background, once its own request is in the queue.
    pub(crate) fn start(self) {
        tokio::spawn(async move {
            match self.shadow.compare(&self).await {
                Ok(comparison) => self.shadow.count(comparison, &self.allowed.request),
                Err(reason) => self.shadow.dropped(reason),
            }
            drop(self.place);
        });
    }
}

/// Whether two permissions are of the same comparison: what is found under both may be added.
fn same(one: &ShadowRequest, other: &ShadowRequest) -> bool {
    *one == ShadowRequest { percent: one.percent, seconds: one.seconds, ..other.clone() }
}

/// Whether a hash lies in the first `percent` hundredths of all.
fn is_in(hash: u64, percent: u32) -> bool {
    u128::from(hash) * 100 < u128::from(percent) << 64
}

fn result(state: &State) -> ShadowResult {
    let Sums { samples, cosine, below, kl, top1 } = state.published;
    let dropped = state.dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    ShadowResult { samples, cosine, below, kl, top1, dropped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_the_share_and_the_same_ids_are_in_it() {
        let hash = |id: u32| {
            let digest = Sha256::digest(id.to_string());
            digest[..8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let within = |percent| (0..20_000).filter(|id| is_in(hash(*id), percent)).collect::<Vec<_>>();
        // sd 42 at 10 %, 14 at 1 %.
        assert!((1800..2200).contains(&within(10).len()), "{}", within(10).len());
        assert!((130..270).contains(&within(1).len()), "{}", within(1).len());
        assert!(within(0).is_empty());
        let (few, many) = (within(1), within(10));
        assert!(few.iter().all(|id| many.contains(id)), "a larger share keeps those of a smaller one");
        assert!(!is_in(u64::MAX, 10) && is_in(0, 1) && is_in(u64::MAX, 100));
    }
}
