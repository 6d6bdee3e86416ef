//! The text formats of `/metrics`, and which one a scraper asks for.
//!
//! `prometheus-client` writes OpenMetrics. Prometheus asks for it by name; what parses with Go's `expfmt` (the endpoint
//! picker of the Gateway API's inference extension, promtool) reads only the classic format and asks for nothing.

use std::fmt::Write;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' own text format, which every scraper reads.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// The format that the values of a request's `Accept` headers ask for: OpenMetrics where it is named and plain text is
    /// not wanted more.
    pub fn asked<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut plain, mut open) = (0.0, 0.0);
        for range in accept.into_iter().flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let wanted = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "text/plain" => &mut plain,
                "application/openmetrics-text" => &mut open,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            *wanted = f64::max(*wanted, quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)));
        }
        if open > 0.0 && open >= plain { Self::OpenMetrics } else { Self::Classic }
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What `prometheus-client` has encoded, in this format.
    pub fn text(self, encoded: String) -> String {
        match self {
            Self::Classic => classic(&encoded),
            Self::OpenMetrics => encoded,
        }
    }
}

/// The classic format names a counter's family as its samples are named, and knows neither units nor an end.
fn classic(encoded: &str) -> String {
    let mut text = String::with_capacity(encoded.len());
    let mut help = None;
    for line in encoded.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        if let Some(said) = line.strip_prefix("# HELP ") {
            // Written once the type is known.
            help = said.split_once(' ').map(|(_, said)| said);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some(said) = help.take() {
                // Writing into a String cannot fail.
                let _ = writeln!(text, "# HELP {name}{suffix} {said}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        // As Prometheus 2.49 and later ask, and as Go's promhttp is asked by older ones.
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for accept in [prometheus, "Application/OpenMetrics-Text", "text/plain;q=0.5, application/openmetrics-text"] {
            assert_eq!(Exposition::asked([accept]), Exposition::OpenMetrics, "{accept}");
        }
        let classic = [
            "",
            "*/*",
            "text/plain",
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text; q=x",
            "application/openmetrics-text2",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        ];
        for accept in classic {
            assert_eq!(Exposition::asked([accept]), Exposition::Classic, "{accept}");
        }
        assert_eq!(Exposition::asked([]), Exposition::Classic, "who says nothing");
        let two = ["text/plain;q=0.1", "application/openmetrics-text;q=0.2"];
        assert_eq!(Exposition::asked(two), Exposition::OpenMetrics, "two headers are one list");
    }

    #[test]
    fn the_classic_format_names_counters_by_their_samples_and_has_no_end() {
        let encoded = "# HELP a_seconds Some time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total 1\n\
                       # HELP g A gauge.\n# TYPE g gauge\ng{l=\"# EOF\"} 2\n# EOF\n";
        let classic = "# HELP a_seconds_total Some time.\n# TYPE a_seconds_total counter\na_seconds_total 1\n\
                       # HELP g A gauge.\n# TYPE g gauge\ng{l=\"# EOF\"} 2\n";
        assert_eq!(Exposition::Classic.text(encoded.to_owned()), classic);
        assert_eq!(Exposition::OpenMetrics.text(encoded.to_owned()), encoded);
    }
}
