//! A few gateways on one server.

use std::ops::Index;

use serde_json::json;

use crate::gateway::{Builder, Gateway, config_with};
use crate::until_some_time;

/// The nodes, by number.
pub struct Fleet {
    nodes: Vec<Gateway>,
}

impl Fleet {
    /// Starts so many nodes with this way to the server between them, which is what the `config` of a [`Store`](crate::store::Store) returns,
    /// and waits until they are ready and know each other.
    pub async fn start(way: &str, count: usize) -> Self {
        Self::of((0..count).map(|_| node(way).start()).collect()).await
    }

    /// A fleet of these nodes, when they are ready and know each other.
    pub async fn of(nodes: Vec<Gateway>) -> Self {
        let fleet = Self { nodes };
        fleet.complete().await;
        fleet
    }

    /// Starts one more.
    pub async fn grow(&mut self, way: &str) {
        self.nodes.push(node(way).start());
        self.complete().await;
    }

    async fn complete(&self) {
        for node in &self.nodes {
            // Servers of a cluster choose their leaders first.
            until_some_time("a node to be ready", async || node.internal_status("/health/ready").await == 200).await;
        }
        for node in &self.nodes {
            let knows_all = async || {
                let answer = node.api().call("info", json!({})).await;
                answer["result"]["nodes"].as_array().is_some_and(|all| all.len() == self.nodes.len())
            };
            until_some_time("a node to know all others", knows_all).await;
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Gateway] {
        &self.nodes
    }
}

impl Index<usize> for Fleet {
    type Output = Gateway;

    fn index(&self, index: usize) -> &Gateway {
        &self.nodes[index]
    }
}

/// A gateway that is yet to be started.
pub fn node(way: &str) -> Builder {
    Gateway::with(&config_of(way))
}

/// The configuration of such a gateway. What a fault makes clients miss fits into one recovery.
pub fn config_of(way: &str) -> String {
    config_with("client", "recovery_limit = 5000\nhistory_limit = 5000") + way
}
