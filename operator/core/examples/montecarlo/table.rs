//! Rules side by side on the same data: each run of a world is drawn once, and every rule looks at it.

use super::promises::Promises;
use bitnet_core::simulate::interval;

/// The tick (or look) at which each rule fired in one run, in the order of the rules.
pub(crate) type Fired = Vec<Option<u32>>;

/// One column: a world, and what was promised of our rule in it.
pub(crate) struct Column<W> {
    name: &'static str,
    world: W,
    promise: Promise,
    /// The tick (or look) after which the defect begins.
    onset: u32,
}

#[derive(Clone, Copy)]
enum Promise {
    /// A good rule stays silent: it fires in at most this share of the runs.
    Silent(f64),
    /// It fires, with this median.
    Fires(Option<f64>),
}

impl<W> Column<W> {
    /// A world in which a good rule stays silent, but for the share `most` of the runs.
    pub(crate) fn silent(name: &'static str, world: W, most: f64) -> Self {
        Self { name, world, promise: Promise::Silent(most), onset: 0 }
    }

    /// A world with a defect that is to be found after `promised` (median; 0: nothing is promised).
    pub(crate) fn bad(name: &'static str, world: W, promised: f64) -> Self {
        Self { name, world, promise: Promise::Fires((promised > 0.0).then_some(promised)), onset: 0 }
    }

    /// The same from a tick (or look) on.
    pub(crate) fn from(self, onset: u32) -> Self {
        Self { onset, ..self }
    }
}

/// Runs of a silent world, and of one with a defect.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) silent: u64,
    pub(crate) bad: u64,
}

impl Size {
    /// The size of the tables, or a tenth of it to see that they can be made.
    pub(crate) fn of(short: bool, silent: u64, bad: u64) -> Self {
        if short { Self { silent: (silent / 50).max(4), bad: (bad / 50).max(4) } } else { Self { silent, bad } }
    }
}

/// Prints a table: false alarms of silent worlds in percent, with the upper end of their 95 % interval; of the others
/// `median/90 % quantile` of the time from a defect's beginning until it was found, with the share that was found in front where
/// that is not all. The last rule is ours: its row is held against the promises, with times up to one `unit` later.
pub(crate) fn print<W: Sync>(
    (title, unit): (&str, u32),
    rules: &[&str],
    columns: &[Column<W>],
    size: Size,
    promises: &mut Promises,
    one: impl Fn(&W, u64) -> Fired + Sync,
) {
    println!(
        "\n### {title}\n\n{} runs of each world in which nothing is wrong, {} of the others.\n",
        size.silent, size.bad
    );
    let names: Vec<&str> = columns.iter().map(|c| c.name).collect();
    println!("| rule | {} |\n|---{}|", names.join(" | "), "|---".repeat(columns.len()));
    let cells: Vec<Vec<Cell>> = columns
        .iter()
        .map(|column| {
            let silent = matches!(column.promise, Promise::Silent(_));
            let runs = if silent { size.silent } else { size.bad };
            let fired = super::parallel(runs, |seed| one(&column.world, seed + 1));
            (0..rules.len()).map(|rule| Cell::of(column.onset, fired.iter().map(|f| f[rule]))).collect()
        })
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let row: Vec<String> = cells
            .iter()
            .zip(columns)
            .map(|(column, c)| column[i].words(matches!(c.promise, Promise::Silent(_))))
            .collect();
        println!("| {rule} | {} |", row.join(" | "));
    }
    let short_title = title.split(':').next().unwrap_or(title);
    for (column, cells) in columns.iter().zip(&cells) {
        let Some(ours) = cells.last() else { continue };
        let what = format!("{short_title}: {}", column.name);
        match column.promise {
            Promise::Silent(most) => promises.at_most(&what, ours.times.len() as u64 + ours.early, ours.runs, most),
            Promise::Fires(Some(promised)) => {
                promises.delay(&what, ours.quantile(0.5).map(f64::from), promised, f64::from(unit));
            }
            Promise::Fires(None) => {}
        }
    }
}

/// When a rule fired in the runs of one world.
struct Cell {
    runs: u64,
    /// Times since the defect began, in rising order.
    times: Vec<u32>,
    /// Runs in which it fired before there was a defect.
    early: u64,
}

impl Cell {
    fn of(onset: u32, fired: impl Iterator<Item = Option<u32>>) -> Self {
        let mut cell = Self { runs: 0, times: Vec::new(), early: 0 };
        for time in fired {
            cell.runs += 1;
            match time {
                Some(time) if time > onset => cell.times.push(time - onset),
                Some(_) => cell.early += 1,
                None => {}
            }
        }
        cell.times.sort_unstable();
        cell
    }

    fn quantile(&self, p: f64) -> Option<u32> {
        let last = self.times.len().checked_sub(1)?;
        Some(self.times[((self.times.len() as f64 * p) as usize).min(last)])
    }

    fn words(&self, silent: bool) -> String {
        let found = self.times.len() as u64;
        if silent {
            let (_, high) = interval(found + self.early, self.runs);
            return format!("{} (≤ {})", percent(found + self.early, self.runs), short(100.0 * high));
        }
        let early =
            if self.early > 0 { format!(", {} % before", percent(self.early, self.runs)) } else { String::new() };
        let (Some(median), Some(late)) = (self.quantile(0.5), self.quantile(0.9)) else {
            return format!("0 %{early}");
        };
        let share = if found == self.runs { String::new() } else { format!("{} %, ", percent(found, self.runs)) };
        format!("{share}{median}/{late}{early}")
    }
}

fn percent(count: u64, runs: u64) -> String {
    short(100.0 * count as f64 / runs.max(1) as f64)
}

/// At most three digits.
pub(crate) fn short(x: f64) -> String {
    if x == 0.0 {
        "0".into()
    } else if x < 1.0 {
        format!("{x:.2}")
    } else if x < 10.0 {
        format!("{x:.1}")
    } else {
        format!("{x:.0}")
    }
}

/// A share with its 95 % interval, in percent.
pub(crate) fn with_interval(count: u64, runs: u64) -> String {
    let (low, high) = interval(count, runs);
    format!("{} ({:.1}-{:.1})", short(100.0 * count as f64 / runs as f64), 100.0 * low, 100.0 * high)
}

/// Remembers the first time that each rule fires.
pub(crate) struct Firsts(pub(crate) Fired);

impl Firsts {
    pub(crate) fn new(rules: usize) -> Self {
        Self(vec![None; rules])
    }

    pub(crate) fn at(&mut self, rule: usize, time: u32, fires: impl FnOnce() -> bool) {
        if self.0[rule].is_none() && fires() {
            self.0[rule] = Some(time);
        }
    }
}

/// Number, sum and sum of squares.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) n: f64,
    pub(crate) sum: f64,
    squares: f64,
}

impl Sums {
    pub(crate) fn add(&mut self, x: f64) {
        self.n += 1.0;
        self.sum += x;
        self.squares += x * x;
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.n
    }

    /// Variance of the mean.
    pub(crate) fn error(&self) -> f64 {
        ((self.squares - self.sum * self.sum / self.n) / (self.n - 1.0)).max(1e-12) / self.n
    }
}

/// Flagger's and Argo's way to end: so many failed checks within so many, `None` while there are fewer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Checks {
    failed: u32,
}

impl Checks {
    pub(crate) fn fails(&mut self, bad: bool, limit: u32) -> bool {
        self.failed += u32::from(bad);
        self.failed >= limit
    }
}

/// One-sided normal quantile of 1 %.
pub(crate) const Z: f64 = 2.326_347_874;

/// ln of 1/α at α = 1 %.
pub(crate) const BOUND: f64 = 4.605_170_185_988_091;
