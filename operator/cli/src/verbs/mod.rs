//! One file per verb.

pub(crate) mod completions;
pub(crate) mod create;
pub(crate) mod dashboard;
pub(crate) mod diff;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod history;
pub(crate) mod lint;
pub(crate) mod render;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod steer;
pub(crate) mod top;
pub(crate) mod undo;
