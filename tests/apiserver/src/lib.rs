//! A small Kubernetes API server, for tests without a cluster.
//!
//! It does what the gateway needs of a real one, over HTTP: get, list, watch, create, update, server-side apply with
//! conflicts, merge patch and delete with preconditions, on Pods, Services, Leases, EndpointSlices and access reviews.
//! Versions of objects are checked, what does not change an object does not make a new version, and what belongs to a
//! Service goes with it. A client is who its bearer token says.
//!
//! Beside that it can be killed and started again, fall silent, refuse, forget its history, and change something just
//! before a call: see [`ApiServer`]. Everything that was asked of it is kept, for assertions.
//!
//! Reading order: [`server`] is what tests use, [`store`] keeps objects and their history, `apply` changes them,
//! `selector` and `route` read requests, `answer` carries them out, `stream` serves watches; [`proxy`] makes of the slices
//! what kube-proxy would. [`real`] is for the tests that run against a real API server.

#![forbid(unsafe_code)]

mod answer;
mod apply;
pub mod proxy;
pub mod real;
mod route;
mod selector;
pub mod server;
pub mod store;
mod stream;

pub use server::{ApiServer, Call, Options};
