//! Asking a fleet how level it is: `/v1/cluster` of the internal listener of any node.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Deserialize;

use crate::http::Head;
use crate::target::Target;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer that is read; 1,000 nodes have 400 KiB.
const ANSWER_BYTES: u64 = 16 << 20;

/// How the fleet is. What else is told is not needed here.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct ClusterState {
    /// Connections of all nodes.
    pub connections: u64,
    /// Nodes that are ready.
    pub ready: u64,
    /// Nodes that drain.
    pub draining: u64,
    /// Nodes that are neither.
    pub starting: u64,
    /// The load that every node would have if all were level.
    pub mean: f64,
    /// The highest load.
    pub max: f64,
    /// The highest by the mean.
    pub imbalance: f64,
    /// What the fleet says of it.
    #[serde(default)]
    pub explanation: Option<String>,
    /// The nodes, where their table could be read.
    #[serde(default)]
    pub nodes: Option<Vec<NodeState>>,
}

/// How a node is.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct NodeState {
    /// Its identity.
    pub id: String,
    /// Its connections.
    pub connections: u64,
    /// Its capacity in comparison with the others.
    pub weight: f64,
    /// Whether it is `ready`, `draining`, `retiring` or `starting`.
    pub state: String,
}

/// Why there is no state.
#[derive(Deserialize)]
struct Unknown {
    error: String,
}

impl ClusterState {
    /// Asks a node.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn ask(target: &Target) -> Result<Self, String> {
        let (status, body) = get(target).map_err(|error| format!("{} cannot be asked: {error}", target.address))?;
        Self::read(status, &body)
    }

    fn read(status: u16, body: &[u8]) -> Result<Self, String> {
        match (status, serde_json::from_slice::<Unknown>(body)) {
            (200, _) => serde_json::from_slice(body).map_err(|error| format!("the answer is not understood: {error}")),
            (_, Ok(unknown)) => Err(unknown.error),
            (status, Err(_)) => Err(format!("HTTP {status}")),
        }
    }

    /// The connections that are to be elsewhere once these nodes are level as they are now, given how they were before.
    /// None where a table of nodes is missing.
    pub fn to_be_moved(&self, before: &Self) -> Option<u64> {
        let (now, before) = (self.nodes.as_ref()?, before.nodes.as_ref()?);
        let stay: Vec<&NodeState> = now.iter().filter(|node| node.state == "ready").collect();
        let weights: f64 = stay.iter().map(|node| node.weight).sum();
        let total: u64 = before.iter().map(|node| node.connections).sum();
        let share = |id: &str| {
            let weight = stay.iter().find(|node| node.id == id).map_or(0.0, |node| node.weight);
            if weights > 0.0 { total as f64 * weight / weights } else { 0.0 }
        };
        let too_many = before.iter().map(|node| (node.connections as f64 - share(&node.id)).max(0.0));
        Some(too_many.sum::<f64>().round() as u64)
    }
}

fn get(target: &Target) -> io::Result<(u16, Vec<u8>)> {
    let mut socket = TcpStream::connect_timeout(&target.address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    // To a client of HTTP/1.0 nothing is sent in chunks, so the body is what comes until the end.
    let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\nConnection: close\r\n\r\n", target.path, target.host);
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    socket.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let head = Head::parse(&answer).map_err(io::Error::other)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.status().map_err(io::Error::other)?.0, answer[head.len..].to_vec()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Ready nodes of weight 1 with these connections, called by their numbers.
    pub fn of(connections: &[u64]) -> ClusterState {
        let total: u64 = connections.iter().sum();
        let (mean, max) = (total as f64 / connections.len() as f64, connections.iter().copied().max().unwrap_or(0));
        let node = |(number, connections): (usize, &u64)| NodeState {
            id: number.to_string(),
            connections: *connections,
            weight: 1.0,
            state: "ready".to_owned(),
        };
        ClusterState {
            connections: total,
            ready: connections.len() as u64,
            draining: 0,
            starting: 0,
            mean,
            max: max as f64,
            imbalance: max as f64 / mean,
            explanation: None,
            nodes: Some(connections.iter().enumerate().map(node).collect()),
        }
    }

    #[test]
    fn an_answer_is_a_state_or_says_why_not() {
        let read = |status, body: &str| ClusterState::read(status, body.as_bytes());
        let body = r#"{"version":1,"connections":4,"ready":1,"draining":0,"starting":0,"mean":4.0,"max":4.0,"imbalance":1.0,
            "colour":"blue","explanation":null,"nodes":null}"#;
        let state = read(200, body).expect("a state");
        assert_eq!((state.connections, state.nodes, state.explanation), (4, None, None));
        assert_eq!(read(503, r#"{"version":1,"error":"17 s old"}"#), Err("17 s old".to_owned()));
        assert_eq!(read(502, "<html>"), Err("HTTP 502".to_owned()));
        assert!(read(200, "{}").is_err_and(|error| error.contains("missing field")));
    }

    #[test]
    fn those_above_the_new_share_are_to_be_moved() {
        assert_eq!(of(&[100, 100, 100, 100]).to_be_moved(&of(&[200, 200])), Some(200));
        assert_eq!(of(&[200, 200]).to_be_moved(&of(&[200, 200])), Some(0));
        // One of four goes: the others must take what it has.
        let mut after = of(&[134, 133, 133, 0]);
        after.nodes.as_mut().expect("a table")[3].state = "draining".to_owned();
        assert_eq!(after.to_be_moved(&of(&[100; 4])), Some(100));
        // A node of twice the capacity has twice the share.
        let mut heavy = of(&[200, 100]);
        heavy.nodes.as_mut().expect("a table")[0].weight = 2.0;
        assert_eq!(heavy.to_be_moved(&of(&[150, 150])), Some(50));
        assert_eq!(ClusterState { nodes: None, ..of(&[1]) }.to_be_moved(&of(&[1])), None);
    }
}
