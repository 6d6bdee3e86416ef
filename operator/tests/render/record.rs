//! Records of verdicts: the annotation of the route, and the object made from it.

use super::*;

fn record(detail: &str) -> DecisionRecord {
    let signal = |kind| Signal {
        kind,
        state: SignalState::Failed,
        samples: 412,
        required: Some(600),
        estimate: Some(0.93415),
        interval: Some((0.9212, 0.9467)),
        ln_rollback: 5.31,
        ln_promote: -12.0,
        detail: detail.into(),
    };
    DecisionRecord {
        id: "chat-rolledback-abc".into(),
        verdict: Verdict::RolledBack,
        key: LatchKey { uid: "uid-of-chat".into(), revision: Revision("chat-bbbbbbbbbb".into()), attempt: 2 },
        step: 1,
        weight: 5,
        note: Note {
            reason: Reason::QualityFailed,
            object: "Deployment chat-bbbbbbbbbb".into(),
            message: format!("cosine-tail is proven worse {detail}"),
            since: None,
        },
        by: "gate".into(),
        stable: Revision("chat-aaaaaaaaaa".into()),
        baseline: Revision("chat-aaaaaaaaaa".into()),
        at: Time(1_735_689_601_000),
        tick: 37,
        assessment: Some(Assessment {
            finding: Finding::RollBack { signal: SignalKind::CosineTail, ln_e: 4.9 },
            signals: SignalKind::ALL.map(signal).into(),
            prompts: 412,
            preflight_done: true,
            quality_proven: false,
            fresh: true,
            no_traffic: false,
            history_pending: false,
            missing: Vec::new(),
            ln_rollback: 4.91,
            exposed_requests: 57,
        }),
        parameters: "00112233445566aa".into(),
        probe_set: "ab".repeat(32),
    }
}

#[test]
fn a_rollback_is_one_write_with_weights_latch_and_record() {
    let before = route(&json!({key::EPOCH: "7", key::ROLLOUT: "chat/uid-of-chat"}));
    let ledger = Ledger {
        rollback_of: Some(LatchKey {
            uid: "uid-of-chat".into(),
            revision: Revision("chat-bbbbbbbbbb".into()),
            attempt: 2,
        }),
        ..ledger(8)
    };
    let weights = [("chat-aaaaaaaaaa", 100), ("chat-bbbbbbbbbb", 0)];
    let after = written(&before, set(&weights, ledger, false, Some(record("at a random position"))));
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations[key::ROLLBACK_OF], "uid-of-chat/chat-bbbbbbbbbb/2");
    let text = annotations[key::DECISION].as_str().unwrap();
    insta::assert_json_snapshot!("decision_annotation", sorted(&serde_json::from_str(text).unwrap()));
    let stored = Compact::stored(text).unwrap();
    assert_eq!((stored.verdict, stored.at, stored.key.attempt), (Verdict::RolledBack, Time(1_735_689_601_000), 2));

    // The object is made from the stored text, and the oldest beyond twenty goes.
    let mut world = world(&after);
    world.decisions = (0..20)
        .map(|n| {
            serde_json::from_value(json!({
                "name": format!("d{n:02}"), "uid": format!("u{n}"), "resourceVersion": "1",
                "creationTimestamp": format!("2025-01-01T00:00:{n:02}Z"),
            }))
            .unwrap()
        })
        .collect();
    let objects = render(&config(), &rollout(), &world, &Plan { record: Some(stored), ..plan() });
    let Action::Create(object) = &objects.record[0].action else { panic!() };
    insta::assert_json_snapshot!("rollout_decision", sorted(object));
    let gone: Vec<_> = objects.record[1..].iter().map(|write| write.name.as_str()).collect();
    assert_eq!(gone, ["d00"]);
}

#[test]
fn a_decision_annotation_stays_under_two_kilobytes_and_readable() {
    for length in [0, 10, 100, 1000, 100_000] {
        let text = Compact::of(&record(&"ü".repeat(length))).text();
        assert!(text.len() <= 2048, "{length}: {}", text.len());
        assert!(Compact::stored(&text).is_some(), "{text}");
    }
    assert_eq!(Compact::stored("{}"), None);
    assert_eq!(Compact::stored("not json"), None);
}
