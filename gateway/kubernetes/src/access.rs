//! Whether this works here: a way to the API server, the API, the objects and the permissions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::api::{Api, CallError, chain};
use crate::settings::{Settings, Timing};
use crate::slices::object::GROUP;
use crate::slices::store::Store;
use crate::status::Health;
use crate::writer::load;

/// How to reach the API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// With what the cluster gives to each of its pods.
    InCluster,
    /// With a kubeconfig file: from outside, and in tests.
    Kubeconfig(PathBuf),
}

/// Makes a client. Nothing is sent yet. The error says what is missing.
pub(crate) async fn connect(access: &Access, settings: &Settings, health: Arc<Health>) -> Result<Api, String> {
    let mut config = match access {
        Access::InCluster => {
            kube::Config::incluster().map_err(|error| format!("this is not a pod of a cluster: {}", chain(&error)))?
        }
        Access::Kubeconfig(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| chain(&error))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| chain(&error))?
        }
    };
    let Timing { call_timeout, .. } = settings.timing;
    config.connect_timeout = Some(call_timeout);
    // Longer than the pause between the bookmarks of a watch, which the server sends once a minute.
    config.read_timeout = Some(Duration::from_secs(90));
    config.reset_reader_on_write = true;
    // Calls are repeated here, where it is known whether they still make sense.
    config.default_retry = false;
    let namespace = settings.namespace.clone().unwrap_or_else(|| config.default_namespace.trim().to_owned());
    let client = kube::Client::try_from(config).map_err(|error| chain(&error))?;
    Ok(Api::new(client, &namespace, call_timeout, health))
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// All that is needed is there.
    Works,
    /// This is not.
    Missing(Vec<String>),
}

/// Looks whether everything needed is there. The error: the API server cannot be asked now.
pub(crate) async fn probe(api: &Api, settings: &Settings) -> Result<Finding, CallError> {
    let mut missing = Vec::new();
    for permission in needed(settings) {
        if is_denied(api, &permission).await? {
            missing.push(permission.describe(api.namespace()));
        }
    }
    if !missing.is_empty() {
        return Ok(Finding::Missing(missing));
    }
    let at = Instant::now() + settings.timing.duration;
    missing.extend(missed(load(api, settings, at).await, "the two Services")?);
    let there = Store::new(api.clone(), settings.slice_version).list(&settings.service, None).await;
    missing.extend(missed(there, &format!("the API {GROUP} in the version that is configured"))?);
    Ok(if missing.is_empty() { Finding::Works } else { Finding::Missing(missing) })
}

/// What to say if `outcome` shows that `what` is not there or not ours to use.
fn missed<T>(outcome: Result<T, CallError>, what: &str) -> Result<Option<String>, CallError> {
    match outcome {
        Ok(_) => Ok(None),
        Err(CallError::NotFound) => Ok(Some(format!("{what} does not exist"))),
        Err(CallError::Forbidden(why) | CallError::Invalid(why) | CallError::Refused(why)) => {
            Ok(Some(format!("{what}: {why}")))
        }
        Err(error) => Err(error),
    }
}

/// One permission.
struct Permission<'a> {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    name: Option<&'a str>,
}

impl Permission<'_> {
    fn describe(&self, namespace: &str) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        let name = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        let Self { verb, group, resource, .. } = self;
        format!("permission to {verb} {resource}{dot}{group}{name} in the namespace {namespace}")
    }
}

/// The least that is needed. Without the right to change pods only the marks are missing.
fn needed(settings: &Settings) -> Vec<Permission<'_>> {
    const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
    const SLICES: (&str, &str) = (GROUP, "endpointslices");
    const PODS: (&str, &str) = ("", "pods");
    const SERVICES: (&str, &str) = ("", "services");
    let lease = Some(settings.lease.as_str());
    let plain = [
        ("create", LEASES, None),
        ("get", LEASES, lease),
        ("update", LEASES, lease),
        ("list", SLICES, None),
        ("create", SLICES, None),
        ("patch", SLICES, None),
        ("delete", SLICES, None),
        ("list", PODS, None),
        ("watch", PODS, None),
        ("get", SERVICES, Some(settings.service.as_str())),
        ("get", SERVICES, Some(settings.service_all.as_str())),
    ];
    plain.map(|(verb, (group, resource), name)| Permission { verb, group, resource, name }).into()
}

/// Asks whether a permission is missing. Where even asking is not allowed, or not possible, the calls themselves will tell.
async fn is_denied(api: &Api, permission: &Permission<'_>) -> Result<bool, CallError> {
    let attributes = ResourceAttributes {
        namespace: Some(api.namespace().to_owned()),
        verb: Some(permission.verb.to_owned()),
        group: Some(permission.group.to_owned()),
        resource: Some(permission.resource.to_owned()),
        name: permission.name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let question = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviews: kube::Api<SelfSubjectAccessReview> = kube::Api::all(api.client());
    match api.call(None, reviews.create(&PostParams::default(), &question)).await {
        Ok(answer) => Ok(answer.status.is_some_and(|status| !status.allowed)),
        Err(unavailable @ CallError::Unavailable(_)) => Err(unavailable),
        Err(_) => Ok(false),
    }
}
