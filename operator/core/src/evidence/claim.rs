use super::codec::{CodecError, Reader, Writer};
use crate::stats::{
    bets::Increments,
    intervals::MeanSequence,
    wealth::{RestartPrior, Restarting, Wealth},
};

/// One tested quantity: its rollback test (with restarts) and its promotion test (without).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    rollback: Restarting,
    promote: Wealth,
    /// The promotion bound was crossed.
    proven: bool,
}

impl Default for Claim {
    /// Before the first tick, already on the grid of stored states.
    fn default() -> Self {
        let mut rollback = Restarting::default();
        rollback.settle();
        Self { rollback, promote: Wealth::default(), proven: false }
    }
}

impl Claim {
    /// Ends a tick for the rollback test; every tick spends restart prior, with data or without.
    pub(super) fn worse(&mut self, prior: RestartPrior, tick: u32, increments: &Increments) {
        self.rollback.tick(prior, tick, increments);
        self.rollback.settle();
    }

    /// Takes data for the promotion test; crossing `bound` is remembered.
    pub(super) fn not_worse(&mut self, increments: &Increments, bound: f64) {
        self.promote.add(increments);
        self.promote.settle();
        self.proven |= self.promote.ln_e() >= bound;
    }

    /// Starts the promotion test anew.
    pub(super) fn forget_promotion(&mut self) {
        self.promote = Wealth::default();
        self.proven = false;
    }

    pub(super) fn ln_rollback(&self, prior: RestartPrior, tick: u32) -> f64 {
        self.rollback.ln_e(prior, tick)
    }

    pub(super) fn ln_promote(&self) -> f64 {
        self.promote.ln_e()
    }

    pub(super) fn proven(&self) -> bool {
        self.proven
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        write_steps(w, self.rollback.to_steps());
        w.bool(self.proven);
        let promote = Some(self.promote).filter(|p| *p != Wealth::default());
        w.option(promote, |w, p| write_steps(w, p.to_steps()));
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        let rollback = Restarting::from_steps(read_steps(r)?);
        let proven = r.bool()?;
        let promote = r.option(read_steps)?.map_or_else(Wealth::default, Wealth::from_steps);
        Ok(Self { rollback, promote, proven })
    }
}

pub(super) fn write_steps<const K: usize>(w: &mut Writer, steps: [i64; K]) {
    for s in steps {
        w.i64(s);
    }
}

pub(super) fn read_steps<const K: usize>(r: &mut Reader) -> Result<[i64; K], CodecError> {
    let mut steps = [0; K];
    for s in &mut steps {
        *s = r.i64()?;
        // A float holds every settled value below 2⁵³ grid steps exactly; nothing else was ever written.
        if s.unsigned_abs() > 1 << 53 {
            return Err(CodecError::Garbled("a log-wealth is out of range"));
        }
    }
    Ok(steps)
}

pub(super) fn encode_sequence(sequence: &MeanSequence, w: &mut Writer) {
    w.option(Some(sequence).filter(|s| s.count() > 0), |w, s| {
        for part in s.to_parts() {
            w.f64(part);
        }
    });
}

pub(super) fn decode_sequence(r: &mut Reader) -> Result<MeanSequence, CodecError> {
    let parts = r.option(|r| {
        let mut parts = [0.0; 8];
        for part in &mut parts {
            *part = r.f64()?;
        }
        Ok(parts)
    })?;
    Ok(parts.map_or_else(MeanSequence::default, MeanSequence::from_parts))
}
