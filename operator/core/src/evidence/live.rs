use super::{
    LiveArm, Percentiles,
    claim::Claim,
    codec::{CodecError, Reader, Writer},
    load::Load,
    rules::Rules,
};
use crate::stats::{
    bets::{Increments, NOTHING},
    histogram::{CELLS, Cells, Tail, Window},
    thinning::{Draws, thin},
    votes::{self, CLIP, not_worse, worse},
};

/// What a tick brings to the live latency tests.
pub(super) struct LiveTick<'a> {
    pub(super) candidate: &'a LiveArm,
    pub(super) stable: &'a LiveArm,
    /// `None`: an arm has no ready pod.
    pub(super) load: Option<Load>,
    pub(super) last_step: bool,
    pub(super) seed: u64,
}

/// Latency of live requests, time to first token and time per output token: body, p95 and p99 of both.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Live {
    pub(super) claims: [[Claim; 3]; 2],
    /// Cells and quantile edges from history, by metric; `None` before there is a history of that metric.
    pub(super) windows: [Option<Window>; 2],
    /// The windows were taken at the current weight: only then do blocks count for promotion.
    pub(super) current: bool,
    block: Option<Block>,
    promote_block: Option<Block>,
}

/// Counts of an open block, `cells[metric][arm]`, the candidate (arm 0) shifted by the margin.
#[derive(Clone, Debug, Default, PartialEq)]
struct Block {
    ticks: u32,
    cells: [[Cells; 2]; 2],
}

impl Live {
    /// The margins and the load have changed: open blocks go, promotion starts anew, and the edges are old.
    pub(super) fn weight_changed(&mut self) {
        self.drop_blocks();
        self.current = false;
        for claim in self.claims.as_flattened_mut() {
            claim.forget_promotion();
        }
    }

    /// Drops the open blocks.
    pub(super) fn drop_blocks(&mut self) {
        self.block = None;
        self.promote_block = None;
    }

    /// Puts new windows in force; a metric without a new one keeps its old one.
    pub(super) fn refresh(&mut self, windows: [Option<Window>; 2], current: bool) {
        self.drop_blocks();
        for (window, new) in self.windows.iter_mut().zip(windows) {
            *window = new.or(*window);
        }
        self.current = current;
    }

    /// Takes a tick; `now` is `None` where its counts are unknown or do not count (warm-up, no weight).
    pub(super) fn step(&mut self, rules: &Rules, tick: u32, percentiles: Percentiles, now: Option<&LiveTick>) {
        let against = self.step_worse(rules, now);
        for (claim, increments) in self.claims.as_flattened_mut().iter_mut().zip(against.as_flattened()) {
            claim.worse(rules.prior, tick, increments);
        }
        self.step_not_worse(rules, percentiles, now);
    }

    fn step_worse(&mut self, rules: &Rules, now: Option<&LiveTick>) -> [[Increments; 3]; 2] {
        let mut increments = [[NOTHING; 3]; 2];
        let Some(now) = now.filter(|now| now.load.is_some_and(Load::candidate_at_most)) else {
            self.block = None;
            return increments;
        };
        let block = self.block.get_or_insert_default();
        block.ticks += 1;
        for (m, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let (candidate, stable) = histograms(now, m);
            window.add_worse(&mut block.cells[m][0], candidate, rules.shift);
            window.add(&mut block.cells[m][1], stable);
        }
        if block.ticks >= rules.block {
            for (m, window) in self.windows.iter().enumerate() {
                if let Some(window) = window {
                    increments[m] = votes_of(window, &block.cells[m]).map(worse);
                }
            }
            self.block = None;
        }
        increments
    }

    fn step_not_worse(&mut self, rules: &Rules, percentiles: Percentiles, now: Option<&LiveTick>) {
        let counts = |now: &&LiveTick| now.last_step && now.load.is_some_and(Load::candidate_at_least);
        let Some(now) = now.filter(counts).filter(|_| self.current) else {
            self.promote_block = None;
            return;
        };
        let block = self.promote_block.get_or_insert_default();
        block.ticks += 1;
        for (m, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let (candidate, stable) = histograms(now, m);
            window.add_not_worse(&mut block.cells[m][0], candidate, rules.shift);
            window.add(&mut block.cells[m][1], stable);
        }
        if block.ticks < rules.promote_block {
            return;
        }
        let mut block = std::mem::take(block);
        self.promote_block = None;
        for (m, window) in self.windows.iter().enumerate() {
            let Some(window) = window else { continue };
            let [candidate, stable] = &mut block.cells[m];
            // Equal arms, so that clipping cannot bias a vote.
            let size = candidate.iter().sum::<u64>().min(stable.iter().sum());
            let mut draws = Draws::new(now.seed, 3 + m as u64);
            thin(candidate, size, &mut draws);
            thin(stable, size, &mut draws);
            let found = votes_of(window, &block.cells[m]);
            for (part, wanted) in [percentiles.body, percentiles.p95, percentiles.p99].into_iter().enumerate() {
                if wanted {
                    self.claims[m][part].not_worse(&not_worse(found[part]), rules.promote_bound);
                }
            }
        }
    }

    pub(super) fn encode_into(&self, w: &mut Writer) {
        for claim in self.claims.as_flattened() {
            claim.encode_into(w);
        }
        for window in self.windows {
            w.option(window, |w, window| {
                w.i64(i64::from(window.first()));
                for tail in [window.p95(), window.p99()] {
                    w.u8(tail.cell);
                    w.f64(tail.p0);
                }
            });
        }
        w.bool(self.current);
        for block in [&self.block, &self.promote_block] {
            w.option(block.as_ref(), |w, block| {
                w.u32(block.ticks);
                for cells in block.cells.as_flattened() {
                    encode_cells(cells, w);
                }
            });
        }
    }

    pub(super) fn decode_from(r: &mut Reader) -> Result<Self, CodecError> {
        let mut live = Self::default();
        for claim in live.claims.as_flattened_mut() {
            *claim = Claim::decode_from(r)?;
        }
        for window in &mut live.windows {
            *window = r.option(decode_window)?;
        }
        live.current = r.bool()?;
        for block in [&mut live.block, &mut live.promote_block] {
            *block = r.option(|r| {
                let mut block = Block { ticks: r.u32()?, ..Block::default() };
                for cells in block.cells.as_flattened_mut() {
                    *cells = decode_cells(r)?;
                }
                Ok(block)
            })?;
        }
        Ok(live)
    }
}

fn histograms<'a>(now: &LiveTick<'a>, metric: usize) -> (&'a super::Histogram, &'a super::Histogram) {
    match metric {
        0 => (&now.candidate.ttft, &now.stable.ttft),
        _ => (&now.candidate.tpot, &now.stable.tpot),
    }
}

/// Votes of body, p95, p99.
fn votes_of(window: &Window, [candidate, stable]: &[Cells; 2]) -> [f64; 3] {
    let tail = |t: Tail| votes::tail(t.over(candidate), t.over(stable), t.p0, CLIP);
    [votes::body(candidate, stable, CLIP), tail(window.p95()), tail(window.p99())]
}

fn encode_cells(cells: &Cells, w: &mut Writer) {
    let used = cells.iter().enumerate().fold(0u64, |mask, (i, &n)| mask | u64::from(n > 0) << i);
    w.u64(used);
    for &n in cells.iter().filter(|n| **n > 0) {
        w.u64(n);
    }
}

fn decode_cells(r: &mut Reader) -> Result<Cells, CodecError> {
    let used = r.u64()?;
    if used >> CELLS != 0 {
        return Err(CodecError::Garbled("a block has too many cells"));
    }
    let mut cells = [0; CELLS];
    for (i, cell) in cells.iter_mut().enumerate() {
        if used >> i & 1 == 1 {
            *cell = r.u64()?;
            if *cell == 0 || *cell > 1 << 48 {
                return Err(CodecError::Garbled("a cell's count is out of range"));
            }
        }
    }
    Ok(cells)
}

fn decode_window(r: &mut Reader) -> Result<Window, CodecError> {
    let first = i16::try_from(r.i64()?).ok();
    let mut tail = || Ok(Tail { cell: r.u8()?, p0: r.f64()? });
    let (p95, p99) = (tail()?, tail()?);
    first.and_then(|first| Window::from_parts(first, p95, p99)).ok_or(CodecError::Garbled("an edge is out of range"))
}
