//! The slices on the API server.

use std::time::Instant;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;

use super::Frame;
use super::object::{MANAGER, MANAGER_LABEL, SERVICE_LABEL, build, read, resource};
use super::plan::{Existing, Step, Target};
use crate::api::{Api, CallError};
use crate::settings::SliceVersion;

/// More slices than the largest fleet has in both families; what is beyond is not looked at.
const LIST_MAX: u32 = 500;

/// All slices of the Service.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Those of the gateway.
    pub(crate) own: Vec<Existing>,
    /// How many others there are: the cluster writes some when the Service has a selector.
    pub(crate) foreign: usize,
}

/// Reads and writes the slices of one Service.
pub(crate) struct Store {
    api: Api,
    slices: kube::Api<DynamicObject>,
    version: SliceVersion,
}

impl Store {
    pub(crate) fn new(api: Api, version: SliceVersion) -> Self {
        let slices = kube::Api::namespaced_with(api.client(), api.namespace(), &resource(version));
        Self { api, slices, version }
    }

    /// What is there.
    pub(crate) async fn list(&self, service: &str, until: Option<Instant>) -> Result<Listed, CallError> {
        let params = ListParams::default().labels(&format!("{SERVICE_LABEL}={service}")).limit(LIST_MAX);
        let all = self.api.call(until, self.slices.list(&params)).await?.items;
        let is_own = |object: &DynamicObject| {
            let labels = object.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(MANAGER_LABEL)).is_some_and(|manager| manager == MANAGER)
        };
        let (own, foreign): (Vec<_>, Vec<_>) = all.into_iter().partition(is_own);
        Ok(Listed { own: own.into_iter().map(read).collect(), foreign: foreign.len() })
    }

    /// Carries out one step, unless `until` has passed. [`CallError::Conflict`]: the slice is not the one that was seen.
    pub(crate) async fn carry_out(&self, step: &Step, frame: &Frame, until: Instant) -> Result<(), CallError> {
        match step {
            Step::Create(target) => self.create(target, frame, until).await,
            Step::Apply { version, target } => self.apply(target, frame, version, until).await,
            Step::Delete { name, uid, version } => self.delete(name, uid, version, until).await,
        }
    }

    /// Not by applying it: that would overwrite one that somebody has just made.
    async fn create(&self, target: &Target, frame: &Frame, until: Instant) -> Result<(), CallError> {
        let object = build(target, frame, self.api.namespace(), None, self.version);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        self.api.call(Some(until), self.slices.create(&params, &object)).await.map(drop)
    }

    async fn apply(&self, target: &Target, frame: &Frame, seen: &str, until: Instant) -> Result<(), CallError> {
        let object = build(target, frame, self.api.namespace(), Some(seen), self.version);
        let params = PatchParams::apply(MANAGER).force();
        self.api.call(Some(until), self.slices.patch(&target.name, &params, &Patch::Apply(&object))).await.map(drop)
    }

    async fn delete(&self, name: &str, uid: &str, seen: &str, until: Instant) -> Result<(), CallError> {
        let only = Preconditions { uid: Some(uid.to_owned()), resource_version: Some(seen.to_owned()) };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        match self.api.call(Some(until), self.slices.delete(name, &params)).await {
            Ok(_) | Err(CallError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
