//! Reads a pod as the API shows it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod as ApiPod, PodStatus};

use super::Pod;
use crate::marks::{DELETION_COST, MARKED};

/// The label by which a Deployment tells its revisions apart.
const REVISION: &str = "pod-template-hash";

/// The label that the cluster copies from the node to the pod.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// What placement has to know of `pod`. `None` for one without a name or uid, which the API never shows.
pub fn facts(pod: ApiPod) -> Option<Pod> {
    let meta = pod.metadata;
    let mut labels = meta.labels.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    let mut facts = Pod {
        name: meta.name?,
        uid: meta.uid?,
        is_ready: is_ready(&status),
        created: meta.creation_timestamp.map(|time| time.0.as_second()),
        is_deleting: meta.deletion_timestamp.is_some(),
        revision: labels.remove(REVISION),
        node: pod.spec.and_then(|spec| spec.node_name),
        zone: labels.remove(ZONE),
        is_marked: annotations.contains_key(MARKED),
        deletion_cost: annotations.remove(DELETION_COST),
        ..Pod::default()
    };
    // Clusters before dual stack show the one address only by itself.
    let all = status.pod_ips.unwrap_or_default().into_iter().map(|address| address.ip).chain(status.pod_ip);
    for address in all.filter_map(|text| text.parse::<IpAddr>().ok()) {
        match address {
            IpAddr::V4(v4) => facts.v4 = facts.v4.or(Some(v4)),
            IpAddr::V6(v6) => facts.v6 = facts.v6.or(Some(v6)),
        }
    }
    Some(facts)
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    status.phase.as_deref() == Some("Running")
        && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(changes: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "ws-1", "uid": "u1", "creationTimestamp": "1970-01-02T00:00:00Z",
                "labels": { "pod-template-hash": "5f7", "topology.kubernetes.io/zone": "b" },
            },
            "spec": { "nodeName": "machine-1", "containers": [] },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1",
                "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00:0::1" }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        changes(&mut pod);
        facts(serde_json::from_value(pod).expect("a pod")).expect("a name and a uid")
    }

    #[test]
    fn everything_is_read() {
        let pod = read(|_| ());
        assert!(pod.is_eligible());
        assert_eq!(pod.created, Some(86_400));
        assert_eq!(pod.v4, Some("10.0.0.1".parse().expect("v4")));
        assert_eq!(pod.v6.map(|v6| v6.to_string()).as_deref(), Some("fd00::1"));
        assert_eq!(pod.revision.as_deref(), Some("5f7"));
        assert_eq!((pod.node.as_deref(), pod.zone.as_deref()), (Some("machine-1"), Some("b")));
        assert!(!pod.is_marked);
    }

    #[test]
    fn a_pod_that_ends_fails_or_has_no_address_is_not_eligible() {
        assert!(!read(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")).is_eligible());
        assert!(!read(|pod| pod["status"]["conditions"][0]["status"] = json!("False")).is_eligible());
        assert!(!read(|pod| pod["status"]["conditions"] = json!([])).is_eligible());
        assert!(!read(|pod| pod["status"]["phase"] = json!("Pending")).is_eligible());
        let without = |pod: &mut Value| {
            pod["status"]["podIP"] = Value::Null;
            pod["status"]["podIPs"] = json!([]);
        };
        assert!(!read(without).is_eligible());
    }

    #[test]
    fn a_single_address_and_a_mark_are_read_where_old_clusters_put_them() {
        let pod = read(|pod| {
            pod["status"]["podIPs"] = Value::Null;
            pod["metadata"]["annotations"] = json!({ DELETION_COST: "-1000", MARKED: "3" });
        });
        assert_eq!((pod.v4.is_some(), pod.v6), (true, None));
        assert_eq!((pod.deletion_cost.as_deref(), pod.is_marked), (Some("-1000"), true));
    }
}
