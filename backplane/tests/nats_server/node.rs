//! A node on NATS that records what it is told.

use backplane::nats::{NatsBackplane, NatsConfig};

pub use super::servers::node::*;

pub type Node = super::servers::node::Node<NatsBackplane>;

impl Node {
    pub async fn connect(config: &NatsConfig) -> Self {
        Self::on(again(|| NatsBackplane::connect(config)).await)
    }
}
