//! A namespace with a route, a gate and a rollout, and the means to watch them.

mod apply;
mod history;
mod kinds;
mod manifests;
mod rollout;

pub use apply::apply;
pub use history::{RouteHistory, RouteVersion};
pub use kinds::{gateways, http_routes, model_rollouts};
pub use manifests::{Manifests, demo_gate};
pub use rollout::{Rollouts, weights_text};
