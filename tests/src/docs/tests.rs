use super::*;
use bitnet_api::{
    v1alpha1::{ModelRollout, QualityGate},
    validate::{Pools, validate},
};
use serde_json::json;
use std::collections::BTreeMap;

#[test]
fn every_link_leads_somewhere() {
    let root = checkout();
    let pages = pages().unwrap();
    let anchors: BTreeMap<_, _> = pages.iter().map(|page| (page.path.clone(), page.anchors())).collect();
    let mut count = 0;
    let mut broken = Vec::new();
    for page in &pages {
        for (line, target) in page.links() {
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = page.path.parent().unwrap();
            let path = if file.is_empty() { page.path.clone() } else { normal(&folder.join(file)) };
            let there = root.join(&path).exists() && !path.starts_with("..");
            let found = anchor.is_empty() || anchors.get(&path).is_some_and(|all| all.contains(anchor));
            if !there || !found {
                broken.push(format!("{}:{line}: {target}", page.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
    assert!(count > 60, "only {count} links were found");
}

/// Without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut parts: Vec<std::path::Component<'_>> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if !parts.is_empty() => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.into_iter().collect()
}

#[test]
fn every_page_is_found_from_the_readme() {
    let pages = pages().unwrap();
    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    loop {
        let before = reached.len();
        for page in pages.iter().filter(|page| reached.contains(&page.path)).collect::<Vec<_>>() {
            for (_, target) in page.links() {
                let file = target.split('#').next().unwrap_or_default();
                reached.insert(normal(&page.path.parent().unwrap().join(file)));
            }
        }
        if reached.len() == before {
            break;
        }
    }
    let lost: Vec<_> = pages.iter().map(|page| &page.path).filter(|path| !reached.contains(*path)).collect();
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn pictures_are_well_formed_and_have_a_title() {
    let mut files = Vec::new();
    collect(&checkout().join("docs"), "svg", &mut files).unwrap();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("<title>") && text.contains("role=\"img\""), "{}", file.display());
        let opened = text.matches('<').count();
        assert_eq!(opened, text.matches('>').count(), "{}: `<` and `>` do not pair", file.display());
        for foreign in ["<script", "href=\"http", "url(http"] {
            assert!(!text.contains(foreign), "{}: {foreign}", file.display());
        }
    }
}

/// What a page tells people to copy is what the custom resources' rules and the operator take.
#[test]
fn our_objects_and_fragments_are_accepted() {
    let (mut objects, mut fragments) = (0, 0);
    for block in blocks().unwrap() {
        match &block.use_ {
            Use::Objects(all) => {
                for object in all.iter().filter(|o| o["apiVersion"] == "rollouts.bitnet.dev/v1alpha1") {
                    objects += 1;
                    accepted(object, &block.place);
                }
            }
            Use::Fragment(part) => {
                fragments += 1;
                let mut spec = json!({
                    "baseline": {"source": {"image": format!("r.example/fp16@sha256:{}", "0".repeat(64))}},
                    "model": {"source": {"image": format!("r.example/bitnet@sha256:{}", "1".repeat(64))}},
                    "route": {"gateway": "gw"},
                    "gate": {"name": "chat"},
                });
                put(&mut spec, part, &block.place);
                let object = json!({
                    "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "ModelRollout",
                    "metadata": {"name": "chat"}, "spec": spec,
                });
                accepted(&object, &block.place);
            }
            Use::Values | Use::Elsewhere(_) => {}
        }
    }
    assert!(objects >= 8 && fragments >= 4, "{objects} objects and {fragments} fragments: pages are missing");
}

/// A part of a spec takes the place of what stands there; of an arm, only the fields that it names.
fn put(spec: &mut Value, part: &Value, place: &str) {
    for (key, value) in part.as_object().unwrap_or_else(|| panic!("{place}: a part of a spec has fields")) {
        match (key.as_str(), value.as_object()) {
            ("baseline" | "model", Some(fields)) => {
                for (field, value) in fields {
                    spec[key][field] = value.clone();
                }
            }
            _ => spec[key] = value.clone(),
        }
    }
}

fn accepted(object: &Value, place: &str) {
    let mut object = object.clone();
    object["metadata"]["namespace"] = json!("team");
    object["metadata"]["uid"] = json!("u-1");
    if object["kind"] == "QualityGate" {
        let gate: QualityGate = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{place}: {e}"));
        nothing_is_dropped(&object["spec"], &serde_json::to_value(&gate.spec).unwrap(), place);
        return;
    }
    let rollout: ModelRollout = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{place}: {e}"));
    nothing_is_dropped(&object["spec"], &serde_json::to_value(&rollout.spec).unwrap(), place);
    let gate: QualityGate = serde_json::from_value(json!({
        "apiVersion": "rollouts.bitnet.dev/v1alpha1", "kind": "QualityGate", "metadata": {"name": "chat"},
        "spec": {"probes": {"configMap": "chat-probes"}},
    }))
    .unwrap();
    let pools = Pools { names: ["cpu", "gpu"].map(str::to_owned).into(), default: "cpu".into(), ..Pools::default() };
    let gate = rollout.spec.gate.as_ref().map(|_| &gate);
    if let Err(refusal) = validate(&rollout, gate, &pools) {
        panic!("{place}: {refusal}");
    }
}

/// A field that our types do not know would be dropped: a typing mistake in a page.
fn nothing_is_dropped(given: &Value, kept: &Value, place: &str) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let found = kept.get(key).unwrap_or_else(|| panic!("{place}: field {key} is unknown"));
                nothing_is_dropped(value, found, place);
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (value, found) in given.iter().zip(kept) {
                nothing_is_dropped(value, found, place);
            }
        }
        _ => {}
    }
}

#[test]
fn blocks_say_where_they_belong() {
    let mut elsewhere = 0;
    for block in blocks().unwrap() {
        match &block.use_ {
            Use::Objects(all) => {
                let foreign: Vec<_> = all.iter().filter(|object| !in_the_box(object)).collect();
                assert!(foreign.is_empty(), "{}: the first line must be `{ELSEWHERE}…`", block.place);
            }
            Use::Elsewhere(all) => {
                elsewhere += 1;
                assert!(all.iter().all(|object| !in_the_box(object)), "{}: the box serves this kind", block.place);
            }
            Use::Values => {
                let values: Value = serde_yaml::from_str(&block.text).unwrap();
                let file = fs::read_to_string(checkout().join("charts/bitnet-rollouts/values.yaml")).unwrap();
                let known: Value = serde_yaml::from_str(&file).unwrap();
                for key in values.as_object().unwrap().keys() {
                    assert!(known.get(key).is_some(), "{}: the chart has no value {key}", block.place);
                }
            }
            Use::Fragment(_) => {}
        }
    }
    assert!(elsewhere >= 2, "{elsewhere} blocks for other products");
}

#[test]
fn a_page_is_read_as_people_read_it() {
    let text = "# One, two `three`\n\n[a](b.md#c) `[x](y)` [d](https://e.example)\n```yaml\nstrategy: {}\n```\n```sh\n# no\n```\n# One, two `three`\n";
    let page = Page { path: "docs/x.md".into(), text: text.into() };
    assert_eq!(page.links(), [(3, "b.md#c".to_owned())]);
    assert_eq!(page.anchors(), ["one-two-three", "one-two-three-1"].map(str::to_owned).into());
    let blocks = page.blocks().unwrap();
    assert_eq!((blocks.len(), blocks[0].place.as_str()), (1, "docs/x.md:5"));
    assert_eq!(blocks[0].use_, Use::Fragment(json!({"strategy": {}})));
    assert!(Block::read("p".into(), "kind: A\n".into()).is_ok_and(|b| matches!(b.use_, Use::Fragment(_))));
    assert!(Block::read("p".into(), "a: 1\n---\nb: 2\n".into()).is_err());
}
