//! The state of the fleet as `/v1/cluster` tells it, as far as it is shown.
//!
//! Fields are only added to that format, so whatever is not known here is passed over, and what an older node does not
//! say is taken as nothing.

use serde::Deserialize;

/// The version of the format that is understood.
const VERSION: u32 = 1;

/// The fleet.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Cluster {
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
    /// The highest load by the mean.
    pub imbalance: f64,
    /// Nodes up to this load are the ones for new connections.
    #[serde(default)]
    pub level: f64,
    /// Connections accepted per second.
    #[serde(default)]
    pub arrivals: f64,
    /// How many more could be.
    #[serde(default)]
    pub spare_accepts: Option<f64>,
    /// Connections that may be moved per second.
    #[serde(default)]
    pub budget: f64,
    /// Why nothing is moved.
    #[serde(default)]
    pub pauses: Vec<String>,
    /// What there is to say about the balance.
    #[serde(default)]
    pub explanation: Option<String>,
    /// An open set is in use.
    #[serde(default)]
    pub open_set: bool,
    /// Milliseconds since it was written.
    #[serde(default)]
    pub placement_age_ms: Option<u64>,
    /// Of the digest.
    pub term: u64,
    /// Of the digest within its term.
    pub sequence: u64,
    /// How old the digest is.
    pub age_ms: u64,
    /// The node that was asked.
    #[serde(default, rename = "self")]
    pub asked: String,
    /// The nodes; nothing when their table could not be read.
    #[serde(default)]
    pub nodes: Option<Vec<Node>>,
}

/// One node.
#[derive(Deserialize, Clone, PartialEq, Debug)]
pub struct Node {
    /// For machines.
    pub id: String,
    /// For humans.
    #[serde(default)]
    pub name: String,
    /// What it was started from.
    #[serde(default)]
    pub revision: String,
    /// What it is about.
    #[serde(default)]
    pub state: String,
    /// Its connections.
    pub connections: u64,
    /// The same by its weight.
    #[serde(default)]
    pub load: f64,
    /// Connections accepted per second.
    #[serde(default)]
    pub accepts: f64,
    /// Connections refused per second.
    #[serde(default)]
    pub refused: f64,
    /// Connections moved per second.
    #[serde(default)]
    pub moved: f64,
    /// How many more connections it may hold.
    #[serde(default)]
    pub room: Option<u64>,
    /// How old its report is.
    #[serde(default)]
    pub age_ms: u64,
}

/// What is said of any answer.
#[derive(Deserialize)]
struct Envelope {
    version: u32,
    #[serde(default)]
    error: Option<String>,
}

impl Cluster {
    /// Reads an answer.
    ///
    /// # Errors
    /// Why there is no state of the fleet in it.
    pub fn read(status: u16, body: &[u8]) -> Result<Self, String> {
        let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
        if let Some(Envelope { version, .. }) = &envelope
            && *version != VERSION
        {
            return Err(format!("the state of the fleet has version {version}, this program reads version {VERSION}"));
        }
        match (status, envelope.and_then(|envelope| envelope.error)) {
            (200, None) => {
                serde_json::from_slice(body).map_err(|error| format!("the answer is not understood: {error}"))
            }
            (_, Some(error)) => Err(error),
            (404, None) => {
                Err("there is no /v1/cluster: not the internal listener of a gateway, or an older one".to_owned())
            }
            (status, None) => Err(format!("/v1/cluster answers {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_passed_over_and_what_is_not_said_is_nothing() {
        let body = r#"{"version":1,"connections":7,"ready":2,"draining":0,"starting":0,"mean":3.5,"max":4.0,
            "imbalance":1.14,"term":1,"sequence":2,"age_ms":3,"colour":"blue",
            "nodes":[{"id":"a","connections":7,"taste":{"sweet":true}}]}"#;
        let cluster = Cluster::read(200, body.as_bytes()).expect("the least that there is");
        assert_eq!((cluster.connections, cluster.spare_accepts, cluster.explanation), (7, None, None));
        let nodes = cluster.nodes.expect("a table");
        assert_eq!((nodes[0].id.as_str(), nodes[0].room, nodes[0].load), ("a", None, 0.0));
    }

    #[test]
    fn an_answer_without_a_state_says_why() {
        let why = |status, body: &str| Cluster::read(status, body.as_bytes()).expect_err(body);
        let unknown = r#"{"version":1,"error":"the state of the fleet is unknown: the last digest is 17 s old"}"#;
        assert_eq!(why(503, unknown), "the state of the fleet is unknown: the last digest is 17 s old");
        assert!(why(200, r#"{"version":2}"#).contains("version 2"));
        assert!(why(404, "").contains("not the internal listener"));
        assert!(why(502, "<html>").contains("502"));
        assert!(why(200, r#"{"version":1}"#).contains("missing field"));
    }
}
