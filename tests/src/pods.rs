//! Gateways as pods of the two Services of the open set, in a small API server that runs in the test. What a kubelet and
//! the cluster's controllers would do to pods, the test says.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use apiserver::{ApiServer, Options};
use serde_json::{Value, json};

use crate::fleet::node;
use crate::gateway::{Builder, Gateway};
use crate::{PATIENCE, api};

/// Where everything is.
pub const NAMESPACE: &str = "here";

/// The Service that clients connect to.
pub const SERVICE: &str = "ws";

/// The port of it.
pub const SERVICE_PORT: u16 = 80;

/// The port of pods for clients.
pub const PORT: u16 = 8000;

/// What leads a gateway to the API server.
const CONFIG: &str = "[kubernetes]\nkubeconfig = \"{dir}/kubeconfig\"\n";

/// The pods, by number, and who must know of them.
pub struct Pods {
    /// The API server.
    pub server: ApiServer,
}

impl Pods {
    /// No pod yet.
    pub async fn start(options: Options) -> Self {
        let server = ApiServer::start(options).await;
        let ports = json!([{ "name": "ws", "port": SERVICE_PORT, "targetPort": PORT, "protocol": "TCP" }]);
        server.put("services", NAMESPACE, SERVICE, json!({ "spec": { "ports": ports, "ipFamilies": ["IPv4"] } }));
        let all = json!({ "spec": { "ports": ports, "selector": { "app": "evenkeel" } } });
        server.put("services", NAMESPACE, "ws-all", all);
        Self { server }
    }

    /// The gateway of a pod, yet to be started; `way` leads it to the others.
    pub fn gateway(&self, number: usize, way: &str) -> Builder {
        let name = name(number);
        let builder = node(&(way.to_owned() + CONFIG)).file("kubeconfig", &self.server.kubeconfig(&name, NAMESPACE));
        builder.env("EVENKEEL_KUBERNETES__POD_NAME", &name)
    }

    /// There is this pod, and it is ready.
    pub fn add(&self, number: usize, address: Ipv4Addr) {
        let pod = json!({
            "metadata": { "labels": { "app": "evenkeel" } },
            "spec": { "nodeName": "machine-1", "containers": [] },
            "status": {
                "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        self.server.put("pods", NAMESPACE, &name(number), pod);
    }

    /// Whether it is ready, from now on.
    pub fn set_ready(&self, number: usize, is_ready: bool) {
        let status = if is_ready { "True" } else { "False" };
        self.server.change("pods", NAMESPACE, &name(number), |pod| {
            pod["status"]["conditions"][0]["status"] = json!(status);
        });
    }

    /// It was deleted, and is given the time to end.
    pub fn terminate(&self, number: usize) {
        self.server.change("pods", NAMESPACE, &name(number), |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
    }

    /// It is gone.
    pub fn remove(&self, number: usize) {
        self.server.remove("pods", NAMESPACE, &name(number));
    }

    /// The names of the pods that new connections go to.
    pub fn published(&self) -> BTreeSet<String> {
        let slices = self.slices();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.map(|each| each["targetRef"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// The slices that say so.
    pub fn slices(&self) -> Vec<Value> {
        self.server.objects("endpointslices", NAMESPACE)
    }

    /// Waits until new connections go to these pods and to no others.
    pub async fn until_published(&self, numbers: impl IntoIterator<Item = usize>) {
        let wanted: BTreeSet<String> = numbers.into_iter().map(name).collect();
        self.server.until(&format!("{wanted:?} published"), PATIENCE, |_| self.published() == wanted).await;
    }
}

/// The name of a pod.
pub fn name(number: usize) -> String {
    format!("ws-{number}")
}

/// Which of these gateways writes the slices, if one does.
pub async fn writer<'a>(gateways: impl IntoIterator<Item = (usize, &'a Gateway)>) -> Option<usize> {
    let mut writers = Vec::new();
    for (number, gateway) in gateways {
        if gateway.metric("gateway_openset_writer ").await == Some(1.0) {
            writers.push(number);
        }
    }
    assert!(writers.len() <= 1, "{writers:?} write");
    writers.pop()
}

/// What this gateway says of moving its connections.
pub async fn rebalancing(gateway: &Gateway) -> String {
    let facts = api::send(gateway.api().get(&format!("{}/v1/node", gateway.internal_http()))).await.json();
    facts["rebalancing"].as_str().unwrap_or_default().to_owned()
}
