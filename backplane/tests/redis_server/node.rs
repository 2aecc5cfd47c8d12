//! A node on Redis that records what it is told.

use backplane::redis::{RedisBackplane, RedisConfig};

#[allow(unused_imports, reason = "each test target uses a part of this")]
pub use super::servers::node::*;

pub type Node = super::servers::node::Node<RedisBackplane>;

impl Node {
    pub async fn connect(config: &RedisConfig) -> Self {
        Self::on(again(|| RedisBackplane::connect(config)).await)
    }
}
