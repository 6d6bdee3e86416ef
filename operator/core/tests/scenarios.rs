//! Scripted scenarios: small text files run against a tiny world, their timelines compared with golden files.
//!
//! A script is a list of lines (`#` begins a comment):
//! ```text
//! given replicas=2 steps=5:20:pods=1,10:20:match traffic=20 route=own …   the rollout, before it starts
//! worker NAME cosine=.8 tail=.2 errors=.5 ready=60 …         what the pods of a revision do
//! model NAME · baseline NAME · replicas N · steps …          edits of the spec
//! evidence-steps … · bluegreen [auto|manual] [host=NAME]      the same: pace by evidence, another strategy
//! abtest WEIGHT:SECONDS [promote] [header] [match] [nometric] an A/B test (cookie, conversion and report by default)
//! guard SECONDS                                              the guard looks so often (0: it is off)
//! newcomers N · lost SHARE · rules gone|altered               users per second, of the candidate's the lost, the derived rules
//! given capacity=swap room=4                                stable's pods make room; places for pods that are not fp16's
//! set deadline=60 min-samples=100 …                          edits of the gate
//! pause on|off · delete · verb VERB [BY] [stale]
//! kill NAME [PODS] · down NAME · up NAME · hand NAME=W NAME=W       things that happen
//! restart · wipe · crash N · gateway stop|go · route gone|back|unreadable|readable · originals gone|ready
//! service gone                                               somebody deletes the Service of fp16 for single requests
//! away SECONDS                                              the operator is not there
//! mark                                                      what `quiet` compares with
//! run SECONDS · until FIELD=VALUE SECONDS                    time passes
//! expect FIELD=VALUE …                                       facts
//! ```
//! Fields: `service` (the one of fp16), `phase`, `reason`, `weight.NAME`, `most.NAME`, `pods.NAME`, `writes`, `patches`, `stable`, `attempt`, `gone`,
//! `decisions`, `ticks`, `preview`, `rules`, `quiet` (no route write and no patch of status since `mark`). `UPDATE_GOLDEN=1` writes the golden files anew.

#![allow(clippy::unwrap_used, reason = "a script that cannot be read fails its test")]

mod world;

use bitnet_core::{
    Span, Time,
    evidence::{OnInconclusive, OnNoTraffic},
    model::{Capacity, DeletionPolicy, Revision, RouteTarget},
    observation::{Detour, DetourState, Detours, Preview, Verb, VerbRequest},
    plan::{Plan, PreviewWrite, RouteWrite, Shrink},
    report::Reason,
};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};
use world::{
    World,
    spec::{ab_test, blue_green, by_evidence, canary, guard, revision, rollout, serving, short},
};

/// Fields that later specs take over, by revision name.
struct Runner {
    world: World,
    start: Time,
    timeline: String,
    last: String,
    verbs: u32,
    precisions: BTreeMap<String, &'static str>,
    wake: Span,
    mark: (u32, u32),
    route: Option<bitnet_core::observation::Route>,
}

impl Runner {
    fn new() -> Self {
        let world = World::new(rollout(), 7);
        let start = world.now;
        Self {
            world,
            start,
            timeline: String::new(),
            last: String::new(),
            verbs: 0,
            precisions: BTreeMap::new(),
            wake: Span(0),
            mark: (0, 0),
            route: None,
        }
    }

    fn say(&mut self, text: &str) {
        let t = (self.world.now - self.start).as_seconds();
        writeln!(self.timeline, "{t:8.1}s  {text}").unwrap();
    }

    fn look(&mut self) {
        let before = self.world.now;
        let plan = self.world.reconcile();
        assert_eq!(before, self.world.now);
        self.wake = plan.requeue_after;
        self.record(&plan);
    }

    fn record(&mut self, plan: &Plan) {
        if let Some((revision, n)) = &plan.regrow {
            self.say(&format!("  regrow {} to {n}", short(&revision.0)));
        }
        for grow in &plan.grow {
            let n = grow.replicas.map_or("as it is".into(), |n| n.to_string());
            self.say(&format!("  grow {} to {n}", short(&grow.serving.revision.0)));
        }
        let weights =
            |b: &[(Revision, u32)]| b.iter().map(|(r, w)| format!("{}={w}", short(&r.0))).collect::<Vec<_>>().join(" ");
        match &plan.shift {
            Some(
                RouteWrite::Create { backends, ledger } | RouteWrite::Set { backends, ledger, decision: None, .. },
            ) => {
                self.say(&format!("  route {} (epoch {}, step {})", weights(backends), ledger.epoch, ledger.step));
            }
            Some(RouteWrite::Set { backends, ledger, decision: Some(d), .. }) => {
                let text = format!("  route {} (epoch {}) {}", weights(backends), ledger.epoch, d.verdict.name());
                self.say(&format!("{text} of attempt {} by {} in tick {}", d.key.attempt, d.by, d.tick));
            }
            Some(other) => self.say(&format!("  route {other:?}")),
            None => {}
        }
        match &plan.preview {
            Some(PreviewWrite::Create { host, revision }) => {
                self.say(&format!("  preview {host} to {}", short(&revision.0)));
            }
            Some(PreviewWrite::Delete) => self.say("  preview away"),
            None => {}
        }
        if let Some(record) = &plan.record {
            self.say(&format!("  record {}", record.verdict.name()));
        }
        for shrink in &plan.shrink {
            let text = match shrink {
                Shrink::ToZero(r) => format!("{} to 0", short(&r.0)),
                Shrink::To(r, n) => format!("{} to {n}", short(&r.0)),
                Shrink::Delete(r) => format!("{} away", short(&r.0)),
                Shrink::Orphan(r) => format!("{} orphaned", short(&r.0)),
            };
            self.say(&format!("  shrink {text}"));
        }
        for event in &plan.events {
            let kind = if event.warning { "!" } else { "-" };
            self.say(&format!(
                "  {kind} {:?} {}: {}",
                event.note.reason,
                self.names(&event.note.object),
                self.names(&event.note.message)
            ));
        }
        for answered in &plan.answered {
            self.say(&format!("  answered {}: {}", answered.verb.name(), self.names(&answered.outcome)));
        }
        let report = &plan.report;
        let mut now = format!("{} {:?}", report.phase.name(), report.headline.reason);
        if !matches!(report.headline.reason, Reason::Preflight | Reason::Step | Reason::Preview) {
            write!(now, ": {}: {}", self.names(&report.headline.object), self.names(&report.headline.message)).unwrap();
        }
        for note in report.notes.iter().filter(|n| n.reason != Reason::FewPods) {
            write!(now, " [{:?}]", note.reason).unwrap();
        }
        if now != self.last {
            self.say(&now);
            self.last = now;
        }
    }

    fn names(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for revision in self.world.behaviours.keys().chain(self.world.deployments.keys()) {
            out = out.replace(&revision.0, short(&revision.0));
        }
        out
    }

    fn run(&mut self, until: Time, mut stop: impl FnMut(&Self) -> bool) -> bool {
        loop {
            self.look();
            if stop(self) {
                return true;
            }
            if self.world.now >= until {
                return false;
            }
            self.world.advance(self.wake, until);
        }
    }

    fn field(&self, name: &str) -> String {
        let plan = self.world.last_plan.as_ref().expect("something ran before");
        let ledger = self.world.route.as_ref().and_then(|r| r.ledger.as_ref());
        match name.split_once('.').unwrap_or((name, "")) {
            ("phase", _) => plan.report.phase.name().into(),
            ("reason", _) => format!("{:?}", plan.report.headline.reason),
            ("weight", r) => self.world.weight(&revision(r)).to_string(),
            ("most", r) => self.world.most.get(&revision(r)).copied().unwrap_or(0).to_string(),
            ("pods", r) => self.world.deployments.get(&revision(r)).map_or("none".into(), |d| d.pods.len().to_string()),
            ("ready", r) => self.world.ready(&revision(r)).to_string(),
            ("writes", _) => self.world.writes.to_string(),
            ("patches", _) => self.world.patches.to_string(),
            ("stable", _) => ledger.map_or("none".into(), |l| short(&l.stable.0).to_owned()),
            ("attempt", _) => ledger.map_or("none".into(), |l| l.attempt.to_string()),
            ("rules", _) => {
                let detours = self.world.route.as_ref().map(|r| r.detours.clone()).unwrap_or_default();
                let name = |rule: &Detour| match rule.state {
                    DetourState::Awake => rule.name.clone(),
                    DetourState::Dormant => format!("({})", rule.name),
                    DetourState::Altered => format!("{}!", rule.name),
                };
                let names: Vec<_> = detours.rules.iter().map(name).collect();
                if detours == Detours::default() { "none".into() } else { names.join(",") }
            }
            ("service", _) => self.world.baseline_service.to_string(),
            ("preview", _) => match &self.world.preview {
                Preview::Ours { backends, .. } => backends.iter().map(|b| short(b)).collect(),
                Preview::Missing => "none".into(),
                Preview::Foreign => "foreign".into(),
            },
            ("gone", _) => self.world.gone.to_string(),
            ("decisions", _) => self.world.decisions.len().to_string(),
            ("ticks", _) => self.world.state().attempt.map_or(0, |a| a.tick).to_string(),
            ("quiet", _) => (self.mark == (self.world.writes, self.world.patches)).to_string(),
            ("ours", _) => ledger.is_some().to_string(),
            other => panic!("no field {other:?}"),
        }
    }

    fn holds(&self, condition: &str) -> bool {
        let (name, value) = condition.split_once('=').expect("FIELD=VALUE");
        self.field(name) == value
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, rest) = (words[0], &words[1..]);
        if !matches!(command, "run" | "until" | "expect" | "given" | "worker") {
            self.say(&format!("> {line}"));
        }
        match command {
            "given" | "set" => rest.iter().for_each(|w| self.given(w)),
            "worker" => self.worker(rest[0], &rest[1..]),
            "model" | "baseline" => self.spec(command == "model", rest[0]),
            "replicas" => self.world.rollout.model.replicas = rest[0].parse().unwrap(),
            "steps" => self.world.rollout.strategy = canary(rest[0]),
            "evidence-steps" => self.world.rollout.strategy = by_evidence(rest[0]),
            "bluegreen" => {
                let host = rest.iter().find_map(|w| w.strip_prefix("host="));
                self.world.rollout.strategy = blue_green(!rest.contains(&"manual"), host);
            }
            "abtest" => self.world.rollout.strategy = ab_test(rest[0], &rest[1..]),
            "guard" => self.world.rollout.guard = guard(rest[0].parse().unwrap()),
            "newcomers" => self.world.newcomers = rest[0].parse().unwrap(),
            "lost" => self.world.lost = rest[0].parse().unwrap(),
            "rules" => {
                let detours = &mut self.world.route.as_mut().unwrap().detours;
                match rest[0] {
                    "gone" => *detours = Detours::default(),
                    _ => detours.rules.iter_mut().for_each(|rule| rule.state = DetourState::Altered),
                }
            }
            "preview" => self.world.preview = if rest[0] == "foreign" { Preview::Foreign } else { Preview::Missing },
            "pause" => self.world.rollout.paused = rest[0] == "on",
            "delete" => self.world.rollout.deleting = true,
            "verb" => self.verb(rest),
            "kill" => self.world.kill(&revision(rest[0]), rest.get(1).map_or(usize::MAX, |n| n.parse().unwrap())),
            "down" | "up" => self.world.take(&revision(rest[0]), command == "down"),
            "hand" => {
                let weight = |w: &&str| w.split_once('=').map(|(n, w)| (revision(n), w.parse().unwrap())).unwrap();
                let weights: Vec<(Revision, u32)> = rest.iter().map(weight).collect();
                self.world.by_hand(&weights);
            }
            "restart" => self.world.restart(),
            "wipe" => self.world.status = None,
            "crash" => self.world.crash_after = Some(rest[0].parse().unwrap()),
            "gateway" => self.world.gateway(rest[0] == "go"),
            "route" => match rest[0] {
                "gone" => self.route = self.world.route.take(),
                "back" => self.world.route = self.route.take(),
                "unreadable" => self.world.unreadable = true,
                _ => self.world.unreadable = false,
            },
            "service" => self.world.baseline_service = false,
            "originals" => self.world.originals_ready = rest[0] == "ready",
            "autoscaled" => self.world.deployments.get_mut(&revision(rest[0])).unwrap().autoscaled = true,
            "terminating" => self.world.terminating = true,
            "away" => {
                self.world.now = self.world.now + Span::seconds(rest[0].parse().unwrap());
                self.world.restart();
            }
            "mark" => self.mark = (self.world.writes, self.world.patches),
            "run" => {
                let until = self.world.now + Span::seconds(rest[0].parse().unwrap());
                self.run(until, |_| false);
            }
            "until" => {
                let until = self.world.now + Span::seconds(rest[1].parse().unwrap());
                let met = self.run(until, |r| r.holds(rest[0]));
                assert!(met, "{line}: it is {}\n{}", self.field(rest[0].split_once('=').unwrap().0), self.timeline);
            }
            "expect" => {
                for condition in rest {
                    assert!(
                        self.holds(condition),
                        "expected {condition}, it is {}\n{}",
                        self.field(condition.split_once('=').unwrap().0),
                        self.timeline
                    );
                }
            }
            other => panic!("no command {other:?}"),
        }
    }

    fn given(&mut self, word: &str) {
        let (key, value) = word.split_once('=').expect("KEY=VALUE");
        let seconds = || Span::seconds(value.parse().unwrap());
        let rollout = &mut self.world.rollout;
        match key {
            "replicas" => {
                rollout.baseline.replicas = value.parse().unwrap();
                rollout.model.replicas = value.parse().unwrap();
            }
            "steps" => rollout.strategy = canary(value),
            "traffic" => self.world.traffic = value.parse().unwrap(),
            "route" if value == "own" => {
                rollout.route = RouteTarget::Own { gateway: "gw".into(), hostnames: Vec::new() };
                self.world.route = None;
            }
            "policy" => {
                rollout.deletion_policy =
                    if value == "orphan" { DeletionPolicy::Orphan } else { DeletionPolicy::Delete }
            }
            "delay" => rollout.scale_down_delay = seconds(),
            "progress" => rollout.progress_deadline = seconds(),
            "deadline" => rollout.gate.deadline = seconds(),
            "preflight" => rollout.gate.preflight = value.parse().unwrap(),
            "ratio" => rollout.gate.max_ratio = value.parse().unwrap(),
            "inconclusive" => {
                rollout.gate.on_inconclusive = match value {
                    "rollback" => OnInconclusive::Rollback,
                    "extend" => OnInconclusive::Extend,
                    "compatible" => OnInconclusive::PromoteIfCompatible,
                    _ => OnInconclusive::Hold,
                }
            }
            "capacity" => rollout.capacity = if value == "swap" { Capacity::Swap } else { Capacity::Surge },
            "room" => self.world.room = value.parse().unwrap(),
            "notraffic" if value == "hold" => rollout.gate.on_no_traffic = OnNoTraffic::Hold,
            other => panic!("no setting {other:?}"),
        }
    }

    fn worker(&mut self, name: &str, settings: &[&str]) {
        let b = self.world.behaviours.entry(revision(name)).or_default();
        for setting in settings {
            let (key, value) = setting.split_once('=').expect("KEY=VALUE");
            let number = || value.parse::<f64>().unwrap();
            match key {
                "cosine" => b.cosine = number(),
                "tail" => b.tail = number(),
                "errors" => b.errors = number(),
                "ttft" => b.ttft = number(),
                "tpot" => b.tpot = number(),
                "void" => b.void = number(),
                "ready" => b.ready_after = Span::seconds(value.parse().unwrap()),
                "vocabulary" => b.vocabulary = value.parse().unwrap(),
                "probes" => b.probe_set = if value == "none" { String::new() } else { value.into() },
                "conversion" => b.conversion = number(),
                "garbage" => b.garbage = value == "yes",
                other => panic!("no behaviour {other:?}"),
            }
        }
    }

    fn spec(&mut self, model: bool, name: &str) {
        let rollout = &mut self.world.rollout;
        let default = if model && name != "fp" { "ternary" } else { "fp16" };
        let precision = *self.precisions.entry(name.to_owned()).or_insert(default);
        let place = if model { &mut rollout.model } else { &mut rollout.baseline };
        *place = serving(name, precision, place.replicas);
        rollout.generation += 1;
        self.world.behaviours.entry(revision(name)).or_default();
    }

    fn verb(&mut self, words: &[&str]) {
        let verb =
            [Verb::Promote, Verb::PromoteFull, Verb::Pause, Verb::Resume, Verb::Abort, Verb::Rollback, Verb::Retry]
                .into_iter()
                .find(|v| v.name() == words[0])
                .expect("a verb");
        self.verbs += 1;
        let ledger = self.world.route.as_ref().and_then(|r| r.ledger.as_ref());
        let model = self.world.rollout.model.revision.clone();
        let (mut revision, mut attempt) =
            ledger.map_or((model.clone(), 0), |l| (l.candidate.clone().unwrap_or(model), l.attempt));
        if words.contains(&"stale") {
            attempt = attempt.saturating_sub(1);
        }
        if words.contains(&"coming") {
            revision = self.world.rollout.model.revision.clone();
        }
        self.world.verbs.push(VerbRequest {
            verb,
            id: format!("id-{}", self.verbs),
            revision: revision.0,
            attempt,
            by: words.get(1).copied().unwrap_or("ada").into(),
        });
    }
}

fn scenario(path: &Path) -> String {
    let script = fs::read_to_string(path).unwrap();
    let mut runner = Runner::new();
    for line in script.lines() {
        let line = line.split('#').next().unwrap().trim();
        if !line.is_empty() {
            runner.command(line);
        }
    }
    runner.timeline
}

#[test]
fn scripted_scenarios_go_as_recorded() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let only = std::env::var_os("SCENARIO").map(|s| s.to_string_lossy().into_owned());
    let mut paths: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .filter(|p| only.as_ref().is_none_or(|o| p.file_stem().is_some_and(|s| s.to_string_lossy().contains(o))))
        .collect();
    paths.sort();
    assert!(only.is_some() || paths.len() >= 15, "{} scenarios", paths.len());
    let mut different = Vec::new();
    for path in paths {
        eprintln!("{}", path.display());
        let timeline = scenario(&path);
        let golden = path.with_extension("golden");
        if update {
            fs::write(&golden, &timeline).unwrap();
        } else if fs::read_to_string(&golden).ok().as_deref() != Some(timeline.as_str()) {
            different.push(format!("{}\n{timeline}", path.display()));
        }
    }
    assert!(different.is_empty(), "not as recorded (UPDATE_GOLDEN=1 records anew):\n{}", different.join("\n"));
}
