//! Every metric name and label, and the handles that update them. Nothing here is labelled by user or channel.

use std::cell::Cell;
use std::time::Duration;

use auth::JwksStats;
use backplane::Status;
use backplane::memory::MemoryStats;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::process::Usage;

/// Live connections of this node.
pub const CONNECTIONS: &str = "gateway_connections";
/// Upgrades by `result`: `established` once a client has authenticated, else why it was refused.
pub const CONNECTS: &str = "gateway_connects_total";
/// Connections the gateway closed, by `code`.
pub const DISCONNECTS: &str = "gateway_disconnects_total";
/// Commands received from clients.
pub const MESSAGES_RECEIVED: &str = "gateway_messages_received_total";
/// Publications and events handed to connections.
pub const DELIVERIES: &str = "gateway_deliveries_total";
/// Time of a publish until the backplane acknowledged it.
pub const PUBLISH_SECONDS: &str = "gateway_publish_seconds";
/// Publishes that failed.
pub const PUBLISH_ERRORS: &str = "gateway_publish_errors_total";
/// Time from a delivery's arrival on this node until it was written to every local subscriber.
pub const FANOUT_SECONDS: &str = "gateway_fanout_seconds";
/// Connections that wait until a handshake with them begins.
pub const HANDSHAKES_WAITING: &str = "gateway_handshakes_waiting";
/// Bytes queued for peers that do not keep up.
pub const QUEUE_BYTES: &str = "gateway_queue_bytes";
/// Writes that a socket did not take at once.
pub const WRITES_QUEUED: &str = "gateway_writes_queued_total";
/// Whether the backplane can be reached.
pub const BACKPLANE_UP: &str = "gateway_backplane_up";
/// Gaps in positioned channels, by `outcome`: `repaired` or `lost`.
pub const GAPS: &str = "gateway_gaps_total";
/// Deliveries that came twice and were dropped.
pub const DUPLICATES: &str = "gateway_duplicates_total";
/// Deliveries dropped because a shard's inbox was full; positioned channels repair them.
pub const INBOX_DROPPED: &str = "gateway_inbox_dropped_total";
/// Hold-back buffers let go because they were full.
pub const HOLD_BACK_OVERFLOWS: &str = "gateway_hold_back_overflows_total";
/// Clients that asked to recover.
pub const RECOVERIES: &str = "gateway_recoveries_total";
/// History reads made for them: fewer, as they share.
pub const RECOVERY_READS: &str = "gateway_recovery_reads_total";
/// Channels with local interest.
pub const CHANNELS: &str = "gateway_channels";
/// Subscriptions of local connections.
pub const SUBSCRIPTIONS: &str = "gateway_subscriptions";
/// Requests of the server API, by `method` and `result`.
pub const API_REQUESTS: &str = "gateway_api_requests_total";
/// Commands refused with error 111 because their connection sends too much.
pub const COMMANDS_REFUSED: &str = "gateway_commands_refused_total";
/// Closes that did not wait any longer for the answers to commands accepted before.
pub const CLOSES_UNANSWERED: &str = "gateway_closes_unanswered_total";
/// 1 from the beginning of a drain on.
pub const DRAINING: &str = "gateway_draining";
/// Connections that a drain has still to close.
pub const DRAIN_REMAINING: &str = "gateway_drain_remaining";
/// Seconds until a drain is over at the latest.
pub const DRAIN_DEADLINE_SECONDS: &str = "gateway_drain_deadline_seconds";
/// Connections that had not ended at the deadline of a drain.
pub const DRAIN_ABANDONED: &str = "gateway_drain_abandoned_total";
/// What the embedded backplane holds, by `what`: `channels`, `streams`, `publications`, `presence`, `idempotency_keys`
/// or `sessions`.
pub const MEMORY_ENTRIES: &str = "gateway_memory_entries";
/// Bytes of stored publications in the embedded backplane.
pub const MEMORY_HISTORY_BYTES: &str = "gateway_memory_history_bytes";
/// Bytes of session records in the embedded backplane.
pub const MEMORY_SESSION_BYTES: &str = "gateway_memory_session_bytes";
/// Publications, streams and sessions that gave way to newer ones because of a limit, by `what`.
pub const MEMORY_EVICTED: &str = "gateway_memory_evicted_total";
/// Calls of the embedded backplane refused because a limit was reached.
pub const MEMORY_REFUSED: &str = "gateway_memory_refused_total";
/// Fetches of token keys.
pub const JWKS_FETCHES: &str = "gateway_jwks_fetches_total";
/// Fetches of token keys that failed; the keys fetched before stay in use.
pub const JWKS_FAILURES: &str = "gateway_jwks_failures_total";
/// Commands and questions to every node, by `result`: `answered` by all, or `failed`.
pub const COMMANDS: &str = "gateway_cluster_commands_total";
/// Commands of other nodes that were not delivered, by `outcome`: `repaired` from history, or `lost`.
pub const COMMAND_GAPS: &str = "gateway_cluster_command_gaps_total";
/// Connections of all nodes, from the coordinator's digest; absent when that is stale.
pub const FLEET_CONNECTIONS: &str = "gateway_fleet_connections";
/// Nodes by `state`: `ready`, `draining` or `starting`, from the coordinator's digest; absent when that is stale.
pub const CLUSTER_NODES: &str = "gateway_cluster_nodes";
/// The fullest node in comparison with the mean, from the coordinator's digest; 1 is level; absent when that is stale.
pub const IMBALANCE: &str = "gateway_cluster_imbalance_ratio";
/// Connections closed with 3011 in order to move them, by `reason`: `level`, `retire` or `max_age`.
pub const MOVES: &str = "gateway_moves_total";
/// Connections closed in order to move them whose clients came back to this node within ten seconds.
pub const MOVES_RETURNED: &str = "gateway_moves_returned_total";
/// Connections per second that this node moves now, in order to level.
pub const MOVE_RATE: &str = "gateway_move_rate";
/// Whether this node writes the open set of Kubernetes.
pub const OPENSET_WRITER: &str = "gateway_openset_writer";
/// Nodes that this one, as the writer of the open set, has opened for new connections.
pub const OPENSET_SIZE: &str = "gateway_openset_size";
/// Nodes that it could open.
pub const OPENSET_READY: &str = "gateway_openset_ready_nodes";
/// Passes over the slices of the open set, by `result`: `done` (they are as they should be, whether or not something had
/// to be written), `conflict` (somebody else had changed them) or `failed`.
pub const OPENSET_WRITES: &str = "gateway_openset_writes_total";
/// Slices of the open set that were created, changed or removed.
pub const OPENSET_SLICES: &str = "gateway_openset_slices_written_total";
/// Slices of the same Service that somebody else keeps: their pods are open too.
pub const OPENSET_FOREIGN: &str = "gateway_openset_slices_foreign";
/// Times that this node became (`taken`) the writer, and that it lost the lease without giving it up (`lost`), by `event`.
pub const OPENSET_LEASES: &str = "gateway_openset_leases_total";
/// Deletion costs that were set on pods, or removed.
pub const OPENSET_MARKS: &str = "gateway_openset_marks_total";
/// Time since anybody last knew the open set to be written, from the coordinator's digest; absent when that is stale, or
/// does not know it.
pub const OPENSET_AGE: &str = "gateway_openset_age_seconds";
/// Whether the Kubernetes API server has answered the last call of this node; 1 before the first.
pub const KUBERNETES_UP: &str = "gateway_kubernetes_up";
/// Calls to the Kubernetes API server that ended.
pub const KUBERNETES_CALLS: &str = "gateway_kubernetes_calls_total";
/// Calls to the Kubernetes API server that failed, by `reason`: `timeout`, `forbidden` or `error`.
pub const KUBERNETES_FAILURES: &str = "gateway_kubernetes_call_failures_total";
/// Calls to the backplane under way.
pub const BACKPLANE_IN_FLIGHT: &str = "gateway_backplane_calls_in_flight";
/// Calls to the backplane that ended.
pub const BACKPLANE_CALLS: &str = "gateway_backplane_calls_total";
/// Calls to the backplane that failed, by `reason`: `timeout` or `error`.
pub const BACKPLANE_FAILURES: &str = "gateway_backplane_call_failures_total";
/// Deliveries of the backplane to this node.
pub const BACKPLANE_DELIVERIES: &str = "gateway_backplane_deliveries_total";
/// Deliveries lost because this node did not take them in time; positioned channels repair them.
pub const BACKPLANE_LOST: &str = "gateway_backplane_deliveries_lost_total";
/// Deliveries of the backplane for channels that nobody here subscribes.
pub const BACKPLANE_UNWANTED: &str = "gateway_backplane_deliveries_unwanted_total";
/// Times that deliveries were restored on a new connection.
pub const BACKPLANE_RESTORATIONS: &str = "gateway_backplane_restorations_total";
/// Channels subscribed on the backplane.
pub const BACKPLANE_CHANNELS: &str = "gateway_backplane_channels";
/// Time of a call to a `proxy` of the application, waiting for its turn included, by `outcome`: see [`ProxyOutcome`].
pub const PROXY_SECONDS: &str = "gateway_proxy_seconds";
/// Calls to a `proxy` under way or waiting for their turn.
pub const PROXY_IN_FLIGHT: &str = "gateway_proxy_calls_in_flight";
/// Calls to a `proxy` that were not made because it had failed repeatedly.
pub const PROXY_REFUSED: &str = "gateway_proxy_refused_total";
/// Whether a `proxy` is being left alone because it has failed repeatedly.
pub const PROXY_BREAKER_OPEN: &str = "gateway_proxy_breaker_open";
/// Questions that were not asked because the application had answered them for a former connection of the session, by
/// `event`: `connect` or `subscribe`.
pub const PROXY_VERDICTS_REUSED: &str = "gateway_proxy_verdicts_reused_total";
/// Connections that asked for a session, by `result`: `fresh`, `resumed`, or why they have none: `forked`, `anonymous`,
/// `unavailable`, `unreadable`, `busy`, `unproven`. Beside these `taken_over` counts connections that gave way to a newer one.
pub const SESSIONS: &str = "gateway_sessions_total";
/// User and system time of the process. These three have the names that every Prometheus client gives them.
pub const PROCESS_CPU: &str = "process_cpu_seconds_total";
/// Resident memory of the process.
pub const PROCESS_MEMORY: &str = "process_resident_memory_bytes";
/// Open descriptors of the process.
pub const PROCESS_DESCRIPTORS: &str = "process_open_fds";
/// 1, labelled by `version`.
pub const BUILD: &str = "gateway_build_info";

/// Bounds in seconds: a tenth of a millisecond is an idle node's fan-out, 10 s is beyond every timeout.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Installs the recorder and describes every metric. Call once per process, before any handle is made.
///
/// # Errors
/// When a recorder was installed before.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

/// Counts what became of a connection that asked for a session.
pub fn session_result(result: &'static str) {
    counter!(SESSIONS, "result" => result).increment(1);
}

/// Counts a question that was answered by what the application had said before.
pub fn verdict_reused(event: &'static str) {
    counter!(PROXY_VERDICTS_REUSED, "event" => event).increment(1);
}

fn describe() {
    describe_gauge!(CONNECTIONS, "Live connections of this node.");
    describe_counter!(CONNECTS, "Upgrades, by result.");
    describe_counter!(DISCONNECTS, "Connections closed by the gateway, by close code.");
    describe_counter!(MESSAGES_RECEIVED, "Commands received from clients.");
    describe_counter!(DELIVERIES, "Publications and join/leave events handed to connections.");
    describe_histogram!(PUBLISH_SECONDS, Unit::Seconds, "Time until the backplane acknowledged a publish.");
    describe_counter!(PUBLISH_ERRORS, "Publishes that the backplane did not acknowledge.");
    describe_histogram!(FANOUT_SECONDS, Unit::Seconds, "Time from arrival on this node to the last local write.");
    describe_gauge!(HANDSHAKES_WAITING, "Connections that wait until a handshake with them begins.");
    describe_gauge!(QUEUE_BYTES, Unit::Bytes, "Bytes queued for peers that do not keep up.");
    describe_counter!(WRITES_QUEUED, "Writes that a socket did not take at once.");
    describe_gauge!(BACKPLANE_UP, "1 while the backplane can be reached.");
    describe_counter!(GAPS, "Gaps in positioned channels, by outcome: repaired, or lost and told.");
    describe_counter!(DUPLICATES, "Deliveries at or below a channel's position, dropped.");
    describe_counter!(INBOX_DROPPED, "Deliveries dropped because a shard's inbox was full.");
    describe_counter!(HOLD_BACK_OVERFLOWS, "Hold-back buffers let go because they were full.");
    describe_counter!(RECOVERIES, "Subscribes that asked to recover.");
    describe_counter!(RECOVERY_READS, "History reads made for recoveries; fewer, as they are shared.");
    describe_gauge!(CHANNELS, "Channels with local interest.");
    describe_gauge!(SUBSCRIPTIONS, "Subscriptions of local connections.");
    describe_counter!(API_REQUESTS, "Requests of the server API, by method and result.");
    describe_counter!(COMMANDS_REFUSED, "Commands refused because their connection sends too much.");
    describe_counter!(CLOSES_UNANSWERED, "Closes that waited in vain for answers to commands accepted before.");
    describe_gauge!(DRAINING, "1 from the beginning of a drain on.");
    describe_gauge!(DRAIN_REMAINING, "Connections that a drain has still to close.");
    describe_gauge!(DRAIN_DEADLINE_SECONDS, Unit::Seconds, "Time until a drain is over at the latest.");
    describe_counter!(DRAIN_ABANDONED, "Connections that had not ended at the deadline of a drain.");
    describe_gauge!(MEMORY_ENTRIES, "What the embedded backplane holds.");
    describe_gauge!(MEMORY_HISTORY_BYTES, Unit::Bytes, "Stored publications of the embedded backplane.");
    describe_gauge!(MEMORY_SESSION_BYTES, Unit::Bytes, "Session records of the embedded backplane.");
    describe_counter!(MEMORY_EVICTED, "Publications, streams and sessions that gave way because of a limit.");
    describe_counter!(MEMORY_REFUSED, "Calls of the embedded backplane refused because of a limit.");
    describe_counter!(PROXY_VERDICTS_REUSED, "Questions answered by what the application had said before, by event.");
    describe_counter!(SESSIONS, "Connections that asked for a session, by result.");
    describe_counter!(JWKS_FETCHES, "Fetches of token keys.");
    describe_counter!(JWKS_FAILURES, "Fetches of token keys that failed.");
    describe_counter!(COMMANDS, "Commands and questions to every node, by result.");
    describe_counter!(COMMAND_GAPS, "Commands of other nodes that were not delivered, by outcome.");
    describe_gauge!(FLEET_CONNECTIONS, "Live connections of all nodes; absent when unknown.");
    describe_gauge!(CLUSTER_NODES, "Nodes by state; absent when unknown.");
    describe_gauge!(IMBALANCE, "The fullest node in comparison with the mean; absent when unknown.");
    describe_counter!(MOVES, "Connections closed in order to move them, by reason.");
    describe_counter!(MOVES_RETURNED, "Moved connections whose clients came back to this node.");
    describe_gauge!(MOVE_RATE, "Connections per second that this node moves now.");
    describe_gauge!(OPENSET_WRITER, "1 while this node writes the open set.");
    describe_gauge!(OPENSET_SIZE, "Nodes that this one has opened for new connections, while it writes the open set.");
    describe_gauge!(OPENSET_READY, "Nodes that it could open.");
    describe_counter!(OPENSET_WRITES, "Passes over the slices of the open set, by result.");
    describe_counter!(OPENSET_SLICES, "Slices of the open set that were created, changed or removed.");
    describe_gauge!(OPENSET_FOREIGN, "Slices of the same Service that somebody else keeps.");
    describe_counter!(OPENSET_LEASES, "Times that this node became the writer of the open set, or lost the lease.");
    describe_counter!(OPENSET_MARKS, "Deletion costs set on pods, or removed.");
    describe_gauge!(
        OPENSET_AGE,
        Unit::Seconds,
        "Time since the open set was last known to be written; absent when unknown."
    );
    describe_gauge!(KUBERNETES_UP, "1 while the Kubernetes API server answers this node.");
    describe_counter!(KUBERNETES_CALLS, "Calls to the Kubernetes API server that ended.");
    describe_counter!(KUBERNETES_FAILURES, "Calls to the Kubernetes API server that failed, by reason.");
    describe_gauge!(BACKPLANE_IN_FLIGHT, "Calls to the backplane under way.");
    describe_counter!(BACKPLANE_CALLS, "Calls to the backplane that ended.");
    describe_counter!(BACKPLANE_FAILURES, "Calls to the backplane that failed, by reason.");
    describe_counter!(BACKPLANE_DELIVERIES, "Deliveries of the backplane to this node.");
    describe_counter!(BACKPLANE_LOST, "Deliveries lost because this node did not take them in time.");
    describe_counter!(BACKPLANE_UNWANTED, "Deliveries of the backplane for channels that nobody here subscribes.");
    describe_counter!(BACKPLANE_RESTORATIONS, "Times that deliveries were restored on a new connection.");
    describe_gauge!(BACKPLANE_CHANNELS, "Channels subscribed on the backplane.");
    describe_histogram!(PROXY_SECONDS, Unit::Seconds, "Calls to the application, by proxy and outcome.");
    describe_gauge!(PROXY_IN_FLIGHT, "Calls to the application under way or waiting for their turn, by proxy.");
    describe_counter!(PROXY_REFUSED, "Calls not made because the proxy had failed repeatedly.");
    describe_gauge!(PROXY_BREAKER_OPEN, "1 while a proxy that has failed repeatedly is left alone.");
    describe_gauge!(PROCESS_CPU, Unit::Seconds, "User and system time of the process.");
    describe_gauge!(PROCESS_MEMORY, Unit::Bytes, "Resident memory of the process.");
    describe_gauge!(PROCESS_DESCRIPTORS, "Open descriptors of the process.");
    describe_gauge!(BUILD, "1, labelled by version.");
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Exports the state of the embedded backplane.
pub(crate) fn memory(stats: &MemoryStats) {
    for (what, entries) in [
        ("channels", stats.channels),
        ("streams", stats.streams),
        ("publications", stats.publications),
        ("presence", stats.presence_entries),
        ("idempotency_keys", stats.idempotency_keys),
        ("sessions", stats.sessions),
    ] {
        gauge!(MEMORY_ENTRIES, "what" => what).set(entries as f64);
    }
    gauge!(MEMORY_HISTORY_BYTES).set(stats.history_bytes as f64);
    gauge!(MEMORY_SESSION_BYTES).set(stats.session_bytes as f64);
    counter!(MEMORY_EVICTED, "what" => "publications").absolute(stats.publications_evicted);
    counter!(MEMORY_EVICTED, "what" => "streams").absolute(stats.streams_evicted);
    counter!(MEMORY_EVICTED, "what" => "sessions").absolute(stats.sessions_evicted);
    counter!(MEMORY_REFUSED).absolute(stats.refusals);
}

/// Exports what the process uses. CPU time has fractions, which counters of this library have not.
pub(crate) fn process(usage: &Usage) {
    gauge!(PROCESS_CPU).set(usage.cpu_seconds);
    gauge!(PROCESS_MEMORY).set(usage.resident_bytes as f64);
    gauge!(PROCESS_DESCRIPTORS).set(usage.descriptors as f64);
}

/// Exports the state of the backplane.
pub(crate) fn backplane(status: &Status) {
    gauge!(BACKPLANE_UP).set(if status.is_up { 1.0 } else { 0.0 });
    gauge!(BACKPLANE_IN_FLIGHT).set(status.calls_in_flight as f64);
    counter!(BACKPLANE_CALLS).absolute(status.calls);
    counter!(BACKPLANE_FAILURES, "reason" => "timeout").absolute(status.calls_timed_out);
    let errors = status.calls_failed.saturating_sub(status.calls_timed_out);
    counter!(BACKPLANE_FAILURES, "reason" => "error").absolute(errors);
    counter!(BACKPLANE_DELIVERIES).absolute(status.deliveries);
    counter!(BACKPLANE_LOST).absolute(status.deliveries_lost);
    counter!(BACKPLANE_UNWANTED).absolute(status.deliveries_unwanted);
    counter!(BACKPLANE_RESTORATIONS).absolute(status.restorations);
    gauge!(BACKPLANE_CHANNELS).set(status.channels as f64);
}

/// Exports what this node does about the open set.
pub(crate) fn open_set(status: &kubernetes::Status, age_ms: Option<u64>) {
    let if_writer = |count: u64| if status.is_writer { count as f64 } else { 0.0 };
    gauge!(OPENSET_WRITER).set(if_writer(1));
    gauge!(OPENSET_SIZE).set(if_writer(status.pods_open));
    gauge!(OPENSET_READY).set(if_writer(status.pods_eligible));
    gauge!(OPENSET_FOREIGN).set(if_writer(status.slices_foreign));
    let writes = |result: &'static str, count: u64| counter!(OPENSET_WRITES, "result" => result).absolute(count);
    writes("done", status.passes);
    writes("conflict", status.conflicts);
    writes("failed", status.passes_failed.saturating_sub(status.conflicts));
    counter!(OPENSET_SLICES).absolute(status.slices_written + status.slices_deleted);
    counter!(OPENSET_LEASES, "event" => "taken").absolute(status.leases_taken);
    counter!(OPENSET_LEASES, "event" => "lost").absolute(status.leases_lost);
    counter!(OPENSET_MARKS).absolute(status.marks_written);
    if let Some(age_ms) = age_ms {
        gauge!(OPENSET_AGE).set(age_ms as f64 / 1000.0);
    }
    gauge!(KUBERNETES_UP).set(if status.is_up { 1.0 } else { 0.0 });
    counter!(KUBERNETES_CALLS).absolute(status.calls);
    let failures = |reason: &'static str, count: u64| counter!(KUBERNETES_FAILURES, "reason" => reason).absolute(count);
    failures("timeout", status.calls_timed_out);
    failures("forbidden", status.calls_forbidden);
    failures("error", status.calls_failed.saturating_sub(status.calls_timed_out));
}

/// Exports how token keys are fetched. A reload that names other addresses starts from zero; the counters do not go
/// back.
pub(crate) fn jwks(stats: &JwksStats) {
    counter!(JWKS_FETCHES).absolute(stats.fetches);
    counter!(JWKS_FAILURES).absolute(stats.failures);
}

/// Handles of the node.
pub struct NodeMeters {
    connections: Gauge,
    publish_seconds: Histogram,
    publish_errors: Counter,
}

impl NodeMeters {
    pub(crate) fn new() -> Self {
        Self {
            connections: gauge!(CONNECTIONS),
            publish_seconds: histogram!(PUBLISH_SECONDS),
            publish_errors: counter!(PUBLISH_ERRORS),
        }
    }

    /// Shards count at the same time, so each adds its own instead of setting what it saw.
    pub(crate) fn connection_opened(&self) {
        self.connections.increment(1.0);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.decrement(1.0);
    }

    pub(crate) fn published(&self, took: Duration, acknowledged: bool) {
        self.publish_seconds.record(took);
        if !acknowledged {
            self.publish_errors.increment(1);
        }
    }
}

/// How a call to the application ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyOutcome {
    /// With a result, or nothing.
    Accepted,
    /// With an error for the client.
    Error,
    /// With the wish to have the client gone.
    Disconnect,
    /// With something that cannot be understood.
    Invalid,
    /// With too much.
    TooLarge,
    /// With a status other than 200 that is about this call.
    Status,
    /// With one that says that the backend cannot answer now: 429, 502, 503 or 504.
    Overloaded,
    /// Not in time.
    Timeout,
    /// Without a connection.
    Unreachable,
    /// Before it began, because too many others were under way.
    Busy,
}

impl ProxyOutcome {
    const ALL: [Self; 10] = [
        Self::Accepted,
        Self::Error,
        Self::Disconnect,
        Self::Invalid,
        Self::TooLarge,
        Self::Status,
        Self::Overloaded,
        Self::Timeout,
        Self::Unreachable,
        Self::Busy,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Error => "error",
            Self::Disconnect => "disconnect",
            Self::Invalid => "invalid",
            Self::TooLarge => "too_large",
            Self::Status => "status",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Busy => "busy",
        }
    }
}

/// Handles of one proxy.
pub struct ProxyMeters {
    /// In the order of [`ProxyOutcome::ALL`].
    seconds: [Histogram; ProxyOutcome::ALL.len()],
    in_flight: Gauge,
    refused: Counter,
    breaker_open: Gauge,
}

impl ProxyMeters {
    pub(crate) fn new(proxy: &str) -> Self {
        let seconds = ProxyOutcome::ALL
            .map(|outcome| histogram!(PROXY_SECONDS, "proxy" => proxy.to_owned(), "outcome" => outcome.label()));
        let meters = Self {
            seconds,
            in_flight: gauge!(PROXY_IN_FLIGHT, "proxy" => proxy.to_owned()),
            refused: counter!(PROXY_REFUSED, "proxy" => proxy.to_owned()),
            breaker_open: gauge!(PROXY_BREAKER_OPEN, "proxy" => proxy.to_owned()),
        };
        // One that a reload replaced may have left it open.
        meters.breaker(false);
        meters
    }

    pub(crate) fn began(&self) {
        self.in_flight.increment(1.0);
    }

    pub(crate) fn ended(&self, outcome: ProxyOutcome, took: Duration) {
        self.in_flight.decrement(1.0);
        self.seconds[outcome as usize].record(took);
    }

    pub(crate) fn refused_by_breaker(&self) {
        self.refused.increment(1);
    }

    pub(crate) fn breaker(&self, is_open: bool) {
        self.breaker_open.set(if is_open { 1.0 } else { 0.0 });
    }
}

/// Handles of one shard. What is counted per delivery is kept in plain cells and handed on ten times a second.
pub struct ShardMeters {
    received: Cell<u64>,
    delivered: Cell<u64>,
    queued: Cell<u64>,
    received_total: Counter,
    delivered_total: Counter,
    queued_total: Counter,
    established_total: Counter,
    lagged_total: Counter,
    unanswered_total: Counter,
    refused_total: Counter,
    user_refused_total: Counter,
    fanout_seconds: Histogram,
    repaired_total: Counter,
    lost_total: Counter,
    duplicates_total: Counter,
    overflows_total: Counter,
    recoveries_total: Counter,
    recovery_reads_total: Counter,
    handshakes_waiting: Gauge,
    queue_bytes: Gauge,
    channels: Gauge,
    subscriptions: Gauge,
}

/// What a shard adds to the node's gauges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardGauges {
    /// Connections that wait until a handshake with them begins.
    pub handshakes_waiting: usize,
    /// Bytes queued for slow peers.
    pub queue_bytes: usize,
    /// Channels held.
    pub channels: usize,
    /// Subscriptions.
    pub subscriptions: usize,
}

impl ShardMeters {
    pub(crate) fn new() -> Self {
        Self {
            received: Cell::new(0),
            delivered: Cell::new(0),
            queued: Cell::new(0),
            received_total: counter!(MESSAGES_RECEIVED),
            delivered_total: counter!(DELIVERIES),
            queued_total: counter!(WRITES_QUEUED),
            established_total: counter!(CONNECTS, "result" => "established"),
            lagged_total: counter!(INBOX_DROPPED),
            unanswered_total: counter!(CLOSES_UNANSWERED),
            refused_total: counter!(COMMANDS_REFUSED),
            user_refused_total: counter!(CONNECTS, "result" => "user_connections"),
            fanout_seconds: histogram!(FANOUT_SECONDS),
            repaired_total: counter!(GAPS, "outcome" => "repaired"),
            lost_total: counter!(GAPS, "outcome" => "lost"),
            duplicates_total: counter!(DUPLICATES),
            overflows_total: counter!(HOLD_BACK_OVERFLOWS),
            recoveries_total: counter!(RECOVERIES),
            recovery_reads_total: counter!(RECOVERY_READS),
            handshakes_waiting: gauge!(HANDSHAKES_WAITING),
            queue_bytes: gauge!(QUEUE_BYTES),
            channels: gauge!(CHANNELS),
            subscriptions: gauge!(SUBSCRIPTIONS),
        }
    }

    pub(crate) fn received(&self) {
        self.received.set(self.received.get() + 1);
    }

    pub(crate) fn delivered(&self, messages: usize) {
        self.delivered.set(self.delivered.get() + messages as u64);
    }

    pub(crate) fn queued(&self) {
        self.queued.set(self.queued.get() + 1);
    }

    pub(crate) fn established(&self) {
        self.established_total.increment(1);
    }

    pub(crate) fn user_refused(&self) {
        self.user_refused_total.increment(1);
    }

    pub(crate) fn refused(&self) {
        self.refused_total.increment(1);
    }

    pub(crate) fn unanswered(&self) {
        self.unanswered_total.increment(1);
    }

    pub(crate) fn lagged(&self, dropped: u64) {
        self.lagged_total.increment(dropped);
    }

    pub(crate) fn fanned_out(&self, took: Duration) {
        self.fanout_seconds.record(took);
    }

    pub(crate) fn disconnect(&self, code: u16) {
        counter!(DISCONNECTS, "code" => code.to_string()).increment(1);
    }

    /// Hands on what was gathered since the last call.
    pub(crate) fn report(&self, before: &crate::hub::shard_hub::HubCounters, now: &crate::hub::shard_hub::HubCounters) {
        self.received_total.increment(self.received.take());
        self.delivered_total.increment(self.delivered.take());
        self.queued_total.increment(self.queued.take());
        self.repaired_total.increment(now.gaps_repaired - before.gaps_repaired);
        self.lost_total.increment(now.gaps_lost - before.gaps_lost);
        self.duplicates_total.increment(now.duplicates - before.duplicates);
        self.overflows_total.increment(now.hold_back_overflows - before.hold_back_overflows);
        self.recoveries_total.increment(now.recoveries - before.recoveries);
        self.recovery_reads_total.increment(now.recovery_reads - before.recovery_reads);
    }

    /// Several shards share a gauge, so each adds what changed.
    pub(crate) fn report_gauges(&self, before: &ShardGauges, now: &ShardGauges) {
        let change = |before: usize, now: usize| now as f64 - before as f64;
        self.handshakes_waiting.increment(change(before.handshakes_waiting, now.handshakes_waiting));
        self.queue_bytes.increment(change(before.queue_bytes, now.queue_bytes));
        self.channels.increment(change(before.channels, now.channels));
        self.subscriptions.increment(change(before.subscriptions, now.subscriptions));
    }
}
