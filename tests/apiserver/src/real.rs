//! A namespace of its own on a real API server, when `KUBECONFIG` names one (`tests/run kubernetes`): with the two Services,
//! pods that no kubelet runs, and one user who has just the permissions that the gateway asks for.
//!
//! The user of the kubeconfig must be allowed everything, impersonation included. Nodes are not needed; nothing is scheduled.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Who writes.
const USER: &str = "evenkeel-test-writer";

/// A namespace on a real API server.
pub struct Real {
    client: kube::Client,
    namespace: String,
    kubeconfig: PathBuf,
    slice_version: String,
    _dir: TempDir,
}

impl Real {
    /// Makes it on the server that `KUBECONFIG` names; `None`, and says so, if it names none. Slices are of the version that
    /// `EVENKEEL_TEST_SLICE_VERSION` says.
    ///
    /// # Panics
    ///
    /// When the server cannot be used.
    pub async fn start() -> Option<Self> {
        let Some(path) = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) else {
            // Not by `eprintln!`, which shows only when a test fails.
            let said = b"skipped: KUBECONFIG is not set; `tests/run kubernetes` runs this against a real API server\n";
            std::io::stderr().write_all(said).expect("somewhere to say it");
            return None;
        };
        let mut file = Kubeconfig::read_from(path).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file.clone(), &options).await.expect("a kubeconfig");
        let client = kube::Client::try_from(config).expect("a client");
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        for user in file.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            user.impersonate = Some(USER.to_owned());
        }
        std::fs::write(&kubeconfig, serde_json::to_vec(&file).expect("JSON")).expect("a file");
        let slice_version = std::env::var("EVENKEEL_TEST_SLICE_VERSION").unwrap_or_else(|_| "v1".to_owned());
        let suffix = dir.path().file_name().expect("a name").to_string_lossy().to_lowercase();
        let suffix: String = suffix.chars().filter(char::is_ascii_alphanumeric).collect();
        let namespace = format!("evenkeel-test-{}-{suffix}", std::process::id());
        let real = Self { client, namespace, kubeconfig, slice_version, _dir: dir };
        real.create(&real.namespaces(), json!({ "metadata": { "name": real.namespace } })).await;
        let ports = json!([{ "name": "ws", "port": 80, "targetPort": 8000 }]);
        let all = json!({ "ports": ports, "selector": { "app": "evenkeel" } });
        real.create(&real.api::<Service>(), json!({ "metadata": { "name": "ws" }, "spec": { "ports": ports } })).await;
        real.create(&real.api::<Service>(), json!({ "metadata": { "name": "ws-all" }, "spec": all })).await;
        Some(real)
    }

    /// Its name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The way to the server for the user who writes.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The version of the API that slices have here: `v1` or `v1beta1`.
    pub fn slice_version(&self) -> &str {
        &self.slice_version
    }

    /// The objects of one kind, for a user who may do everything.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The slices.
    pub fn slices(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("discovery.k8s.io", &self.slice_version, "EndpointSlice");
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind))
    }

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    async fn create<K>(&self, api: &Api<K>, object: Value)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        let object = serde_json::from_value(object).expect("an object");
        api.create(&PostParams::default(), &object).await.expect("created");
    }

    /// Adds the pod `ws-<number>`, ready.
    ///
    /// # Panics
    ///
    /// When the server refuses it, as with all that follows.
    pub async fn add_pod(&self, number: u16) {
        let name = format!("ws-{number}");
        let spec = json!({
            "schedulerName": "nobody",
            "automountServiceAccountToken": false,
            "containers": [{ "name": "gateway", "image": "none" }],
        });
        let labels = json!({ "app": "evenkeel", "pod-template-hash": "5f7" });
        self.create(&self.api::<Pod>(), json!({ "metadata": { "name": name, "labels": labels }, "spec": spec })).await;
        let ip = format!("10.1.0.{}", number + 1);
        self.set_status(number, json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] })).await;
        self.set_ready(number, true).await;
    }

    /// Whether a pod is ready.
    pub async fn set_ready(&self, number: u16, is_ready: bool) {
        let ready = if is_ready { "True" } else { "False" };
        self.set_status(number, json!({ "conditions": [{ "type": "Ready", "status": ready }] })).await;
    }

    async fn set_status(&self, number: u16, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        let pods = self.api::<Pod>();
        pods.patch_status(&format!("ws-{number}"), &PatchParams::default(), &patch).await.expect("a status");
    }

    /// Removes a pod at once, as no kubelet will.
    pub async fn remove_pod(&self, number: u16) {
        let at_once = DeleteParams::default().grace_period(0);
        self.api::<Pod>().delete(&format!("ws-{number}"), &at_once).await.expect("deleted");
    }

    /// Allows the user who writes just what the gateway asks for.
    pub async fn grant(&self) {
        let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs });
        let rules = json!([
            rule("coordination.k8s.io", "leases", &[], &["create"]),
            rule("coordination.k8s.io", "leases", &["ws-placement"], &["get", "update"]),
            rule("discovery.k8s.io", "endpointslices", &[], &["list", "create", "patch", "delete"]),
            rule("", "pods", &[], &["list", "watch", "patch"]),
            rule("", "services", &["ws", "ws-all"], &["get"]),
        ]);
        self.create(&self.api::<Role>(), json!({ "metadata": { "name": "ws" }, "rules": rules })).await;
        let binding = json!({
            "metadata": { "name": "ws" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ws" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER }],
        });
        self.create(&self.api::<RoleBinding>(), binding).await;
    }

    /// The slices of the Service.
    pub async fn listed(&self) -> Vec<Value> {
        let params = ListParams::default().labels("kubernetes.io/service-name=ws");
        let slices = self.slices().list(&params).await.expect("slices");
        slices.items.into_iter().map(|slice| serde_json::to_value(slice).expect("JSON")).collect()
    }

    /// The names of the pods in them.
    pub async fn published(&self) -> BTreeSet<String> {
        let slices = self.listed().await;
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.map(|each| each["targetRef"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits until just these pods are published.
    pub async fn until_published(&self, wanted: &BTreeSet<String>, within: Duration) {
        let waiting = async {
            while self.published().await != *wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(within, waiting).await.is_err() {
            panic!("not published in time: {wanted:?}, but {:?}", self.published().await);
        }
    }

    /// Removes the namespace.
    pub async fn end(self) {
        self.namespaces().delete(&self.namespace, &DeleteParams::default()).await.expect("deleted");
    }
}
