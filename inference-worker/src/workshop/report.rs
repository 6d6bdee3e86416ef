//! An evaluation as text: Markdown with its picture beside it, or one HTML file.

use super::evaluate::{Evaluation, Measured, PromptFact, tail_is_shown};
use super::svg::{Bars, bars, escape};
use std::fmt::Write as _;

/// Prompts in the list of the worst.
const WORST: usize = 20;

/// The histogram of an evaluation, if there was a comparison.
pub fn picture(evaluation: &Evaluation) -> Option<String> {
    let measured = evaluation.measured.as_ref()?;
    let h = &measured.histogram;
    let gate = &evaluation.gate;
    let marks =
        [(gate.tail_min, format!("tail {}", gate.tail_min)), (gate.min_mean, format!("mean {}", gate.min_mean))];
    Some(bars(&Bars {
        title: "Cosine at all positions",
        range: (h.from, 1.0),
        series: [("candidate", &h.candidate), ("A/A noise floor", &h.floor)],
        marks: &marks,
    }))
}

/// Markdown; `picture` is the name of the file that holds [`picture`]. `texts`: the prompts, if they may be shown.
pub fn markdown(evaluation: &Evaluation, picture: &str, texts: Option<&[String]>) -> String {
    let mut out = format!("# Evaluation: {}\n\n{}\n\n", evaluation.verdict, sentence(evaluation));
    let Some(measured) = &evaluation.measured else {
        out += "| rule | baseline | candidate | |\n|---|---|---|---|\n";
        for rule in &evaluation.rules {
            let met = if rule.met { "ok" } else { rule.remedy };
            let _ = writeln!(out, "| {} | {} | {} | {met} |", rule.field, rule.baseline, rule.candidate);
        }
        return out;
    };
    out += "| | candidate | A/A noise floor |\n|---|---|---|\n";
    for [name, candidate, floor] in numbers(evaluation, measured) {
        let _ = writeln!(out, "| {name} | {candidate} | {floor} |");
    }
    let _ = writeln!(out, "\n![Histogram of cosines]({picture})\n\n## Worst prompts\n");
    let text_head = if texts.is_some() { " prompt |" } else { "" };
    let _ = writeln!(out, "| id | cosine | lowest | under tail | KL | top-1 |{text_head}");
    let _ = writeln!(out, "|---|---|---|---|---|---|{}", if texts.is_some() { "---|" } else { "" });
    for prompt in measured.prompts.iter().take(WORST) {
        let [id, rest @ ..] = cells(prompt);
        let _ = write!(out, "| {} | {} |", markdown_cell(&id), rest.join(" | "));
        if let Some(text) = texts.and_then(|texts| texts.get(prompt.index)) {
            let _ = write!(out, " {} |", markdown_cell(text));
        }
        out.push('\n');
    }
    let _ = writeln!(out, "\n{}", footer(evaluation));
    out
}

/// One HTML file with the picture inside.
pub fn html(evaluation: &Evaluation, texts: Option<&[String]>) -> String {
    let verdict = evaluation.verdict.to_string();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Evaluation: {verdict}</title>\n<style>\
         body{{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}\
         table{{border-collapse:collapse;margin:1em 0}}td,th{{border:1px solid #ccc;padding:.25em .6em;text-align:left}}\
         td{{font-variant-numeric:tabular-nums}}</style>\n<h1>Evaluation: {verdict}</h1>\n<p>{}</p>\n",
        escape(&sentence(evaluation))
    );
    let row = |cells: &[String], tag: &str| {
        let cells: Vec<String> = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{}</tr>\n", cells.join(""))
    };
    let head = |names: &[&str]| row(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), "th");
    let Some(measured) = &evaluation.measured else {
        out += "<table>\n";
        out += &head(&["rule", "baseline", "candidate", ""]);
        for rule in &evaluation.rules {
            let met = if rule.met { "ok" } else { rule.remedy };
            out += &row(&[rule.field.into(), rule.baseline.clone(), rule.candidate.clone(), met.into()], "td");
        }
        return out + "</table>\n";
    };
    out += "<table>\n";
    out += &head(&["", "candidate", "A/A noise floor"]);
    for cells in numbers(evaluation, measured) {
        out += &row(&cells, "td");
    }
    out += "</table>\n";
    out += &picture(evaluation).unwrap_or_default();
    out += "<h2>Worst prompts</h2>\n<table>\n";
    let mut names = vec!["id", "cosine", "lowest", "under tail", "KL", "top-1"];
    names.extend(texts.map(|_| "prompt"));
    out += &head(&names);
    for prompt in measured.prompts.iter().take(WORST) {
        let mut all = cells(prompt).to_vec();
        all.extend(texts.and_then(|texts| texts.get(prompt.index)).cloned());
        out += &row(&all, "td");
    }
    let _ = writeln!(out, "</table>\n<p>{}</p>", escape(&footer(evaluation)));
    out
}

/// The verdict in words, with the numbers that made it.
pub fn sentence(evaluation: &Evaluation) -> String {
    let gate = &evaluation.gate;
    let Some(measured) = &evaluation.measured else {
        let broken: Vec<&str> = evaluation.rules.iter().filter(|r| !r.met).map(|r| r.field).collect();
        return format!("The operator would not compare these models: they differ in {}.", broken.join(", "));
    };
    let r = &measured.rollouts;
    let needed = r.prompts.map_or_else(String::new, |(median, most)| {
        format!(
            " A verdict needs {median} prompts (90 %: {most}), {} ticks of {}.",
            median.div_ceil(gate.per_tick.max(1)),
            gate.per_tick
        )
    });
    format!(
        "Of {} simulated rollouts with gate {} (mean at least {}, at most {:.1} % under {}), quality is proven in {:.1} %, the mean disproven in {:.1} %, the tail disproven in {:.1} %, and {:.1} % reach the deadline undecided.{needed}",
        r.count,
        gate.name,
        gate.min_mean,
        gate.tail_share * 100.0,
        gate.tail_min,
        r.promoted * 100.0,
        r.rolled_back_by_mean * 100.0,
        r.rolled_back_by_tail * 100.0,
        r.undecided * 100.0
    )
}

fn numbers(evaluation: &Evaluation, measured: &Measured) -> Vec<[String; 3]> {
    let (c, f) = (&measured.similarity, &measured.floor);
    let line =
        |name: &str, a: f64, b: f64, digits: usize| [name.to_owned(), format!("{a:.digits$}"), format!("{b:.digits$}")];
    let mut all = vec![
        line("cosine, mean", c.mean, f.mean, 4),
        line("cosine, 5th percentile", c.fifth_percentile, f.fifth_percentile, 4),
        line("KL, nats", c.kl, f.kl, 5),
        line("same most likely token", c.top1, f.top1, 4),
        line("prompts", c.prompts as f64, f.prompts as f64, 0),
        line("logits that are no numbers", c.non_finite as f64, f.non_finite as f64, 0),
    ];
    if tail_is_shown(&evaluation.gate) {
        all.insert(2, line(&format!("positions under {}", evaluation.gate.tail_min), c.tail, f.tail, 4));
    }
    all
}

fn cells(p: &PromptFact) -> [String; 6] {
    [
        p.id.clone(),
        format!("{:.4}", p.cosine),
        format!("{:.4}", p.lowest),
        format!("{:.0} %", p.tail * 100.0),
        format!("{:.4}", p.kl),
        format!("{:.2}", p.top1),
    ]
}

fn footer(evaluation: &Evaluation) -> String {
    format!(
        "Quality only: latency and errors are judged from live traffic. A promotion needs at least {} prompts; the deadline is {} ticks. Probe set {}. The noise floor is the baseline against itself with sums in another order.",
        evaluation.gate.min_samples, evaluation.gate.ticks, evaluation.probe_set
    )
}

fn markdown_cell(text: &str) -> String {
    escape(text).replace('\n', " ").replace('|', "\\|")
}
