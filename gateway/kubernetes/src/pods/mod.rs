//! What is known of the pods.
//!
//! [`facts`] reads a pod of the API into a [`Pod`], `watch` keeps the set of them current.

pub mod facts;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// All pods by their uid. The uid is what tells a pod from its successor of the same name.
pub type Pods = BTreeMap<String, Pod>;

/// What placement has to know of one pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its address of the older family, once it has one.
    pub v4: Option<Ipv4Addr>,
    /// Its address of the newer family, once it has one.
    pub v6: Option<Ipv6Addr>,
    /// It runs, and its readiness probe succeeds.
    pub is_ready: bool,
    /// When it was created, in seconds since 1970, by the clock of the cluster. A container that is started again has the
    /// pod it had.
    pub created: Option<i64>,
    /// It has been told to end.
    pub is_deleting: bool,
    /// The revision of its Deployment: the hash of the pod template.
    pub revision: Option<String>,
    /// The machine that it runs on.
    pub node: Option<String>,
    /// The zone of that machine, where the cluster copies it to the pod (Kubernetes 1.35 and newer do).
    pub zone: Option<String>,
    /// The cost of deleting it, if anybody has set one.
    pub deletion_cost: Option<String>,
    /// The cost was set by the gateway.
    pub is_marked: bool,
}

impl Pod {
    /// New connections may be sent to it: it is ready, stays, and can be reached.
    pub fn is_eligible(&self) -> bool {
        self.is_ready && !self.is_deleting && (self.v4.is_some() || self.v6.is_some())
    }
}
