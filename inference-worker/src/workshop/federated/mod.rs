//! Federated distillation: a coordinator averages what clients learn from texts that never leave them.
//!
//! In every round each client takes the coordinator's masters, trains them on its own text against the teacher that
//! both have, with quantised live weights, and sends the masters back. The coordinator averages the masters, weighted
//! by the tokens behind them, and only the average is quantised: averages of quantised weights would lie between the
//! values that a ternary weight can have, and rounding them would forget what the clients agree on.
//!
//! What leaves a client is its name, the number of its tokens, and masters. Masters are made from the text and may, in
//! principle, be asked about it: there is no secure aggregation here.

mod average;
mod client;
mod coordinator;
mod error;
mod http;
mod local;
mod masters;
mod protocol;
mod rounds;
mod store;

pub use client::{ClientSettings, Part, take_part};
pub use coordinator::{Coordinator, CoordinatorSettings, Finished};
pub use error::FederatedError;
pub use http::Token;
pub use protocol::{Architecture, Plan};
pub use rounds::Rules;
