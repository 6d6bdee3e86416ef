//! What the tokens of an arm took: work, energy, money. Shown, never judged.

use crate::counters::Usage;

/// What both arms used in a tick, candidate first, and what an hour of one of their pods costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bill {
    pub used: [Usage; 2],
    pub prices: [Option<f64>; 2],
}

/// What an arm used since this process began to watch the attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spending {
    tokens: u64,
    busy_seconds: f64,
    joules: f64,
    /// Tokens of the intervals whose energy is known.
    metered_tokens: u64,
    price: Option<f64>,
}

impl Spending {
    pub(super) fn add(&mut self, used: &Usage, price: Option<f64>) {
        self.tokens = self.tokens.saturating_add(used.tokens);
        self.busy_seconds += used.busy_seconds;
        if let Some(joules) = used.joules {
            self.joules += joules;
            self.metered_tokens = self.metered_tokens.saturating_add(used.tokens);
        }
        self.price = price;
    }

    /// Tokens generated for live requests.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Joules per 1,000 tokens; `None` without a token whose energy is known.
    pub(super) fn energy_per_1k_tokens(&self) -> Option<f64> {
        (self.metered_tokens > 0).then(|| 1000.0 * self.joules / self.metered_tokens as f64)
    }

    /// Price of the engines' working time per 1,000 tokens. Time in which a pod waits for requests is not in it: it depends on
    /// the weight and not on the model.
    pub(super) fn cost_per_1k_tokens(&self) -> Option<f64> {
        let price = self.price.filter(|_| self.tokens > 0)?;
        Some(1000.0 * price * self.busy_seconds / 3600.0 / self.tokens as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tokens: u64, joules: Option<f64>) -> Usage {
        Usage { tokens, busy_seconds: 3.6, joules }
    }

    #[test]
    fn a_thousand_tokens_have_a_price_and_an_energy_where_both_are_known() {
        let mut spending = Spending::default();
        spending.add(&usage(100, Some(40.0)), Some(2.0));
        spending.add(&usage(300, Some(120.0)), Some(2.0));
        assert_eq!((spending.tokens(), spending.energy_per_1k_tokens()), (400, Some(400.0)));
        // 7.2 s of a pod at 2 an hour for 400 tokens.
        assert!((spending.cost_per_1k_tokens().unwrap() - 0.01).abs() < 1e-12);
        spending.add(&usage(1_000_000, None), Some(2.0));
        assert_eq!(spending.energy_per_1k_tokens(), Some(400.0), "tokens without a meter do not thin the others'");
    }

    #[test]
    fn what_is_not_known_is_absent_and_not_zero() {
        let mut spending = Spending::default();
        assert_eq!((spending.energy_per_1k_tokens(), spending.cost_per_1k_tokens()), (None, None));
        spending.add(&usage(0, Some(5.0)), Some(2.0));
        assert_eq!((spending.energy_per_1k_tokens(), spending.cost_per_1k_tokens()), (None, None), "no token yet");
        spending.add(&usage(10, None), None);
        assert_eq!((spending.energy_per_1k_tokens(), spending.cost_per_1k_tokens()), (None, None));
    }
}
