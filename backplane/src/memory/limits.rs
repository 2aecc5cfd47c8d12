//! What the in-memory backplane may hold, and what it holds.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::BackplaneError;

/// The longest accepted idempotency key in bytes. Keys are identifiers (a UUID is 36 bytes); the bound is what makes
/// [`MemoryLimits::idempotency_keys`] a bound on memory too.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 512;

/// Bounds on what the in-memory backplane keeps. Each can be exceeded by what other threads store at the same instant,
/// never by more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimits {
    /// Bytes of stored publications over all channels, payloads and an estimate of their bookkeeping. Beyond it the
    /// oldest publications of the stream that was used longest ago are evicted: its clients are told that they cannot
    /// recover, which is the truth. Default 256 MiB: 10,000 channels with 100 publications of 128 bytes, and room for
    /// the sockets in a container of 1 GiB.
    pub history_bytes: usize,
    /// Channels that are subscribed, have presence, or whose epoch is remembered. Beyond it the epoch that was used
    /// longest ago is forgotten; when every channel is subscribed or has members, new ones are refused. Default 1,000,000,
    /// at about 400 bytes for a quiet channel.
    pub channels: usize,
    /// Presence entries over all channels; beyond it new ones are refused. Default 2,000,000 at under 250 bytes, the
    /// 100,000 connections of a node in 20 channels each.
    pub presence_entries: usize,
    /// Remembered results of publishes with an idempotency key; beyond it a publish with a new key is refused, because
    /// dropping a result early would let its repeat be published twice. Default 1,000,000 at about 250 bytes: 3,300
    /// such publishes a second, as each is remembered for 5 minutes.
    pub idempotency_keys: usize,
    /// Bytes of session records over all users, their data and an estimate of their bookkeeping; beyond it writes that
    /// need more are refused, and their connections go on without a session. Default 128 MiB: the 100,000 connections of
    /// a node with 1,000 bytes each.
    pub session_bytes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            history_bytes: 256 * 1024 * 1024,
            channels: 1_000_000,
            presence_entries: 2_000_000,
            idempotency_keys: 1_000_000,
            session_bytes: 128 * 1024 * 1024,
        }
    }
}

/// A snapshot of what the in-memory backplane holds, for metrics. The fields are read one after another, so they may
/// disagree by what happened in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryStats {
    /// Channels that hold anything at all.
    pub channels: usize,
    /// Channels subscribed by the node.
    pub subscriptions: usize,
    /// Channels whose epoch and top offset are remembered.
    pub streams: usize,
    /// Publications stored in all streams.
    pub publications: usize,
    /// Bytes of these, as counted against [`MemoryLimits::history_bytes`].
    pub history_bytes: usize,
    /// Presence entries.
    pub presence_entries: usize,
    /// Remembered results of publishes with an idempotency key.
    pub idempotency_keys: usize,
    /// Session records.
    pub sessions: usize,
    /// Bytes of these, as counted against [`MemoryLimits::session_bytes`].
    pub session_bytes: usize,
    /// Nodes that have reported.
    pub reports: usize,
    /// Leases that somebody holds.
    pub leases: usize,
    /// Publications evicted since the start because of [`MemoryLimits::history_bytes`].
    pub publications_evicted: u64,
    /// Streams forgotten since the start, before their time, because of [`MemoryLimits::channels`].
    pub streams_evicted: u64,
    /// Sessions removed since the start because their user had too many.
    pub sessions_evicted: u64,
    /// Calls refused since the start because a limit was reached.
    pub refusals: u64,
}

/// The live counts behind [`MemoryStats`]. Each changes under the lock of the stripe that it is about, so relaxed
/// ordering is enough: they are sums, nothing is published through them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) channels: Gauge,
    pub(super) subscriptions: Gauge,
    pub(super) streams: Gauge,
    pub(super) publications: Gauge,
    pub(super) history_bytes: Gauge,
    pub(super) presence_entries: Gauge,
    pub(super) idempotency_keys: Gauge,
    pub(super) sessions: Gauge,
    pub(super) session_bytes: Gauge,
    pub(super) reports: Gauge,
    pub(super) leases: Gauge,
    pub(super) publications_evicted: AtomicU64,
    pub(super) streams_evicted: AtomicU64,
    pub(super) sessions_evicted: AtomicU64,
    pub(super) refusals: AtomicU64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> MemoryStats {
        MemoryStats {
            channels: self.channels.value(),
            subscriptions: self.subscriptions.value(),
            streams: self.streams.value(),
            publications: self.publications.value(),
            history_bytes: self.history_bytes.value(),
            presence_entries: self.presence_entries.value(),
            idempotency_keys: self.idempotency_keys.value(),
            sessions: self.sessions.value(),
            session_bytes: self.session_bytes.value(),
            reports: self.reports.value(),
            leases: self.leases.value(),
            publications_evicted: self.publications_evicted.load(Ordering::Relaxed),
            streams_evicted: self.streams_evicted.load(Ordering::Relaxed),
            sessions_evicted: self.sessions_evicted.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
        }
    }

    /// The error of a call that a limit refuses for now, counted.
    pub(super) fn refuse(&self, limit: &'static str, value: usize) -> BackplaneError {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        BackplaneError::Unavailable(format!("memory limit {limit} = {value} is reached"))
    }
}

/// A count that goes up and down and is zero when nothing is held.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicUsize);

impl Gauge {
    pub(super) fn value(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, amount: usize) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, amount: usize) {
        let before = self.0.fetch_sub(amount, Ordering::Relaxed);
        debug_assert!(before >= amount, "nothing is freed that was not held");
    }

    /// Adds one unless that would exceed `limit`; says whether it did.
    pub(super) fn try_add_one(&self, limit: usize) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| (value < limit).then_some(value + 1)).is_ok()
    }
}
