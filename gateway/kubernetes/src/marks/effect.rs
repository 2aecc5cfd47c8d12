//! Sets and removes marks.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::plan::{Change, Step};
use super::{COST, DELETION_COST, MARKED};
use crate::api::{Api, CallError};
use crate::slices::object::MANAGER;

/// Carries out one step under `term`. A pod that is gone, or is another one by now, needs nothing any more.
pub(crate) async fn apply(api: &Api, step: &Step, term: u32, until: Instant) -> Result<(), CallError> {
    let (cost, mark) = match step.change {
        Change::Set => (Some(json!(COST)), json!(term.to_string())),
        Change::Remove => (Some(Value::Null), Value::Null),
        Change::Forget => (None, Value::Null),
    };
    let mut annotations = json!({ MARKED: mark });
    if let Some(cost) = cost {
        annotations[DELETION_COST] = cost;
    }
    // The uid is a condition: an object whose uid would change is not valid.
    let patch = json!({ "metadata": { "uid": step.uid, "annotations": annotations } });
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), api.namespace());
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match api.call(Some(until), pods.patch_metadata(&step.pod, &params, &Patch::Merge(patch))).await {
        Ok(_) | Err(CallError::NotFound | CallError::Conflict | CallError::Invalid(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
