//! Environment variables as keys: `EVENKEEL_DRAIN__WINDOW` is `drain.window`.

use std::collections::BTreeMap;

use super::problem::Problem;
use super::reader::Context;
use super::tree::{Node, Origin, Table, Value, overlay};

const PREFIX: &str = "EVENKEEL_";

/// Short names for what nearly everybody sets.
const ALIASES: [(&str, &[&str]); 2] =
    [("EVENKEEL_API_KEY", &["api", "keys"]), ("EVENKEEL_TOKEN_HMAC_SECRET", &["client", "token", "hmac_secret"])];

/// Lays every `EVENKEEL_` variable over the tree.
pub(super) fn apply(table: &mut Table, variables: &BTreeMap<String, String>, context: &Context) {
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if is_service_link(rest) {
            continue;
        }
        let origin = Origin::Variable(name.clone());
        let problem = |key: String, reason: String| {
            context.problem(Problem { place: Some(name.clone()), key, value: None, reason });
        };
        if let Some((_, path)) = ALIASES.iter().find(|(alias, _)| alias == name) {
            let long = long_name(path);
            if variables.contains_key(&long) {
                problem(path.join("."), format!("{long} is set too; keep one of them"));
                continue;
            }
            let node = Node::text(text, origin.clone());
            // The alias names one API key, which is taken as it is, commas included.
            let list = path.last() == Some(&"keys");
            let node = if list { Node { value: Value::List(vec![node]), origin } } else { node };
            if let Err(key) = overlay(table, path, node) {
                problem(key, "is a section: write its keys, not a value".to_owned());
            }
            continue;
        }
        let key = rest.to_ascii_lowercase();
        let path: Vec<&str> = key.split("__").collect();
        if let Err(key) = overlay(table, &path, Node::text(text, origin)) {
            problem(key, "is a section: write its keys, not a value".to_owned());
        }
    }
}

fn long_name(path: &[&str]) -> String {
    format!("{PREFIX}{}", path.join("__").to_ascii_uppercase())
}

/// Variables that Kubernetes puts into every pod for a Service named `evenkeel` or `evenkeel-...`. They are no
/// settings, and must not keep a pod from starting. No key ends like one of them.
fn is_service_link(rest: &str) -> bool {
    let parts: Vec<&str> = rest.split('_').collect();
    let port = parts.iter().rposition(|part| *part == "PORT");
    let service = parts.iter().rposition(|part| *part == "SERVICE");
    let after = |index: usize| parts.get(index + 1..).unwrap_or_default();
    let service_link = service.is_some_and(|index| matches!(after(index), ["HOST"] | ["PORT", ..]));
    let port_link = port.is_some_and(|index| match after(index) {
        [] => true,
        [number, protocol, more @ ..] => {
            number.bytes().all(|byte| byte.is_ascii_digit())
                && matches!(*protocol, "TCP" | "UDP" | "SCTP")
                && matches!(more, [] | ["PROTO" | "ADDR"])
        }
        [_] => false,
    });
    // EVENKEEL_PORT_8000_TCP_PORT: the last PORT has nothing after it, which the rule above accepts too.
    service_link || port_link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_are_told_from_settings() {
        for link in [
            "PORT",
            "PORT_8000_TCP",
            "PORT_8000_TCP_ADDR",
            "PORT_8000_TCP_PORT",
            "PORT_8000_TCP_PROTO",
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "WS_ALL_PORT",
            "WS_ALL_PORT_8000_TCP_ADDR",
            "WS_ALL_SERVICE_HOST",
            "WS_ALL_SERVICE_PORT_WS_TLS",
        ] {
            assert!(is_service_link(link), "{link}");
        }
        for setting in
            ["LISTEN", "DRAIN__WINDOW", "API_KEY", "TOKEN_HMAC_SECRET", "PORT_X", "SERVICE", "CLIENT__QUEUE_BYTES"]
        {
            assert!(!is_service_link(setting), "{setting}");
        }
    }
}
