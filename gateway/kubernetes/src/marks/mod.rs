//! Which pods a scale-down takes first: those that bear a low deletion cost.
//!
//! [`plan`] says which marks to set and remove, `effect` does it. A pod whose cost somebody else has set is left alone.

pub(crate) mod effect;
pub mod plan;

/// The annotation by which a ReplicaSet chooses which pods to delete: the lowest first.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The annotation beside it that says the cost is the gateway's, with the term under which it was set.
pub const MARKED: &str = "evenkeel/deletion-cost-term";

/// The cost of a marked pod. Pods without the annotation cost 0.
pub const COST: &str = "-1000";
