//! `render`: a plan becomes the requests that carry it out. Pure and infallible: what could be refused was refused by
//! `validate`, and what must be decided was decided by `plan`.
//!
//! One file per kind. Every write names its object's uid and resourceVersion, or creates under a deterministic name.

mod balancing;
mod decision;
mod deployment;
pub(crate) mod detours;
pub(crate) mod event;
mod http_route;
pub mod labels;
mod preview;
mod service;
pub mod status;

pub use decision::Compact;
pub(crate) use decision::rfc3339;
pub(crate) use http_route::detach_patch;

use crate::{config::Config, observe::World};
use bitnet_api::keys::FINALIZER;
use bitnet_core::{
    model::{Revision, Rollout},
    plan::{Answered, Grow, Plan, Shrink, Verdict},
};
use json_patch::{
    AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation, TestOperation, jsonptr::PointerBuf,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use std::marker::PhantomData;

/// Kinds that the operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The custom resource itself.
    ModelRollout,
    /// Pods of a revision.
    Deployment,
    /// Address of a revision.
    Service,
    /// Weights and ledger.
    HttpRoute,
    /// Record of a verdict.
    RolloutDecision,
    /// How Envoy Gateway spreads requests over pods.
    BackendTrafficPolicy,
}

impl Kind {
    /// The kind as in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ModelRollout => "ModelRollout",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::HttpRoute => "HTTPRoute",
            Self::RolloutDecision => "RolloutDecision",
            Self::BackendTrafficPolicy => "BackendTrafficPolicy",
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What to do with it.
    pub action: Action,
}

/// What a request does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create it under its deterministic name.
    Create(Box<Value>),
    /// Patch it; the patch tests uid and resourceVersion.
    Patch(Patch),
    /// Delete it, if it still has this uid and resourceVersion.
    Delete {
        /// Precondition.
        uid: String,
        /// Precondition.
        resource_version: String,
    },
}

/// Requests that were made but not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared;

/// The requests of one plan, in the order of execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects<Stage> {
    /// Put the finalizer on the custom resource.
    pub finalizer: Option<Write>,
    /// Make sure that objects exist, with enough replicas.
    pub grow: Vec<Write>,
    /// The one write of the route.
    pub shift: Option<Write>,
    /// Create or delete the preview route.
    pub preview: Option<Write>,
    /// Create, change or delete the policy of the gateway.
    pub balancing: Option<Write>,
    /// Create the record of the stored verdict, drop the oldest.
    pub record: Vec<Write>,
    /// Take down what has no traffic any more.
    pub shrink: Vec<Write>,
    /// Take the finalizer away: the last step of a deletion.
    pub release: Option<Write>,
    /// The verdict that the route write carries.
    pub verdict: Option<Verdict>,
    pub(crate) stage: PhantomData<Stage>,
}

impl<Stage> Objects<Stage> {
    /// The same requests at another stage; only `apply` may say that they were sent.
    pub(crate) fn at<Other>(self) -> Objects<Other> {
        let Self { finalizer, grow, shift, preview, balancing, record, shrink, release, verdict, stage: _ } = self;
        Objects { finalizer, grow, shift, preview, balancing, record, shrink, release, verdict, stage: PhantomData }
    }
}

/// Renders a plan against the objects that were read.
pub fn render(config: &Config, rollout: &Rollout, world: &World, plan: &Plan) -> Objects<Prepared> {
    let owner = owner(rollout);
    let decision = match &plan.shift {
        Some(bitnet_core::plan::RouteWrite::Set { decision, .. }) => decision.as_deref(),
        _ => None,
    };
    Objects {
        finalizer: (plan.finalizer && !world.observation.finalizer).then(|| finalizer(rollout, world, true)),
        grow: plan
            .grow
            .iter()
            .flat_map(|grow| grow_writes(config, rollout, world, grow, &owner))
            .chain(plan.regrow.iter().filter_map(|(revision, replicas)| regrow_write(world, revision, *replicas)))
            .collect(),
        shift: plan.shift.as_ref().map(|shift| http_route::render(rollout, world, shift, &owner)),
        preview: plan.preview.as_ref().and_then(|write| preview::render(rollout, world, write, &owner)),
        balancing: balancing::render(rollout, world, &owner),
        record: plan
            .record
            .iter()
            .flat_map(|stored| decision::writes(rollout, &world.decisions, stored, &owner))
            .collect(),
        shrink: plan.shrink.iter().flat_map(|shrink| shrink_writes(rollout, world, shrink)).collect(),
        release: (!plan.finalizer && world.observation.finalizer).then(|| finalizer(rollout, world, false)),
        verdict: decision.map(|record| record.verdict),
        stage: PhantomData,
    }
}

/// The ownerReference that ties an object to its rollout.
pub fn owner(rollout: &Rollout) -> OwnerReference {
    OwnerReference {
        api_version: "rollouts.bitnet.dev/v1alpha1".into(),
        kind: "ModelRollout".into(),
        name: rollout.name.clone(),
        uid: rollout.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The object belongs to the rollout `uid`: one of its ownerReferences says so.
pub(crate) fn owned_by(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// Removes the annotations of answered verbs. `meta` is the object as it was last read or written.
pub fn answered(meta: &ObjectMeta, answered: &[Answered]) -> Option<Patch> {
    let mut operations = Operations::on(meta);
    let keys = answered.iter().map(|answer| crate::observe::verbs::key(answer.verb));
    let present: Vec<_> = keys
        .filter(|key| meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(*key)))
        .collect();
    for key in &present {
        operations.remove(["metadata", "annotations", key]);
    }
    (!present.is_empty()).then(|| operations.patch())
}

fn finalizer(rollout: &Rollout, world: &World, wanted: bool) -> Write {
    let meta = &world.rollout;
    let present = meta.finalizers.as_deref().unwrap_or_default();
    let mut operations = Operations::on(meta);
    match (wanted, present.iter().position(|name| name == FINALIZER)) {
        (true, _) if present.is_empty() => operations.add(["metadata", "finalizers"], json!([FINALIZER])),
        (true, _) => operations.add(["metadata", "finalizers", "-"], json!(FINALIZER)),
        (false, Some(index)) => {
            let index = index.to_string();
            operations.test(["metadata", "finalizers", &index], json!(FINALIZER));
            operations.remove(["metadata", "finalizers", &index]);
        }
        (false, None) => {}
    }
    Write { kind: Kind::ModelRollout, name: rollout.name.clone(), action: Action::Patch(operations.patch()) }
}

fn grow_writes(
    config: &Config,
    rollout: &Rollout,
    world: &World,
    grow: &Grow,
    owner: &OwnerReference,
) -> impl Iterator<Item = Write> {
    let revision = &grow.serving.revision;
    let deployment = match world.deployments.get(revision.as_str()) {
        None => Some(create(Kind::Deployment, &revision.0, &deployment::render(config, rollout, grow, owner))),
        Some(found) => grow.replicas.and_then(|replicas| {
            let has = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            (i64::from(has) < i64::from(replicas)).then(|| scale(revision, &found.metadata, replicas))
        }),
    };
    let service = (!world.services.contains_key(revision.as_str()))
        .then(|| create(Kind::Service, &revision.0, &service::revision(rollout, revision, owner)));
    let baseline = labels::baseline_service(&rollout.name);
    let baseline = (grow.baseline && !world.services.contains_key(&baseline))
        .then(|| create(Kind::Service, &baseline, &service::baseline(rollout, owner)));
    [service, baseline, deployment].into_iter().flatten()
}

/// Only what exists comes back: a Deployment that somebody deleted is not made again from memory.
fn regrow_write(world: &World, revision: &Revision, replicas: u32) -> Option<Write> {
    let found = world.deployments.get(revision.as_str())?;
    let has = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    (i64::from(has) < i64::from(replicas)).then(|| scale(revision, &found.metadata, replicas))
}

fn shrink_writes(rollout: &Rollout, world: &World, shrink: &Shrink) -> Vec<Write> {
    let deployment = |revision: &Revision| world.deployments.get(revision.as_str()).map(|found| &found.metadata);
    let service = |revision: &Revision| world.services.get(revision.as_str()).map(|found| &found.metadata);
    match shrink {
        Shrink::ToZero(revision) => deployment(revision).map(|meta| scale(revision, meta, 0)).into_iter().collect(),
        Shrink::To(revision, replicas) => {
            deployment(revision).map(|meta| scale(revision, meta, *replicas)).into_iter().collect()
        }
        Shrink::Delete(revision) => [(Kind::Deployment, deployment(revision)), (Kind::Service, service(revision))]
            .into_iter()
            .filter_map(|(kind, meta)| meta.map(|meta| delete(kind, meta)))
            .collect(),
        Shrink::Orphan(revision) => {
            let shared = world.services.get(&labels::baseline_service(&rollout.name)).map(|found| &found.metadata);
            [(Kind::Deployment, deployment(revision)), (Kind::Service, service(revision)), (Kind::Service, shared)]
                .into_iter()
                .filter_map(|(kind, meta)| meta.and_then(|meta| orphan(kind, meta, &rollout.uid)))
                .collect()
        }
    }
}

pub(super) fn create(kind: Kind, name: &str, object: &impl serde::Serialize) -> Write {
    // Plain structs with text keys always serialise; a null would be refused by the API server by name.
    let object = serde_json::to_value(object).unwrap_or_default();
    Write { kind, name: name.to_owned(), action: Action::Create(Box::new(object)) }
}

fn scale(revision: &Revision, meta: &ObjectMeta, replicas: u32) -> Write {
    let mut operations = Operations::on(meta);
    operations.replace(["spec", "replicas"], json!(replicas));
    Write { kind: Kind::Deployment, name: revision.0.clone(), action: Action::Patch(operations.patch()) }
}

pub(super) fn delete(kind: Kind, meta: &ObjectMeta) -> Write {
    let (uid, resource_version) = (meta.uid.clone(), meta.resource_version.clone());
    Write {
        kind,
        name: meta.name.clone().unwrap_or_default(),
        action: Action::Delete { uid: uid.unwrap_or_default(), resource_version: resource_version.unwrap_or_default() },
    }
}

/// Takes the ownerReference of the rollout `uid` off an object, so that the object outlives the rollout.
pub fn orphan(kind: Kind, meta: &ObjectMeta, uid: &str) -> Option<Write> {
    let mut operations = Operations::on(meta);
    operations.without_owner(meta, uid).then(|| Write {
        kind,
        name: meta.name.clone().unwrap_or_default(),
        action: Action::Patch(operations.patch()),
    })
}

/// Puts an ownerReference on an object that has no controller, so that an orphan belongs to a rollout again.
pub fn adopt(kind: Kind, meta: &ObjectMeta, owner: &OwnerReference) -> Write {
    let mut operations = Operations::on(meta);
    operations.with_owner(meta, owner);
    Write { kind, name: meta.name.clone().unwrap_or_default(), action: Action::Patch(operations.patch()) }
}

/// A JSON patch that begins with tests of uid and resourceVersion.
#[derive(Clone, Debug)]
pub(crate) struct Operations(Vec<PatchOperation>);

fn path<const N: usize>(tokens: [&str; N]) -> PointerBuf {
    PointerBuf::from_tokens(tokens)
}

impl Operations {
    /// A patch of the object with this metadata.
    pub(crate) fn on(meta: &ObjectMeta) -> Self {
        let mut operations = Self(Vec::new());
        operations.test(["metadata", "uid"], json!(meta.uid));
        operations.test(["metadata", "resourceVersion"], json!(meta.resource_version));
        operations
    }

    pub(crate) fn test<const N: usize>(&mut self, tokens: [&str; N], value: Value) {
        self.0.push(PatchOperation::Test(TestOperation { path: path(tokens), value }));
    }

    pub(crate) fn add<const N: usize>(&mut self, tokens: [&str; N], value: Value) {
        self.0.push(PatchOperation::Add(AddOperation { path: path(tokens), value }));
    }

    pub(crate) fn replace<const N: usize>(&mut self, tokens: [&str; N], value: Value) {
        self.0.push(PatchOperation::Replace(ReplaceOperation { path: path(tokens), value }));
    }

    pub(crate) fn remove<const N: usize>(&mut self, tokens: [&str; N]) {
        self.0.push(PatchOperation::Remove(RemoveOperation { path: path(tokens) }));
    }

    /// Adds an ownerReference where it is not there yet.
    pub(crate) fn with_owner(&mut self, meta: &ObjectMeta, owner: &OwnerReference) {
        match meta.owner_references.as_deref().unwrap_or_default() {
            [] => self.add(["metadata", "ownerReferences"], json!([owner])),
            _ if owned_by(meta, &owner.uid) => {}
            _ => self.add(["metadata", "ownerReferences", "-"], json!(owner)),
        }
    }

    /// Removes the ownerReferences of `uid`; false where there are none.
    pub(crate) fn without_owner(&mut self, meta: &ObjectMeta, uid: &str) -> bool {
        if !owned_by(meta, uid) {
            return false;
        }
        let others: Vec<_> = meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).collect();
        self.replace(["metadata", "ownerReferences"], json!(others));
        true
    }

    pub(crate) fn patch(self) -> Patch {
        Patch(self.0)
    }
}

/// Name of a verb as in status and in its annotation.
pub fn verb_name(verb: bitnet_core::observation::Verb) -> &'static str {
    crate::observe::verbs::key(verb).trim_start_matches(bitnet_api::keys::PREFIX)
}
