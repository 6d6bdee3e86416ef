//! One delivery: a POST that is tried again while the receiver may still take it. No redirects (an address is a secret, and
//! the receiver must not choose another one), no proxies of the environment, a deadline for each try and for all.

use super::{Error, Notification, Template, TemplateError};
use crate::config::Channel;
use reqwest::{Certificate, Client, StatusCode, Url, header, redirect};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Deadline of one try.
const DEADLINE: Duration = Duration::from_secs(10);
/// Tries of one notification.
const TRIES: u32 = 6;
/// Wait after the first try; doubled after each.
const WAIT: Duration = Duration::from_secs(1);
/// Longest wait that a receiver can ask for.
const LONGEST: Duration = Duration::from_secs(60);
/// Longest address.
const ADDRESS: usize = 4096;

/// Why a notification was given up.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file with the address cannot be read.
    #[error("cannot read the address in {}: the Secret needs a key of the channel's name", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds no address that may be used.
    #[error("the address in {} is not usable: it must be one https:// URL (or http:// with `insecureHttp`)", .0.display())]
    Address(PathBuf),
    /// The text cannot be made.
    #[error("the text cannot be made")]
    Template(#[from] TemplateError),
    /// It said no, and asking again would not help.
    #[error("the receiver refused it with {0}")]
    Refused(StatusCode),
    /// It did not take it in all tries.
    #[error("the receiver did not take it in {TRIES} tries (the last answer: {0})")]
    Exhausted(String),
}

/// A delivery that succeeded: the number of tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// From 1.
    pub tries: u32,
}

/// The client of all receivers.
pub(super) fn client(folder: &Path) -> Result<Client, Error> {
    let mut builder = Client::builder()
        .connect_timeout(Duration::from_secs(3))
        .timeout(DEADLINE)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .pool_idle_timeout(Duration::from_secs(20))
        .user_agent(concat!("bitnet-rollouts/", env!("CARGO_PKG_VERSION")));
    if let Ok(pem) = std::fs::read(folder.join("ca.crt")) {
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&pem).map_err(Error::Authority)?);
    }
    builder.build().map_err(Error::Client)
}

/// What became of one try.
enum Tried {
    Taken,
    Refused(StatusCode),
    Later { why: String, wait: Option<Duration> },
}

/// Delivers to one receiver.
pub(super) struct Sender {
    client: Client,
    address: PathBuf,
    channel: Channel,
    template: Template,
    wait: Duration,
}

impl Sender {
    pub(super) fn new(client: Client, address: PathBuf, channel: Channel, template: Template) -> Self {
        Self { client, address, channel, template, wait: WAIT }
    }

    /// The same with other waits between tries.
    #[cfg(test)]
    pub(super) fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// Name of the channel.
    pub(super) fn channel(&self) -> &str {
        &self.channel.name
    }

    pub(super) async fn send(&self, about: &Notification) -> Result<Delivery, Failure> {
        let body = self.template.body(about)?.to_string();
        let mut wait = self.wait;
        let mut last = String::new();
        for tries in 1..=TRIES {
            match self.once(&body).await? {
                Tried::Taken => return Ok(Delivery { tries }),
                Tried::Refused(status) => return Err(Failure::Refused(status)),
                Tried::Later { why, wait: asked } => {
                    last = why;
                    if tries < TRIES {
                        tokio::time::sleep(asked.unwrap_or(wait).min(LONGEST)).await;
                        wait *= 2;
                    }
                }
            }
        }
        Err(Failure::Exhausted(last))
    }

    async fn once(&self, body: &str) -> Result<Tried, Failure> {
        let url = self.url().await?;
        let request = self.client.post(url).header(header::CONTENT_TYPE, "application/json").body(body.to_owned());
        let answer = match request.send().await {
            Ok(answer) => answer,
            // Its own words have the address.
            Err(error) => return Ok(Tried::Later { why: reason(error), wait: None }),
        };
        let status = answer.status();
        Ok(match status {
            status if status.is_success() => Tried::Taken,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                let asked =
                    answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                Tried::Later { why: status.to_string(), wait: asked.map(Duration::from_secs) }
            }
            status if status.is_server_error() => Tried::Later { why: status.to_string(), wait: None },
            status => Tried::Refused(status),
        })
    }

    async fn url(&self) -> Result<Url, Failure> {
        let read = tokio::fs::read_to_string(&self.address).await;
        let text = read.map_err(|source| Failure::Read { path: self.address.clone(), source })?;
        let text = text.trim();
        let url = Url::parse(text).ok().filter(|url| text.len() <= ADDRESS && url.has_host());
        let scheme = |url: &Url| url.scheme() == "https" || (url.scheme() == "http" && self.channel.insecure_http);
        url.filter(scheme).ok_or_else(|| Failure::Address(self.address.clone()))
    }
}

/// The last cause, without the address.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
