//! The engines against independent implementations (confseq, scipy, mpmath). Each file says where its numbers come from
//! and how close is close enough.

#![allow(clippy::unwrap_used, reason = "a test may")]

use bitnet_core::{
    evidence::{Histogram, LiveArm, combine},
    stats::{
        asymptotic::{half_width, msprt_ln_e},
        bets::{BoundedMean, FRACTIONS, Increments, NOTHING, accumulate},
        counters::{PodCounters, delta},
        intervals::{MeanSequence, share_interval},
        label_odds::Odds,
        mann_whitney::mann_whitney,
        rate_ratio::RateRatio,
        sample_ratio::dirichlet_ln_e,
        votes,
        wealth::{RestartPrior, Restarting, Wealth},
    },
};
use serde_json::Value;
use statrs::distribution::{Binomial, Discrete};
use std::{collections::BTreeMap, path::Path};

struct Vectors {
    tolerance: f64,
    all: Value,
}

impl Vectors {
    fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name).with_extension("json");
        let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tolerance = all["rel_tol"].as_f64().unwrap_or(0.0);
        Self { tolerance, all }
    }

    fn cases(&self) -> &[Value] {
        let cases = self.all["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        cases
    }

    #[track_caller]
    fn close(&self, found: f64, expected: &Value, what: &str) {
        let expected = expected.as_f64().unwrap();
        let error = (found - expected).abs();
        // Relative to the value, absolute where it is near 0.
        assert!(error <= self.tolerance * expected.abs().max(1.0), "{what}: {found}, expected {expected}");
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn counts(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect()
}

fn mean_test(case: &Value) -> impl Fn(f64) -> Increments {
    assert_eq!(numbers(&case["fractions"]), FRACTIONS);
    let of = |key: &str| case[key].as_f64().unwrap();
    let test = BoundedMean::new(of("m"), of("lo"), of("hi"));
    let below = match case["side"].as_str().unwrap() {
        "lt" => true,
        "gt" => false,
        other => panic!("unknown side {other}"),
    };
    move |x| if below { test.below(x) } else { test.above(x) }
}

#[test]
fn bounded_mean_bets() {
    let vectors = Vectors::read("bounded_mean_bets");
    for case in vectors.cases() {
        let increments = mean_test(case);
        let mut wealth = Wealth::default();
        for (i, x) in numbers(&case["x"]).into_iter().enumerate() {
            wealth.add(&increments(x));
            vectors.close(wealth.ln_e(), &case["log_e_mixture"][i], "mixture");
            if i == 9 {
                for (k, l) in wealth.ln_each().iter().enumerate() {
                    vectors.close(*l, &case["log_wealth_at_10"][k], "wealth at 10");
                }
            }
        }
        for (k, l) in wealth.ln_each().iter().enumerate() {
            vectors.close(*l, &case["log_wealth_final"][k], "final wealth");
        }
    }
}

#[test]
fn restart_mixture() {
    let vectors = Vectors::read("restart_mixture");
    for case in vectors.cases() {
        assert_eq!(case["w0"].as_f64(), Some(RestartPrior::AT_START));
        let increments = mean_test(case);
        let prior = RestartPrior::new(case["horizon_ticks"].as_u64().unwrap() as u32);
        let mut mixture = Restarting::default();
        for (i, xs) in numbers(&case["x"]).chunks(case["tick"].as_u64().unwrap() as usize).enumerate() {
            let mut sum = NOTHING;
            for &x in xs {
                accumulate(&mut sum, &increments(x));
            }
            let tick = i as u32 + 1;
            mixture.tick(prior, tick, &sum);
            vectors.close(mixture.ln_e(prior, tick), &case["log_e_after_tick"][i], "mixture");
        }
    }
}

#[test]
fn block_votes() {
    let vectors = Vectors::read("block_votes");
    for case in vectors.cases() {
        assert_eq!(numbers(&case["fractions"]), FRACTIONS);
        let mut wealth = Wealth::default();
        for (i, block) in case["blocks"].as_array().unwrap().iter().enumerate() {
            let (candidate, stable) = (counts(&block["candidate"]), counts(&block["baseline"]));
            let x = votes::body(&candidate, &stable, case["clip"].as_f64().unwrap());
            vectors.close(x, &case["x_body"][i], "vote");
            assert_eq!(case["side"], "gt");
            wealth.add(&votes::worse(x));
            vectors.close(wealth.ln_e(), &case["log_e_after_block"][i], "evidence");
        }
    }
}

#[test]
fn empirical_bernstein_sequence() {
    let vectors = Vectors::read("bounded_mean_cs");
    for case in vectors.cases() {
        assert_eq!(case["truncation"].as_f64(), Some(0.5));
        let alpha = case["alpha"].as_f64().unwrap();
        let mut sequence = MeanSequence::default();
        let (mut seen, xs) = (0, numbers(&case["x"]));
        for (i, index) in counts(&case["idx"]).into_iter().enumerate() {
            for &x in &xs[seen..=index as usize] {
                sequence.add(x, alpha);
            }
            seen = index as usize + 1;
            let (lower, upper) = sequence.interval(alpha);
            vectors.close(lower, &case["predmix_eb_lower"][i], "lower");
            vectors.close(upper, &case["predmix_eb_upper"][i], "upper");
        }
    }
}

#[test]
fn bernoulli_sequence() {
    let vectors = Vectors::read("bernoulli_cs");
    for case in vectors.cases() {
        let of = |key: &str| case[key].as_u64().unwrap();
        assert_eq!((of("t_opt"), case["alpha_opt"].as_f64()), (500, Some(0.05)));
        let (lower, upper) = share_interval(of("successes"), of("n"), case["alpha"].as_f64().unwrap());
        vectors.close(lower, &case["lower"], "lower");
        vectors.close(upper, &case["upper"], "upper");
    }
}

/// The file's rows as three counters of one pod.
fn pod(counters: &[u64]) -> PodCounters {
    let each = counters.iter().enumerate().map(|(bucket, &n)| (bucket as i16, n));
    let totals = LiveArm { ttft: Histogram(each.collect()), ..LiveArm::default() };
    PodCounters { process: "one process".into(), totals, in_flight: 0 }
}

#[test]
fn counter_deltas() {
    let vectors = Vectors::read("counter_delta");
    for case in vectors.cases() {
        let mut known: BTreeMap<String, PodCounters> = BTreeMap::new();
        let expected = case["expected_delta_cumulative"].as_array().unwrap();
        for (scrape, expected) in case["scrapes"].as_array().unwrap().iter().zip(expected) {
            let mut sum = Histogram::default();
            for (name, counters) in scrape.as_object().unwrap() {
                let current = pod(&counts(counters));
                sum.merge(&delta(known.get(name), Some(&current)).ttft);
                known.insert(name.clone(), current);
            }
            let expected = counts(expected);
            let found: Vec<u64> = (0..expected.len()).map(|i| sum.0.get(&(i as i16)).copied().unwrap_or(0)).collect();
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn decisions() {
    let vectors = Vectors::read("decision");
    let of = |key: &str| vectors.all[key].as_f64().unwrap();
    let weights: [f64; 4] = numbers(&vectors.all["weights"]).try_into().unwrap();
    assert_eq!(weights, combine::WEIGHTS);
    for case in vectors.cases() {
        let mut proven = [false; 4];
        let ticks = case["ticks"].as_array().unwrap();
        for (i, (tick, expected)) in ticks.iter().zip(case["expected"].as_array().unwrap()).enumerate() {
            // The sample-ratio test belongs to A/B; nothing in these cases fires it.
            assert!(tick["log_e_srm"].as_f64().unwrap() < -of("alpha_srm").ln());
            let rollback: [f64; 4] = numbers(&tick["log_e_rollback"]).try_into().unwrap();
            for (proven, ln_e) in proven.iter_mut().zip(numbers(&tick["log_e_promote"])) {
                *proven |= ln_e >= combine::bound(of("alpha_pr"));
            }
            let found = if combine::ln_rollback(&rollback) >= combine::bound(of("alpha_rb")) {
                "rollback"
            } else if proven.iter().all(|p| *p) {
                "promote"
            } else if case["deadline_tick"].as_u64() == Some(i as u64 + 1) {
                "inconclusive"
            } else {
                "continue"
            };
            assert_eq!(found, expected, "{}", case["name"]);
        }
    }
}

/// `[s_c, s_b, n_c, n_b]` as two arms.
fn arms(block: &Value) -> ((u64, u64), (u64, u64)) {
    let [s_c, s_b, n_c, n_b] = counts(block)[..] else { panic!("a block has four counts") };
    ((s_c, n_c), (s_b, n_b))
}

/// Wealth after each block, each bet's at the end, and the exact expectations, as a file gives them.
fn follows(
    vectors: &Vectors,
    case: &Value,
    expectations: &str,
    increments: impl Fn((u64, u64), (u64, u64)) -> Increments,
) {
    let mut wealth = Wealth::default();
    for (block, expected) in
        case["blocks_sc_sb_nc_nb"].as_array().unwrap().iter().zip(numbers_of(case, "log_e_mixture_after_block"))
    {
        let (candidate, stable) = arms(block);
        wealth.add(&increments(candidate, stable));
        vectors.close(wealth.ln_e(), expected, "mixture");
    }
    for (l, expected) in wealth.ln_each().iter().zip(numbers_of(case, "log_wealth_final")) {
        vectors.close(*l, expected, "final wealth");
    }
    for expected in numbers_of(case, expectations) {
        let (n_c, n_b) = (expected["nc"].as_u64().unwrap(), expected["nb"].as_u64().unwrap());
        let of = |key: &str, n| Binomial::new(expected[key].as_f64().unwrap(), n).unwrap();
        let (c, b) = (of("theta_c", n_c), of("theta_b", n_b));
        let mut sum = 0.0;
        for (s_c, s_b) in (0..=n_c).flat_map(|s_c| (0..=n_b).map(move |s_b| (s_c, s_b))) {
            let mut wealth = Wealth::default();
            wealth.add(&increments((s_c, n_c), (s_b, n_b)));
            sum += c.pmf(s_c) * b.pmf(s_b) * wealth.ln_e().exp();
        }
        vectors.close(sum, &expected["expected_e"], "expectation");
    }
}

fn numbers_of<'a>(case: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    let all = case[key].as_array().unwrap();
    assert!(!all.is_empty(), "{key} is empty");
    all.iter()
}

#[test]
fn rate_ratio_bets() {
    let vectors = Vectors::read("rate_ratio");
    for case in vectors.cases() {
        let (rho, delta) = (case["rho"].as_f64().unwrap(), case["delta"].as_f64().unwrap());
        let test = match case["side"].as_str().unwrap() {
            "rollback" => RateRatio::worse(rho, delta),
            "promote" => RateRatio::not_worse(rho, delta),
            other => panic!("unknown side {other}"),
        };
        follows(&vectors, case, "exact_expectation_at_boundary", |c, b| test.increments(c, b));
    }
}

#[test]
fn label_odds_on_shares() {
    let vectors = Vectors::read("two_sample_bernoulli");
    for case in vectors.cases() {
        let guess = case["p_b_guess"].as_f64().unwrap();
        let test = match case["side"].as_str().unwrap() {
            "rollback" => Odds::larger(guess),
            "promote" => Odds::smaller(guess),
            other => panic!("unknown side {other}"),
        };
        follows(&vectors, case, "exact_expectation_under_null", |c, b| test.increments(c, b));
    }
}

#[test]
fn sample_ratio_mixture() {
    let vectors = Vectors::read("srm");
    for case in vectors.cases() {
        let of = |key: &str| case[key].as_f64().unwrap();
        let (c, b) = (of("n_candidate") as u64, of("n_baseline") as u64);
        let found = dirichlet_ln_e(of("w"), of("concentration"), c, b).unwrap();
        vectors.close(found, &case["log_e"], "ln E");
    }
}

#[test]
fn asymptotic_sequences() {
    let vectors = Vectors::read("asymptotic");
    for case in vectors.cases() {
        let of = |key: &str| case[key].as_f64().unwrap();
        let found = match case["kind"].as_str().unwrap() {
            "asymp_cs_halfwidth" => half_width(of("n"), of("sd"), of("rho"), of("alpha")),
            "msprt_log_lr" => msprt_ln_e(of("diff"), of("var_of_diff"), of("tau")),
            other => panic!("unknown kind {other}"),
        };
        vectors.close(found, &case["value"], "value");
    }
}

#[test]
fn mann_whitney_test() {
    let vectors = Vectors::read("mann_whitney");
    for case in vectors.cases() {
        let found = mann_whitney(&numbers(&case["control"]), &numbers(&case["experiment"]), 0.98).unwrap();
        vectors.close(found.u, &case["U"], "U");
        vectors.close(found.p, &case["p_two_sided"], "p");
        vectors.close(found.shift, &case["hodges_lehmann"], "shift");
    }
}
