//! Keys and values of requests that have ended, for those that begin alike: a system prompt is read once.

/// A shorter beginning is read again: copying it would not be worth a cache of its own.
const SHORTEST: usize = 16;

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

    /// Whether anything may be kept.
    pub(super) fn is_on(&self) -> bool {
        self.budget > 0
    }

    /// The cache that shares the longest beginning with `prompt`, and how many tokens of it. At least one token of the
    /// prompt is left to read, because its logits are wanted.
    pub(super) fn find(&mut self, prompt: &[u32]) -> Option<(&C, usize)> {
        let most = prompt.len().saturating_sub(1);
        let shared = |kept: &Kept<C>| common(&kept.tokens, prompt).min(most);
        let best = self.kept.iter_mut().max_by_key(|kept| shared(kept))?;
        let len = shared(best);
        if len < SHORTEST {
            return None;
        }
        self.clock += 1;
        best.used = self.clock;
        Some((&best.cache, len))
    }

    /// Keeps the cache of `tokens` for later, if it fits.
    pub(super) fn keep(&mut self, tokens: Vec<u32>, cache: C) {
        if tokens.len() < SHORTEST || tokens.len() > self.budget {
            return;
        }
        self.clock += 1;
        if let Some(longer) = self.kept.iter_mut().find(|kept| kept.tokens.starts_with(&tokens)) {
            longer.used = self.clock;
            return;
        }
        self.kept.retain(|kept| !tokens.starts_with(&kept.tokens));
        self.kept.push(Kept { tokens, cache, used: self.clock });
        let mut held: usize = self.kept.iter().map(|kept| kept.tokens.len()).sum();
        while held > self.budget
            && let Some(oldest) = (0..self.kept.len()).min_by_key(|at| self.kept[*at].used)
        {
            held -= self.kept.swap_remove(oldest).tokens.len();
        }
    }
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(parts: &[(u32, usize)]) -> Vec<u32> {
        parts.iter().flat_map(|(token, count)| std::iter::repeat_n(*token, *count)).collect()
    }

    #[test]
    fn the_longest_common_beginning_is_found_and_one_token_is_left_to_read() {
        let mut prefixes = Prefixes::new(1000);
        prefixes.keep(tokens(&[(1, 20), (2, 20)]), "short");
        prefixes.keep(tokens(&[(1, 20), (3, 40)]), "long");
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
            prefixes.keep(tokens(&[(token, 40)]), token);
            assert!(prefixes.find(&tokens(&[(0, 41)])).is_some(), "it was just used");
        }
        assert!(prefixes.find(&tokens(&[(1, 41)])).is_none());
        assert!(prefixes.find(&tokens(&[(2, 41)])).is_some());
        prefixes.keep(tokens(&[(7, 101)]), 7);
        assert!(prefixes.find(&tokens(&[(7, 101)])).is_none());
        assert_eq!(prefixes.kept.len(), 2);
    }

    #[test]
    fn a_longer_text_takes_the_place_of_its_beginning() {
        let mut prefixes = Prefixes::new(1000);
        prefixes.keep(tokens(&[(1, 20)]), "one");
        prefixes.keep(tokens(&[(1, 20), (2, 5)]), "two");
        prefixes.keep(tokens(&[(1, 18)]), "three");
        assert_eq!(prefixes.kept.iter().map(|kept| kept.cache).collect::<Vec<_>>(), ["two"]);
        assert!(Prefixes::<()>::new(0).find(&tokens(&[(1, 20)])).is_none());
    }
}
