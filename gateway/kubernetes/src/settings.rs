//! What can be configured, with its defaults and their reasons.

use std::time::Duration;

use crate::choose::{Choose, choose};

/// Whether this node takes part in writing the open set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// If it can: outside a cluster, or where a permission or the API is missing, it says so once and stays out.
    #[default]
    Auto,
    /// What is missing is an error that is logged, and tried again until it is there.
    On,
    /// Never: for front ends that do not work with it (IPVS, cloud load balancers that target pods, controllers that
    /// reload).
    Off,
}

/// The version of the API group `discovery.k8s.io` that slices are written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SliceVersion {
    /// Kubernetes 1.21 and newer.
    #[default]
    V1,
    /// Kubernetes 1.17 to 1.24.
    V1Beta1,
}

/// The times of the lease on the role of the slice writer. The defaults are those of the cluster's own controllers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Another candidate takes over when it has not seen the lease change for this long. Renewed every third of it.
    pub duration: Duration,
    /// The holder stops acting when it has not renewed for this long; shorter than `duration` by more than
    /// [`call_timeout`](Self::call_timeout), so that its last call has ended before anybody takes over.
    pub deadline: Duration,
    /// Pause before a renewal that failed is tried again.
    pub retry: Duration,
    /// The longest that one call to the API server may take; calls take milliseconds.
    pub call_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
            call_timeout: Duration::from_secs(3),
        }
    }
}

/// What the agent has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether it does anything.
    pub mode: Mode,
    /// Where the pods, the Services and the Lease are; `None`: where this pod is, or what the kubeconfig says.
    pub namespace: Option<String>,
    /// The Service without selector whose EndpointSlices are written.
    pub service: String,
    /// The Service beside it that selects all pods; its selector says which pods there are.
    pub service_all: String,
    /// The name of the Lease.
    pub lease: String,
    /// Who this is, in the Lease: the name of the pod. A random suffix is added, so that a container that is started
    /// again is another holder.
    pub identity: String,
    /// The version of the API that slices are written in.
    pub slice_version: SliceVersion,
    /// The times of the lease.
    pub timing: Timing,
    /// A decision older than this counts no more, and all ready pods are published. 15 s is when the digest is stale.
    pub stale_after: Duration,
    /// How often it is confirmed that the slices are what they should be, when nothing changes: rebalancing pauses when
    /// that was more than 30 s ago.
    pub confirm_every: Duration,
    /// The shortest time between two passes, whatever happens: pods that come and go must not flood the API server.
    pub pass_every: Duration,
    /// The largest slice. 100 is what the cluster's own controller uses; the API allows 1,000.
    pub slice_len_max: usize,
    /// Which pods are published.
    pub choose: Choose,
}

impl Settings {
    /// With every default, for a process that is known as `identity`.
    pub fn new(identity: impl Into<String>) -> Self {
        Self {
            mode: Mode::default(),
            namespace: None,
            service: "ws".to_owned(),
            service_all: "ws-all".to_owned(),
            lease: "ws-placement".to_owned(),
            identity: identity.into(),
            slice_version: SliceVersion::default(),
            timing: Timing::default(),
            stale_after: Duration::from_secs(15),
            confirm_every: Duration::from_secs(10),
            pass_every: Duration::from_secs(1),
            slice_len_max: 100,
            choose,
        }
    }
}
