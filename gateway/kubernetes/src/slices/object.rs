//! Builds and reads EndpointSlice objects, in both versions of the API.

use std::net::IpAddr;

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::plan::{Existing, Target};
use super::{Endpoint, Endpoints, Family, Frame, Port};
use crate::lease::election::TERM_MAX;
use crate::pods::facts::ZONE;
use crate::settings::SliceVersion;

/// The API group.
pub const GROUP: &str = "discovery.k8s.io";

/// The label by which consumers find the slices of a Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The label that says who keeps a slice; the cluster's own controllers leave others' alone.
pub const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";

/// What the label says, and the name under which fields are owned. The same for all nodes, so that one can go on where
/// another has left off.
pub const MANAGER: &str = "evenkeel";

/// The annotation with the term of the last writer.
pub const TERM: &str = "evenkeel/placement-term";

/// In the older version of the API, a machine is told by this label.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What the API calls it.
pub fn resource(version: SliceVersion) -> ApiResource {
    let version = match version {
        SliceVersion::V1 => "v1",
        SliceVersion::V1Beta1 => "v1beta1",
    };
    let kind = GroupVersionKind::gvk(GROUP, version, "EndpointSlice");
    ApiResource::from_gvk_with_plural(&kind, "endpointslices")
}

/// The whole object for `target`. With `version` it replaces just that one.
pub fn build(
    target: &Target,
    frame: &Frame,
    namespace: &str,
    version: Option<&str>,
    api: SliceVersion,
) -> DynamicObject {
    let endpoints = target.endpoints.iter();
    let endpoints: Vec<Value> = endpoints.map(|(uid, endpoint)| write(uid, endpoint, namespace, api)).collect();
    let mut object = DynamicObject::new(&target.name, &resource(api)).within(namespace).data(json!({
        "addressType": target.family.name(),
        "ports": frame.ports.iter().map(write_port).collect::<Vec<_>>(),
        "endpoints": endpoints,
    }));
    object.metadata.resource_version = version.map(str::to_owned);
    object.metadata.labels =
        Some([(SERVICE_LABEL, frame.service.as_str()), (MANAGER_LABEL, MANAGER)].map(owned).into());
    object.metadata.annotations = Some([(TERM, frame.term.to_string().as_str())].map(owned).into());
    object.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: frame.service.clone(),
        uid: frame.service_uid.clone(),
        ..Default::default()
    }]);
    object
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// Everything that some consumer needs: several follow a condition that is missing without looking, load balancers of
/// clouds skip an endpoint without `targetRef`, and hints are left out because they count only if every endpoint has them.
fn write(uid: &str, endpoint: &Endpoint, namespace: &str, api: SliceVersion) -> Value {
    let mut value = json!({
        "addresses": [endpoint.address.to_string()],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "targetRef": { "kind": "Pod", "namespace": namespace, "name": endpoint.pod, "uid": uid },
    });
    let places = [("nodeName", HOSTNAME, &endpoint.node), ("zone", ZONE, &endpoint.zone)];
    let mut topology = Map::new();
    for (field, label, place) in places {
        let Some(place) = place else { continue };
        match api {
            SliceVersion::V1 => value[field] = json!(place),
            SliceVersion::V1Beta1 => drop(topology.insert(label.to_owned(), json!(place))),
        }
    }
    if !topology.is_empty() {
        value["topology"] = topology.into();
    }
    value
}

fn write_port(port: &Port) -> Value {
    let mut value = json!({ "name": port.name, "port": port.number, "protocol": port.protocol });
    if let Some(application) = &port.application {
        value["appProtocol"] = json!(application);
    }
    value
}

/// The parts of a slice that the gateway writes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    address_type: Option<String>,
    endpoints: Option<Vec<ReadEndpoint>>,
    ports: Option<Vec<ReadPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadEndpoint {
    addresses: Vec<IpAddr>,
    conditions: Option<Conditions>,
    target_ref: Option<TargetRef>,
    node_name: Option<String>,
    zone: Option<String>,
    #[serde(default)]
    topology: Map<String, Value>,
}

#[derive(Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Deserialize)]
struct TargetRef {
    name: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadPort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

/// The slice as the API server has it. Anything unexpected makes it one that must be written anew, never an error: people
/// and other programs may have changed it.
pub fn read(object: DynamicObject) -> Existing {
    let mut meta = object.metadata;
    let annotation = meta.annotations.take().and_then(|mut all| all.remove(TERM));
    let term = annotation.and_then(|term| term.parse().ok()).filter(|term| *term < TERM_MAX).unwrap_or(0);
    let slice: Option<Slice> = serde_json::from_value(object.data).ok();
    let family = slice.as_ref().and_then(|slice| Family::named(slice.address_type.as_deref()?));
    let listed = slice.as_ref().and_then(|slice| slice.endpoints.as_deref()).unwrap_or_default();
    let endpoints: Endpoints = listed.iter().filter_map(read_endpoint).collect();
    let is_open = |each: &ReadEndpoint| each.conditions.as_ref().is_none_or(|all| all.ready != Some(false));
    let is_whole = slice.is_some() && endpoints.len() == listed.len() && listed.iter().all(is_open);
    let owner = meta.owner_references.take().and_then(|owners| owners.into_iter().next());
    let service = meta.labels.take().and_then(|mut labels| labels.remove(SERVICE_LABEL));
    let ports = slice.and_then(|slice| slice.ports?.into_iter().map(read_port).collect::<Option<Vec<_>>>());
    let frame = || Some(Frame { service: service?, service_uid: owner?.uid, ports: ports?, term });
    Existing {
        name: meta.name.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        version: meta.resource_version.unwrap_or_default(),
        family,
        frame: frame(),
        term,
        endpoints,
        is_whole,
    }
}

fn read_endpoint(endpoint: &ReadEndpoint) -> Option<(String, Endpoint)> {
    let [address] = endpoint.addresses[..] else { return None };
    let target = endpoint.target_ref.as_ref()?;
    let label = |name| endpoint.topology.get(name).and_then(Value::as_str).map(str::to_owned);
    let node = endpoint.node_name.clone().or_else(|| label(HOSTNAME));
    let zone = endpoint.zone.clone().or_else(|| label(ZONE));
    Some((target.uid.clone()?, Endpoint { address, pod: target.name.clone()?, node, zone }))
}

fn read_port(port: ReadPort) -> Option<Port> {
    let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
    Some(Port { name: port.name.unwrap_or_default(), number: port.port?, protocol, application: port.app_protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> (Target, Frame) {
        let endpoint = |address: &str, zone: Option<&str>| Endpoint {
            address: address.parse().expect("an address"),
            pod: "ws-1".into(),
            node: Some("machine-1".into()),
            zone: zone.map(str::to_owned),
        };
        let endpoints =
            [("u1".to_owned(), endpoint("10.0.0.1", Some("b"))), ("u2".to_owned(), endpoint("10.0.0.2", None))];
        let port = |name: &str, application: Option<&str>| Port {
            name: name.into(),
            number: 8000,
            protocol: "TCP".into(),
            application: application.map(str::to_owned),
        };
        let ports = vec![port("", None), port("ws", Some("kubernetes.io/ws"))];
        let target = Target { name: "ws-open-ipv4-0".into(), family: Family::V4, endpoints: endpoints.into() };
        (target, Frame { service: "ws".into(), service_uid: "s1".into(), ports, term: 7 })
    }

    #[test]
    fn what_is_written_is_read_back_in_both_versions() {
        let (target, frame) = target();
        for api in [SliceVersion::V1, SliceVersion::V1Beta1] {
            let mut object = build(&target, &frame, "here", Some("41"), api);
            object.metadata.uid = Some("x".into());
            let read = read(object);
            assert_eq!((read.name.as_str(), read.version.as_str(), read.uid.as_str()), ("ws-open-ipv4-0", "41", "x"));
            assert_eq!((read.family, read.frame.as_ref(), read.term), (Some(Family::V4), Some(&frame), 7), "{api:?}");
            assert_eq!((read.endpoints, read.is_whole), (target.endpoints.clone(), true), "{api:?}");
        }
    }

    #[test]
    fn every_field_that_some_consumer_needs_is_there() {
        let (target, frame) = target();
        let object = serde_json::to_value(build(&target, &frame, "here", None, SliceVersion::V1)).expect("JSON");
        assert_eq!(object["apiVersion"], "discovery.k8s.io/v1");
        assert_eq!(object["kind"], "EndpointSlice");
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "s1");
        assert_eq!(object["metadata"]["labels"][SERVICE_LABEL], "ws");
        assert_eq!(
            object["ports"][1],
            json!({
                "name": "ws", "port": 8000, "protocol": "TCP", "appProtocol": "kubernetes.io/ws",
            })
        );
        assert_eq!(
            object["endpoints"][0],
            json!({
                "addresses": ["10.0.0.1"],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "targetRef": { "kind": "Pod", "namespace": "here", "name": "ws-1", "uid": "u1" },
                "nodeName": "machine-1",
                "zone": "b",
            })
        );
    }

    #[test]
    fn what_others_have_changed_is_seen() {
        let (target, frame) = target();
        let object = build(&target, &frame, "here", None, SliceVersion::V1);
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut object = object.clone();
            change(&mut object.data);
            read(object)
        };
        assert!(!changed(&|data| data["endpoints"][0]["conditions"]["ready"] = json!(false)).is_whole);
        assert!(!changed(&|data| data["endpoints"][0]["targetRef"] = Value::Null).is_whole);
        assert!(!changed(&|data| data["endpoints"] = json!("no list")).is_whole);
        assert_eq!(changed(&|data| data["addressType"] = json!("FQDN")).family, None);
        assert_ne!(changed(&|data| data["ports"][0]["port"] = json!(1)).frame, Some(frame));
        let mut forged = object;
        forged.metadata.annotations = Some([owned((TERM, "4294967295"))].into());
        assert_eq!(read(forged).term, 0, "a term that cannot be passed is none");
    }
}
