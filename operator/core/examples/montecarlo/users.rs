//! A/B conversion and sample-ratio mismatch: looks while the users arrive.

use super::table::{Column, Fired, Firsts, Size, print};
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

pub(crate) fn tables(short: bool) {
    let size = Size::of(short, 1000, 400);
    let columns = [(true, "5 against 5 %", 0.05), (false, "5.5 %", 0.055), (false, "6 %", 0.06), (false, "7 %", 0.07)]
        .map(|(silent, name, world)| Column { name, silent, world });
    let title = "A/B, conversion 5 %: false differences in %, then users per arm (a look each 200, up to 100,000)";
    print(title, &CONVERSION, &columns, size, |rate, seed| conversion(*rate, seed));
    let columns = [
        (true, "as assigned", (0.5, 0.5)),
        (false, "52 to 48", (0.52, 0.5)),
        (false, "11 instead of 10 %", (0.11, 0.1)),
    ]
    .map(|(silent, name, world)| Column { name, silent, world });
    let title = "Sample-ratio mismatch: false alarms in %, then users (a look each 100, up to 50,000)";
    print(title, &SPLIT, &columns, size, |split, seed| mismatch(*split, seed));
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

fn mismatch((actual, meant): (f64, f64), seed: u64) -> Fired {
    const LOOK: u64 = 100;
    let mut random = Random::new(seed);
    let mut firsts = Firsts::new(SPLIT.len());
    let critical = ChiSquared::new(1.0).map_or(f64::INFINITY, |chi| chi.inverse_cdf(0.999));
    let bound = 1000f64.ln();
    let mut ours = Wealth::<RATIOS>::default();
    let mut sum = 0;
    for look in 1..=500u64 {
        let new = random.binomial(LOOK, actual);
        sum += new;
        let users = look * LOOK;
        let at = users as u32;
        let expected = users as f64 * meant;
        let chi = (sum as f64 - expected).powi(2) / (expected * (1.0 - meant));
        firsts.at(0, at, || chi > critical);
        firsts.at(1, at, || dirichlet_ln_e(meant, 100.0, sum, users - sum).is_some_and(|ln_e| ln_e >= bound));
        ours.add(&increments(meant, new, LOOK - new));
        firsts.at(2, at, || ours.ln_e() >= bound);
    }
    firsts.0
}
