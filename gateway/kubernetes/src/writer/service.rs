//! The two Services: what the slices take over from the one, and which pods the other selects.

use std::collections::BTreeMap;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::{Api, CallError};
use crate::settings::Settings;
use crate::slices::{Family, Port};

/// What was read of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Services {
    /// The uid of the Service whose slices are written.
    pub(crate) uid: String,
    /// Its ports, as pods have them.
    pub(crate) ports: Vec<Port>,
    /// Its families.
    pub(crate) families: Vec<Family>,
    /// The labels of the pods.
    pub(crate) selector: String,
}

/// Reads both, unless `until` has passed.
pub(crate) async fn load(api: &Api, settings: &Settings, until: Instant) -> Result<Services, CallError> {
    let services: kube::Api<Service> = kube::Api::namespaced(api.client(), api.namespace());
    let get = async |name: &str| match api.call(Some(until), services.get(name)).await {
        Err(CallError::NotFound) => Err(CallError::Refused(format!("the Service {name} does not exist"))),
        outcome => outcome,
    };
    let (open, all) = (get(&settings.service).await?, get(&settings.service_all).await?);
    read(settings, open, all).map_err(CallError::Refused)
}

fn read(settings: &Settings, open: Service, all: Service) -> Result<Services, String> {
    let spec = open.spec.unwrap_or_default();
    let selector = all.spec.and_then(|spec| spec.selector).unwrap_or_default();
    if selector.is_empty() {
        return Err(format!(
            "the Service {} has no selector, so it is not known which pods there are",
            settings.service_all
        ));
    }
    let families = families(&spec);
    let ports = spec.ports.unwrap_or_default().into_iter().map(|port| read_port(&settings.service, port));
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let uid = open.metadata.uid.unwrap_or_default();
    Ok(Services { uid, ports, families, selector: text(&selector) })
}

fn text(selector: &BTreeMap<String, String>) -> String {
    selector.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(",")
}

/// An older cluster does not say: then every family that pods have.
fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.as_deref().unwrap_or_default();
    let named: Vec<Family> = named.iter().filter_map(|name| Family::named(name)).collect();
    if named.is_empty() { vec![Family::V4, Family::V6] } else { named }
}

/// A slice has one number for all its pods, so a target that is a name, which each pod may give another number, is refused.
fn read_port(service: &str, port: ServicePort) -> Result<Port, String> {
    let name = port.name.unwrap_or_default();
    let number = match port.target_port {
        Some(IntOrString::String(target)) if target.parse::<u16>().is_err() => {
            return Err(format!("port {name:?} of the Service {service} has the target {target:?}: give its number"));
        }
        Some(IntOrString::String(target)) => target.parse().ok(),
        Some(IntOrString::Int(target)) => u16::try_from(target).ok(),
        None => u16::try_from(port.port).ok(),
    };
    let Some(number) = number else { return Err(format!("port {name:?} of the Service {service} is no port number")) };
    let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
    Ok(Port { name, number, protocol, application: port.app_protocol })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn services(change: impl FnOnce(&mut Value, &mut Value)) -> Result<Services, String> {
        let mut open = json!({
            "metadata": { "name": "ws", "uid": "s1" },
            "spec": { "ipFamilies": ["IPv6"], "ports": [{ "name": "ws", "port": 80, "targetPort": 8000 }] },
        });
        let mut all = json!({ "spec": { "selector": { "app": "evenkeel", "tier": "edge" } } });
        change(&mut open, &mut all);
        let service = |value| serde_json::from_value(value).expect("a Service");
        read(&Settings::new("me"), service(open), service(all))
    }

    #[test]
    fn slices_take_over_what_the_service_says() {
        let port = Port { name: "ws".into(), number: 8000, protocol: "TCP".into(), application: None };
        assert_eq!(
            services(|_, _| ()),
            Ok(Services {
                uid: "s1".into(),
                ports: vec![port],
                families: vec![Family::V6],
                selector: "app=evenkeel,tier=edge".into(),
            })
        );
        let same =
            services(|open, _| open["spec"]["ports"][0] = json!({ "port": 80 })).expect("a port without a target");
        assert_eq!((same.ports[0].number, same.ports[0].name.as_str()), (80, ""));
        let old = services(|open, _| open["spec"]["ipFamilies"] = Value::Null).expect("an old cluster");
        assert_eq!(old.families, [Family::V4, Family::V6]);
    }

    #[test]
    fn what_cannot_work_is_said() {
        let error = services(|open, _| open["spec"]["ports"][0]["targetPort"] = json!("http")).expect_err("a name");
        assert!(error.contains("give its number"), "{error}");
        let error = services(|_, all| all["spec"] = json!({})).expect_err("no selector");
        assert!(error.contains("ws-all has no selector"), "{error}");
        let error = services(|open, _| open["spec"]["ports"][0]["targetPort"] = json!(70_000)).expect_err("too high");
        assert!(error.contains("no port number"), "{error}");
    }
}
