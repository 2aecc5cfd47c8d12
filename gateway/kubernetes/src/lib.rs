//! What the gateway does to a Kubernetes cluster, so that new connections land where there are fewest.
//!
//! One node at a time is the **slice writer**: it holds a Lease, watches the pods, and keeps the EndpointSlices of a
//! Service without selector equal to the *open set*, the pods that new connections may go to. Which pods these are is
//! decided elsewhere and comes in as plain data ([`OpenSet`]); what is seen goes out as plain data ([`Outlook`]). Nothing
//! here is needed to serve clients: while the API server is away, or not there at all, the slices stay as they are.
//!
//! Reading order: [`settings`] says what can be configured, [`pods`] what is known of a pod, [`choose`] which pods are
//! published, [`slices`] how they are laid out and written, [`lease`] who may write, [`marks`] which pods a scale-down
//! takes first, [`access`] whether this works here at all, [`status`] what was done; [`agent`] puts them together.
//!
//! Decisions are pure functions with the clock passed in: `choose`, `lease::election`, `slices::{layout, plan}`,
//! `marks::plan`. The rest carries them out.

#![forbid(unsafe_code)]

pub mod access;
pub mod agent;
mod api;
pub mod choose;
pub mod lease;
pub mod marks;
pub mod pods;
pub mod settings;
pub mod slices;
pub mod status;
mod writer;

pub use access::Access;
pub use agent::{Agent, OpenSet, Outlook, Role, State};
pub use pods::Pod;
pub use settings::{Mode, Settings, SliceVersion, Timing};
pub use status::Status;
