use super::{Assessment, Gate, Tick};

/// The sequential evidence of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {}

impl Evidence {
    /// Evidence before the first tick.
    pub fn new(_gate: &Gate) -> Self {
        Self {}
    }

    /// Takes one tick.
    pub fn step(&mut self, _gate: &Gate, _tick: &Tick) -> Assessment {
        unimplemented!()
    }
}
