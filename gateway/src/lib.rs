//! Evenkeel: a WebSocket gateway that speaks the Centrifuge client protocol.
//!
//! Reading order: [`config`] and [`cli`] (what an operator sets), [`node`] (what everything shares), [`hub`]
//! (channels, positions, repair), [`shard`] (one core: connections, sessions, fan-out), [`admission`] (who is let in),
//! [`transport`] (sockets), [`sessions`] (what outlives a connection), [`cluster`] (the other nodes), [`drain`] (emptying a
//! node), [`proxy`] (asking the application), [`api`] (the server API), [`ops`] and [`admin`] (health, metrics and what
//! operators ask), [`serve`] (putting it together); beside the server, [`ask`] and [`top`] (looking at a fleet that runs).
//! The session itself is the crate `session`, the wire format the crate `protocol`, tokens the crate `auth`.

pub mod admin;
pub mod admission;
pub mod api;
pub mod ask;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod drain;
pub mod hub;
pub mod kubernetes;
pub mod metrics;
pub mod node;
pub mod ops;
pub mod placing;
pub mod process;
pub mod proxy;
pub mod serve;
pub mod sessions;
pub mod shard;
pub mod top;
pub mod transport;
