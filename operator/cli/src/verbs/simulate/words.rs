//! A forecast in words and tables.

use super::answer::{Chance, Outlook, Prediction, Quantiles, UsersOutlook};
use crate::{
    assume::percent,
    files::length,
    output::{Paint, table},
};
use bitnet_core::Span;
use std::fmt::Write;

pub(super) fn words(p: &Prediction, paint: Paint) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}, gate {}", paint.bold(&p.subject), p.strategy, p.gate);
    let good = &p.good;
    let traffic =
        if p.requests_per_second > 0.0 { format!("{} requests/s", p.requests_per_second) } else { "no traffic".into() };
    let _ = writeln!(text, "{traffic}, {} simulated rollouts of a good candidate, seed {}\n", good.runs, p.seed);
    let promoted = match &good.seconds_until_promoted {
        Some(time) => format!("{}, after {}", chance(&good.promoted), times(time)),
        None => format!("{}: none was", chance(&good.promoted)),
    };
    let what = if p.reports_only { "gate's proofs  " } else { "promoted       " };
    let _ = writeln!(text, "  {what} {promoted}");
    let _ = writeln!(
        text,
        "  rolled back     {}; by its confidence the gate promises at most {} %",
        chance(&good.rolled_back),
        percent(p.promised_false_rollback)
    );
    let undecided = if good.inconclusive.share > 0.0 {
        let waits: Vec<&str> = good.waited_for.iter().map(|c| c.what.as_str()).collect();
        format!(", waiting for {} ({})", waits.join(", "), p.at_deadline)
    } else {
        String::new()
    };
    let _ = writeln!(text, "  undecided       {}{undecided}\n", chance(&good.inconclusive));
    let rows: Vec<Vec<String>> = p.defects.iter().map(|d| row(d, paint)).collect();
    let header = ["DEFECT", "FOUND", "AFTER (80 % OF RUNS)", "BY", "LIVE REQUESTS SERVED", "PROMOTED"];
    text += &table(&header, &rows);
    if !p.users.is_empty() {
        let header = ["USERS FARE", "BETTER", "WORSE", "NO DIFFERENCE", "MISMATCH", "PROVEN AFTER"];
        let rows: Vec<Vec<String>> = p.users.iter().map(users_row).collect();
        let _ = write!(text, "\n{}", table(&header, &rows));
    }
    if let Some(guard) = &p.guard {
        let _ = writeln!(
            text,
            "\nguard: fp16 is compared every {}; on its margins a model is called after {:.0} days on average or later, this one \
             in {} of {} comparisons",
            length(Span((guard.interval_seconds * 1000.0) as i64)),
            guard.days_to_false_alarm,
            chance(&guard.healthy_called),
            guard.healthy_ticks
        );
        let rows = guard.defects.iter().map(|d| {
            let time = d.seconds_until_called.as_ref().map_or("-".into(), times);
            vec![d.defect.clone(), format!("{} %", percent(d.called.share)), time]
        });
        text += &table(&["DEFECT AFTER THE PROMOTION", "CALLED", "AFTER (80 % OF RUNS)"], &rows.collect::<Vec<_>>());
    }
    for remark in &p.remarks {
        let _ = writeln!(text, "{} {remark}", paint.warn("note:"));
    }
    text
}

fn users_row(users: &UsersOutlook) -> Vec<String> {
    let share = |chance: &Chance| format!("{} %", percent(chance.share));
    vec![
        users.users.clone(),
        share(&users.candidate_better),
        share(&users.candidate_worse),
        share(&users.no_difference_proven),
        share(&users.sample_ratio_mismatch),
        users.seconds_until_proven.as_ref().map_or("-".into(), times),
    ]
}

fn row(outlook: &Outlook, paint: Paint) -> Vec<String> {
    let time = outlook.seconds_until_rolled_back.as_ref().map_or("-".into(), times);
    let by: Vec<&str> = outlook.rolled_back_for.iter().map(|c| c.what.as_str()).collect();
    let promoted = format!("{} %", percent(outlook.promoted.share));
    vec![
        outlook.candidate.clone(),
        format!("{} %", percent(outlook.rolled_back.share)),
        time,
        if by.is_empty() { "-".into() } else { by.join(", ") },
        format!("{:.0} ({:.0})", outlook.live_requests.p50, outlook.live_requests.p90),
        if outlook.promoted.share > 0.0 { paint.warn(&promoted) } else { promoted },
    ]
}

/// `97.5 % (95.2 to 98.9)`.
fn chance(chance: &Chance) -> String {
    let Chance { share, at_least, at_most } = chance;
    format!("{} % ({} to {})", percent(*share), percent(*at_least), percent(*at_most))
}

/// `31m (27m to 42m)`.
fn times(time: &Quantiles) -> String {
    let of = |seconds: f64| length(Span((seconds * 1000.0) as i64));
    format!("{} ({} to {})", of(time.p50), of(time.p10), of(time.p90))
}
