//! [`State`] as one opaque string in `status.evidence`, under 4 KB.
//!
//! Names of one rollout share their beginning, so each is written as what it shares with the one before it.

use super::{Attempt, ProbeJob, Seen, State, StateError, Watch};
use crate::{
    Span, Time,
    evidence::{
        Evidence,
        ab::Ab,
        codec::{CodecError, Fnv, Reader, Writer},
        guard::Guard,
    },
    model::Revision,
};

/// Format of the stored state.
const VERSION: u8 = 3;

/// Longest text that is stored of what others wrote (a mismatch, a probe set's hash).
const LONGEST: usize = 160;

impl From<CodecError> for StateError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Version { found, expected } => {
                Self::Version { found: u32::from(found), expected: u32::from(expected) }
            }
            CodecError::Garbled(why) => Self::Garbled(why),
        }
    }
}

impl State {
    /// The state as text, at most 4,096 characters (an A/B test may add 540). `parameters_hash` is
    /// [`Gate::parameters_hash`](crate::evidence::Gate::parameters_hash) of the gate that was planned with.
    pub fn encode(&self, parameters_hash: &str) -> String {
        let mut out = Names { w: Writer::new(), last: String::new() };
        let w = &mut out.w;
        w.option(self.waiting_since, |w, t| w.i64(t.0));
        w.option(self.confirmed_at, |w, t| w.i64(t.0));
        w.u64(self.confirmed_epoch);
        w.bool(self.paused);
        let verbs: Vec<u64> = self.verbs.iter().filter_map(|v| u64::from_str_radix(v, 16).ok()).collect();
        let newest = &verbs[verbs.len().saturating_sub(8)..];
        w.u64(newest.len() as u64);
        for verb in newest {
            w.fixed_u64(*verb);
        }
        let reverts = &self.reverts[self.reverts.len().saturating_sub(3)..];
        w.u64(reverts.len() as u64);
        for revert in reverts {
            w.i64(revert.0);
        }
        w.option(self.released_at, |w, t| w.i64(t.0));
        out.w.bool(self.seen.is_some());
        if let Some(seen) = &self.seen {
            out.seen(seen);
        }
        out.w.bool(self.attempt.is_some());
        if let Some(attempt) = &self.attempt {
            out.attempt(attempt);
        }
        out.w.bool(self.guard.is_some());
        if let Some(watch) = &self.guard {
            out.watch(watch);
        }
        out.w.seal(VERSION, parameters(parameters_hash))
    }

    /// Reads what [`State::encode`] wrote. A gate with other parameters is no error: the next plan begins a new test,
    /// at half of the error budgets.
    pub fn decode(text: &str) -> Result<Self, StateError> {
        let mut r = Reader::open(text, VERSION)?;
        let mut state = Self {
            waiting_since: r.option(time)?,
            confirmed_at: r.option(time)?,
            confirmed_epoch: r.u64()?,
            paused: r.bool()?,
            ..Self::default()
        };
        for _ in 0..count(&mut r, 8)? {
            state.verbs.push(format!("{:016x}", r.fixed_u64()?));
        }
        for _ in 0..count(&mut r, 3)? {
            state.reverts.push(time(&mut r)?);
        }
        state.released_at = r.option(time)?;
        let mut last = String::new();
        state.seen = r.option(|r| read_seen(r, &mut last))?;
        state.attempt = r.option(|r| read_attempt(r, &mut last))?;
        state.guard = r.option(|r| read_watch(r, &mut last))?;
        r.finish()?;
        Ok(state)
    }
}

fn parameters(hash: &str) -> u64 {
    u64::from_str_radix(hash, 16).unwrap_or_else(|_| Fnv::default().bytes(hash.as_bytes()).finish())
}

/// The first characters of a text, on a character's border.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

struct Names {
    w: Writer,
    last: String,
}

impl Names {
    fn name(&mut self, name: &str) {
        let name = cut(name);
        let mut shared = name.bytes().zip(self.last.bytes()).take_while(|(a, b)| a == b).count();
        while !name.is_char_boundary(shared) {
            shared -= 1;
        }
        self.w.u64(shared as u64);
        self.w.str(&name[shared..]);
        name.clone_into(&mut self.last);
    }

    fn optional_name(&mut self, name: Option<&str>) {
        self.w.bool(name.is_some());
        if let Some(name) = name {
            self.name(name);
        }
    }

    fn seen(&mut self, seen: &Seen) {
        self.w.u64(seen.epoch);
        self.name(&seen.stable.0);
        self.optional_name(seen.candidate.as_ref().map(Revision::as_str));
        self.w.u32(seen.attempt);
        self.optional_name(seen.rollback_of.as_ref().map(|(r, _)| r.as_str()));
        self.w.u32(seen.rollback_of.as_ref().map_or(0, |(_, n)| *n));
        let weights = &seen.weights[..seen.weights.len().min(8)];
        self.w.u64(weights.len() as u64);
        for (revision, weight) in weights {
            self.name(&revision.0);
            self.w.u32(*weight);
        }
    }

    fn attempt(&mut self, a: &Attempt) {
        self.name(&a.candidate.0);
        self.name(&a.against.0);
        for number in
            [a.number, a.tick, a.excused, a.trips, a.ready_ticks, a.reconfigurations, a.step_ticks, a.last_requests]
        {
            self.w.u32(number);
        }
        self.w.i64(a.last_tick.0);
        self.w.option(a.step_since, |w, t| w.i64(t.0));
        self.w.i64(a.unwatched.0);
        for flag in [a.step_released, a.tripped, a.probe_set_missing, a.comparable] {
            self.w.bool(flag);
        }
        self.name(&a.last_pod);
        self.job(a.job.as_ref());
        for text in [&a.probe_set, &a.other_probe_set, &a.mismatch] {
            self.w.option(text.as_deref(), |w, text| w.str(cut(text)));
        }
        self.w.option(a.evidence.as_ref(), |w, evidence| evidence.encode_into(w));
        self.w.option(a.users.as_ref(), |w, users| users.encode_into(w));
    }

    fn job(&mut self, job: Option<&ProbeJob>) {
        self.w.bool(job.is_some());
        if let Some(job) = job {
            self.name(&job.pod);
            self.name(&job.candidate.0);
            self.name(&job.baseline.0);
            self.name(&job.stable.0);
            self.w.str(cut(&job.key));
            self.w.u32(job.tick);
            self.w.u32(job.attempt);
        }
    }

    fn watch(&mut self, watch: &Watch) {
        self.name(&watch.revision.0);
        self.name(&watch.against.0);
        self.w.u32(watch.tick);
        self.w.i64(watch.last_tick.0);
        self.job(watch.job.as_ref());
        self.name(&watch.last_pod);
        self.w.option(watch.probe_set.as_deref(), |w, text| w.str(cut(text)));
        self.w.option(watch.stored_at, |w, t| w.i64(t.0));
        watch.guard.encode_into(&mut self.w);
    }
}

fn time(r: &mut Reader) -> Result<Time, CodecError> {
    r.i64().map(Time)
}

fn count(r: &mut Reader, most: u64) -> Result<u64, CodecError> {
    let n = r.u64()?;
    if n <= most { Ok(n) } else { Err(CodecError::Garbled("a list is too long")) }
}

fn name(r: &mut Reader, last: &mut String) -> Result<String, CodecError> {
    let shared = usize::try_from(r.u64()?).map_err(|_| CodecError::Garbled("a name is too long"))?;
    let rest = r.str()?;
    let start = last.get(..shared).ok_or(CodecError::Garbled("a name shares more than there is"))?;
    *last = format!("{start}{rest}");
    Ok(last.clone())
}

fn revision(r: &mut Reader, last: &mut String) -> Result<Revision, CodecError> {
    name(r, last).map(Revision)
}

fn read_seen(r: &mut Reader, last: &mut String) -> Result<Seen, CodecError> {
    let epoch = r.u64()?;
    let stable = revision(r, last)?;
    let candidate = r.option(|r| revision(r, last))?;
    let attempt = r.u32()?;
    let fallen = r.option(|r| revision(r, last))?;
    let number = r.u32()?;
    let mut weights = Vec::new();
    for _ in 0..count(r, 8)? {
        weights.push((revision(r, last)?, r.u32()?));
    }
    Ok(Seen { epoch, stable, candidate, attempt, rollback_of: fallen.map(|f| (f, number)), weights })
}

fn read_attempt(r: &mut Reader, last: &mut String) -> Result<Attempt, CodecError> {
    let candidate = revision(r, last)?;
    let against = revision(r, last)?;
    let mut a = Attempt::begin(candidate, r.u32()?, against, Time::default());
    for number in [
        &mut a.tick,
        &mut a.excused,
        &mut a.trips,
        &mut a.ready_ticks,
        &mut a.reconfigurations,
        &mut a.step_ticks,
        &mut a.last_requests,
    ] {
        *number = r.u32()?;
    }
    a.last_tick = time(r)?;
    a.step_since = r.option(time)?;
    a.unwatched = Span(r.i64()?);
    for flag in [&mut a.step_released, &mut a.tripped, &mut a.probe_set_missing, &mut a.comparable] {
        *flag = r.bool()?;
    }
    a.last_pod = name(r, last)?;
    a.job = r.option(|r| read_job(r, last))?;
    for text in [&mut a.probe_set, &mut a.other_probe_set, &mut a.mismatch] {
        *text = r.option(Reader::str)?;
    }
    a.evidence = r.option(Evidence::decode_from)?.map(Box::new);
    a.users = r.option(Ab::decode_from)?;
    Ok(a)
}

fn read_job(r: &mut Reader, last: &mut String) -> Result<ProbeJob, CodecError> {
    Ok(ProbeJob {
        pod: name(r, last)?,
        candidate: revision(r, last)?,
        baseline: revision(r, last)?,
        stable: revision(r, last)?,
        key: r.str()?,
        tick: r.u32()?,
        attempt: r.u32()?,
    })
}

fn read_watch(r: &mut Reader, last: &mut String) -> Result<Watch, CodecError> {
    Ok(Watch {
        revision: revision(r, last)?,
        against: revision(r, last)?,
        tick: r.u32()?,
        last_tick: time(r)?,
        job: r.option(|r| read_job(r, last))?,
        last_pod: name(r, last)?,
        probe_set: r.option(Reader::str)?,
        stored_at: r.option(time)?,
        guard: Guard::decode_from(r)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest state that names and texts of full length give.
    fn largest() -> State {
        let rollout = "r".repeat(52);
        let revision = |n: u32| Revision(format!("{rollout}-{n:010}"));
        let pod = format!("{}-{}", revision(2), "p".repeat(17));
        let mut attempt = Attempt::begin(revision(2), u32::MAX, revision(1), Time(i64::MAX));
        attempt.tick = u32::MAX;
        attempt.excused = u32::MAX;
        attempt.step_ticks = u32::MAX;
        attempt.last_requests = u32::MAX;
        attempt.last_pod.clone_from(&pod);
        attempt.step_since = Some(Time(i64::MIN));
        attempt.job = Some(ProbeJob {
            key: "k".repeat(64),
            tick: u32::MAX,
            pod,
            candidate: revision(2),
            baseline: revision(1),
            stable: revision(3),
            attempt: u32::MAX,
        });
        attempt.probe_set = Some("a".repeat(64));
        attempt.other_probe_set = Some("b".repeat(64));
        attempt.mismatch = Some("m".repeat(LONGEST));
        State {
            attempt: Some(attempt),
            waiting_since: Some(Time(i64::MAX)),
            confirmed_at: Some(Time(i64::MAX)),
            confirmed_epoch: u64::MAX,
            paused: true,
            verbs: (0..8).map(|n| format!("{n:016x}")).collect(),
            seen: Some(Seen {
                epoch: u64::MAX,
                stable: revision(3),
                candidate: Some(revision(2)),
                attempt: u32::MAX,
                rollback_of: Some((revision(4), u32::MAX)),
                weights: vec![(revision(3), 95), (revision(2), 5), (revision(1), 0)],
            }),
            reverts: vec![Time(i64::MAX); 3],
            guard: None,
            released_at: Some(Time(i64::MAX)),
        }
    }

    #[test]
    fn the_largest_state_leaves_room_for_the_evidence() {
        // A pair that cannot be compared is asked nothing any more: there is a mismatch or a job.
        for comparable in [true, false] {
            let mut state = largest();
            let attempt = state.attempt.as_mut().unwrap();
            if comparable {
                attempt.mismatch = None;
            } else {
                attempt.job = None;
            }
            let text = state.encode("00000000000000ff");
            assert_eq!(State::decode(&text), Ok(state));
            let bytes = text.len() * 3 / 4;
            assert!(bytes + Evidence::MAX_BYTES <= 4096 / 4 * 3, "{bytes} bytes beside the evidence");
            const { assert!(Ab::MAX_BYTES * 4 / 3 <= 540) };
        }
    }

    #[test]
    fn another_format_and_cut_texts_are_refused() {
        let text = largest().encode("0");
        assert!(matches!(State::decode(&text[..text.len() / 2]), Err(StateError::Garbled(_))));
        assert!(matches!(State::decode(""), Err(StateError::Garbled(_))));
        assert_eq!(State::decode("/w"), Err(StateError::Version { found: 255, expected: 3 }));
        // The format before this one had fewer fields: it must not be read as if it had them.
        let older = Writer::new().seal(2, 0);
        assert_eq!(State::decode(&older), Err(StateError::Version { found: 2, expected: 3 }));
    }

    #[test]
    fn longer_texts_of_others_are_cut_on_a_character() {
        let mut state = largest();
        let attempt = state.attempt.as_mut().unwrap();
        attempt.mismatch = Some("ü".repeat(LONGEST));
        let back = State::decode(&state.encode("0")).unwrap().attempt.unwrap();
        assert_eq!(back.mismatch, Some("ü".repeat(LONGEST / 2)));
    }
}
