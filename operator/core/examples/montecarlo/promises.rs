//! What was promised beside what was found: the program fails where they differ.

use bitnet_core::simulate::interval;

/// Promises and whether they were kept.
#[derive(Default)]
pub(crate) struct Promises {
    kept: usize,
    broken: Vec<String>,
}

impl Promises {
    fn note(&mut self, kept: bool, words: String) {
        if kept { self.kept += 1 } else { self.broken.push(words) }
    }

    /// At most the share `most` of the runs may end so; 0: none of them.
    pub(crate) fn at_most(&mut self, what: &str, count: u64, runs: u64, most: f64) {
        let (_, high) = interval(count, runs);
        let kept = count as f64 <= most * runs as f64;
        self.note(
            kept,
            format!(
                "{what}: {count} of {runs} runs (at most {:.2} % with 95 % certainty), promised: {:.1} %",
                100.0 * high,
                100.0 * most
            ),
        );
    }

    /// All runs end so, but for at most the share `but`.
    pub(crate) fn all_but(&mut self, what: &str, count: u64, runs: u64, but: f64) {
        let missed = runs - count;
        self.note(
            missed as f64 <= but * runs as f64,
            format!("{what}: {count} of {runs}, promised: {:.1} %", 100.0 * (1.0 - but)),
        );
    }

    /// The chance is at least `least`, as far as the runs can tell: the upper end of its 95 % interval reaches it.
    pub(crate) fn at_least(&mut self, what: &str, count: u64, runs: u64, least: f64) {
        let (_, high) = interval(count, runs);
        self.note(high >= least, format!("{what}: {count} of {runs} runs, promised: {:.1} %", 100.0 * least));
    }

    /// A quantity is at least this.
    pub(crate) fn quantity(&mut self, what: &str, found: f64, least: f64) {
        self.note(found >= least, format!("{what}: {found:.0}, promised: {least:.0}"));
    }

    /// A median is at most a tenth over the promised one, or one `unit` (tick, look) where that is more; `None`: it never came.
    pub(crate) fn delay(&mut self, what: &str, median: Option<f64>, promised: f64, unit: f64) {
        let kept = median.is_some_and(|m| m <= (promised * 1.1).max(promised + unit));
        let found = median.map_or("never".to_owned(), |m| m.to_string());
        self.note(kept, format!("{what}: found after {found}, promised: {promised}"));
    }

    /// Prints what came of them; whether all were kept.
    pub(crate) fn close(&self) -> bool {
        println!("\n{} promises kept, {} broken", self.kept, self.broken.len());
        for broken in &self.broken {
            println!("- {broken}");
        }
        self.broken.is_empty()
    }
}
