//! The leader lease, and the fence that every write asks.
//!
//! A lease alone is no fence: a process that was paused believes in a lease that others have taken. So every write
//! carries the precondition of its object, and [`Fence`] refuses to send one later than the renew deadline after the
//! last renewal, by the monotonic clock.

use crate::client::{Category, category};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// A lease that was not renewed for this long may be taken by others.
pub const DURATION: Duration = Duration::from_secs(15);
/// Its holder stops writing this long after its last renewal.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two renewals, or two looks at a foreign lease.
const PERIOD: Duration = Duration::from_secs(2);

/// Says whether this process may write. Cheap to clone; all clones are one fence.
#[derive(Clone, Debug)]
pub struct Fence {
    renewed: Arc<watch::Sender<Option<Instant>>>,
    lost: Arc<AtomicBool>,
}

impl Default for Fence {
    fn default() -> Self {
        Self { renewed: Arc::new(watch::Sender::new(None)), lost: Arc::default() }
    }
}

impl Fence {
    /// True while the lease was renewed within the renew deadline and never lost.
    pub fn holds(&self) -> bool {
        !self.lost.load(Ordering::SeqCst) && self.renewed.borrow().is_some_and(|at| at.elapsed() < RENEW_DEADLINE)
    }

    /// Notes a renewal whose request was sent at `at`.
    pub fn renew(&self, at: Instant) {
        self.renewed.send_replace(Some(at));
    }

    /// Takes the fence down for ever: there is no way back within this process.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// Resolves once the lease was acquired for the first time.
    pub async fn acquired(&self) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.renewed.subscribe().wait_for(Option::is_some).await;
    }
}

/// Which lease, and who asks.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This process: the pod's name.
    pub identity: String,
}

/// Why leadership ended, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another process holds the lease now.
    #[error("the lease is held by `{0}` now")]
    Taken(String),
    /// It could not be renewed in time.
    #[error("the lease could not be renewed within {RENEW_DEADLINE:?}")]
    NotRenewed(#[source] Option<kube::Error>),
}

/// Acquires the lease, keeps it, and returns when it is lost; by then the fence is down. The client must not be fenced.
pub async fn hold(client: Client, claim: &Claim, fence: &Fence) -> Lost {
    let api = Api::<Lease>::namespaced(client, &claim.namespace);
    let (lease, at) = acquire(&api, claim).await;
    fence.renew(at);
    tracing::info!(lease = claim.name, identity = claim.identity, "leading");
    let lost = keep(&api, claim, fence, lease, at).await;
    fence.lose();
    lost
}

/// Gives the lease back, so that the next leader need not wait for it to expire. Takes the fence down first.
pub async fn release(client: Client, claim: &Claim, fence: &Fence) {
    let held = fence.holds();
    fence.lose();
    if !held {
        return;
    }
    let api = Api::<Lease>::namespaced(client, &claim.namespace);
    let Ok(mut lease) = api.get(&claim.name).await else { return };
    if holder(&lease) != Some(claim.identity.as_str()) {
        return;
    }
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = None;
    spec.lease_duration_seconds = Some(1);
    if let Err(error) = api.replace(&claim.name, &PostParams::default(), &lease).await {
        tracing::info!(error = &error as &dyn std::error::Error, "the lease was not given back: it will expire");
    }
}

/// Takes the lease whoever holds it, for `duration`: its holder notices within [`RENEW_DEADLINE`] and stops.
pub async fn seize(client: Client, claim: &Claim, duration: Duration) -> Result<(), kube::Error> {
    let api = Api::<Lease>::namespaced(client, &claim.namespace);
    let mut attempts = 0;
    loop {
        let outcome = match api.get_opt(&claim.name).await? {
            Some(found) => api.replace(&claim.name, &PostParams::default(), &ours(&found, claim, duration)).await,
            None => api.create(&PostParams::default(), &ours(&Lease::default(), claim, duration)).await,
        };
        attempts += 1;
        match outcome {
            Ok(_) => return Ok(()),
            // The holder renews every two seconds: a conflict only means that the read was too old.
            Err(error) if attempts < 10 && category(&error) == Category::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the lease is ours. Returns it with the time of the request that took it.
async fn acquire(api: &Api<Lease>, claim: &Claim) -> (Lease, Instant) {
    let mut seen: Option<(Lease, Instant)> = None;
    loop {
        let at = Instant::now();
        match try_acquire(api, claim, &mut seen).await {
            Ok(Some(lease)) => return (lease, at),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the lease cannot be read or taken");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn try_acquire(
    api: &Api<Lease>,
    claim: &Claim,
    seen: &mut Option<(Lease, Instant)>,
) -> Result<Option<Lease>, kube::Error> {
    let Some(found) = api.get_opt(&claim.name).await? else {
        return api.create(&PostParams::default(), &ours(&Lease::default(), claim, DURATION)).await.map(Some);
    };
    // Expiry is judged by how long *we* saw no renewal: the clocks of two nodes need not agree.
    let first_seen = match seen {
        Some((lease, at)) if lease.metadata.resource_version == found.metadata.resource_version => *at,
        _ => seen.insert((found.clone(), Instant::now())).1,
    };
    let duration = found.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(15).max(1);
    let free = match holder(&found) {
        None => true,
        Some(identity) => {
            identity == claim.identity || first_seen.elapsed() > Duration::from_secs(duration.unsigned_abs().into())
        }
    };
    if !free {
        return Ok(None);
    }
    match api.replace(&claim.name, &PostParams::default(), &ours(&found, claim, DURATION)).await {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if category(&error) == Category::Conflict => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renews until that fails for too long or another holder is seen.
async fn keep(api: &Api<Lease>, claim: &Claim, fence: &Fence, mut lease: Lease, mut renewed: Instant) -> Lost {
    let mut last_error = None;
    loop {
        tokio::time::sleep(PERIOD).await;
        if renewed.elapsed() >= RENEW_DEADLINE {
            return Lost::NotRenewed(last_error);
        }
        let at = Instant::now();
        match api.replace(&claim.name, &PostParams::default(), &ours(&lease, claim, DURATION)).await {
            Ok(next) => {
                (lease, renewed) = (next, at);
                fence.renew(at);
            }
            Err(error) => {
                // A conflict may be our own renewal whose answer was lost: only a foreign holder ends it.
                match api.get(&claim.name).await {
                    Ok(found) if holder(&found) == Some(claim.identity.as_str()) => lease = found,
                    Ok(found) => return Lost::Taken(holder(&found).unwrap_or("nobody").into()),
                    Err(_) => {}
                }
                last_error = Some(error);
            }
        }
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|identity| !identity.is_empty())
}

/// `found` with us as its holder, resourceVersion kept as the precondition.
fn ours(found: &Lease, claim: &Claim, duration: Duration) -> Lease {
    let old = found.spec.clone().unwrap_or_default();
    let same = holder(found) == Some(claim.identity.as_str());
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: ObjectMeta {
            name: Some(claim.name.clone()),
            namespace: Some(claim.namespace.clone()),
            uid: found.metadata.uid.clone(),
            resource_version: found.metadata.resource_version.clone(),
            labels: found.metadata.labels.clone(),
            annotations: found.metadata.annotations.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            acquire_time: if same { old.acquire_time } else { Some(now.clone()) },
            holder_identity: Some(claim.identity.clone()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!same)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Guard,
        fake::{Asked, Log, refusal, server},
    };
    use axum::http::Method;
    use serde_json::{Value, json};
    use std::sync::Mutex;

    type Stored = Arc<Mutex<Option<Value>>>;

    /// A server with one Lease and real preconditions.
    fn lease_server(stored: &Stored, down: &Arc<AtomicBool>) -> (Client, Log) {
        let (stored, down) = (Arc::clone(stored), Arc::clone(down));
        server(&Guard::new(None), move |asked: &Asked| {
            if down.load(Ordering::SeqCst) {
                return refusal(503, "ServiceUnavailable", "down");
            }
            let mut stored = stored.lock().unwrap();
            let version = stored
                .as_ref()
                .map_or(0, |lease| lease["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap());
            let mut next = asked.body.clone();
            match asked.method {
                Method::GET => {
                    return stored.clone().map_or_else(|| refusal(404, "NotFound", "no"), |lease| (200, lease));
                }
                Method::POST if stored.is_some() => return refusal(409, "AlreadyExists", "there"),
                Method::PUT if asked.body["metadata"]["resourceVersion"] != json!(version.to_string()) => {
                    return refusal(409, "Conflict", "modified");
                }
                _ => {}
            }
            next["metadata"]["resourceVersion"] = json!((version + 1).to_string());
            *stored = Some(next.clone());
            (200, next)
        })
    }

    fn claim(identity: &str) -> Claim {
        Claim { namespace: "ns".into(), name: "lease".into(), identity: identity.into() }
    }

    fn held_by(stored: &Stored) -> String {
        stored.lock().unwrap().as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_process_waits_until_the_first_has_been_silent_for_the_whole_duration() {
        let (stored, up) = (Stored::default(), Arc::new(AtomicBool::new(false)));
        let first_down = Arc::new(AtomicBool::new(false));
        let (first, _) = lease_server(&stored, &first_down);
        let (second, _) = lease_server(&stored, &up);
        let (one, two) = (Fence::default(), Fence::default());
        let leader = tokio::spawn({
            let one = one.clone();
            async move { hold(first, &claim("one"), &one).await }
        });
        one.acquired().await;
        let follower = tokio::spawn({
            let two = two.clone();
            async move { hold(second, &claim("two"), &two).await }
        });
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(one.holds() && !two.holds());
        assert_eq!(held_by(&stored), "one");

        first_down.store(true, Ordering::SeqCst);
        let silent = Instant::now();
        let lost = leader.await.unwrap();
        assert!(matches!(lost, Lost::NotRenewed(Some(_))), "{lost:?}");
        assert!(!one.holds(), "the fence is down before anybody else may lead");
        assert!(silent.elapsed() <= RENEW_DEADLINE + PERIOD, "{:?}", silent.elapsed());
        assert!(!two.holds());
        two.acquired().await;
        assert!(silent.elapsed() + PERIOD >= DURATION, "{:?}", silent.elapsed());
        assert!(silent.elapsed() <= DURATION + 2 * PERIOD, "{:?}", silent.elapsed());
        assert_eq!(held_by(&stored), "two");
        follower.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_seized_lease_is_noticed_and_a_released_one_is_free_at_once() {
        let (stored, up) = (Stored::default(), Arc::new(AtomicBool::new(false)));
        let (client, _) = lease_server(&stored, &up);
        let fence = Fence::default();
        let leader = tokio::spawn({
            let (client, fence) = (client.clone(), fence.clone());
            async move { hold(client, &claim("one"), &fence).await }
        });
        fence.acquired().await;
        seize(client.clone(), &claim("detach"), Duration::from_mins(2)).await.unwrap();
        let lost = leader.await.unwrap();
        assert!(matches!(&lost, Lost::Taken(by) if by == "detach"), "{lost:?}");
        assert!(!fence.holds());

        let held = Fence::default();
        held.renew(Instant::now());
        release(client.clone(), &claim("detach"), &held).await;
        assert_eq!(held_by(&stored), "");
        let next = Fence::default();
        let start = Instant::now();
        let leader = tokio::spawn({
            let next = next.clone();
            async move { hold(client, &claim("two"), &next).await }
        });
        next.acquired().await;
        assert!(start.elapsed() < PERIOD);
        leader.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_fence_falls_by_itself() {
        let fence = Fence::default();
        assert!(!fence.holds());
        fence.renew(Instant::now());
        tokio::time::advance(RENEW_DEADLINE.saturating_sub(Duration::from_millis(1))).await;
        assert!(fence.holds());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!fence.holds());
        fence.renew(Instant::now());
        fence.lose();
        fence.renew(Instant::now());
        assert!(!fence.holds(), "a lost lease never comes back within a process");
    }
}
