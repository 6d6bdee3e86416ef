//! Which comparisons are started.

use super::peer::is_peer_of;
use bitnet_api::worker::{CompareRequest, ShadowRequest};
use std::ops::RangeInclusive;

/// Why a request is refused; each names the field and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The worker is in no rollout, so it has no peers.
    #[error("this worker was started without --rollout and has no peers; start it with the rollout's name")]
    NoRollout,
    /// The key is not one.
    #[error("`key` must be 1 to 64 of the characters a-z, 0-9 and -")]
    Key,
    /// The uid is too long or empty.
    #[error("`uid` must be 1 to 128 bytes")]
    Uid,
    /// The name is not that of a peer.
    #[error("`{field}` must be a revision of this rollout: `{rollout}-` and ten of the characters a-z and 2-7")]
    Peer {
        /// `baseline` or `stable`.
        field: &'static str,
        /// Ours.
        rollout: String,
    },
    /// A number is out of its range.
    #[error("`{field}` must be from {low} to {high} but is {found}")]
    Range {
        /// Name on the wire.
        field: &'static str,
        /// Least.
        low: u32,
        /// Most.
        high: u32,
        /// As sent.
        found: u32,
    },
    /// No cosine to compare with.
    #[error("`tailMin` must lie between 0 and 1, both excluded")]
    TailMin,
}

const MAX_UID: usize = 128;
const MAX_KEY: usize = 64;
/// Most live prompts that are shadowed, in percent: whoever asks for it.
const MAX_SHADOW: u32 = 10;

/// Checks every field against its documented range.
pub(super) fn check(request: &CompareRequest, rollout: Option<&str>) -> Result<(), Invalid> {
    let rollout = rollout.ok_or(Invalid::NoRollout)?;
    let key = request.key.as_bytes();
    if !(1..=MAX_KEY).contains(&key.len()) || !key.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err(Invalid::Key);
    }
    uid(&request.uid)?;
    peer(rollout, "baseline", &request.baseline)?;
    peer(rollout, "stable", &request.stable)?;
    range("probes", request.probes, 1..=256)?;
    range("maxTokens", request.max_tokens, 1..=512)?;
    range("positions", request.positions, 1..=64)?;
    range("pairs", request.pairs, 0..=64)?;
    range("pairTokens", request.pair_tokens, 2..=256)
}

/// The same of the permission to compare live prompts.
pub(super) fn check_shadow(request: &ShadowRequest, rollout: Option<&str>) -> Result<(), Invalid> {
    let rollout = rollout.ok_or(Invalid::NoRollout)?;
    uid(&request.uid)?;
    peer(rollout, "baseline", &request.baseline)?;
    range("percent", request.percent, 0..=MAX_SHADOW)?;
    range("maxTokens", request.max_tokens, 1..=512)?;
    range("positions", request.positions, 1..=64)?;
    range("seconds", request.seconds, 1..=3600)?;
    if request.tail_min > 0.0 && request.tail_min < 1.0 { Ok(()) } else { Err(Invalid::TailMin) }
}

fn uid(uid: &str) -> Result<(), Invalid> {
    if (1..=MAX_UID).contains(&uid.len()) { Ok(()) } else { Err(Invalid::Uid) }
}

fn peer(rollout: &str, field: &'static str, name: &str) -> Result<(), Invalid> {
    if is_peer_of(rollout, name) { Ok(()) } else { Err(Invalid::Peer { field, rollout: rollout.to_owned() }) }
}

fn range(field: &'static str, found: u32, range: RangeInclusive<u32>) -> Result<(), Invalid> {
    if range.contains(&found) {
        return Ok(());
    }
    Err(Invalid::Range { field, low: *range.start(), high: *range.end(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> CompareRequest {
        CompareRequest {
            key: "chat-1-17".into(),
            uid: "0f8fad5b".into(),
            attempt: 1,
            tick: 17,
            baseline: "chat-aaaaaaaaaa".into(),
            stable: "chat-bbbbbbbbbb".into(),
            probes: 8,
            max_tokens: 16,
            positions: 8,
            pairs: 8,
            pair_tokens: 8,
        }
    }

    #[test]
    fn every_rule_is_checked_and_named() {
        let refused = |change: fn(&mut CompareRequest)| {
            let mut request = good();
            change(&mut request);
            check(&request, Some("chat")).unwrap_err().to_string()
        };
        assert_eq!(check(&good(), Some("chat")), Ok(()));
        assert_eq!(check(&good(), None), Err(Invalid::NoRollout));
        assert!(refused(|r| r.key = "A".into()).contains("`key`"));
        assert!(refused(|r| r.key = "a".repeat(65)).contains("`key`"));
        assert!(refused(|r| r.uid.clear()).contains("`uid`"));
        assert!(refused(|r| r.baseline = "chat-baseline".into()).contains("`baseline`"));
        assert!(refused(|r| r.stable = "evil.example:80".into()).contains("`stable`"));
        assert!(refused(|r| r.probes = 0).contains("`probes`"));
        assert!(refused(|r| r.probes = 257).contains("from 1 to 256 but is 257"));
        assert!(refused(|r| r.max_tokens = 513).contains("`maxTokens`"));
        assert!(refused(|r| r.positions = 65).contains("`positions`"));
        assert!(refused(|r| r.pairs = 65).contains("`pairs`"));
        assert!(refused(|r| r.pair_tokens = 1).contains("`pairTokens`"));
    }

    #[test]
    fn a_permission_is_checked_as_well() {
        let good = ShadowRequest {
            uid: "0f8fad5b".into(),
            attempt: 1,
            baseline: "chat-aaaaaaaaaa".into(),
            percent: 10,
            max_tokens: 16,
            positions: 8,
            tail_min: 0.9,
            seconds: 30,
        };
        assert_eq!(check_shadow(&good, Some("chat")), Ok(()));
        assert_eq!(check_shadow(&good, None), Err(Invalid::NoRollout));
        let refused = |change: fn(&mut ShadowRequest)| {
            let mut request = good.clone();
            change(&mut request);
            check_shadow(&request, Some("chat")).unwrap_err().to_string()
        };
        assert!(refused(|r| r.percent = 11).contains("`percent` must be from 0 to 10"));
        assert!(refused(|r| r.baseline = "chat-baseline".into()).contains("`baseline`"));
        assert!(refused(|r| r.seconds = 3601).contains("`seconds`"));
        assert!(refused(|r| r.positions = 0).contains("`positions`"));
        assert!(refused(|r| r.max_tokens = 0).contains("`maxTokens`"));
        assert!(refused(|r| r.tail_min = f64::NAN).contains("`tailMin`"));
        assert!(refused(|r| r.uid.clear()).contains("`uid`"));
    }
}
