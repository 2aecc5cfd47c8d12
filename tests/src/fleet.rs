//! A few gateways on one Redis.

use std::ops::Index;

use crate::gateway::{Builder, Gateway, config_with};

/// The nodes, by number.
pub struct Fleet {
    nodes: Vec<Gateway>,
}

impl Fleet {
    /// Starts so many nodes with this way to Redis, which is what the `config` of the servers in [`crate::redis`] returns.
    pub fn start(redis: &str, count: usize) -> Self {
        Self { nodes: (0..count).map(|_| node(redis).start()).collect() }
    }

    /// Starts one more.
    pub fn grow(&mut self, redis: &str) {
        self.nodes.push(node(redis).start());
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

/// A gateway that is yet to be started. What a fault makes clients miss fits into one recovery.
pub fn node(redis: &str) -> Builder {
    Gateway::with(&(config_with("client", "recovery_limit = 5000\nhistory_limit = 5000") + redis))
}
