//! What a request asks for.

use std::collections::HashMap;

use axum::http::{Method, Uri};

/// The kinds that are known: group, resource, kind.
const KINDS: [(&str, &str, &str); 5] = [
    ("", "pods", "Pod"),
    ("", "services", "Service"),
    ("coordination.k8s.io", "leases", "Lease"),
    ("discovery.k8s.io", "endpointslices", "EndpointSlice"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
];

/// A request, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: Option<String>,
    pub(crate) query: HashMap<String, String>,
}

impl Route {
    /// Nothing if this is no request for one of the kinds.
    pub(crate) fn read(method: &Method, uri: &Uri, query: HashMap<String, String>) -> Option<Self> {
        let path: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match path[..] {
            ["api", version, ref rest @ ..] => ("", version, rest),
            ["apis", group, version, ref rest @ ..] => (group, version, rest),
            _ => return None,
        };
        let (namespace, resource, name) = match *rest {
            ["namespaces", namespace, resource] => (namespace, resource, None),
            ["namespaces", namespace, resource, name] => (namespace, resource, Some(name.to_owned())),
            [resource] => ("", resource, None),
            _ => return None,
        };
        let (.., kind) = KINDS.iter().find(|(of, name, _)| *of == group && *name == resource)?;
        let is_watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let verb = match (method.as_str(), &name) {
            ("GET", Some(_)) => "get",
            ("GET", None) if is_watch => "watch",
            ("GET", None) => "list",
            ("POST", None) => "create",
            ("PUT", Some(_)) => "update",
            ("PATCH", Some(_)) => "patch",
            ("DELETE", Some(_)) => "delete",
            _ => return None,
        };
        let [group, version, resource, namespace] = [group, version, resource, namespace].map(str::to_owned);
        Some(Self { verb, group, version, resource, kind, namespace, name, query })
    }

    /// The version of the API as objects spell it.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}
