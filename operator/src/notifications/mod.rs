//! Notifications: verdicts and phases that concern people, posted to the admin's receivers (generic JSON, Slack, Teams).
//!
//! Only the leader notifies, and only after the status that says so was stored: the stored status is the memory of what
//! was told. So a process that dies between the two loses a notification and never repeats one, and a status that somebody
//! wiped is told once more. Every receiver has a bounded queue and a task of its own: a slow one holds nobody up, and no
//! reconcile waits for any.
//!
//! The addresses are secrets. They are read from files (a mounted Secret) at each delivery, so that a rotation needs no
//! restart, and they reach no log: what went wrong is told without the address.

mod deliver;
mod message;

pub use deliver::{Delivery, Failure};
pub use message::{Notification, Occasion, Template, TemplateError};

use crate::{config::Channel, metrics::Metrics};
use deliver::Sender;
use std::{path::Path, sync::Mutex, sync::PoisonError, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle};

/// Notifications that a receiver may be behind; more are dropped and counted.
const QUEUE: usize = 256;
/// How long the last deliveries may take when the process ends.
const FLUSH: Duration = Duration::from_secs(4);

/// A receiver's queue.
struct Lane {
    channel: Channel,
    queue: mpsc::Sender<Notification>,
    task: JoinHandle<()>,
}

/// Tells receivers. Dropping it drops what waits; [`Notifier::flush`] sends that first.
pub struct Notifier {
    lanes: Mutex<Vec<Lane>>,
    metrics: Metrics,
}

/// Why the notifications cannot be set up. The operator does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No client could be made.
    #[error("cannot make a client of the receivers of notifications")]
    Client(#[source] reqwest::Error),
    /// The receivers' authority is no certificate.
    #[error("the key ca.crt of the notifications' Secret must hold PEM certificates")]
    Authority(#[source] reqwest::Error),
    /// A template that cannot be used: the settings were not checked.
    #[error("the template of the notifications' channel {channel}")]
    Template {
        /// Its name.
        channel: String,
        /// Why.
        #[source]
        source: TemplateError,
    },
}

impl Notifier {
    /// Starts a task for each receiver of `channels`, whose addresses are in the files `folder/NAME`. A file
    /// `folder/ca.crt` holds further authorities that are trusted.
    pub fn start(channels: &[Channel], folder: &Path, metrics: Metrics) -> Result<Self, Error> {
        let mut lanes = Vec::new();
        if !channels.is_empty() {
            let client = deliver::client(folder)?;
            for channel in channels {
                let template = Template::new(channel.format, channel.template.as_deref());
                let template = template.map_err(|source| Error::Template { channel: channel.name.clone(), source })?;
                let sender = Sender::new(client.clone(), folder.join(&channel.name), channel.clone(), template);
                let (queue, waiting) = mpsc::channel(QUEUE);
                let task = tokio::spawn(run(sender, waiting, metrics.clone()));
                lanes.push(Lane { channel: channel.clone(), queue, task });
            }
        }
        Ok(Self { lanes: Mutex::new(lanes), metrics })
    }

    /// Queues notifications for the receivers that want them. It never waits.
    pub fn tell(&self, notifications: &[Notification]) {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        for notification in notifications {
            for lane in lanes.iter().filter(|lane| lane.channel.wants(notification)) {
                if lane.queue.try_send(notification.clone()).is_err() {
                    self.metrics.notified(&lane.channel.name, "dropped");
                    tracing::warn!(channel = lane.channel.name, "a notification was dropped: {QUEUE} wait already");
                }
            }
        }
    }

    /// Takes no more and waits a moment for what is queued.
    pub async fn flush(&self) {
        let lanes = std::mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
        let tasks = lanes.into_iter().map(|lane| lane.task);
        if tokio::time::timeout(FLUSH, futures::future::join_all(tasks)).await.is_err() {
            tracing::warn!("notifications were still being sent when the process ended");
        }
    }
}

async fn run(sender: Sender, mut waiting: mpsc::Receiver<Notification>, metrics: Metrics) {
    while let Some(notification) = waiting.recv().await {
        let outcome = sender.send(&notification).await;
        metrics.notified(sender.channel(), if outcome.is_ok() { "sent" } else { "failed" });
        if let Err(failure) = outcome {
            tracing::warn!(
                channel = sender.channel(),
                error = &failure as &dyn std::error::Error,
                "a notification was not delivered"
            );
        }
    }
}

#[cfg(test)]
mod tests;
