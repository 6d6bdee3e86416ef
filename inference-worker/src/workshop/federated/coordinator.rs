mod routes;

use super::average::Average;
use super::error::FederatedError;
use super::http::{Refusal, Token};
use super::masters;
use super::protocol::{Architecture, Plan};
use super::rounds::{Due, Late, Rules, STARVED_AFTER, State};
use super::store::Store;
use crate::workshop::probing::Loaded;
use crate::workshop::student::{Form, HeldOut, Validation};
use crate::workshop::weights::Weights;
use crate::workshop::{WorkshopError, files};
use axum::http::StatusCode;
use routes::{failed, router, stranger};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a coordinator works with.
pub struct CoordinatorSettings {
    /// The plain model that is teacher and first masters of everybody, and what of it becomes quantised.
    pub form: Form,
    /// Directory to make.
    pub out: PathBuf,
    /// Directory of everything that a restart needs, and of rounds.jsonl.
    pub work: PathBuf,
    /// How clients train; its precisions and its rounding are set from `form`.
    pub plan: Plan,
    /// When rounds begin and end; its number of rounds is the plan's.
    pub rules: Rules,
    /// Ids of the coordinator's own text, on which averages are measured.
    pub held_out: Vec<u32>,
    /// Sequences of a measurement.
    pub sequences: usize,
    /// The shared secret.
    pub token: Token,
    /// Threads of measurements.
    pub threads: usize,
    /// How long clients may take to hear that all rounds are done.
    pub linger: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Rounds averaged, also by earlier processes.
    pub rounds: usize,
    /// The last average on the coordinator's text.
    pub validation: Validation,
}

/// One line of rounds.jsonl.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// From 1.
    round: usize,
    seconds: f64,
    average: Validation,
    clients: BTreeMap<String, ClientEntry>,
    /// Clients that the round waited for in vain.
    missing: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientEntry {
    samples: u64,
    validation: Validation,
}

/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_millis(50);

struct Inner {
    settings: CoordinatorSettings,
    architecture: Architecture,
    /// Shape and constants of the model, for averages; its masters are the first ones.
    first: Weights,
    held_out: HeldOut,
    store: Store,
    running: Mutex<Running>,
    /// One body is checked and written at a time: memory for one model, and no two writers of one file.
    upload: tokio::sync::Mutex<()>,
}

struct Running {
    state: State,
    since: Instant,
    /// An average is being made: nothing counts any more.
    closing: bool,
    /// Clients that know that all rounds are done.
    told: BTreeSet<String>,
}

/// A coordinator with its open port.
pub struct Coordinator {
    inner: Arc<Inner>,
    listener: TcpListener,
}

impl Coordinator {
    /// Reads models and state, and opens the port.
    ///
    /// # Errors
    /// [`WorkshopError::Refused`] names the setting that cannot be, or a `work` of other settings.
    pub async fn open(settings: CoordinatorSettings, address: SocketAddr) -> Result<Self, FederatedError> {
        let inner = blocking(move || Inner::new(settings)).await?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| FederatedError::Listen { address: address.to_string(), source })?;
        Ok(Self { inner: Arc::new(inner), listener })
    }

    /// The open port.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Leads all rounds and publishes the model.
    ///
    /// # Errors
    /// [`FederatedError::Starved`] if a round has no quorum for ten deadlines. The state stays for another start.
    pub async fn run(self) -> Result<Finished, FederatedError> {
        let Self { inner, listener } = self;
        let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
        let close = CancellationToken::new();
        let _close_with_us = close.clone().drop_guard();
        let serving =
            axum::serve(listener, router(Arc::clone(&inner))).with_graceful_shutdown(close.clone().cancelled_owned());
        let serving = async move { serving.await };
        tokio::select! {
            finished = lead(&inner) => finished,
            ended = serving => {
                let source = ended.err().unwrap_or_else(|| std::io::Error::other("the server ended"));
                Err(FederatedError::Listen { address, source })
            }
        }
    }
}

/// Runs what computes or waits for disks beside the runtime.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, FederatedError>
where
    FederatedError: From<E>,
{
    tokio::task::spawn_blocking(work).await.map_err(FederatedError::Thread)?.map_err(FederatedError::from)
}

async fn lead(inner: &Arc<Inner>) -> Result<Finished, FederatedError> {
    let mut ticks = tokio::time::interval(TICK);
    let rounds = inner.settings.rules.rounds;
    loop {
        ticks.tick().await;
        let due = {
            let mut running = inner.running();
            if running.state.done >= rounds {
                break;
            }
            let due = running.state.due(running.since.elapsed(), &inner.settings.rules);
            match due {
                Due::Begin => {
                    running.state.begun = true;
                    inner.store.save(&running.state)?;
                    running.since = Instant::now();
                }
                Due::Close => running.closing = true,
                Due::GiveUp => return Err(inner.starved(&running.state)),
                Due::Nothing => {}
            }
            due
        };
        if due == Due::Close {
            let inner = Arc::clone(inner);
            blocking(move || inner.close()).await?;
        }
    }
    let publishing = Arc::clone(inner);
    let validation = blocking(move || publishing.publish()).await?;
    let begun = Instant::now();
    while begun.elapsed() < inner.settings.linger && !inner.all_told() {
        ticks.tick().await;
    }
    Ok(Finished { rounds, validation })
}

impl Inner {
    fn new(mut settings: CoordinatorSettings) -> Result<Self, WorkshopError> {
        let first = settings.form.read()?;
        settings.plan.precisions = settings.form.precisions()?.into_iter().collect();
        settings.plan.rounding = settings.form.rounding()?;
        settings.rules.rounds = settings.plan.rounds;
        let Rules { clients, quorum, .. } = settings.rules;
        if let Some(fault) = settings.plan.fault(first.shape.context) {
            return Err(WorkshopError::Refused(fault));
        }
        if quorum == 0 || quorum > clients {
            return Err(WorkshopError::Refused(format!(
                "--quorum must be from 1 to --clients ({clients}) but is {quorum}"
            )));
        }
        if settings.rules.deadline.is_zero() {
            return Err(WorkshopError::Refused("--deadline must be above 0".to_owned()));
        }
        if settings.sequences == 0 || settings.held_out.len() < settings.plan.sequence + 2 {
            return Err(WorkshopError::Refused(format!(
                "the coordinator's own text must have more tokens than a sequence of {} but has {}: give more with --data",
                settings.plan.sequence,
                settings.held_out.len()
            )));
        }
        let architecture = Architecture::of(&settings.form.student, &first)?;
        let recipe = recipe(&settings, &architecture)?;
        let store = Store::open(&settings.work)?;
        let state = match store.state()? {
            Some(state) if state.recipe == recipe => {
                tracing::info!(done = state.done, delivered = state.delivered.len(), "going on where it stopped");
                state
            }
            Some(_) => {
                return Err(WorkshopError::Refused(format!(
                    "{} belongs to other settings or another model: give those again (only --clients, --quorum and --deadline may change), or choose another --work",
                    settings.work.display()
                )));
            }
            None => {
                if settings.out.exists() {
                    return Err(WorkshopError::Refused(format!(
                        "{} exists: choose another --out",
                        settings.out.display()
                    )));
                }
                let masters: Vec<Vec<f32>> = first.all.iter().map(|p| p.master.clone()).collect();
                store.save_masters(0, &masters::encode(&first.shape, &masters)?)?;
                let state = State::new(recipe);
                store.save(&state)?;
                state
            }
        };
        let teacher = Loaded::open(&settings.form.student)?;
        let held_out = HeldOut::new(&settings.held_out, settings.plan.sequence, settings.sequences, &teacher)?;
        let running = Running { state, since: Instant::now(), closing: false, told: BTreeSet::new() };
        Ok(Self {
            settings,
            architecture,
            first,
            held_out,
            store,
            running: Mutex::new(running),
            upload: tokio::sync::Mutex::new(()),
        })
    }

    /// A panic while it was held left whole values: every change is one assignment or insertion.
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Also those that are not waited for any more: who comes late is to hear that it is over, not find nobody there.
    fn all_told(&self) -> bool {
        let running = self.running();
        running.state.clients.keys().all(|name| running.told.contains(name))
    }

    fn starved(&self, state: &State) -> FederatedError {
        let rules = &self.settings.rules;
        let (delivered, missing) = if state.begun {
            (state.delivered.len(), state.missing().join(", "))
        } else {
            (state.clients.len(), "those that never joined".to_owned())
        };
        FederatedError::Starved {
            round: state.done + 1,
            delivered,
            quorum: rules.quorum,
            seconds: (rules.deadline * STARVED_AFTER).as_secs(),
            missing,
        }
    }

    /// Weights of masters, live as they will be served.
    fn weights(&self, masters: Vec<Vec<f32>>) -> Result<Weights, WorkshopError> {
        let failed = || WorkshopError::tensor("averaging");
        let first = &self.first;
        let mut weights = Weights::of(first.shape, first.rope_theta, first.rms_eps, masters).map_err(failed())?;
        self.settings.plan.quantise(&mut weights).map_err(failed())?;
        Ok(weights)
    }

    fn measure(&self, masters: Vec<Vec<f32>>) -> Result<Validation, WorkshopError> {
        Ok(self.held_out.compare(&self.weights(masters)?, self.settings.threads)?.0)
    }

    fn decode(&self, bytes: &[u8], what: &str) -> Result<Vec<Vec<f32>>, WorkshopError> {
        masters::decode(&self.first.shape, bytes).map_err(|fault| {
            WorkshopError::Refused(format!("{what} in {} is damaged: {fault}", self.store.dir().display()))
        })
    }

    /// Averages what was delivered, and lets the next round begin.
    fn close(&self) -> Result<(), WorkshopError> {
        let (state, seconds) = {
            let running = self.running();
            (running.state.clone(), running.since.elapsed().as_secs_f64())
        };
        let mut average = Average::new(self.first.all.iter().map(|p| p.master.len()));
        let mut clients = BTreeMap::new();
        for (name, samples) in &state.delivered {
            let masters = self.decode(&self.store.update(name)?, &format!("the update of {name}"))?;
            average.add(&masters, *samples);
            clients.insert(name.clone(), ClientEntry { samples: *samples, validation: self.measure(masters)? });
        }
        let masters = average.finish();
        self.store.save_masters(state.done + 1, &masters::encode(&self.first.shape, &masters)?)?;
        let average = self.measure(masters)?;
        let missing = state.missing();
        tracing::info!(
            round = state.done + 1,
            clients = clients.len(),
            missing = missing.join(","),
            "averaged: {average}"
        );
        self.log(Entry { round: state.done + 1, seconds, average, clients, missing })?;
        let mut running = self.running();
        let mut next = running.state.clone();
        next.close();
        self.store.save(&next)?;
        running.state = next;
        running.closing = false;
        running.since = Instant::now();
        drop(running);
        self.store.forget_round(state.done, state.delivered.keys());
        Ok(())
    }

    /// Adds a line, in place of one that a process wrote that stopped before its round counted.
    fn log(&self, entry: Entry) -> Result<(), WorkshopError> {
        let path = self.store.log();
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        let mut entries: Vec<Entry> = old.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        entries.retain(|old| old.round < entry.round);
        entries.push(entry);
        let mut text = String::new();
        for entry in &entries {
            text += &serde_json::to_string(entry).map_err(WorkshopError::json(&path))?;
            text.push('\n');
        }
        std::fs::write(&path, text).map_err(WorkshopError::file("write", &path))
    }

    fn publish(&self) -> Result<Validation, WorkshopError> {
        let settings = &self.settings;
        let masters = self.decode(&self.store.masters(settings.rules.rounds)?, "the last average")?;
        let mut weights = self.weights(masters)?;
        let validation = self.held_out.compare(&weights, settings.threads)?.0;
        // A process that stopped after this point left it whole.
        if !settings.out.exists() {
            settings.form.publish(&mut weights, &settings.work, &settings.out, self.held_out.texts())?;
        }
        Ok(validation)
    }

    /// Checks and stores masters.
    fn take(&self, client: &str, round: usize, bytes: &[u8]) -> Result<(), Refusal> {
        let samples = self.expects(client, round)?;
        masters::decode(&self.first.shape, bytes).map_err(|fault| Refusal(StatusCode::UNPROCESSABLE_ENTITY, fault))?;
        self.store.save_update(client, bytes).map_err(failed)?;
        let mut running = self.running();
        // The round may have ended meanwhile; a file that the state does not name counts for nothing.
        self.expected(&running, client, round)?;
        let mut next = running.state.clone();
        next.deliver(client, samples);
        self.store.save(&next).map_err(failed)?;
        running.state = next;
        Ok(())
    }

    fn expects(&self, client: &str, round: usize) -> Result<u64, Refusal> {
        self.expected(&self.running(), client, round)
    }

    fn expected(&self, running: &Running, client: &str, round: usize) -> Result<u64, Refusal> {
        let late = |running: &Running| {
            let text = format!("round {} is over for updates: ask /v1/now what to do", round + 1);
            tracing::warn!(client, round = round + 1, now = running.state.done + 1, "an update came too late");
            Refusal(StatusCode::CONFLICT, text)
        };
        if running.closing {
            return Err(late(running));
        }
        running.state.expects(client, round, &self.settings.rules).map_err(|why| match why {
            Late::OtherRound => late(running),
            Late::Stranger => stranger(client),
            Late::Again => Refusal(StatusCode::CONFLICT, format!("{client} delivered in this round: once counts")),
        })
    }
}

fn recipe(settings: &CoordinatorSettings, architecture: &Architecture) -> Result<String, WorkshopError> {
    let form = &settings.form;
    let parts = (&settings.plan, architecture, format!("{:?} {:?}", form.phase, form.rules));
    let bytes = serde_json::to_vec(&parts).map_err(WorkshopError::json(&settings.work))?;
    Ok(files::hash(&bytes))
}
