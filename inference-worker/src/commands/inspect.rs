//! `inference-worker inspect`.

use inference_worker::workshop::inspect::{Inspection, Rule, inspect, pair_rules};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model directory.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// A candidate to be compared with it: exit status 1 if the two cannot be a pair.
    #[arg(value_name = "CANDIDATE")]
    candidate: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// With `table`: leave the single tensors out.
    #[arg(long)]
    summary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Table,
    Json,
    Yaml,
}

/// What is printed for a pair.
#[derive(Serialize)]
struct Pair {
    baseline: Inspection,
    candidate: Inspection,
    rules: Vec<Rule>,
    comparable: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let model = inspect(&args.model)?;
    let Some(candidate) = &args.candidate else {
        print!("{}", written(args, &model, |m| table(m, args.summary))?);
        return Ok(());
    };
    let candidate = inspect(candidate)?;
    let rules = pair_rules(&model, &candidate);
    let comparable = rules.iter().all(|rule| rule.met);
    let pair = Pair { baseline: model, candidate, rules, comparable };
    let as_table = |pair: &Pair| {
        let models = [&pair.baseline, &pair.candidate].map(|m| table(m, args.summary));
        format!("{}\n{}", models.join("\n"), rule_table(pair))
    };
    print!("{}", written(args, &pair, as_table)?);
    anyhow::ensure!(
        comparable,
        "{} and {} cannot be a pair: the operator would refuse the candidate as NotComparable",
        pair.baseline.path,
        pair.candidate.path
    );
    Ok(())
}

fn written<T: Serialize>(args: &Args, what: &T, table: impl Fn(&T) -> String) -> anyhow::Result<String> {
    Ok(match args.output {
        Form::Table => table(what),
        Form::Json => serde_json::to_string_pretty(what)? + "\n",
        Form::Yaml => serde_yaml::to_string(what)?,
    })
}

fn table(model: &Inspection, summary: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    let m = &model.model;
    line("model", model.path.clone());
    line("digest", model.digest.clone());
    line("class", format!("{}, {}, linear layers {}", m.class, m.activation, m.linear));
    line(
        "shape",
        format!(
            "width {}, {} layers, {} heads on {} of {}, feed-forward {}, vocabulary {}{}, context {}, rope base {}",
            m.width,
            m.layers,
            m.heads,
            m.kv_heads,
            m.head_dim,
            m.ffn,
            m.vocabulary,
            if m.tied { " (tied head)" } else { "" },
            m.context,
            m.rope_theta
        ),
    );
    let kv = if m.kv_bits < 32 { format!(", keys and values {} bits", m.kv_bits) } else { String::new() };
    line("rounding", format!("activations of quantised layers {} bits{kv}", m.activation_bits));
    line("end of text", format!("{:?}", m.eos));
    match &model.text {
        Some(text) => {
            line("tokenizer", text.tokenizer.clone());
            line("template", if text.has_template { text.chat_template.clone() } else { "none".to_owned() });
        }
        None => line("tokenizer", "none: the model cannot be served".to_owned()),
    }
    line("weights", format!("{} in {}", model.weights, bytes(model.bytes)));
    for (precision, total) in &model.precisions {
        line("", format!("{precision}: {} in {} tensors, {}", total.weights, total.tensors, bytes(total.bytes)));
    }
    line("memory", format!("weights {}", bytes(model.memory.weights)));
    for kv in &model.memory.kv {
        let whole = bytes(kv.full_context);
        line("", format!("kv {:>2} bits: {} bytes per token, {whole} for a full context", kv.bits, kv.bytes_per_token));
    }
    if summary {
        return text;
    }
    let width = model.tensors.iter().map(|t| t.name.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(
        text,
        "\n{:<width$}  {:<9} {:>14} {:>12} {:>12} {:>7} {:>6}",
        "tensor", "precision", "shape", "bytes", "scale", "zeros", "broken"
    );
    for t in &model.tensors {
        let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        let scale = t.scale.map_or_else(|| "-".to_owned(), |s| format!("{s:.5}"));
        let _ = writeln!(
            text,
            "{:<width$}  {:<9} {shape:>14} {:>12} {scale:>12} {:>6.2}% {:>6}",
            t.name,
            t.precision,
            t.bytes,
            t.zeros * 100.0,
            t.broken
        );
    }
    text
}

fn rule_table(pair: &Pair) -> String {
    let mut text = String::new();
    for rule in &pair.rules {
        let _ = if rule.met {
            writeln!(text, "{:<13} ok        {}", rule.field, rule.candidate)
        } else {
            let Rule { field, baseline, candidate, remedy, .. } = rule;
            writeln!(text, "{field:<13} DIFFERS   {baseline} and {candidate}: {remedy}")
        };
    }
    text
}

fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!([bytes(9_999), bytes(10_000), bytes(12_345_678)], ["9999 B", "10.0 kB", "12.3 MB"]);
    }
}
