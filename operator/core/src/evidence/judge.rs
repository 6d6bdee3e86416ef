use super::{
    Assessment, Finding, Gate, Signal, SignalKind, SignalState, Tick,
    codec::{CodecError, Reader, Writer},
};

/// The sequential evidence of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    parameters: u64,
    ticks: u32,
    last_number: u32,
}

impl Evidence {
    /// Evidence before the first tick.
    pub fn new(gate: &Gate) -> Self {
        Self { parameters: gate.parameters(), ticks: 0, last_number: 0 }
    }

    /// The evidence was gathered under this gate's parameters. [`Evidence::step`] with other parameters starts a new
    /// test by itself.
    pub fn is_of(&self, gate: &Gate) -> bool {
        self.parameters == gate.parameters()
    }

    /// Takes one tick. Total: bad numbers are left out or count against the claim, a tick that was taken already
    /// (`number` not above the last) changes nothing.
    pub fn step(&mut self, gate: &Gate, tick: &Tick) -> Assessment {
        if !self.is_of(gate) {
            *self = Self::new(gate);
        }
        if tick.number > self.last_number {
            self.last_number = tick.number;
            self.ticks += 1;
        }
        self.summary(gate)
    }

    /// What the evidence says as it stands, without a new tick.
    pub fn summary(&self, gate: &Gate) -> Assessment {
        let signals = SignalKind::ALL.map(|kind| Signal {
            kind,
            state: SignalState::NoData,
            samples: 0,
            required: None,
            estimate: None,
            interval: None,
            ln_rollback: 0.0,
            ln_promote: 0.0,
            detail: String::new(),
        });
        Assessment {
            finding: if self.ticks >= gate.horizon() { Finding::Inconclusive } else { Finding::Continue },
            signals: signals.to_vec(),
            prompts: 0,
            preflight_done: false,
            quality_proven: false,
            fresh: false,
            no_traffic: false,
            history_pending: true,
            missing: Vec::new(),
            ln_rollback: 0.0,
            exposed_requests: 0,
        }
    }

    /// Writes the state (at most [`Evidence::MAX_BYTES`]).
    pub fn encode_into(&self, w: &mut Writer) {
        w.fixed_u64(self.parameters);
        w.u32(self.ticks);
        w.u32(self.last_number);
    }

    /// Reads what [`Evidence::encode_into`] wrote.
    pub fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        Ok(Self { parameters: r.fixed_u64()?, ticks: r.u32()?, last_number: r.u32()? })
    }

    /// Most bytes that [`Evidence::encode_into`] writes.
    pub const MAX_BYTES: usize = 2350;
}
