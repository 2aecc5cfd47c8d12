//! Deliveries.

use std::sync::{Arc, OnceLock};

use crate::Sink;

/// Where deliveries go, once it is known.
pub(super) type SinkCell = Arc<OnceLock<Arc<dyn Sink>>>;
