//! A live view of all rollouts: their numbers, and how the numbers went since the view was opened.

use crate::{
    cluster::Place,
    output::{Paint, table},
};
use anyhow::{Context, Result};
use bitnet_api::v1alpha1::ModelRollout;
use console::Term;
use futures::StreamExt;
use kube::{
    ResourceExt,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    process::ExitCode,
    time::Duration,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// All namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only rollouts that move, wait for somebody, or were rolled back.
    #[arg(long)]
    active: bool,
    /// Print the picture once.
    #[arg(long)]
    once: bool,
}

/// Values that a sparkline shows.
const WIDTH: usize = 16;
/// Shortest time between two pictures.
const PAUSE: Duration = Duration::from_millis(250);

pub(crate) async fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let connection = place.connect().await?;
    let api = if args.all_namespaces { connection.everywhere() } else { connection.api::<ModelRollout>() };
    let terminal = Term::stdout();
    let live = terminal.is_term() && !args.once;
    let mut view = View { namespaces: args.all_namespaces, active: args.active, ..View::default() };
    let mut changes = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let _screen = live.then(Screen::open);
    let mut tick = tokio::time::interval(PAUSE);
    let (mut stale, mut listed) = (true, false);
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            change = changes.next() => match change {
                Some(Ok(event)) => {
                    listed |= matches!(event, Event::InitDone);
                    view.take(event);
                    stale = true;
                    view.trouble = None;
                }
                // The watch comes again by itself; before the first list it is an error of the caller's.
                Some(Err(error)) if !listed => return Err(error).context("watching ModelRollouts"),
                Some(Err(error)) => (view.trouble, stale) = (Some(error.to_string()), true),
                None => return Ok(ExitCode::SUCCESS),
            },
            _ = tick.tick(), if stale && listed => {
                if !live {
                    print!("{}", view.picture(Paint::detect()));
                    return Ok(ExitCode::SUCCESS);
                }
                draw(&terminal, &view.picture(Paint::detect()));
                stale = false;
            }
        }
    }
}

/// The other screen of the terminal, given back when this is dropped.
struct Screen;

impl Screen {
    fn open() -> Self {
        print!("\x1b[?1049h\x1b[?25l");
        Self
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = std::io::stdout().flush();
    }
}

/// In place, cut to what the terminal holds.
fn draw(terminal: &Term, picture: &str) {
    let (rows, columns) = terminal.size();
    let mut text = String::from("\x1b[H");
    for line in picture.lines().take(usize::from(rows).saturating_sub(1)) {
        text.push_str(&console::truncate_str(line, usize::from(columns), "…"));
        text.push_str("\x1b[K\n");
    }
    text.push_str("\x1b[J");
    print!("{text}");
    let _ = std::io::stdout().flush();
}

/// A rollout and how its numbers went.
#[derive(Default)]
struct Row {
    rollout: Option<ModelRollout>,
    tick: Option<i32>,
    cosine: VecDeque<f64>,
    latency: VecDeque<f64>,
    against: VecDeque<f64>,
}

#[derive(Default)]
struct View {
    namespaces: bool,
    active: bool,
    trouble: Option<String>,
    rows: BTreeMap<(String, String), Row>,
    /// Names of a list that is still coming.
    listing: Vec<(String, String)>,
}

impl View {
    fn take(&mut self, event: Event<ModelRollout>) {
        let key = |rollout: &ModelRollout| (rollout.namespace().unwrap_or_default(), rollout.name_any());
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(rollout) => {
                self.listing.push(key(&rollout));
                self.rows.entry(key(&rollout)).or_default().see(rollout);
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut self.listing);
                self.rows.retain(|key, _| listing.contains(key));
            }
            Event::Apply(rollout) => self.rows.entry(key(&rollout)).or_default().see(rollout),
            Event::Delete(rollout) => drop(self.rows.remove(&key(&rollout))),
        }
    }

    fn picture(&self, paint: Paint) -> String {
        let mut header = vec![
            "NAME", "PHASE", "STEP", "WEIGHT", "VERDICT", "COSINE", "", "LATENCY", "", "ERRORS", "AGAINST", "",
            "MESSAGE",
        ];
        if self.namespaces {
            header.insert(0, "NAMESPACE");
        }
        let shown = self.rows.iter().filter_map(|(key, row)| Some((key, row, row.rollout.as_ref()?.status.clone()?)));
        let rows: Vec<Vec<String>> = shown
            .filter(|(_, _, status)| !self.active || status.phase != "Serving")
            .map(|((namespace, name), row, status)| {
                let step = status.step.clone().unwrap_or_default();
                let of = |name: &str| {
                    status.signals.iter().find(|s| s.name == name).and_then(|s| s.estimate.clone()).unwrap_or_default()
                };
                let mut cells = vec![
                    name.clone(),
                    status.phase.clone(),
                    step.position,
                    format!("{} %", step.weight),
                    status.verdict.clone().unwrap_or_default(),
                    of("cosine"),
                    sparkline(&row.cosine),
                    of("latency"),
                    sparkline(&row.latency),
                    of("errors"),
                    row.against.back().map(|value| format!("e^{value:.1}")).unwrap_or_default(),
                    sparkline(&row.against),
                    status.message.clone(),
                ];
                if self.namespaces {
                    cells.insert(0, namespace.clone());
                }
                cells
            })
            .collect();
        let moving = self.rows.values().filter(|row| row.phase() == "Progressing").count();
        let mut text = format!("{} rollouts, {moving} progressing   (Ctrl-C ends it)\n", self.rows.len());
        if let Some(trouble) = &self.trouble {
            text.push_str(&paint.bad(&format!("not live: {trouble}")));
            text.push('\n');
        }
        text.push_str(&table(&header, &rows));
        text
    }
}

impl Row {
    fn see(&mut self, rollout: ModelRollout) {
        let status = rollout.status.clone().unwrap_or_default();
        let before = self.rollout.as_ref().and_then(|rollout| rollout.status.as_ref()).and_then(|s| s.attempt);
        if before != status.attempt {
            (self.cosine, self.latency, self.against, self.tick) = Default::default();
        }
        if status.tick.is_some() && self.tick != status.tick {
            self.tick = status.tick;
            let number = |name: &str| {
                status.signals.iter().find(|s| s.name == name).and_then(|s| s.estimate.as_ref()?.parse::<f64>().ok())
            };
            push(&mut self.cosine, number("cosine"));
            push(&mut self.latency, number("latency"));
            let evidence = status.signals.iter().filter_map(|s| s.evidence.as_ref()?.parse::<f64>().ok());
            push(&mut self.against, evidence.reduce(f64::max));
        }
        self.rollout = Some(rollout);
    }

    fn phase(&self) -> &str {
        let status = self.rollout.as_ref().and_then(|rollout| rollout.status.as_ref());
        status.map(|status| status.phase.as_str()).unwrap_or_default()
    }
}

fn push(values: &mut VecDeque<f64>, value: Option<f64>) {
    values.extend(value.filter(|value| value.is_finite()));
    while values.len() > WIDTH {
        values.pop_front();
    }
}

/// Eight heights between the least and the greatest of the values; a constant is a low line.
fn sparkline(values: &VecDeque<f64>) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: f64| if high > low { ((value - low) / (high - low) * 7.0).round() as usize } else { 0 };
    values.iter().map(|value| HEIGHTS[height(*value).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rollout(name: &str, attempt: i32, tick: i32, cosine: &str) -> ModelRollout {
        let image = |digit: &str| json!({"source": {"image": format!("r.example/m@sha256:{}", digit.repeat(64))}});
        let signals: Value =
            json!([{"name": "cosine", "verdict": "Continue", "samples": 8, "estimate": cosine, "evidence": "-0.5"}]);
        serde_json::from_value(json!({
            "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
            "metadata": {"name": name, "namespace": "team"},
            "spec": {"baseline": image("a"), "model": image("b"), "route": {"httpRoute": "r"}, "gate": {"name": "g"}},
            "status": {"phase": "Progressing", "attempt": attempt, "tick": tick, "signals": signals,
                       "step": {"index": 1, "of": 5, "position": "1/5", "weight": 5}},
        }))
        .unwrap()
    }

    #[test]
    fn lines_rise_and_fall_and_a_constant_is_low() {
        let of = |values: &[f64]| sparkline(&values.iter().copied().collect());
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), "▁▂▃▄▅▆▇█");
        assert_eq!(of(&[0.5, 0.5]), "▁▁");
        assert_eq!(of(&[]), "");
    }

    #[test]
    fn a_tick_is_one_point_and_an_attempt_begins_anew() {
        let mut view = View::default();
        view.take(Event::Init);
        view.take(Event::InitApply(rollout("chat", 1, 1, "0.95")));
        view.take(Event::InitDone);
        for tick in [2, 2, 3] {
            view.take(Event::Apply(rollout("chat", 1, tick, "0.97")));
        }
        let key = ("team".to_owned(), "chat".to_owned());
        assert_eq!(view.rows[&key].cosine, [0.95, 0.97, 0.97]);
        let text = view.picture(Paint::plain());
        assert!(text.starts_with("1 rollouts, 1 progressing"), "{text}");
        assert!(text.contains("0.97") && text.contains("▁██") && text.contains("e^-0.5"), "{text}");
        view.take(Event::Apply(rollout("chat", 2, 1, "0.5")));
        assert_eq!(view.rows[&key].cosine, [0.5]);
        for tick in 0..100 {
            view.take(Event::Apply(rollout("chat", 3, tick, "0.9")));
        }
        assert_eq!(view.rows[&key].cosine.len(), WIDTH);
        // What a new list does not hold is gone.
        view.take(Event::Init);
        view.take(Event::InitApply(rollout("other", 1, 1, "0.9")));
        view.take(Event::InitDone);
        assert!(!view.rows.contains_key(&key) && view.rows.len() == 1);
    }
}
