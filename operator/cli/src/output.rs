//! Tables, machine-readable output, and small words for numbers and times.

use anyhow::{Context, Result};
use jiff::{SpanRound, Timestamp, Unit};
use serde::Serialize;
use serde_json::Value;
use std::io::IsTerminal;

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The object as JSON.
    Json,
    /// The object as YAML.
    Yaml,
    /// A table with more columns.
    Wide,
}

/// `-o` of what has no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Machine {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Prints an object as JSON or YAML.
pub(crate) fn print_machine(format: Machine, object: &impl Serialize) -> Result<()> {
    print_object(
        match format {
            Machine::Json => Format::Json,
            Machine::Yaml => Format::Yaml,
        },
        object,
    )
}

/// Prints objects as JSON or YAML.
pub(crate) fn print_object(format: Format, object: &impl Serialize) -> Result<()> {
    let text = match format {
        Format::Yaml => yaml(object)?,
        Format::Json | Format::Wide => serde_json::to_string_pretty(&sorted(object)?).context("writing JSON")? + "\n",
    };
    print!("{text}");
    Ok(())
}

/// Fields by name, as kubectl prints them, whether or not this build keeps JSON as it was written.
fn sorted(object: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(object).context("writing JSON")?;
    value.sort_all_objects();
    Ok(value)
}

/// YAML that means the same to kubectl, which reads YAML 1.1: there a plain `yes` is no text, and `1_0` is a number.
pub(crate) fn yaml(object: &impl Serialize) -> Result<String> {
    let text = serde_yaml::to_string(&sorted(object)?).context("writing YAML")?;
    let mut quoted = String::with_capacity(text.len());
    // Depth of the key whose text of several lines goes on: what looks like a scalar there is none.
    let mut block: Option<usize> = None;
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        if block.is_some_and(|key| depth > key || line.is_empty()) {
            quoted.extend([line, "\n"]);
            continue;
        }
        let last = line.rsplit(' ').next().unwrap_or_default();
        block = matches!(last.trim_end_matches(['-', '+']), "|" | ">" | "|2" | ">2").then_some(depth);
        let at = line.find(": ").or_else(|| line.rfind("- ")).map_or(line.len(), |at| at + 2);
        let (before, scalar) = line.split_at(at);
        let quote = if misread(scalar) { "'" } else { "" };
        quoted.extend([before, quote, scalar, quote, "\n"]);
    }
    Ok(quoted)
}

/// A plain scalar that is a text in YAML 1.2 and something else in 1.1.
fn misread(scalar: &str) -> bool {
    let word = scalar.to_ascii_lowercase();
    let digits = word.strip_prefix(['-', '+']).unwrap_or(&word);
    let number = digits.starts_with(|c: char| c.is_ascii_digit()) && digits.contains('_');
    matches!(word.as_str(), "y" | "n" | "yes" | "no" | "on" | "off")
        || (number && digits.bytes().all(|b| b.is_ascii_hexdigit() || b"_.xob".contains(&b)))
}

/// Rows as columns, as kubectl prints them.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut out = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    text
}

/// Time since `then` as kubectl writes it: `42s`, `5m`, `3h`, `2d`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// A time as people read it, in their zone, without fractions.
pub(crate) fn moment(text: &str) -> String {
    let Ok(time) = text.parse::<Timestamp>() else { return text.to_owned() };
    time.round(Unit::Second).unwrap_or(time).to_string()
}

/// Time from one moment to another in words, `-` where either is unknown.
pub(crate) fn span(from: Option<&str>, to: Option<&str>) -> Option<String> {
    let (from, to): (Timestamp, Timestamp) = (from?.parse().ok()?, to?.parse().ok()?);
    let span = (to - from).round(SpanRound::new().largest(Unit::Hour).smallest(Unit::Second)).ok()?;
    Some(format!("{span:#}"))
}

/// Colours, on a terminal only and never with `NO_COLOR`.
#[derive(Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    /// What standard output can take.
    pub(crate) fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    /// Never any colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self(false)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stay_texts_for_who_reads_yaml_1_1() {
        let object = serde_json::json!({
            "a": "yes", "b": ["On", "n", "fine"], "c": {"d": "1_000", "e": 5, "f": true, "g": "true", "h": "a: no"},
            "i": [["no"]], "j": "several\nlines: yes\n- no\n", "k": "off",
        });
        let text = yaml(&object).unwrap();
        for part in [
            "a: 'yes'",
            "- 'On'",
            "- 'n'",
            "- fine",
            "d: '1_000'",
            "e: 5",
            "f: true",
            "g: 'true'",
            "- - 'no'",
            "k: 'off'",
        ] {
            assert!(text.lines().any(|line| line.trim() == part), "{part}: {text}");
        }
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), object);
    }

    #[test]
    fn columns_line_up() {
        let text =
            table(&["NAME", "PHASE"], &[vec!["a-long-name".into(), "Serving".into()], vec!["b".into(), "x".into()]]);
        assert_eq!(text, "NAME          PHASE\na-long-name   Serving\nb             x\n");
    }

    #[test]
    fn ages_are_kubectls() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let at = |s: i64| age(Timestamp::from_second(now.as_second() - s).unwrap(), now);
        assert_eq!((at(5), at(600), at(8000), at(200_000)), ("5s".into(), "10m".into(), "2h".into(), "2d".into()));
        assert_eq!(at(-5), "0s");
    }
}
