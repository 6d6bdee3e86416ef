//! Prometheus' classic text format, version 0.0.4, read strictly: what Go's `expfmt.TextParser` refuses fails here, and so
//! do comments, samples without a type, and families that come in pieces.

use std::collections::{BTreeMap, BTreeSet};

/// The types that the format has.
const TYPES: [&str; 5] = ["counter", "gauge", "histogram", "summary", "untyped"];

/// Samples by name and labels as written.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, f64>, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut helped, mut family) = (None, None);
    for line in text.lines() {
        let wrong = |rule: &str| format!("{rule}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, _) = rest.split_once(' ').ok_or_else(|| wrong("help without text"))?;
            helped = Some(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("a type without a name"))?;
            if !TYPES.contains(&kind) {
                return Err(wrong("no type of this format"));
            }
            if !is_name(name) || !families.insert(name) || helped.take().is_some_and(|helped| helped != name) {
                return Err(wrong("a family begins once, with its own help"));
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err(wrong("counters, and only they, are totals"));
            }
            family = Some((name, kind));
        } else {
            let (series, value) = sample(line).ok_or_else(|| wrong("no sample"))?;
            let name = series.split('{').next().unwrap_or_default();
            let (of, kind) = family.ok_or_else(|| wrong("a sample before its type"))?;
            let suffix = name.strip_prefix(of).ok_or_else(|| wrong("a sample of another family"))?;
            let fits = match kind {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                "summary" => ["", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            if !fits || suffix == "_bucket" && !series.contains("le=\"") {
                return Err(wrong("no sample of this type"));
            }
            if samples.insert(series.to_owned(), value).is_some() {
                return Err(wrong("a series comes twice"));
            }
        }
    }
    Ok(samples)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// Name and labels as written, and the value.
fn sample(line: &str) -> Option<(&str, f64)> {
    let end = line.find(['{', ' '])?;
    let mut rest = &line[end..];
    if let Some(labels) = rest.strip_prefix('{') {
        rest = labels;
        while !rest.starts_with('}') {
            let (name, value) = rest.split_once("=\"")?;
            let name_is_right = is_name(name) && !name.contains(':');
            let quote = closing_quote(value).filter(|_| name_is_right)?;
            rest = &value[quote + 1..];
            rest = rest.strip_prefix(',').or_else(|| rest.starts_with('}').then_some(rest))?;
        }
        rest = &rest[1..];
    }
    let series = &line[..line.len() - rest.len()];
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    is_name(&line[..end]).then_some((series, value))
}

/// Where a label's value ends; `None` if it does not, or has an escape that the format does not know.
fn closing_quote(value: &str) -> Option<usize> {
    let mut bytes = value.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => drop(bytes.next().filter(|(_, escaped)| matches!(escaped, b'\\' | b'"' | b'n'))?),
            _ => {}
        }
    }
    None
}
