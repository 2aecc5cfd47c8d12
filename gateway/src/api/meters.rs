//! Counters of requests.

use metrics::{Counter, counter};

use crate::metrics::API_REQUESTS;

use super::request::Method;

/// What the metric's `method` label says of requests that hold several commands.
pub(super) const BATCH: &str = "batch";
/// The same for the legacy route.
pub(super) const LEGACY: &str = "legacy";

/// Handles for what succeeds, made once. Failures are rare enough to be looked up. Both labels take few values: none
/// comes from a request.
#[derive(Clone)]
pub(super) struct Meters {
    methods: [Counter; Method::ALL.len()],
    batch: Counter,
    legacy: Counter,
}

impl Meters {
    pub fn new() -> Self {
        let ok = |method: &'static str| counter!(API_REQUESTS, "method" => method, "result" => "ok");
        Self { methods: Method::ALL.map(|method| ok(method.name())), batch: ok(BATCH), legacy: ok(LEGACY) }
    }

    /// A command was carried out.
    pub fn command(&self, method: Method) {
        // `ALL` has the order of the declaration.
        self.methods[method as usize].increment(1);
    }

    /// A batch was answered; its commands count for themselves.
    pub fn batch(&self) {
        self.batch.increment(1);
    }

    /// A request of the legacy route was answered; its commands count for themselves.
    pub fn legacy(&self) {
        self.legacy.increment(1);
    }

    /// A request or command failed: with the number of an error, or as the HTTP status says.
    pub fn failed(&self, method: &'static str, result: &'static str) {
        counter!(API_REQUESTS, "method" => method, "result" => result).increment(1);
    }
}
