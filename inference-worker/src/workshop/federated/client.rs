use super::error::FederatedError;
use super::http::Token;
use super::local::{Place, sequences, train};
use super::masters;
use super::protocol::{Architecture, Fault, JOIN, Join, MODEL, MOST_JSON, NOW, Now, Plan, UPDATE, is_name};
use crate::workshop::WorkshopError;
use crate::workshop::probing::Loaded;
use crate::workshop::progress::Progress;
use crate::workshop::student::Form;
use crate::workshop::weights::Weights;
use axum::body::Bytes;
use reqwest::{Client, RequestBuilder, StatusCode, redirect};
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a client works with.
#[derive(Clone)]
pub struct ClientSettings {
    /// Base URL of the coordinator.
    pub coordinator: String,
    /// The shared secret.
    pub token: Token,
    /// This client's name: a DNS label, the same after a restart.
    pub name: String,
    /// The coordinator's model: architecture, tokenizer and teacher.
    pub model: PathBuf,
    /// How long a coordinator may be away.
    pub patience: Duration,
    /// How often it is asked what to do.
    pub poll: Duration,
    /// Threads; they do not change what is learned.
    pub threads: usize,
}

/// What a client did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Rounds whose average has this client's masters.
    pub delivered: usize,
    /// Rounds that ended before its masters came.
    pub late: usize,
    /// Loss of the last epoch, nats.
    pub loss: Option<f32>,
}

/// Takes part until all rounds are done. `tokens` are the ids of this client's text; they stay here.
///
/// # Errors
/// [`FederatedError::Refused`] if the coordinator does not take this client, [`FederatedError::Unreachable`] if it is
/// away for longer than the patience, [`WorkshopError::Missed`] if training diverges.
pub async fn take_part(
    settings: ClientSettings,
    tokens: Vec<u32>,
    progress: Box<dyn Progress + Send>,
) -> Result<Part, FederatedError> {
    if !is_name(&settings.name) {
        return Err(WorkshopError::Refused(format!(
            "--name must be 1 to 63 lower-case letters, digits and inner hyphens but is {}",
            settings.name
        ))
        .into());
    }
    if !settings.coordinator.starts_with("http://") {
        return Err(WorkshopError::Refused(format!(
            "--coordinator must be a URL with http:// but is {}: in a network that others read, go through a mesh or a tunnel",
            settings.coordinator
        ))
        .into());
    }
    let form = Form { student: settings.model.clone(), phase: None, rules: Vec::new() };
    let read = move || -> Result<_, WorkshopError> {
        let weights = form.read()?;
        let architecture = Architecture::of(&form.student, &weights)?;
        Ok((weights, architecture, Loaded::open(&form.student)?))
    };
    let (weights, architecture, teacher) =
        tokio::task::spawn_blocking(read).await.map_err(FederatedError::Thread)??;
    let http = Client::builder()
        .no_proxy()
        // Plain HTTP inside a namespace, as between workers: an image without root certificates must work.
        .tls_certs_only([])
        // A redirect would carry the token to somebody else.
        .redirect(redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_mins(2))
        .build()
        .map_err(|source| FederatedError::Answer(format!("the HTTP client did not start: {source}")))?;
    let wire = Wire { http, settings: settings.clone() };
    let join = Join { client: settings.name.clone(), samples: tokens.len() as u64, architecture };
    let mut plan = wire.join(&join, &weights, tokens.len()).await?;
    let mut work = Work { weights, teacher: Arc::new(teacher), tokens: Arc::new(tokens), progress };
    let mut part = Part::default();
    loop {
        let answer = wire.ask(|http, base| http.get(format!("{base}{NOW}/{}", wire.settings.name)), MOST_JSON).await?;
        match answer.0 {
            StatusCode::NOT_FOUND => {
                // The coordinator lost its state, or is another one.
                plan = wire.join(&join, &work.weights, work.tokens.len()).await?;
                continue;
            }
            StatusCode::OK => {}
            status => return Err(refused(status, &answer.1)),
        }
        match json::<Now>(&answer.1)? {
            Now::Done => return Ok(part),
            Now::Wait => tokio::time::sleep(settings.poll).await,
            Now::Train { round } => {
                let Some(masters) = wire.masters(round, &work.weights).await? else { continue };
                let loss;
                (work, loss) = work.train(plan.clone(), round, masters, &settings).await?;
                part.loss = Some(loss);
                if wire.deliver(round, &work.weights).await? {
                    part.delivered += 1;
                } else {
                    part.late += 1;
                    work.progress.note(&format!("round {} ended before this client was done", round + 1));
                }
            }
        }
    }
}

/// What goes to the training thread and comes back.
struct Work {
    weights: Weights,
    teacher: Arc<Loaded>,
    tokens: Arc<Vec<u32>>,
    progress: Box<dyn Progress + Send>,
}

impl Work {
    async fn train(
        self,
        plan: Plan,
        round: usize,
        masters: Vec<Vec<f32>>,
        settings: &ClientSettings,
    ) -> Result<(Self, f32), FederatedError> {
        let (client, threads) = (settings.name.clone(), settings.threads);
        let training = move || -> Result<(Self, f32), WorkshopError> {
            let Self { weights, teacher, tokens, mut progress } = self;
            let (shape, theta, eps) = (weights.shape, weights.rope_theta, weights.rms_eps);
            // The last round's are not needed beside the new ones.
            drop(weights);
            let failed = WorkshopError::tensor("taking the coordinator's masters");
            let mut weights = Weights::of(shape, theta, eps, masters).map_err(failed)?;
            let place = Place { teacher: &teacher, tokens: &tokens, client: &client, threads };
            let loss = train(&plan, round, &place, &mut weights, progress.as_mut())?;
            Ok((Self { weights, teacher, tokens, progress }, loss))
        };
        Ok(tokio::task::spawn_blocking(training).await.map_err(FederatedError::Thread)??)
    }
}

struct Wire {
    http: Client,
    settings: ClientSettings,
}

/// Between two attempts to reach a coordinator that is away.
const PAUSE: Duration = Duration::from_millis(300);

impl Wire {
    /// Sends a request until it is answered by anything but a server's failure, and reads at most `most` bytes.
    async fn ask(
        &self,
        make: impl Fn(&Client, &str) -> RequestBuilder,
        most: usize,
    ) -> Result<(StatusCode, Vec<u8>), FederatedError> {
        let base = self.settings.coordinator.trim_end_matches('/');
        let begun = Instant::now();
        loop {
            let request = make(&self.http, base).header("authorization", self.settings.token.header());
            let failure = match once(request, most).await? {
                Ok((status, _)) if status.is_server_error() && begun.elapsed() < self.settings.patience => None,
                Ok(answer) => return Ok(answer),
                Err(source) => Some(source),
            };
            if let Some(source) = failure.filter(|_| begun.elapsed() >= self.settings.patience) {
                let seconds = self.settings.patience.as_secs();
                return Err(FederatedError::Unreachable {
                    url: base.to_owned(),
                    seconds,
                    source: source.without_url(),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn join(&self, join: &Join, weights: &Weights, tokens: usize) -> Result<Plan, FederatedError> {
        let answer = self.ask(|http, base| http.post(format!("{base}{JOIN}")).json(join), MOST_JSON).await?;
        if answer.0 != StatusCode::OK {
            return Err(refused(answer.0, &answer.1));
        }
        let plan: Plan = json(&answer.1)?;
        if let Some(fault) = plan.fault(weights.shape.context) {
            return Err(FederatedError::Answer(format!("its plan cannot be: {fault}")));
        }
        if sequences(tokens, plan.sequence) == 0 {
            return Err(WorkshopError::Refused(format!(
                "this client's text has {tokens} tokens, but the plan's sequences have {}: give more with --data",
                plan.sequence
            ))
            .into());
        }
        Ok(plan)
    }

    /// Masters of a round; nothing if it ended meanwhile.
    async fn masters(&self, round: usize, weights: &Weights) -> Result<Option<Vec<Vec<f32>>>, FederatedError> {
        let most = masters::most_bytes(&weights.shape);
        let (status, bytes) = self.ask(|http, base| http.get(format!("{base}{MODEL}/{round}")), most).await?;
        match status {
            StatusCode::OK => masters::decode(&weights.shape, &bytes).map(Some).map_err(FederatedError::Answer),
            StatusCode::CONFLICT => Ok(None),
            status => Err(refused(status, &bytes)),
        }
    }

    /// Whether the round took the masters.
    async fn deliver(&self, round: usize, weights: &Weights) -> Result<bool, FederatedError> {
        let masters: Vec<Vec<f32>> = weights.all.iter().map(|p| p.master.clone()).collect();
        let body = Bytes::from(masters::encode(&weights.shape, &masters)?);
        drop(masters);
        let name = &self.settings.name;
        let post = |http: &Client, base: &str| http.post(format!("{base}{UPDATE}/{round}/{name}")).body(body.clone());
        let (status, bytes) = self.ask(post, MOST_JSON).await?;
        match status {
            StatusCode::NO_CONTENT => Ok(true),
            // Ended, or a coordinator that lost its state: the next question tells.
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => Ok(false),
            status => Err(refused(status, &bytes)),
        }
    }
}

/// One attempt: what was answered, or why nothing was.
async fn once(
    request: RequestBuilder,
    most: usize,
) -> Result<Result<(StatusCode, Vec<u8>), reqwest::Error>, FederatedError> {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Ok(Err(error)),
    };
    let (status, mut bytes) = (response.status(), Vec::new());
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if bytes.len() + chunk.len() <= most => bytes.extend_from_slice(&chunk),
            Ok(Some(_)) => return Err(FederatedError::Answer(format!("it has more than {most} bytes"))),
            Ok(None) => return Ok(Ok((status, bytes))),
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FederatedError> {
    serde_json::from_slice(bytes).map_err(|error| FederatedError::Answer(error.to_string()))
}

fn refused(status: StatusCode, bytes: &[u8]) -> FederatedError {
    let reason = serde_json::from_slice::<Fault>(bytes).map_or_else(|_| "no reason given".to_owned(), |f| f.error);
    FederatedError::Refused { status: status.as_u16(), reason }
}
