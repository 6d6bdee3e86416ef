use super::Random;
use crate::{
    Span,
    evidence::{
        Gate,
        ab::{Ab, AbMetric, AbTick, AbVerdict},
    },
    model::AbTest,
    plan::ab_settings,
    stats::asymptotic::Moments,
};

/// The users of an A/B test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Users {
    /// New users with an outcome per second, of both arms together.
    pub per_second: f64,
    /// Outcome of a user of candidate and stable: the share that converts, or the mean value.
    pub outcome: (f64, f64),
    /// Standard deviation of a user's value; a conversion has its own.
    pub deviation: f64,
    /// Share of the candidate's users who are lost before they are counted.
    pub lost: f64,
}

/// How an A/B test ended for its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict at the end: the test ends early only where users are proven to do worse.
    pub verdict: AbVerdict,
    /// When a verdict was first proven, from the start of the split; `None`: none was before the end.
    pub proven: Option<Span>,
    /// Users of both arms until the end.
    pub users: u64,
}

/// Looks at the users of a test: verdicts hold however often one looks, and more looks find little sooner.
const LOOKS: i64 = 500;

/// Runs the users' part of an A/B test once. Outcomes are final at once, and values are added up as normal sums.
pub fn test_users(test: &AbTest, gate: &Gate, users: &Users, seed: u64) -> Outcome {
    let settings = ab_settings(test, gate);
    let mut random = Random::new(seed);
    let mut ab = Ab::new(&settings);
    let share = f64::from(test.weight()) / 100.0;
    let look = Span(test.duration().0 / LOOKS);
    let (mut proven, mut verdict, mut count) = (None, AbVerdict::Undecided, 0);
    for number in 1..=LOOKS {
        let all = random.poisson(users.per_second * look.as_seconds());
        let assigned = random.binomial(all, share);
        let candidate = assigned - random.binomial(assigned, users.lost);
        let stable = all - assigned;
        count += candidate + stable;
        let outcomes = match settings.metric {
            AbMetric::Conversion => {
                (converted(&mut random, candidate, users.outcome.0), converted(&mut random, stable, users.outcome.1))
            }
            AbMetric::Mean { low, high } => {
                let mut of = |n, mean| values(&mut random, n, mean, users.deviation, (low, high));
                (of(candidate, users.outcome.0), of(stable, users.outcome.1))
            }
        };
        let tick =
            AbTick { number: number as u64, share, assigned: (candidate, stable), outcomes, last: number == LOOKS };
        verdict = ab.step(&settings, &tick).verdict;
        let decided = !matches!(verdict, AbVerdict::Undecided | AbVerdict::NoDifferenceProven);
        if decided && proven.is_none() {
            proven = Some(Span(look.0 * number));
        }
        if verdict == AbVerdict::CandidateWorse {
            break;
        }
    }
    Outcome { verdict, proven, users: count }
}

fn converted(random: &mut Random, n: u64, rate: f64) -> Moments {
    let ones = random.binomial(n, rate) as f64;
    Moments { n, sum: ones, squares: ones }
}

/// `n` values of this mean and deviation, added up.
fn values(random: &mut Random, n: u64, mean: f64, deviation: f64, (low, high): (f64, f64)) -> Moments {
    if n == 0 {
        return Moments::default();
    }
    let of = n as f64;
    let average = (mean + deviation / of.sqrt() * random.normal()).clamp(low, high);
    // Values within their bounds cannot spread more than those on the ends.
    let variance = (deviation * deviation).min((high - average) * (average - low));
    Moments { n, sum: of * average, squares: of * (average * average + variance) }
}
