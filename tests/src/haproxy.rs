//! A real HAProxy before gateways: each new connection goes to the node with the fewest that wants any, as their agent checks
//! say. It ends with the test.

use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::api::Api;
use crate::ports::free_port;
use crate::until;

/// Where Debian has it: not on the path of every user.
const PROGRAM: &str = "/usr/sbin/haproxy";

/// Where a node is, or is going to be: the port for clients and that of its agent check.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// For clients.
    pub public: u16,
    /// For the agent check.
    pub agent: u16,
}

impl Place {
    /// So many places with ports that are free now.
    pub fn free(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self { public: free_port(), agent: free_port() }).collect()
    }
}

/// A running HAProxy.
pub struct Haproxy {
    process: Child,
    port: u16,
    stats: u16,
    _dir: TempDir,
}

impl Haproxy {
    /// Starts it before these nodes, whether or not they are there.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start(nodes: &[Place]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (port, stats) = (free_port(), free_port());
        let config = dir.path().join("haproxy.cfg");
        fs::write(&config, configuration(port, stats, nodes)).expect("the temporary directory is writable");
        let process = Command::new(PROGRAM)
            .args(["-db", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("haproxy can be started: tests/run installs it");
        Self { process, port, stats, _dir: dir }
    }

    /// The URL for WebSocket clients.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/connection/websocket", self.port)
    }

    /// Waits until it sends new connections to these nodes and to no others.
    ///
    /// # Panics
    ///
    /// When it does not by the deadline.
    pub async fn sends_to(&self, wanted: &[bool]) {
        let stats = Api::new(String::new(), "");
        let url = format!("http://127.0.0.1:{}/;csv", self.stats);
        let as_wanted = async || {
            let Ok(answer) = stats.get(&url).send().await else { return false };
            let text = answer.text().await.unwrap_or_default();
            let is_up = |node: usize| {
                let line = text.lines().find(|line| line.starts_with(&format!("nodes,n{node},")));
                // The status is the 18th field.
                line.and_then(|line| line.split(',').nth(17)).is_some_and(|status| status.starts_with("UP"))
            };
            wanted.iter().enumerate().all(|(node, wanted)| is_up(node) == *wanted)
        };
        until("HAProxy to know its nodes", as_wanted).await;
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // Errors mean that it is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(port: u16, stats: u16, nodes: &[Place]) -> String {
    let mut config = format!(
        "global\n    maxconn 9000\n\
         defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1h\n    timeout server 1h\n    \
         retries 3\n    option redispatch 1\n\
         frontend stats\n    mode http\n    bind 127.0.0.1:{stats}\n    timeout client 5s\n    stats enable\n    stats uri /\n\
         frontend clients\n    bind 127.0.0.1:{port}\n    default_backend nodes\n\
         backend nodes\n    balance leastconn\n    default-server check inter 500ms fall 1 rise 1 agent-check agent-inter 500ms\n"
    );
    for (number, Place { public, agent }) in nodes.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(config, "    server n{number} 127.0.0.1:{public} agent-addr 127.0.0.1 agent-port {agent}");
    }
    config
}
