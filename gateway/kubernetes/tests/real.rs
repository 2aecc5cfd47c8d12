//! The same against a real API server, when `KUBECONFIG` names one: `tests/run kubernetes`.
//!
//! The user of the kubeconfig must be allowed everything, impersonation included: the agents act as another user, with just
//! the permissions that the gateway asks for. Nodes and kubelets are not needed; nothing is scheduled.

mod cluster;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use cluster::{DEADLINE, names, open, sees};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::rbac::v1::{Role as RbacRole, RoleBinding};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kubernetes::slices::object::resource;
use kubernetes::{Access, Agent, Outlook, Role, Settings, SliceVersion, State};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const USER: &str = "evenkeel-test-writer";

/// A namespace on the real server.
struct Real {
    client: kube::Client,
    namespace: String,
    kubeconfig: PathBuf,
    version: SliceVersion,
    _dir: tempfile::TempDir,
}

impl Real {
    async fn start(path: PathBuf) -> Self {
        let mut file = Kubeconfig::read_from(&path).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file.clone(), &options).await.expect("a kubeconfig");
        let client = kube::Client::try_from(config).expect("a client");
        let namespace = format!("evenkeel-test-{:08x}", rand::random::<u32>());
        for user in &mut file.auth_infos {
            if let Some(user) = &mut user.auth_info {
                user.impersonate = Some(USER.to_owned());
            }
        }
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, serde_json::to_vec(&file).expect("JSON")).expect("a file");
        let is_old = std::env::var("EVENKEEL_TEST_SLICE_VERSION").is_ok_and(|version| version == "v1beta1");
        let version = if is_old { SliceVersion::V1Beta1 } else { SliceVersion::V1 };
        let real = Self { client, namespace, kubeconfig, version, _dir: dir };
        let namespaces: Api<Namespace> = Api::all(real.client.clone());
        create(&namespaces, json!({ "metadata": { "name": real.namespace } })).await;
        real.seed().await;
        real
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn seed(&self) {
        let ports = json!([{ "name": "ws", "port": 80, "targetPort": 8000 }]);
        let services = self.api::<Service>();
        create(&services, json!({ "metadata": { "name": "ws" }, "spec": { "ports": ports } })).await;
        let all = json!({ "ports": ports, "selector": { "app": "evenkeel" } });
        create(&services, json!({ "metadata": { "name": "ws-all" }, "spec": all })).await;
        for number in 0..5 {
            self.add_pod(number).await;
        }
    }

    async fn add_pod(&self, number: u16) {
        let pods = self.api::<Pod>();
        let name = format!("ws-{number}");
        create(
            &pods,
            json!({
                "metadata": { "name": name, "labels": { "app": "evenkeel", "pod-template-hash": "5f7" } },
                "spec": {
                    "schedulerName": "nobody",
                    "automountServiceAccountToken": false,
                    "containers": [{ "name": "gateway", "image": "none" }],
                },
            }),
        )
        .await;
        let ip = format!("10.1.0.{}", number + 1);
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.expect("a status");
    }

    async fn set_ready(&self, number: u16, is_ready: bool) {
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        let name = format!("ws-{number}");
        self.api::<Pod>().patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.expect("a status");
    }

    /// Just what the gateway asks for.
    async fn grant(&self) {
        let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "resourceNames": names, "verbs": verbs });
        let rules = json!([
            rule("coordination.k8s.io", "leases", &[], &["create"]),
            rule("coordination.k8s.io", "leases", &["ws-placement"], &["get", "update"]),
            rule("discovery.k8s.io", "endpointslices", &[], &["list", "create", "patch", "delete"]),
            rule("", "pods", &[], &["list", "watch", "patch"]),
            rule("", "services", &["ws", "ws-all"], &["get"]),
        ]);
        let metadata = json!({ "metadata": { "name": "ws" }, "rules": rules });
        create(&self.api::<RbacRole>(), metadata).await;
        create(
            &self.api::<RoleBinding>(),
            json!({
                "metadata": { "name": "ws" },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ws" },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER }],
            }),
        )
        .await;
    }

    fn candidate(&self, name: &str) -> Agent {
        let mut settings = Settings::new(name);
        settings.namespace = Some(self.namespace.clone());
        settings.slice_version = self.version;
        settings.stale_after = Duration::from_secs(3_600);
        settings.timing.duration = Duration::from_secs(6);
        settings.timing.deadline = Duration::from_secs(4);
        settings.timing.call_timeout = Duration::from_millis(1_800);
        settings.timing.retry = Duration::from_millis(600);
        let agent = Agent::start(settings, Access::Kubeconfig(self.kubeconfig.clone()));
        agent.set_role(Role::Candidate);
        agent
    }

    fn slices(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(self.version))
    }

    async fn listed(&self) -> Vec<Value> {
        let params = ListParams::default().labels("kubernetes.io/service-name=ws");
        let slices = self.slices().list(&params).await.expect("slices");
        slices.items.into_iter().map(|slice| serde_json::to_value(slice).expect("JSON")).collect()
    }

    async fn until_published(&self, wanted: &BTreeSet<String>) {
        let published = async || {
            let slices = self.listed().await;
            let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            endpoints
                .map(|each| each["targetRef"]["name"].as_str().expect("a name").to_owned())
                .collect::<BTreeSet<_>>()
        };
        let waiting = async {
            while published().await != *wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not published in time: {wanted:?}"));
    }
}

async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    let object = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("created");
}

#[tokio::test]
async fn a_real_api_server_is_written_as_the_one_of_the_tests_is() {
    let Some(path) = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) else {
        // Not by `eprintln!`, which shows only when a test fails.
        let said = b"skipped: KUBECONFIG is not set; `tests/run kubernetes` runs this against a real API server\n";
        std::io::stderr().write_all(said).expect("somewhere to say it");
        return;
    };
    let real = Real::start(path.into()).await;

    let stranger = real.candidate("stranger");
    let seen = sees(&stranger, "that permissions are missing", |seen| matches!(seen.state, State::Off(_))).await;
    assert!(format!("{:?}", seen.state).contains("permission to patch endpointslices"), "{:?}", seen.state);
    drop(stranger);

    real.grant().await;
    let first = real.candidate("first");
    sees(&first, "that it writes", Outlook::is_writer).await;
    real.until_published(&names(0..5)).await;
    first.decide(open(1, [1, 2, 3]));
    real.until_published(&names([1, 2, 3])).await;
    real.set_ready(2, false).await;
    real.until_published(&names([1, 3])).await;

    // Nothing is written while nothing changes.
    let before = real.listed().await;
    let passes = first.status().passes;
    sees(&first, "two confirmations", |_| first.status().passes >= passes + 2).await;
    let version = |slices: &[Value]| slices[0]["metadata"]["resourceVersion"].clone();
    assert_eq!(version(&real.listed().await), version(&before));

    // A slice that somebody else has changed is mended.
    let emptied = json!({ "endpoints": [] });
    let name = before[0]["metadata"]["name"].as_str().expect("a name");
    real.slices().patch(name, &PatchParams::default(), &Patch::Merge(emptied)).await.expect("emptied");
    real.until_published(&names([1, 3])).await;

    first.mark(names([0]));
    let is_marked = async || {
        let pod = real.api::<Pod>().get("ws-0").await.expect("a pod");
        pod.metadata.annotations.is_some_and(|all| all.contains_key("controller.kubernetes.io/pod-deletion-cost"))
    };
    let marking = async {
        while !is_marked().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, marking).await.expect("a mark");

    // Another node takes over from one that died, under a higher term.
    let term = first.status().term;
    let second = real.candidate("second");
    second.decide(open(1, [3, 4]));
    sees(&second, "that another one writes", |seen| seen.state == State::Standby).await;
    drop(first);
    sees(&second, "that it writes", Outlook::is_writer).await;
    real.until_published(&names([3, 4])).await;
    assert!(second.status().term > term);
    let status = second.status();
    second.shutdown().await;
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = real.api();
    let lease = leases.get("ws-placement").await.expect("the Lease");
    assert_eq!(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default(), "", "released");
    eprintln!("{status:?}");

    let namespaces: Api<Namespace> = Api::all(real.client.clone());
    namespaces.delete(&real.namespace, &DeleteParams::default()).await.expect("deleted");
}
