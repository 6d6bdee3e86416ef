use crate::v1alpha1::ArmSpec;
use bitnet_core::model::Revision;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Characters of the hash in a revision's name: 50 bits.
pub const HASH_LENGTH: usize = 10;

/// Name of the revision that an arm asks for: `<rollout>-<hash>`, the hash being the first ten base32 characters (lower
/// case, RFC 4648) of the SHA-256 of the canonical JSON of `source`, `precision`, `pool` and `serving` as the user gave
/// them. Defaults are not in it, so a new default starts no rollout; neither are replicas, so scaling starts none.
pub fn revision_name(rollout: &str, arm: &ArmSpec) -> Revision {
    let mut given = serde_json::Map::new();
    // Serialising plain structs of strings and numbers cannot fail; a missing part would only change the name.
    let parts = [
        ("source", serde_json::to_value(&arm.source)),
        ("precision", serde_json::to_value(arm.precision)),
        ("pool", serde_json::to_value(&arm.pool)),
        ("serving", serde_json::to_value(&arm.serving)),
    ];
    for (name, part) in parts {
        match part {
            Ok(Value::Null) | Err(_) => {}
            Ok(value) => {
                given.insert(name.to_owned(), value);
            }
        }
    }
    let mut text = String::new();
    canonical(&Value::Object(given), &mut text);
    Revision(format!("{rollout}-{}", base32(&Sha256::digest(text.as_bytes()), HASH_LENGTH)))
}

/// JSON without spaces and with sorted keys, whatever order `serde_json` was built to keep.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(&Value::String(key.clone()), out);
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        // Writing into a String cannot fail.
        scalar => drop(write!(out, "{scalar}")),
    }
}

/// The first `length` characters of the bytes in base32.
fn base32(bytes: &[u8], length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    (0..length)
        .map(|i| {
            let bit = i * 5;
            let pair = u16::from_be_bytes([
                bytes.get(bit / 8).copied().unwrap_or(0),
                bytes.get(bit / 8 + 1).copied().unwrap_or(0),
            ]);
            let index = (pair >> (11 - bit % 8)) & 31;
            char::from(ALPHABET[usize::from(index)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1alpha1::{Precision, ServingSpec, SourceSpec};

    fn arm() -> ArmSpec {
        ArmSpec {
            source: SourceSpec {
                image: Some(format!("r.example/m@sha256:{}", "a".repeat(64))),
                ..SourceSpec::default()
            },
            precision: None,
            pool: None,
            replicas: Some(3),
            serving: None,
        }
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        // RFC 4648, section 10, lower case.
        assert_eq!(base32(b"foobar", 9), "mzxw6ytbo");
        assert_eq!(base32(b"fooba", 8), "mzxw6ytb");
    }

    #[test]
    fn the_name_is_the_hash_of_sorted_json() {
        let json = format!(r#"{{"source":{{"image":"r.example/m@sha256:{}"}}}}"#, "a".repeat(64));
        let expected = format!("chat-{}", base32(&Sha256::digest(json.as_bytes()), 10));
        assert_eq!(revision_name("chat", &arm()).0, expected);
        // Written down once, so that an accidental change of the rule is seen: it would restart every rollout.
        assert_eq!(expected, "chat-qow6mdbgcp");
    }

    #[test]
    fn what_starts_a_rollout_changes_the_name_and_nothing_else_does() {
        let base = revision_name("chat", &arm());
        let scaled = ArmSpec { replicas: Some(9), ..arm() };
        assert_eq!(revision_name("chat", &scaled), base);
        let changes = [
            ArmSpec { precision: Some(Precision::Auto), ..arm() },
            ArmSpec { pool: Some("cpu".into()), ..arm() },
            ArmSpec { serving: Some(ServingSpec { max_batch: Some(31), ..ServingSpec::default() }), ..arm() },
            ArmSpec { source: SourceSpec { image: Some("other".into()), ..SourceSpec::default() }, ..arm() },
        ];
        let mut names: Vec<_> = changes.iter().map(|arm| revision_name("chat", arm)).collect();
        names.push(base);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5);
        for name in names {
            let hash = name.0.strip_prefix("chat-").unwrap();
            assert!(hash.len() == 10 && hash.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7')), "{name}");
        }
    }
}
