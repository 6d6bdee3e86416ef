//! Keys and values of requests that have ended, for those that begin alike: a system prompt is read once.

use super::sharing::{SHORTEST, common};

/// Caches that nobody runs on, within a budget of tokens; the one that was not used for the longest time goes first.
pub(super) struct Prefixes<C> {
    budget: usize,
    kept: Vec<Kept<C>>,
    clock: u64,
}

struct Kept<C> {
    tokens: Vec<u32>,
    cache: C,
    used: u64,
}

impl<C> Prefixes<C> {
    /// Keeps at most `budget` tokens in all.
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, kept: Vec::new(), clock: 0 }
    }

    /// How many tokens of `prompt` are there, in the cache that shares the longest beginning with it. At least one token of
    /// the prompt is left to read, because its logits are wanted.
    pub(super) fn shared(&self, prompt: &[u32]) -> usize {
        let most = prompt.len().saturating_sub(1);
        let len = self.kept.iter().map(|kept| common(&kept.tokens, prompt).min(most)).max().unwrap_or(0);
        if len < SHORTEST { 0 } else { len }
    }

    /// The cache that shares the longest beginning with `prompt`, and how many tokens of it.
    pub(super) fn find(&mut self, prompt: &[u32]) -> Option<(&C, usize)> {
        let len = self.shared(prompt);
        let best = self.kept.iter_mut().find(|kept| len > 0 && common(&kept.tokens, prompt) >= len)?;
        self.clock += 1;
        best.used = self.clock;
        Some((&best.cache, len))
    }

    /// Keeps the cache of `tokens` for later. What does not fit the budget is left out: `cut` copies the beginning.
    pub(super) fn keep(&mut self, mut tokens: Vec<u32>, cache: C, cut: impl FnOnce(&C, usize) -> C) {
        if tokens.len().min(self.budget) < SHORTEST {
            return;
        }
        let whole = tokens.len() <= self.budget;
        tokens.truncate(self.budget);
        self.clock += 1;
        if let Some(longer) = self.kept.iter_mut().find(|kept| kept.tokens.starts_with(&tokens)) {
            longer.used = self.clock;
            return;
        }
        self.kept.retain(|kept| !tokens.starts_with(&kept.tokens));
        // Room first: the copy and what it is made of are there together.
        let mut held: usize = tokens.len() + self.kept.iter().map(|kept| kept.tokens.len()).sum::<usize>();
        while held > self.budget
            && let Some(oldest) = (0..self.kept.len()).min_by_key(|at| self.kept[*at].used)
        {
            held -= self.kept.swap_remove(oldest).tokens.len();
        }
        let cache = if whole { cache } else { cut(&cache, tokens.len()) };
        self.kept.push(Kept { tokens, cache, used: self.clock });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|(token, count)| std::iter::repeat_n(*token, *count)).collect()
    }

    fn whole<C>(_: &C, _: usize) -> C {
        panic!("it fits as it is")
    }

    #[test]
    fn the_longest_common_beginning_is_found_and_one_token_is_left_to_read() {
        let mut prefixes = Prefixes::new(1000);
        prefixes.keep(tokens(&[(1, 20), (2, 20)]), "short", whole);
        prefixes.keep(tokens(&[(1, 20), (3, 40)]), "long", whole);
        let prompt = tokens(&[(1, 20), (3, 10), (4, 5)]);
        assert_eq!(prefixes.find(&prompt).map(|(c, n)| (*c, n)), Some(("long", 30)));
        assert_eq!(prefixes.find(&tokens(&[(1, 20), (2, 20)])).map(|(c, n)| (*c, n)), Some(("short", 39)));
        assert_eq!(prefixes.find(&tokens(&[(1, SHORTEST - 1), (9, 30)])), None);
        assert_eq!(prefixes.find(&[]), None);
    }

    #[test]
    fn the_budget_holds_and_the_oldest_goes_first() {
        let mut prefixes = Prefixes::new(100);
        for token in 0..3 {
            prefixes.keep(tokens(&[(token, 40)]), token, whole);
            assert!(prefixes.find(&tokens(&[(0, 41)])).is_some(), "it was just used");
        }
        assert!(prefixes.find(&tokens(&[(1, 41)])).is_none());
        assert!(prefixes.find(&tokens(&[(2, 41)])).is_some());
        assert_eq!(prefixes.kept.len(), 2);
    }

    #[test]
    fn of_a_text_beyond_the_budget_the_beginning_is_kept() {
        let mut prefixes = Prefixes::new(100);
        prefixes.keep(tokens(&[(1, 40)]), 0, whole);
        prefixes.keep(tokens(&[(7, 90), (8, 60)]), 1, |cache, len| cache + len);
        assert_eq!(prefixes.find(&tokens(&[(7, 90), (8, 20)])), Some((&101, 100)));
        assert!(prefixes.find(&tokens(&[(1, 41)])).is_none(), "it took all of the budget");
        let mut none = Prefixes::new(0);
        none.keep(tokens(&[(7, 40)]), 1, whole);
        assert_eq!(none.shared(&tokens(&[(7, 41)])), 0);
    }

    #[test]
    fn a_longer_text_takes_the_place_of_its_beginning() {
        let mut prefixes = Prefixes::new(1000);
        prefixes.keep(tokens(&[(1, 20)]), "one", whole);
        prefixes.keep(tokens(&[(1, 20), (2, 5)]), "two", whole);
        prefixes.keep(tokens(&[(1, 18)]), "three", whole);
        assert_eq!(prefixes.kept.iter().map(|kept| kept.cache).collect::<Vec<_>>(), ["two"]);
        assert!(Prefixes::<()>::new(0).find(&tokens(&[(1, 20)])).is_none());
    }
}
