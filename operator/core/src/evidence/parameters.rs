use super::{Gate, OnNoTraffic, codec::Fnv};

impl Gate {
    /// Hash of every parameter that the stored evidence depends on, 16 hex digits. Two gates with the same hash are the
    /// same test; policies (what an inconclusive end or the tripwire does) and the probe set's name are not part of it.
    pub fn parameters_hash(&self) -> String {
        format!("{:016x}", self.parameters())
    }

    /// [`Gate::parameters_hash`] as a number.
    pub fn parameters(&self) -> u64 {
        let mut hash = Fnv::default().bytes(b"evidence-1");
        for value in [
            self.min_mean,
            self.tail_min,
            self.tail_share,
            self.max_ratio,
            self.max_excess,
            self.alpha_rollback,
            self.alpha_promote,
        ] {
            hash = hash.bytes(&value.to_bits().to_le_bytes());
        }
        for value in [self.interval.0, self.warmup.0, self.deadline.0] {
            hash = hash.bytes(&value.to_le_bytes());
        }
        for value in [
            self.preflight,
            self.min_samples,
            self.probes.per_tick,
            self.probes.max_tokens,
            self.probes.positions,
            self.probes.pairs,
            self.probes.pair_tokens,
        ] {
            hash = hash.bytes(&value.to_le_bytes());
        }
        let flags = [
            self.percentiles.body,
            self.percentiles.p95,
            self.percentiles.p99,
            self.on_no_traffic == OnNoTraffic::Probe,
        ];
        hash.bytes(&flags.map(u8::from)).finish()
    }
}
