//! The nodes of a scenario: given by address, or by address and how they are restarted, or started by the scenario.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::control::Control;
use super::health::Health;
use super::options::ClientOptions;
use crate::progress::pause;
use crate::sys::Signal;
use crate::target::Target;

/// How far the internal listener's port of a started node is above that of its public one.
const INTERNAL_PORTS: u16 = 500;
/// How long a node may take to be ready.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Where the nodes are.
#[derive(Args, Clone, Debug)]
pub struct FleetOptions {
    /// WebSocket URL of a node; may be given several times
    #[arg(long, value_name = "URL")]
    pub url: Vec<String>,
    /// A node as url=URL[,health=URL][,pid-file=FILE[,start=COMMAND]]; may be given several times. The command comes last
    #[arg(long, value_name = "NODE", conflicts_with = "url")]
    pub node: Vec<String>,
    /// Command line that starts a gateway, split at spaces; --listen and --internal-listen are added
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["url", "node"])]
    pub gateway_cmd: Option<String>,
    /// Nodes to start with --gateway-cmd
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub nodes: u16,
    /// Port of the first of them; the others follow, and their internal listeners 500 above
    #[arg(long, value_name = "PORT", default_value_t = 18_200, value_parser = clap::value_parser!(u16).range(1024..=64_000))]
    pub base_port: u16,
}

/// One node.
pub struct Node {
    /// Its WebSocket endpoint.
    pub target: Target,
    /// Where it is asked whether it is ready.
    pub health: Health,
    /// How it is ended and started, if it can be.
    pub control: Option<Control>,
}

/// All nodes. Those that the scenario has started end with it.
pub struct Fleet {
    /// In the order in which they were given.
    pub nodes: Vec<Node>,
}

impl FleetOptions {
    /// The nodes; started, and ready, if they are to be started.
    pub fn open(&self, client: &ClientOptions, api_key: Option<&str>) -> Result<Fleet> {
        let mut fleet = match &self.gateway_cmd {
            Some(command) => self.commanded(command, client, api_key)?,
            None => self.given(client)?,
        };
        for node in &mut fleet.nodes {
            if let Some(control @ Control::Spawned { .. }) = &mut node.control {
                if std::net::TcpStream::connect(node.target.address).is_ok() {
                    bail!("something listens on {} already; choose another --base-port", node.target.address);
                }
                control.start()?;
            }
        }
        for node in &fleet.nodes {
            node.wait_until_ready()?;
        }
        Ok(fleet)
    }

    fn given(&self, client: &ClientOptions) -> Result<Fleet> {
        let from_url = |url: &String| parse_node(&format!("url={url}"), client.allow_remote);
        let from_node = |node: &String| parse_node(node, client.allow_remote);
        let nodes: Vec<Node> = match (&self.url[..], &self.node[..]) {
            ([], []) => vec![parse_node("url=ws://127.0.0.1:8000/connection/websocket", client.allow_remote)?],
            (urls, []) => urls.iter().map(from_url).collect::<Result<_>>()?,
            (_, nodes) => nodes.iter().map(from_node).collect::<Result<_>>()?,
        };
        Ok(Fleet { nodes })
    }

    fn commanded(&self, command: &str, client: &ClientOptions, api_key: Option<&str>) -> Result<Fleet> {
        let mut environment = Vec::new();
        environment.extend(api_key.map(|key| ("EVENKEEL_API_KEY", key.to_owned())));
        let secret = client.token_secret.as_deref();
        environment.extend(secret.map(|secret| ("EVENKEEL_TOKEN_HMAC_SECRET", secret.to_owned())));
        let node = |number: u16| -> Result<Node> {
            let (public, internal) = (self.base_port + number, self.base_port + INTERNAL_PORTS + number);
            let listen = ["--listen", &format!("127.0.0.1:{public}")].map(str::to_owned);
            let internally = ["--internal-listen", &format!("127.0.0.1:{internal}")].map(str::to_owned);
            let health = Target::parse(&format!("http://127.0.0.1:{internal}/health/ready"), "http", false)?;
            Ok(Node {
                target: Target::parse(&format!("ws://127.0.0.1:{public}/connection/websocket"), "ws", false)?,
                health: Health::Url(health),
                control: Some(Control::command(command, [listen, internally].concat(), environment.clone())?),
            })
        };
        Ok(Fleet { nodes: (0..self.nodes).map(node).collect::<Result<_>>()? })
    }
}

/// Reads `url=...,health=...,pid-file=...,start=...`; everything behind `start=` is the command.
fn parse_node(text: &str, allow_remote: bool) -> Result<Node> {
    let (fields, start) = match text.split_once(",start=") {
        Some((fields, start)) => (fields, Some(start.to_owned())),
        None => (text, None),
    };
    let (mut target, mut health, mut pid_file) = (None, None, None);
    for field in fields.split(',') {
        match field.split_once('=') {
            Some(("url", url)) => target = Some(Target::parse(url, "ws", allow_remote)?),
            Some(("health", url)) => health = Some(Target::parse(url, "http", allow_remote)?),
            Some(("pid-file", file)) => pid_file = Some(file.into()),
            _ => bail!("`{field}` in --node is none of url=, health=, pid-file= and start="),
        }
    }
    let target = target.with_context(|| format!("--node `{text}` has no url="))?;
    if start.is_some() && pid_file.is_none() {
        bail!("--node `{text}` has start= without pid-file=");
    }
    Ok(Node {
        health: health.map_or_else(|| Health::Connect(target.clone()), Health::Url),
        control: pid_file.map(|pid_file| Control::External { pid_file, start, shell: None }),
        target,
    })
}

impl Node {
    /// Waits until it takes connections.
    pub fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_PATIENCE;
        while !self.health.is_ready() {
            if Instant::now() > deadline {
                bail!("the node on {} was not ready within {READY_PATIENCE:?}", self.target.address);
            }
            pause();
        }
        Ok(())
    }
}

impl Fleet {
    /// Endpoints of all nodes.
    pub fn targets(&self) -> Vec<Target> {
        self.nodes.iter().map(|node| node.target.clone()).collect()
    }

    /// Where all nodes are asked.
    pub fn health(&self) -> Vec<Health> {
        self.nodes.iter().map(|node| node.health.clone()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(control @ Control::Spawned { .. }) = &node.control {
                // The first signal of two: each is told again, and waited for, when it is dropped. It may be gone.
                let _ = control.signal(Signal::Terminate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_taken_apart_and_its_command_may_have_commas() {
        let text = "url=ws://127.0.0.1:1/c,health=http://127.0.0.1:2/h,pid-file=/run/x,start=run a,b url=c";
        let node = parse_node(text, false).expect("valid");
        assert_eq!((node.target.path.as_str(), matches!(node.health, Health::Url(_))), ("/c", true));
        let Some(Control::External { start: Some(start), .. }) = &node.control else { panic!("can be restarted") };
        assert_eq!(start, "run a,b url=c");
        let plain = parse_node("url=ws://127.0.0.1:1/c", false).expect("valid");
        assert!(plain.control.is_none() && matches!(plain.health, Health::Connect(_)));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let reason = |text| parse_node(text, false).err().expect("refused").to_string();
        assert!(reason("health=http://127.0.0.1:2/h").contains("no url="));
        assert!(reason("url=ws://127.0.0.1:1/,pid=3").contains("`pid=3`"));
        assert!(reason("url=ws://127.0.0.1:1/,start=x").contains("without pid-file="));
    }
}
