//! Rules side by side on the same data: each run of a world is drawn once, and every rule looks at it.

use bitnet_core::simulate::interval;

/// The tick (or look) at which each rule fired in one run, in the order of the rules.
pub(crate) type Fired = Vec<Option<u32>>;

/// One column: a world and whether a good rule stays silent in it.
pub(crate) struct Column<W> {
    pub(crate) name: &'static str,
    pub(crate) silent: bool,
    pub(crate) world: W,
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

/// Prints a table: false alarms of silent worlds in percent; of the others `median/90 % quantile` of the time until it was
/// found, with the share that was found in front where that is not all.
pub(crate) fn print<W: Sync>(
    title: &str,
    rules: &[&str],
    columns: &[Column<W>],
    size: Size,
    one: impl Fn(&W, u64) -> Fired + Sync,
) {
    println!(
        "\n### {title}\n\n{} runs of each world in which nothing is wrong, {} of the others.\n",
        size.silent, size.bad
    );
    let names: Vec<&str> = columns.iter().map(|c| c.name).collect();
    println!("| rule | {} |\n|---{}|", names.join(" | "), "|---".repeat(columns.len()));
    let cells: Vec<Vec<String>> = columns
        .iter()
        .map(|column| {
            let runs = if column.silent { size.silent } else { size.bad };
            let fired = super::parallel(runs, |seed| one(&column.world, seed + 1));
            (0..rules.len()).map(|rule| cell(column.silent, fired.iter().map(|f| f[rule]))).collect()
        })
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        let row: Vec<&str> = cells.iter().map(|column| column[i].as_str()).collect();
        println!("| {rule} | {} |", row.join(" | "));
    }
}

fn cell(silent: bool, fired: impl Iterator<Item = Option<u32>>) -> String {
    let all: Vec<Option<u32>> = fired.collect();
    let mut times: Vec<u32> = all.iter().flatten().copied().collect();
    times.sort_unstable();
    let share = times.len() as f64 / all.len().max(1) as f64;
    let percent = short(100.0 * share);
    if silent || times.is_empty() {
        return percent;
    }
    let at = |p: f64| times[((times.len() as f64 * p) as usize).min(times.len() - 1)];
    let found = if times.len() == all.len() { String::new() } else { format!("{percent} %, ") };
    format!("{found}{}/{}", at(0.5), at(0.9))
}

/// At most three digits.
pub(crate) fn short(x: f64) -> String {
    if x == 0.0 {
        "0".into()
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
