//! `loadgen connect`: many connections that do nothing, and what each costs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::follow;
use super::options::{ConnectionOptions, channel_names, rate, seconds};
use crate::client::Client;
use crate::client::plan::Layout;
use crate::client::shared::Phase;
use crate::procfs;
use crate::progress::{Progress, pause};
use crate::report::{Figures, Quantiles, Report, Verdict, reasons, thousands};
use crate::schedule::Schedule;
use crate::target::Target;
use crate::usage::{ServerMeter, ServerUsage};

/// Open connections, subscribe each to one channel, hold them, and report what each costs the server
#[derive(Args, Clone, Debug)]
pub struct ConnectOptions {
    #[command(flatten)]
    /// The server.
    pub connection: ConnectionOptions,
    /// Connections to open
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Connections to open per second; as fast as the server takes them when absent
    #[arg(long, value_name = "N/S", value_parser = rate)]
    pub rate: Option<f64>,
    /// Channel names; `{}` becomes an index
    #[arg(long, value_name = "PATTERN", default_value = "loadgen-{}")]
    pub channel: String,
    /// Channels the connections subscribe to in turn, one each; 0 for none, as many as connections when absent
    #[arg(long, value_name = "K")]
    pub channels: Option<u32>,
    /// Seconds to hold the connections before memory is read
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub hold: f64,
    /// Each client names a session of its own in the URL (`?session=`)
    #[arg(long)]
    pub sessions: bool,
}

/// What `loadgen connect` found.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectResult {
    /// Connections asked for.
    pub connections: u64,
    /// Connections that became ready, with their subscription.
    pub connected: u64,
    /// Connections that could not be opened, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Connections that ended while they were held, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Seconds until the last one was ready or refused.
    pub seconds: f64,
    /// Connections ready per second.
    pub connects_per_second: f64,
    /// From the start of a connection (by the schedule, with `--rate`) to its last subscribe reply.
    pub latency: Quantiles,
    /// Pings answered.
    pub pings: u64,
    /// What connecting cost the server.
    pub server_cpu_us_per_connect: Option<f64>,
    /// Resident bytes the server gained per connection.
    pub server_rss_bytes_per_connection: Option<f64>,
    /// The same with shared pages divided among their users.
    pub server_pss_bytes_per_connection: Option<f64>,
    /// The server while connections were opened.
    pub server_connecting: Option<ServerUsage>,
    /// The server from before the first connection to the end of the hold.
    pub server_total: Option<ServerUsage>,
    /// Own CPU time per connection, in microseconds.
    pub client_cpu_us_per_connect: f64,
    /// Own CPU time by wall-clock time while connections were opened.
    pub client_busy_share: f64,
}

/// Runs the scenario.
pub fn run(options: &ConnectOptions) -> Result<Report<ConnectResult>> {
    let ConnectionOptions { url, client, server_pid } = &options.connection;
    let target = Target::parse(url, "ws", client.allow_remote)?;
    let connections = options.connections as usize;
    let default_channels = if options.channel.contains("{}") { connections } else { 1 };
    let channels = options.channels.map_or(default_channels, |channels| (channels as usize).min(connections));
    let names = channel_names(&options.channel, channels)?;
    // Nothing is published, so nothing is audited.
    let silent = Schedule::with_total(1.0, 0, names.len().max(1) as u32, 1);
    let mut plan = client.plan(target, names, Layout::in_turn(connections, channels), silent)?;
    plan.connect_rate = options.rate;
    plan.sessions = options.sessions;

    let own = std::process::id();
    let meter = server_pid.map(ServerMeter::start).transpose()?;
    let (began, own_cpu) = (Instant::now(), procfs::process_cpu_seconds(own)?);
    let running = Client::start(plan)?;
    let totals = follow::connected(&running)?;
    let seconds = began.elapsed().as_secs_f64();
    let own_cpu = procfs::process_cpu_seconds(own)? - own_cpu;
    let server_connecting = meter.as_ref().map(ServerMeter::read).transpose()?;
    hold(&running, Duration::from_secs_f64(options.hold));
    let server_total = meter.as_ref().map(ServerMeter::read).transpose()?;
    running.shared.enter(Phase::Stop);
    let results = running.finish()?;

    let connected = totals.connected;
    let result = ConnectResult {
        connections: connections as u64,
        connected,
        refused: results.tally.refused.into_map(),
        lost: results.tally.lost.into_map(),
        seconds,
        connects_per_second: connected as f64 / seconds.max(1e-9),
        latency: Quantiles::of(&results.tally.connect_us),
        pings: results.tally.pings,
        server_cpu_us_per_connect: server_connecting.map(|usage| usage.cpu_us_per(connected)),
        server_rss_bytes_per_connection: server_total.map(|usage| usage.rss_bytes_per(connected)),
        server_pss_bytes_per_connection: server_total.and_then(|usage| usage.pss_bytes_per(connected)),
        server_connecting,
        server_total,
        client_cpu_us_per_connect: own_cpu * 1e6 / connected.max(1) as f64,
        client_busy_share: own_cpu / seconds.max(1e-9),
    };
    // At full speed the client is meant to be busy; with a rate its latencies count, and are void when it was.
    let void = options.rate.is_some() && result.client_busy_share > 0.9 * f64::from(client.threads);
    let failures = result.refused.values().chain(result.lost.values()).sum();
    Ok(Report::new("connect", Verdict::new(0, void, failures), result))
}

fn hold(client: &Client, hold: Duration) {
    let progress = Progress::new("hold", hold.as_secs());
    let began = Instant::now();
    while began.elapsed() < hold {
        progress.show(began.elapsed().as_secs(), || format!("{} lost", client.shared.totals().lost));
        pause();
    }
}

impl Figures for ConnectResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("connected", format!("{} of {}", thousands(self.connected), thousands(self.connections))),
            ("rate", format!("{:.0}/s, {:.2} s in all", self.connects_per_second, self.seconds)),
            ("connect latency", self.latency.line()),
            ("client", {
                let share = self.client_busy_share * 100.0;
                format!("{:.1} us CPU per connect, {share:.0} % busy", self.client_cpu_us_per_connect)
            }),
        ];
        if let Some(cpu) = self.server_cpu_us_per_connect {
            rows.push(("server CPU per connect", format!("{cpu:.1} us")));
        }
        if let Some(bytes) = self.server_rss_bytes_per_connection {
            let pss = self.server_pss_bytes_per_connection.map_or(String::new(), |pss| format!(" (PSS {pss:.0})"));
            rows.push(("server memory per connection", format!("{bytes:.0} bytes resident{pss}")));
        }
        if let Some(usage) = self.server_total {
            let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
            let (before, after) = (mib(usage.memory_before.rss_bytes), mib(usage.memory_after.rss_bytes));
            rows.push(("server memory", format!("{before:.1} -> {after:.1} MiB")));
        }
        rows.push(("pings answered", thousands(self.pings)));
        if !self.refused.is_empty() {
            rows.push(("refused", reasons(&self.refused)));
        }
        if !self.lost.is_empty() {
            rows.push(("lost", reasons(&self.lost)));
        }
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
