//! A/B conversion and sample-ratio mismatch: looks while the users arrive.

use super::{
    promises::Promises,
    table::{Column, Fired, Firsts, Size, print},
};
use bitnet_core::{
    simulate::Random,
    stats::{
        asymptotic::{Moments, difference, msprt_ln_e, narrowest_at},
        label_odds::Odds,
        sample_ratio::{RATIOS, dirichlet_ln_e, increments},
        wealth::Wealth,
    },
};
use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};

const CONVERSION: [&str; 4] =
    ["z-test, 5 %, peek", "mSPRT", "asymptotic sequence", "**ours: bets per user, two-sided**"];
const SPLIT: [&str; 3] = ["chi-squared, p < .001, peek", "Dirichlet mixture", "**ours: odds grid**"];

pub(crate) fn tables(short: bool, promises: &mut Promises) {
    let size = Size::of(short, 1000, 400);
    let columns = [
        Column::silent("5 against 5 %", 0.05, 0.05),
        Column::bad("5.5 %", 0.055, 33_000.0),
        Column::bad("6 %", 0.06, 9_200.0),
        Column::bad("7 %", 0.07, 2_600.0),
    ];
    let title = "A/B, conversion 5 %: false differences in %, then users per arm (a look each 200, up to 100,000)";
    print((title, 200), &CONVERSION, &columns, size, promises, |rate, seed| conversion(*rate, seed));
    let columns = [
        Column::silent("as assigned", [(0.5, 0.5); 10], 0.001),
        Column::bad("52 to 48", [(0.52, 0.5); 10], 10_800.0),
        Column::bad("51 to 49", [(0.51, 0.5); 10], 41_700.0),
        Column::bad("11 instead of 10 %", [(0.11, 0.1); 10], 16_400.0),
        Column::silent("as assigned, ramp from 5 to 50 %", RAMP.map(|share| (share, share)), 0.001),
        Column::bad("the ramp, 5 % of the candidate's lost", RAMP.map(lossy), 0.0),
    ];
    let title = "Sample-ratio mismatch: false alarms in %, then users (a look each 100, up to 100,000)";
    print((title, 100), &SPLIT, &columns, size, promises, mismatch);
}

/// Shares of the candidate that were meant while a tenth of the users came each.
const RAMP: [f64; 10] = [0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.5];

/// The share that arrives where a twentieth of the candidate's users are lost, and the one that was meant.
fn lossy(meant: f64) -> (f64, f64) {
    (0.95 * meant / (1.0 - 0.05 * meant), meant)
}

fn conversion(rate: f64, seed: u64) -> Fired {
    const LOOK: u64 = 200;
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(CONVERSION.len());
    let two_sided = Normal::standard().inverse_cdf(0.975);
    let bound = 20f64.ln();
    let odds = Odds::different(0.05);
    let mut ours = Wealth::<16>::default();
    let mut sums = [0u64; 2];
    for look in 1..=500u64 {
        let new = [random.binomial(LOOK, rate), random.binomial(LOOK, 0.05)];
        sums[0] += new[0];
        sums[1] += new[1];
        let users = look * LOOK;
        let (n, at) = (users as f64, users as u32);
        let share = [sums[0] as f64 / n, sums[1] as f64 / n];
        let (gap, error) = (share[0] - share[1], share.iter().map(|p| p * (1.0 - p)).sum::<f64>().max(1e-9) / n);
        firsts.at(0, at, || gap.abs() > two_sided * error.sqrt());
        firsts.at(1, at, || msprt_ln_e(gap, error, 0.01) >= bound);
        let moments = |s: u64| Moments { n: users, sum: s as f64, squares: s as f64 };
        firsts.at(2, at, || {
            difference(&moments(sums[0]), &moments(sums[1]), narrowest_at(20_000.0, 0.05), 0.05)
                .is_some_and(|(gap, half)| gap.abs() > half)
        });
        ours.add(&odds.increments((new[0], LOOK), (new[1], LOOK)));
        firsts.at(3, at, || ours.ln_e() >= bound);
    }
    firsts.0
}

/// `split`: the shares that arrive and that were meant, of a tenth of the users each.
fn mismatch(split: &[(f64, f64); 10], seed: u64) -> Fired {
    const LOOK: u64 = 100;
    const LOOKS: u64 = 1000;
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(SPLIT.len());
    let critical = ChiSquared::new(1.0).map_or(f64::INFINITY, |chi| chi.inverse_cdf(0.999));
    let bound = 1000f64.ln();
    let mut ours = Wealth::<RATIOS>::default();
    let (mut sum, mut expected, mut variance) = (0, 0.0, 0.0);
    for look in 1..=LOOKS {
        let (actual, meant) = split[((look - 1) * 10 / LOOKS) as usize];
        let new = random.binomial(LOOK, actual);
        sum += new;
        let users = look * LOOK;
        let at = users as u32;
        expected += LOOK as f64 * meant;
        variance += LOOK as f64 * meant * (1.0 - meant);
        firsts.at(0, at, || (sum as f64 - expected).powi(2) / variance > critical);
        // The mixture around a fixed split knows no ramp: it is given the split that was meant on the whole.
        let whole = expected / users as f64;
        firsts.at(1, at, || dirichlet_ln_e(whole, 100.0, sum, users - sum).is_some_and(|ln_e| ln_e >= bound));
        ours.add(&increments(meant, new, LOOK - new));
        firsts.at(2, at, || ours.ln_e() >= bound);
    }
    firsts.0
}
