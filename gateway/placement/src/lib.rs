//! Where connections belong: which nodes get the new ones, which are moved, how a node is emptied, and which node is
//! given up when the fleet shrinks. Everything is a function of what the nodes report and of the time, which is passed
//! in: the crate does no IO, reads no clock, starts no task and draws no random number. So the tests drive exactly this
//! code through hours of a thousand nodes (`tests/simulation`).
//!
//! Read in this order: [`report`] (what a node says of itself, once a second), [`digest`] (what the coordinator makes of
//! all reports, and what nodes act on), [`level`] (the water level), [`open_set`] (which nodes get new connections),
//! [`shed`] (moving connections off a node that has too many), [`breaker`] and [`returning`] (when moving must stop),
//! [`drain`] and [`retire`] (emptying a node), [`max_age`], [`scale_down`] (which nodes go first), [`candidates`] (who may
//! coordinate), [`coordinator`] (puts the digest together).
//!
//! # Words
//! The **load** of a node is its connections divided by its capacity weight; with weights of 1 it is its connections.
//! The **mean** is all connections, those of draining nodes included, divided by the weights of the nodes that stay:
//! the load of every node once all is level.
//!
//! # Invariants
//! - The open set is never empty while a node is ready, and is left alone when none is.
//! - Nothing is moved on a digest older than 5 s, after a placement write older than 30 s, or while a rollout is under way.
//! - All nodes together move no more than the cluster's budget while they act on one digest.
//! - Nothing is moved for long while most of what is moved comes back to where it was.
//! - A node that holds back can say why.

#![forbid(unsafe_code)]

pub mod breaker;
pub mod candidates;
pub mod coordinator;
pub mod digest;
pub mod drain;
pub mod level;
pub mod max_age;
pub mod open_set;
mod rate;
pub mod report;
pub mod retire;
pub mod returning;
mod rollout;
pub mod scale_down;
pub mod shed;

pub use coordinator::{Coordinator, CoordinatorSettings};
pub use digest::{Digest, Heard, NodeKey, Pause};
pub use drain::{Drain, DrainSettings};
pub use open_set::{Candidate, OpenSet, OpenSetSettings};
pub use report::{Peer, Report};
pub use retire::Retirement;
pub use scale_down::{ScaleDown, ScaleDownSettings};
pub use shed::{Shed, ShedSettings, Shedder};
