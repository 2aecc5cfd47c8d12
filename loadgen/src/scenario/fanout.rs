//! `loadgen fanout`: publications to many subscribers, each delivery timed and audited.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::follow::{Measured, measure};
use super::options::{ConnectionOptions, ScheduleOptions, channel_names};
use crate::audit::Findings;
use crate::client::Client;
use crate::client::nodes::Nodes;
use crate::client::plan::{Layout, Plan, Publishing, Reconnect};
use crate::report::{Figures, Quantiles, Report, Verdict, reasons, thousands};
use crate::target::Target;
use crate::usage::{ClientUsage, ServerUsage};

/// Publish to subscribers at a fixed schedule and audit every delivery
#[derive(Args, Clone, Debug)]
pub struct FanoutOptions {
    #[command(flatten)]
    /// The server.
    pub connection: ConnectionOptions,
    /// Subscribed connections; channels times subscribers per channel when absent
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: Option<u32>,
    /// Channels
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub channels: u32,
    /// Subscribers of each channel; without it, each connection subscribes to one channel, in turn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub subscribers_per_channel: Option<u32>,
    /// Channel names; `{}` becomes the index
    #[arg(long, value_name = "PATTERN", default_value = "loadgen-{}")]
    pub channel: String,
    #[command(flatten)]
    /// What is published.
    pub schedule: ScheduleOptions,
    #[command(flatten)]
    /// Who publishes.
    pub publishing: PublishingOptions,
    /// Reconnect and recover when a connection is cut, and audit across the cut
    #[arg(long)]
    pub resume: bool,
}

/// How messages are published.
#[derive(Args, Clone, Debug)]
pub struct PublishingOptions {
    /// Publish through the server API or by publish commands
    #[arg(long, value_enum, default_value_t)]
    pub publisher: PublisherKind,
    /// Publishing connections
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub publishers: u32,
    /// Unanswered publishes per connection
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    /// URL of the server API; `/api` on the host of --url when absent
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,
    /// Key of the server API
    #[arg(long, value_name = "KEY", env = "LOADGEN_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

/// Who publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum PublisherKind {
    /// HTTP requests to the server API, pipelined on keep-alive connections
    #[default]
    Api,
    /// Publish commands on WebSocket connections of their own
    Ws,
}

impl PublishingOptions {
    /// Where and how to publish, given the WebSocket endpoints.
    pub fn resolve(&self, nodes: &Nodes, allow_remote: bool) -> Result<Publishing> {
        let depth = self.depth as usize;
        if self.publisher == PublisherKind::Ws {
            return Ok(Publishing::WebSocket { depth });
        }
        let apis = match &self.api_url {
            Some(url) => vec![Target::parse(url, "http", allow_remote)?],
            None => (0..nodes.count()).map(|node| nodes.target(node).with_path("/api")).collect(),
        };
        let publish = |api: Target| api.with_path(&format!("{}/publish", api.path.trim_end_matches('/')));
        let targets = apis.into_iter().map(publish).collect();
        let key = self.api_key.clone();
        if key.as_deref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            bail!("--api-key has characters that do not belong in an HTTP field");
        }
        Ok(Publishing::Api { targets, key, depth })
    }
}

/// What `loadgen fanout` found.
#[derive(Clone, Debug, Serialize)]
pub struct FanoutResult {
    /// Connections.
    pub connections: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Channels.
    pub channels: u64,
    /// Messages of the schedule, per second.
    pub offered_per_second: f64,
    /// Messages of the schedule.
    pub messages: u64,
    /// Those whose publish was acknowledged.
    pub acknowledged: u64,
    /// Those whose publish was refused or not answered.
    pub failed: u64,
    /// Those that were not sent, because the server did not keep up.
    pub unsent: u64,
    /// Why publishes failed.
    pub failures: BTreeMap<String, u64>,
    /// Length of each payload.
    pub payload_bytes: usize,
    /// Mean length of a message as the server wrote it, without the WebSocket header.
    pub message_bytes: f64,
    /// Deliveries per second, from the start of the schedule to the last delivery.
    pub deliveries_per_second: f64,
    /// From the intended send time to the delivery.
    pub latency: Quantiles,
    /// From the intended send time to the answer to the publish.
    pub acknowledgement: Quantiles,
    /// Mean deliveries taken by one read: above 1 the server or the network coalesces.
    pub deliveries_per_read: f64,
    /// The audit.
    pub audit: Findings,
    /// Broken promises in all.
    pub violations: u64,
    /// Connections and subscriptions that ended during the run, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Connections resumed after a cut.
    pub resumed: u64,
    /// Messages of other runs, ignored.
    pub foreign: u64,
    /// CPU time of the server per delivery, in microseconds.
    pub server_cpu_us_per_delivery: Option<f64>,
    /// The server during the run.
    pub server: Option<ServerUsage>,
    /// Own CPU time per delivery, in microseconds.
    pub client_cpu_us_per_delivery: f64,
    /// The client while the schedule ran.
    pub client: ClientUsage,
    /// The client was too busy.
    pub void: bool,
}

impl FanoutResult {
    /// The verdict on this run alone.
    pub fn verdict(&self) -> Verdict {
        let failures = self.failed + self.unsent + self.lost.values().sum::<u64>();
        Verdict::new(self.violations, self.void, failures)
    }
}

/// Runs the scenario.
pub fn run(options: &FanoutOptions) -> Result<Report<FanoutResult>> {
    let ConnectionOptions { url, client, server_pid } = &options.connection;
    let target = Target::parse(url, "ws", client.allow_remote)?;
    let channels = options.channels as usize;
    let layout = match (options.connections, options.subscribers_per_channel) {
        (connections, Some(subscribers)) => {
            let connections = connections.map_or(channels * subscribers as usize, |connections| connections as usize);
            if connections < subscribers as usize {
                bail!("-n {connections} connections cannot give each channel {subscribers} different subscribers");
            }
            Layout::rooms(connections, channels, subscribers as usize)
        }
        (Some(connections), None) => Layout::in_turn(connections as usize, channels),
        (None, None) => Layout::in_turn(1000.max(channels), channels),
    };
    let schedule = options.schedule.schedule(channels, options.publishing.publishers as usize)?;
    let mut plan = client.plan(target, channel_names(&options.channel, channels)?, layout, schedule)?;
    plan.publishing = options.publishing.resolve(&plan.nodes, client.allow_remote)?;
    plan.payload_bytes = options.schedule.size;
    plan.reconnect = if options.resume { Reconnect::Quickly } else { Reconnect::Never };
    let result = measured(plan, *server_pid)?;
    Ok(Report::new("fanout", result.verdict(), result))
}

/// Carries a plan out.
pub fn measured(plan: Plan, server_pid: Option<u32>) -> Result<FanoutResult> {
    let client = Client::start(plan)?;
    let plan = client.plan.clone();
    let Measured { results, server, start_ns, cores } = measure(client, server_pid)?;
    let tally = results.tally;
    let delivered = results.findings.delivered;
    let span_ns = tally.last_delivery_ns.saturating_sub(start_ns.unwrap_or(0)).max(1);
    let client = ClientUsage::new(&results.busy, &cores.0, &cores.1);
    let messages = plan.schedule.total;
    Ok(FanoutResult {
        connections: plan.layout.connections() as u64,
        subscriptions: plan.layout.subscriptions() as u64,
        channels: plan.channels.len() as u64,
        offered_per_second: plan.schedule.rate,
        messages,
        acknowledged: results.acknowledged,
        failed: results.failed,
        unsent: messages - results.acknowledged - results.failed,
        failures: results.failures.into_map(),
        payload_bytes: plan.payload_bytes,
        message_bytes: tally.message_bytes as f64 / delivered.max(1) as f64,
        deliveries_per_second: if delivered == 0 { 0.0 } else { delivered as f64 * 1e9 / span_ns as f64 },
        latency: Quantiles::of(&tally.latency_us),
        acknowledgement: Quantiles::of(&results.ack_us),
        deliveries_per_read: delivered as f64 / tally.reads.max(1) as f64,
        audit: results.findings,
        violations: results.findings.violations(),
        lost: tally.lost.into_map(),
        resumed: tally.resumed,
        foreign: tally.foreign,
        server_cpu_us_per_delivery: server.filter(|_| delivered > 0).map(|usage| usage.cpu_us_per(delivered)),
        server,
        client_cpu_us_per_delivery: client.cpu_seconds * 1e6 / delivered.max(1) as f64,
        client,
        void: client.is_void(),
    })
}

impl Figures for FanoutResult {
    fn rows(&self) -> Vec<(String, String)> {
        let audit = &self.audit;
        let mut rows = vec![
            ("subscriptions", {
                let (subscriptions, connections) = (thousands(self.subscriptions), thousands(self.connections));
                format!("{subscriptions} on {connections} connections, {} channels", thousands(self.channels))
            }),
            ("messages", {
                let (messages, rate) = (thousands(self.messages), self.offered_per_second);
                let (acknowledged, failed) = (thousands(self.acknowledged), self.failed);
                format!("{messages} at {rate}/s: {acknowledged} acknowledged, {failed} failed, {} unsent", self.unsent)
            }),
            ("message length", format!("{:.1} bytes with a payload of {}", self.message_bytes, self.payload_bytes)),
            ("deliveries", {
                let (delivered, expected) = (thousands(audit.delivered), thousands(audit.expected));
                format!("{delivered} of {expected}, {} per second", thousands(self.deliveries_per_second as u64))
            }),
            ("latency", self.latency.line()),
            ("acknowledgement", self.acknowledgement.line()),
            ("deliveries per read", format!("{:.2}", self.deliveries_per_read)),
        ];
        if let (Some(usage), Some(cpu)) = (self.server, self.server_cpu_us_per_delivery) {
            let (seconds, share) = (usage.cpu_seconds, usage.cpu_share * 100.0);
            let mib = usage.memory_after.rss_bytes as f64 / (1u64 << 20) as f64;
            rows.push(("server CPU per delivery", format!("{cpu:.3} us ({seconds:.2} s, {share:.0} % of a core)")));
            rows.push(("server memory", format!("{mib:.1} MiB resident")));
        }
        rows.push(("client CPU per delivery", format!("{:.3} us", self.client_cpu_us_per_delivery)));
        rows.push(("client", self.client.line()));
        rows.push(("audit", {
            let Findings { lost, falsely_recovered, repeated, reordered, corrupt, misrouted, forged, told, .. } = audit;
            format!(
                "{lost} lost ({falsely_recovered} of them falsely recovered), {repeated} repeated, {reordered} reordered\n\
                 {corrupt} corrupt, {misrouted} misrouted, {forged} forged; {told} missed and told"
            )
        }));
        if self.resumed > 0 {
            rows.push(("resumed", thousands(self.resumed)));
        }
        if self.foreign > 0 {
            rows.push(("messages of other runs", thousands(self.foreign)));
        }
        if !self.failures.is_empty() {
            rows.push(("publish failures", reasons(&self.failures)));
        }
        if !self.lost.is_empty() {
            rows.push(("lost connections", reasons(&self.lost)));
        }
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
