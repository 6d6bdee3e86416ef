//! One file per verb: arguments and what they do.

pub(crate) mod damage;
pub(crate) mod distill;
pub(crate) mod logits;
pub(crate) mod serve;
