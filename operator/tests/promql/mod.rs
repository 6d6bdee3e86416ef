//! As much of PromQL as it takes to see which metrics an expression reads.

/// Words of the language that may stand where a metric's name may.
const WORDS: [&str; 15] = [
    "and",
    "or",
    "unless",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "inf",
    "nan",
    "start",
    "end",
];
/// Words that are followed by labels in parentheses.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Grafana's variables as one who looks at everything has them.
pub(crate) fn with_variables_set(expression: &str) -> String {
    let mut text = expression.replace("$__rate_interval", "1m").replace("$__range", "5m").replace("$__interval", "1m");
    for variable in ["$namespace", "$rollout", "$revision"] {
        text = text.replace(variable, ".*");
    }
    text
}

/// Names of metrics in an expression, in their order.
pub(crate) fn metrics(expression: &str) -> Vec<String> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        if c == '"' || c == '\'' {
            rest = after(&rest[1..], c, '\\');
        } else if c == '{' {
            rest = after_braces(rest);
        } else if c == '[' {
            rest = after(rest, ']', '\0');
        } else if c.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if name(c) {
            let word = &rest[..rest.find(|c| !name(c)).unwrap_or(rest.len())];
            rest = rest[word.len()..].trim_start();
            let lower = word.to_ascii_lowercase();
            if GROUPING.contains(&lower.as_str()) && rest.starts_with('(') {
                rest = after(rest, ')', '\0');
            } else if !WORDS.contains(&lower.as_str()) && !aggregates(rest) {
                found.push(word.to_owned());
            }
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    found
}

/// A word before this is a function or an aggregation: `sum (…)`, `sum by (…) (…)`.
fn aggregates(rest: &str) -> bool {
    rest.starts_with('(') || ["by (", "by(", "without (", "without("].iter().any(|group| rest.starts_with(group))
}

/// What follows the first `end` that is not escaped.
fn after(text: &str, end: char, escape: char) -> &str {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        if c == end && !escaped {
            return &text[i + c.len_utf8()..];
        }
        escaped = c == escape && !escaped;
    }
    ""
}

/// What follows the braces at the beginning; braces in their strings do not count.
fn after_braces(text: &str) -> &str {
    let mut rest = &text[1..];
    loop {
        match rest.chars().next() {
            Some('}') => return &rest[1..],
            Some('"') => rest = after(&rest[1..], '"', '\\'),
            Some(c) => rest = &rest[c.len_utf8()..],
            None => return "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_from_words_labels_and_functions() {
        for (expression, names) in [
            ("up", vec!["up"]),
            (r#"count by (phase) (a_phase{namespace=~"$x",y="}"} == 1)"#, vec!["a_phase"]),
            (
                "1000 * sum by (p) (rate(a_total[5m]) * on (n, pod) group_left (p) b_info) / c",
                vec!["a_total", "b_info", "c"],
            ),
            ("histogram_quantile(0.95, sum by (step, le) (rate(s_bucket[1m])))", vec!["s_bucket"]),
            ("absent(a:b) or vector(1) and b > 1e3 unless c offset 5m", vec!["a:b", "b", "c"]),
            (r#"label_replace(a, "x", "$1", "y", "(z)")"#, vec!["a"]),
        ] {
            assert_eq!(metrics(expression), names, "{expression}");
        }
    }
}
