//! Carries out requests on the store.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::apply::{Fields, apply, merge};
use crate::route::Route;
use crate::selector::matches;
use crate::store::{Entry, Key, Store};

/// The most endpoints that a slice may have.
const ENDPOINTS_MAX: usize = 1_000;

/// A refusal, as the API spells it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(crate) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub(crate) fn status(&self) -> Value {
        let Self { code, reason, message } = self;
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        })
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    fn missing(key: &Key) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} \"{}\" not found", key.resource, key.name))
    }
}

type Answer = Result<(StatusCode, Value), Refusal>;

/// Carries out a request other than a watch.
pub(crate) fn answer(store: &mut Store, route: &Route, body: &Value, is_apply: bool) -> Answer {
    let key = |name: &str| Key {
        resource: route.resource.clone(),
        namespace: route.namespace.clone(),
        name: name.to_owned(),
    };
    let Some(name) = &route.name else {
        return match route.verb {
            "list" => Ok((StatusCode::OK, list(store, route))),
            _ => {
                let name = body["metadata"]["name"].as_str();
                create(store, route, &key(name.ok_or_else(|| invalid("an object needs a name"))?), body)
            }
        };
    };
    let key = key(name);
    match route.verb {
        "get" => {
            let entry = store.entry(&key).ok_or_else(|| Refusal::missing(&key))?;
            Ok((StatusCode::OK, shown(entry.object.clone(), route)))
        }
        "update" => update(store, route, &key, body),
        "patch" if is_apply => apply_patch(store, route, &key, body),
        "patch" => merge_patch(store, route, &key, body),
        _ => delete(store, &key, body),
    }
}

/// The object as this version of the API and this kind show it.
pub(crate) fn shown(mut object: Value, route: &Route) -> Value {
    object["apiVersion"] = json!(route.api_version());
    object["kind"] = json!(route.kind);
    object
}

fn list(store: &Store, route: &Route) -> Value {
    let selector = route.parameter("labelSelector");
    let all: Vec<&Value> =
        store.all(&route.resource, &route.namespace).filter(|object| matches(selector, object)).collect();
    // The place to go on from is a plain number; a real server gives an opaque text.
    let from = route.parameter("continue").parse().unwrap_or(0);
    let limit = route.parameter("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let items: Vec<Value> = all.iter().skip(from).take(limit).map(|object| shown((*object).clone(), route)).collect();
    let mut meta = json!({ "resourceVersion": store.version().to_string() });
    let next = from + items.len();
    if next < all.len() {
        meta["continue"] = json!(next.to_string());
    }
    json!({ "kind": format!("{}List", route.kind), "apiVersion": route.api_version(), "metadata": meta, "items": items })
}

fn create(store: &mut Store, route: &Route, key: &Key, body: &Value) -> Answer {
    if store.entry(key).is_some() {
        let message = format!("{} \"{}\" already exists", key.resource, key.name);
        return Err(Refusal::new(StatusCode::CONFLICT, "AlreadyExists", message));
    }
    if body["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(invalid("resourceVersion should not be set on objects to be created"));
    }
    check(route, body)?;
    let mut fields = Fields::default();
    fields.note_update(route.parameter("fieldManager"), &json!({}), body);
    Ok((StatusCode::CREATED, shown(store.put(key, Entry { object: body.clone(), fields }), route)))
}

fn update(store: &mut Store, route: &Route, key: &Key, body: &Value) -> Answer {
    let entry = store.entry(key).ok_or_else(|| Refusal::missing(key))?;
    check_seen(&entry.object, body)?;
    check(route, body)?;
    let mut fields = entry.fields.clone();
    fields.note_update(route.parameter("fieldManager"), &entry.object, body);
    Ok((StatusCode::OK, shown(store.put(key, Entry { object: body.clone(), fields }), route)))
}

fn apply_patch(store: &mut Store, route: &Route, key: &Key, body: &Value) -> Answer {
    let manager = route.parameter("fieldManager");
    if manager.is_empty() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", "fieldManager is required for apply patch"));
    }
    let existing = store.entry(key).cloned();
    match &existing {
        Some(entry) => check_seen(&entry.object, body)?,
        None if !body["metadata"]["resourceVersion"].is_null() => {
            return Err(Refusal::conflict("a version was given, and the object does not exist"));
        }
        None => {}
    }
    let code = if existing.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let Entry { object, mut fields } =
        existing.unwrap_or_else(|| Entry { object: json!({}), fields: Fields::default() });
    let is_forced = route.parameter("force") == "true";
    let after = apply(&object, &mut fields, manager, body, is_forced)
        .map_err(|conflicts| Refusal::conflict(format!("Apply failed: {}", conflicts.join("; "))))?;
    if object["addressType"].is_string() && object["addressType"] != after["addressType"] {
        return Err(invalid("addressType: field is immutable"));
    }
    check(route, &after)?;
    Ok((code, shown(store.put(key, Entry { object: after, fields }), route)))
}

fn merge_patch(store: &mut Store, route: &Route, key: &Key, body: &Value) -> Answer {
    let Entry { object, mut fields } = store.entry(key).cloned().ok_or_else(|| Refusal::missing(key))?;
    let uid = &body["metadata"]["uid"];
    if uid.is_string() && *uid != object["metadata"]["uid"] {
        return Err(invalid("metadata.uid: field is immutable"));
    }
    check_seen(&object, body)?;
    let mut after = object.clone();
    merge(&mut after, body);
    check(route, &after)?;
    fields.note_update(route.parameter("fieldManager"), &object, &after);
    Ok((StatusCode::OK, shown(store.put(key, Entry { object: after, fields }), route)))
}

fn delete(store: &mut Store, key: &Key, body: &Value) -> Answer {
    let entry = store.entry(key).ok_or_else(|| Refusal::missing(key))?;
    let only = json!({ "metadata": body["preconditions"] });
    check_seen(&entry.object, &only)?;
    store.remove(key);
    Ok((StatusCode::OK, json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" })))
}

/// Version and uid, where the caller gives them, must be those of the object.
fn check_seen(object: &Value, given: &Value) -> Result<(), Refusal> {
    for field in ["resourceVersion", "uid"] {
        let (is, given) = (&object["metadata"][field], &given["metadata"][field]);
        if given.as_str().is_some_and(|given| !given.is_empty()) && is != given {
            let message = format!("the object has been modified: its {field} is {is}, not {given}");
            return Err(Refusal::conflict(message));
        }
    }
    Ok(())
}

/// What a real server checks of an EndpointSlice, as far as a mistake could happen here.
fn check(route: &Route, object: &Value) -> Result<(), Refusal> {
    if route.resource != "endpointslices" {
        return Ok(());
    }
    let endpoints = object["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    if endpoints.len() > ENDPOINTS_MAX {
        return Err(invalid(format!("endpoints: Too many: {}: must have at most 1000 items", endpoints.len())));
    }
    let is_v6 = match object["addressType"].as_str() {
        Some("IPv4") => false,
        Some("IPv6") => true,
        other => return Err(invalid(format!("addressType: Unsupported value: {other:?}"))),
    };
    for endpoint in endpoints {
        let addresses = endpoint["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        let parsed = addresses.iter().map(|address| address.as_str().and_then(|text| text.parse().ok()));
        let fits = |address: Option<std::net::IpAddr>| address.is_some_and(|address| address.is_ipv6() == is_v6);
        if addresses.is_empty() || !parsed.into_iter().all(fits) {
            return Err(invalid(format!("endpoints.addresses: Invalid value: {addresses:?}")));
        }
    }
    let is_old = route.version == "v1beta1";
    let known: &[&str] = match is_old {
        true => &["addresses", "conditions", "hostname", "targetRef", "topology", "nodeName", "hints"],
        false => {
            &["addresses", "conditions", "hostname", "targetRef", "nodeName", "zone", "hints", "deprecatedTopology"]
        }
    };
    let unknown = endpoints.iter().filter_map(Value::as_object).flat_map(|endpoint| endpoint.keys());
    match unknown.into_iter().find(|field| !known.contains(&field.as_str())) {
        Some(field) => Err(invalid(format!(".endpoints.{field}: field not declared in schema"))),
        None => Ok(()),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
}
