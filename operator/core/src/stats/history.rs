//! What stable's history, split into two halves of its pods (A/A), says about how live requests may be tested.

/// Dispersion up to which requests may be taken as independent, so that bets per request
/// ([`super::rate_ratio`], [`super::label_odds`]) hold: the precondition of a fast mode.
pub const INDEPENDENT: f64 = 1.1;

/// Fewest intervals that a dispersion is taken from.
const INTERVALS: usize = 60;

/// Lengths of blocks in seconds, and the votes of 10 s that each holds.
const BLOCKS: [(u32, usize); 4] = [(10, 1), (30, 3), (60, 6), (120, 12)];

/// Votes of 10 s in an hour, the shortest history.
const HOUR: usize = 360;

/// Lag-1 autocorrelation under which blocks count as independent.
const UNCORRELATED: f64 = 0.1;

/// Variance of the A/A differences over what independent requests would give: for each interval both halves as `(events,
/// requests)`. 1 for independent requests; bursts of 10 s gave 5 to 44. `None` for fewer than 60 intervals with data or
/// without any event.
pub fn dispersion(intervals: &[[(u64, u64); 2]]) -> Option<f64> {
    let (mut found, mut expected, mut count) = (0.0, 0.0, 0usize);
    for &[(s_a, n_a), (s_b, n_b)] in intervals {
        if n_a == 0 || n_b == 0 || s_a > n_a || s_b > n_b {
            continue;
        }
        let (s, n) = ((s_a + s_b) as f64, (n_a + n_b) as f64);
        // Given how many events both halves had together, lots decide how many the first one gets (hypergeometric).
        let mean = s * n_a as f64 / n;
        let variance = mean * (n_b as f64 / n) * (n - s) / (n - 1.0);
        found += (s_a as f64 - mean).powi(2);
        expected += variance;
        count += 1;
    }
    (count >= INTERVALS && expected > 0.0).then(|| found / expected)
}

/// Shortest block, in seconds, of {10, 30, 60, 120} whose A/A votes have a lag-1 autocorrelation under .1: then it is at
/// least as long as the bursts. `votes`: one per 10 s, `None` where an interval had no data. `None` for less than an hour
/// or where even 120 s are correlated: no block makes live votes independent then.
pub fn shortest_block(votes: &[Option<f64>]) -> Option<u32> {
    if votes.len() < HOUR {
        return None;
    }
    let uncorrelated = |&&(_, length): &&(u32, usize)| {
        let blocks: Vec<Option<f64>> = votes
            .chunks_exact(length)
            .map(|block| {
                let known: Vec<f64> = block.iter().copied().flatten().filter(|v| v.is_finite()).collect();
                (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
            })
            .collect();
        autocorrelation(&blocks).is_some_and(|r| r < UNCORRELATED)
    };
    BLOCKS.iter().find(uncorrelated).map(|(seconds, _)| *seconds)
}

/// Correlation of neighbours; `None` without any spread.
fn autocorrelation(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().copied().flatten().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let variance = known.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / known.len().max(1) as f64;
    let pairs: Vec<f64> = values.windows(2).filter_map(|w| Some((w[0]? - mean) * (w[1]? - mean))).collect();
    (variance > 0.0 && !pairs.is_empty()).then(|| pairs.iter().sum::<f64>() / pairs.len() as f64 / variance)
}
