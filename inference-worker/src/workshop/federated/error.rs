use crate::workshop::WorkshopError;

/// Why a client or a coordinator ended before its rounds were done.
#[derive(Debug, thiserror::Error)]
pub enum FederatedError {
    /// The models, the text or a file.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    /// The coordinator's port could not be opened or served.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The coordinator could not be reached for as long as the client is patient.
    #[error("the coordinator at {url} was not reached for {seconds} s: start it, or correct --coordinator")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// How long it was tried.
        seconds: u64,
        /// The last attempt's failure.
        #[source]
        source: reqwest::Error,
    },
    /// The coordinator does not take this client, and says why.
    #[error("the coordinator refuses this client ({status}): {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The coordinator's reason: names field, rule and remedy.
        reason: String,
    },
    /// The coordinator answered what the protocol does not have.
    #[error("the coordinator's answer cannot be used: {0}")]
    Answer(String),
    /// Too few clients delivered for too long.
    #[error(
        "round {round}: {delivered} of at least {quorum} clients delivered within {seconds} s (missing: {missing}): start them; with the same --work the coordinator goes on where it stopped"
    )]
    Starved {
        /// The round, from 1.
        round: usize,
        /// Clients that delivered.
        delivered: usize,
        /// Clients that a round needs.
        quorum: usize,
        /// How long it was waited.
        seconds: u64,
        /// Names of those that did not deliver.
        missing: String,
    },
    /// A thread ended by a panic.
    #[error("a thread of the program failed")]
    Thread(#[source] tokio::task::JoinError),
}
