//! What kube-proxy does on each machine, as far as placement needs it: from the slices of a Service to rules of the kernel
//! that send each new connection to one of its endpoints, at random.
//!
//! [`ruleset`] is a pure function from slices to a script for `nft`; [`Proxy`] keeps the rules of a network namespace
//! current. Established connections are remembered by the kernel and never looked up again, as with the real one: that an
//! endpoint leaves does not touch them. For IPv4, which is what such tests use.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::ApiServer;

/// The table that the rules are in.
const TABLE: &str = "evenkeel";

/// The endpoints that take new connections, in order and each once: a slice may repeat what another one has.
pub fn endpoints(slices: &[Value], service: &str) -> BTreeSet<SocketAddrV4> {
    let label = |slice: &Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service;
    let meant = slices.iter().filter(|slice| label(slice) && slice["addressType"] == "IPv4");
    meant.flat_map(endpoints_of).collect()
}

fn endpoints_of(slice: &Value) -> Vec<SocketAddrV4> {
    let Some(port) = slice["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let listed = slice["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    // A condition that is missing counts as ready.
    let ready = listed.iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
    let addresses = ready.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse::<Ipv4Addr>().ok());
    addresses.map(|address| SocketAddrV4::new(address, port)).collect()
}

/// The script that replaces, in one step, whatever rules were there before: connections to `front` go to one of
/// `endpoints`, and are refused when there is none.
pub fn ruleset(front: SocketAddrV4, endpoints: &BTreeSet<SocketAddrV4>) -> String {
    let to_front = format!("ip daddr {} tcp dport {}", front.ip(), front.port());
    let choices = endpoints.iter().enumerate();
    let choices: Vec<String> = choices.map(|(number, to)| format!("{number} : {} . {}", to.ip(), to.port())).collect();
    let (translate, refuse) = match choices.len() {
        0 => (String::new(), format!("{to_front} ct state new reject with tcp reset")),
        count => {
            (format!("{to_front} dnat ip to numgen random mod {count} map {{ {} }}", choices.join(", ")), String::new())
        }
    };
    format!(
        "table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tchain services {{\n\t\t{translate}\n\t}}\n\
         \tchain refused {{\n\t\t{refuse}\n\t}}\n\
         \tchain prerouting {{\n\t\ttype nat hook prerouting priority dstnat;\n\t\tjump services\n\t}}\n\
         \tchain output {{\n\t\ttype nat hook output priority -100;\n\t\tjump services\n\t}}\n\
         \tchain filter_output {{\n\t\ttype filter hook output priority 0;\n\t\tjump refused\n\t}}\n\
         \tchain filter_forward {{\n\t\ttype filter hook forward priority 0;\n\t\tjump refused\n\t}}\n\
         }}\n"
    )
}

/// Keeps the rules of one network namespace current. Ends with this; the rules stay, as those of a proxy that died.
pub struct Proxy {
    task: JoinHandle<()>,
    /// The endpoints that the rules are of; nothing before there are rules.
    installed: watch::Receiver<Option<BTreeSet<SocketAddrV4>>>,
}

impl Proxy {
    /// Sends connections that are made to `front` in the network namespace `netns` (by its name in `ip netns`) to the
    /// endpoints of `service`. The caller must be root.
    pub fn start(server: ApiServer, namespace: &str, service: &str, netns: &str, front: SocketAddrV4) -> Self {
        let [namespace, service, netns] = [namespace, service, netns].map(str::to_owned);
        let (board, installed) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut changes = server.changes();
            loop {
                let wanted = Some(endpoints(&server.objects("endpointslices", &namespace), &service));
                if let Some(endpoints) = wanted.as_ref().filter(|_| *board.borrow() != wanted) {
                    install(&netns, &ruleset(front, endpoints)).expect("rules that nft takes");
                    board.send_replace(wanted);
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
        Self { task, installed }
    }

    /// Waits until new connections go to these endpoints and to no others.
    ///
    /// # Panics
    ///
    /// When the rules cannot be installed.
    pub async fn until_sends_to(&self, endpoints: &BTreeSet<SocketAddrV4>) {
        let mut installed = self.installed.clone();
        let are_these = |installed: &Option<BTreeSet<SocketAddrV4>>| installed.as_ref() == Some(endpoints);
        assert!(installed.wait_for(are_these).await.is_ok(), "the rules cannot be installed");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs a script for `nft` in a network namespace. Takes milliseconds, and the thread meanwhile.
pub fn install(netns: &str, script: &str) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns, "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // Closed at the end of the statement, which is what nft waits for.
    child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FRONT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);

    fn slice(service: &str, family: &str, endpoints: Value) -> Value {
        json!({
            "metadata": { "labels": { "kubernetes.io/service-name": service } },
            "addressType": family, "ports": [{ "port": 8000 }], "endpoints": endpoints,
        })
    }

    #[test]
    fn what_is_open_in_all_slices_is_chosen_from() {
        let open = json!([
            { "addresses": ["10.1.0.1"], "conditions": { "ready": true } },
            { "addresses": ["10.1.0.2"] },
            { "addresses": ["10.1.0.3"], "conditions": { "ready": false } },
        ]);
        let slices = [
            slice("ws", "IPv4", open),
            slice("ws", "IPv4", json!([{ "addresses": ["10.1.0.1"] }])),
            slice("ws", "IPv6", json!([{ "addresses": ["fd00::1"] }])),
            slice("other", "IPv4", json!([{ "addresses": ["10.1.0.9"] }])),
        ];
        let endpoints = endpoints(&slices, "ws");
        let addresses: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.0.1:8000", "10.1.0.2:8000"]);
        let rules = ruleset(FRONT, &endpoints);
        let rule = "ip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.1.0.1 . 8000, 1 : 10.1.0.2 . 8000 }";
        assert!(rules.contains(rule), "{rules}");
        assert!(!rules.contains("reject"));
    }

    #[test]
    fn without_endpoints_new_connections_are_refused() {
        let rules = ruleset(FRONT, &BTreeSet::new());
        assert!(rules.contains("ct state new reject with tcp reset") && !rules.contains("dnat ip"), "{rules}");
    }
}
