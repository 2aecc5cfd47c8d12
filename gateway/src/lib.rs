//! Evenkeel: a WebSocket gateway that speaks the Centrifuge client protocol.
//!
//! Reading order: [`config`] and [`cli`] (what an operator sets), [`node`] (what everything shares), [`hub`]
//! (channels, positions, repair), [`shard`] (one core: connections, sessions, fan-out), [`transport`] (sockets),
//! [`cluster`] (the other nodes), [`api`] (the server API), [`ops`] (health and metrics), [`serve`] (putting it together).
//! The session itself is the crate `session`, the wire format the crate `protocol`, tokens the crate `auth`.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod hub;
pub mod metrics;
pub mod node;
pub mod ops;
pub mod process;
pub mod serve;
pub mod shard;
pub mod transport;
