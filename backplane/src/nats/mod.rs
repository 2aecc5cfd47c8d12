//! The backplane on NATS JetStream.

mod auth;
mod base;
mod calls;
mod clock;
mod config;
mod connection;
mod fence;
mod names;
mod request;
mod stream;
mod subscriber;

pub use config::{Address, NatsAuth, NatsConfig, NatsTls, PARTITIONS, Storage};
