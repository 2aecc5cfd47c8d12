//! A namespace on a small API server, with the two Services, pods, and agents in it.

// Each test program uses its part.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use apiserver::{ApiServer, Options};
use kubernetes::{Access, Agent, OpenSet, Outlook, Role, Settings, Timing};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest that anything may take, on a machine that does much else.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Where everything is.
pub const HERE: &str = "here";

/// A cluster.
pub struct Cluster {
    /// Its API server.
    pub server: ApiServer,
    dir: TempDir,
}

impl Cluster {
    /// With both Services and no pods.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// The same on a server of another kind.
    pub async fn with(options: Options) -> Self {
        let server = ApiServer::start(options).await;
        let ports = json!([{ "name": "ws", "port": 80, "targetPort": 8000, "protocol": "TCP" }]);
        server.put(
            "services",
            HERE,
            "ws",
            json!({
                "spec": { "ports": ports, "ipFamilies": ["IPv4", "IPv6"] },
            }),
        );
        server.put(
            "services",
            HERE,
            "ws-all",
            json!({ "spec": { "ports": ports, "selector": { "app": "evenkeel" } } }),
        );
        Self { server, dir: tempfile::tempdir().expect("a directory") }
    }

    /// Adds pods that are ready, with an address of the older family.
    pub fn add_pods(&self, numbers: std::ops::Range<u16>) {
        for number in numbers {
            self.server.put("pods", HERE, &format!("ws-{number}"), pod(&[&v4(number)]));
        }
    }

    /// Whether a pod is ready.
    pub fn set_ready(&self, number: u16, is_ready: bool) {
        self.server.change("pods", HERE, &format!("ws-{number}"), |pod| {
            pod["status"]["conditions"][0]["status"] = json!(if is_ready { "True" } else { "False" });
        });
    }

    /// The uid of a pod.
    pub fn uid(&self, number: u16) -> String {
        let pod = self.server.object("pods", HERE, &format!("ws-{number}")).expect("a pod");
        pod["metadata"]["uid"].as_str().expect("a uid").to_owned()
    }

    /// An agent of the pod `name`, which is no candidate yet.
    pub fn agent(&self, name: &str, change: impl FnOnce(&mut Settings)) -> Agent {
        let path = self.dir.path().join(name);
        std::fs::write(&path, self.server.kubeconfig(name, HERE)).expect("a file");
        let mut settings = Settings::new(name);
        settings.timing = Timing {
            duration: Duration::from_secs(3),
            deadline: Duration::from_millis(2_000),
            retry: Duration::from_millis(300),
            call_timeout: Duration::from_millis(900),
        };
        settings.stale_after = Duration::from_secs(3_600);
        settings.confirm_every = Duration::from_millis(500);
        settings.pass_every = Duration::from_millis(50);
        change(&mut settings);
        Agent::start(settings, Access::Kubeconfig(path))
    }

    /// An agent that wants to write, and keeps the lease while the machine stands still for some seconds.
    pub fn patient_candidate(&self, name: &str) -> Agent {
        let agent = self.agent(name, |settings| {
            settings.timing.duration = Duration::from_secs(12);
            settings.timing.deadline = Duration::from_secs(9);
            settings.timing.call_timeout = Duration::from_secs(2);
        });
        agent.set_role(Role::Candidate);
        agent
    }

    /// An agent that wants to write.
    pub fn candidate(&self, name: &str) -> Agent {
        let agent = self.agent(name, |_| ());
        agent.set_role(Role::Candidate);
        agent
    }

    /// The slices of the gateway, by name.
    pub fn slices(&self) -> Vec<Value> {
        let mut slices = self.server.objects("endpointslices", HERE);
        slices.retain(|slice| slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "evenkeel");
        slices
    }

    /// The names of the pods that are published.
    pub fn published(&self) -> BTreeSet<String> {
        let slices = self.slices();
        let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.map(|each| each["targetRef"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// The term that is written on every slice, if it is one.
    pub fn term(&self) -> Option<u32> {
        let slices = self.slices();
        let terms: BTreeSet<u32> = slices.iter().map(term_of).collect();
        terms.first().copied().filter(|_| terms.len() == 1)
    }

    /// Who is said to hold the lease: the name of the pod.
    pub fn holder(&self) -> Option<String> {
        let lease = self.server.object("leases", HERE, "ws-placement")?;
        let holder = lease["spec"]["holderIdentity"].as_str()?;
        holder.split_once('_').map(|(name, _)| name.to_owned())
    }

    /// Waits until just these pods are published.
    pub async fn until_published(&self, names: &BTreeSet<String>) {
        self.server.until(&format!("{names:?} published"), DEADLINE, |_| self.published() == *names).await;
    }

    /// Accepted writes of slices: term and writer, in order.
    pub fn writes(&self) -> Vec<(u32, String)> {
        let is_write = |verb: &str| matches!(verb, "create" | "patch");
        let calls = self.server.calls().into_iter();
        let writes = calls.filter(|call| call.resource == "endpointslices" && is_write(call.verb) && call.code < 300);
        writes.map(|call| (term_of(&call.body), call.user)).collect()
    }
}

fn term_of(slice: &Value) -> u32 {
    let term = slice["metadata"]["annotations"]["evenkeel/placement-term"].as_str();
    term.expect("a term").parse().expect("a number")
}

/// The address of a pod.
pub fn v4(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("10.1.{high}.{low}")
}

/// A pod that is ready.
pub fn pod(addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
    json!({
        "metadata": {
            "labels": { "app": "evenkeel", "pod-template-hash": "5f7", "topology.kubernetes.io/zone": "b" },
        },
        "spec": { "nodeName": "machine-1", "containers": [] },
        "status": {
            "phase": "Running",
            "podIP": addresses[0]["ip"],
            "podIPs": addresses,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// Names of pods.
pub fn names(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<String> {
    numbers.into_iter().map(|number| format!("ws-{number}")).collect()
}

/// A decision.
pub fn open(sequence: u64, numbers: impl IntoIterator<Item = u16>) -> OpenSet {
    OpenSet { term: 1, sequence, lease: None, pods: names(numbers) }
}

/// Waits until the agent sees what is meant.
pub async fn sees(agent: &Agent, what: &str, meant: impl FnMut(&Outlook) -> bool) -> Outlook {
    let mut outlook = agent.outlook();
    let waiting = outlook.wait_for(meant);
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(seen) => seen.expect("the agent runs").clone(),
        Err(_) => panic!("not within {DEADLINE:?}: {what}; {:?} {:?}", agent.outlook().borrow().state, agent.status()),
    }
}

/// The addresses in a slice.
pub fn addresses(slice: &Value) -> Vec<IpAddr> {
    let endpoints = slice["endpoints"].as_array().expect("endpoints");
    let first = endpoints.iter().map(|endpoint| endpoint["addresses"][0].as_str().expect("an address"));
    first.map(|address| address.parse().expect("an address")).collect()
}
