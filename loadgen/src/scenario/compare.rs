//! `loadgen compare`: a gateway against the physical limit, in turns, under the same client.
//!
//! Both sides get the same subscribers, message rate, payload and message length: the limit server fills its messages up
//! to the length the gateway's had in the run before. The gateway additionally pays for being published to, which is part
//! of its work; the limit server publishes to itself. Turns are taken because a shared machine has good and bad minutes;
//! the best run of each side is the one the neighbours disturbed least.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::fanout::{FanoutResult, PublishingOptions, measured};
use super::limit::{LimitResult, RunOptions, measure_limit};
use super::options::{ClientOptions, ScheduleOptions, WireEncoding, channel_names};
use super::process::{Server, pin_process};
use crate::client::plan::Layout;
use crate::report::{Figures, Report, Verdict};
use crate::target::Target;

/// Compare a server's CPU per delivery with the physical limit
#[derive(Args, Clone, Debug)]
pub struct CompareOptions {
    #[command(flatten)]
    /// The client.
    pub client: ClientOptions,
    /// Command line that starts the server, split at spaces; it must listen at the host of --url
    #[arg(long, value_name = "COMMAND", required_unless_present = "server_pid")]
    pub gateway_cmd: Option<String>,
    /// WebSocket URL of the server
    #[arg(long, alias = "url", value_name = "URL", default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub gateway_url: String,
    /// Process of a server that is running already
    #[arg(long, value_name = "PID", conflicts_with = "gateway_cmd")]
    pub server_pid: Option<u32>,
    /// Subscribers
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// Channel they subscribe to
    #[arg(long, value_name = "NAME", default_value = "loadgen-0")]
    pub channel: String,
    #[command(flatten)]
    /// What is published.
    pub schedule: ScheduleOptions,
    #[command(flatten)]
    /// Who publishes to the server.
    pub publishing: PublishingOptions,
    /// Runs of each side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Run each server on this core only
    #[arg(long, value_name = "CORE")]
    pub pin_server: Option<usize>,
}

/// What `loadgen compare` found.
#[derive(Clone, Debug, Serialize)]
pub struct CompareResult {
    /// Best of the gateway's runs that count, CPU microseconds per delivery.
    pub gateway_us_per_delivery: Option<f64>,
    /// Best of the limit server's.
    pub limit_us_per_delivery: Option<f64>,
    /// The first by the second.
    pub ratio: Option<f64>,
    /// The gateway's runs, in order.
    pub gateway: Vec<FanoutResult>,
    /// The limit server's runs, each after the gateway's of the same number.
    pub limit: Vec<LimitResult>,
}

/// Runs the scenario.
pub fn run(options: &CompareOptions) -> Result<Report<CompareResult>> {
    if options.client.encoding != WireEncoding::Json {
        bail!("the limit server speaks JSON only; leave out --encoding");
    }
    options.client.check_pins(options.pin_server)?;
    let target = Target::parse(&options.gateway_url, "ws", options.client.allow_remote)?;
    let mut spawned = None;
    let pid = match (&options.gateway_cmd, options.server_pid) {
        (Some(command), _) => spawned.insert(start(command, options, &target)?).pid(),
        (None, Some(pid)) => {
            if let Some(core) = options.pin_server {
                pin_process(pid, core)?;
            }
            pid
        }
        (None, None) => bail!("--gateway-cmd or --server-pid is needed, to know whose CPU time to read"),
    };
    let (mut gateway, mut limit) = (Vec::new(), Vec::new());
    for run in 1..=options.runs {
        let turn = |side| move || format!("{side} run {run} of {}", options.runs);
        let result = gateway_run(options, &target, pid).with_context(turn("server"))?;
        let message_bytes = result.message_bytes.round() as usize;
        gateway.push(result);
        let limit_options = RunOptions {
            client: options.client.clone(),
            connections: options.connections,
            schedule: options.schedule.clone(),
            message_bytes: Some(message_bytes),
            pin_server: options.pin_server,
        };
        limit.push(measure_limit(&limit_options).with_context(turn("limit"))?);
    }
    drop(spawned);
    let result = CompareResult::new(gateway, limit);
    Ok(Report::new("compare", result.verdict(), result))
}

fn start(command: &str, options: &CompareOptions, target: &Target) -> Result<Server> {
    let mut words = command.split_whitespace();
    let mut command = Command::new(words.next().context("--gateway-cmd is empty")?);
    command.args(words);
    if let Some(key) = &options.publishing.api_key {
        command.env("EVENKEEL_API_KEY", key);
    }
    if let Some(secret) = &options.client.token_secret {
        command.env("EVENKEEL_TOKEN_HMAC_SECRET", secret);
    }
    if std::net::TcpStream::connect(target.address).is_ok() {
        bail!("something listens on {} already; stop it, or name it by --server-pid", target.address);
    }
    let mut server = Server::spawn(command, options.pin_server, false)?;
    server.wait_until_listening(target.address)?;
    Ok(server)
}

fn gateway_run(options: &CompareOptions, target: &Target, pid: u32) -> Result<FanoutResult> {
    let CompareOptions { client, publishing, schedule: what, .. } = options;
    let schedule = what.schedule(1, publishing.publishers as usize)?;
    let layout = Layout::in_turn(options.connections as usize, 1);
    let mut plan = client.plan(target.clone(), channel_names(&options.channel, 1)?, layout, schedule)?;
    plan.publishing = publishing.resolve(&plan.nodes, client.allow_remote)?;
    plan.payload_bytes = what.size;
    measured(plan, Some(pid))
}

impl CompareResult {
    fn new(gateway: Vec<FanoutResult>, limit: Vec<LimitResult>) -> Self {
        let limits: Vec<&FanoutResult> = limit.iter().map(|run| &run.fanout).collect();
        let gateways: Vec<&FanoutResult> = gateway.iter().collect();
        let (gateway_us_per_delivery, limit_us_per_delivery) = (best(&gateways), best(&limits));
        let ratio = gateway_us_per_delivery.zip(limit_us_per_delivery).map(|(gateway, limit)| gateway / limit);
        // A limit run too short for the kernel's clock ticks gives nothing to divide by.
        let ratio = ratio.filter(|ratio| ratio.is_finite());
        Self { gateway_us_per_delivery, limit_us_per_delivery, ratio, gateway, limit }
    }

    fn verdict(&self) -> Verdict {
        let runs = || self.gateway.iter().chain(self.limit.iter().map(|run| &run.fanout));
        let violations = runs().map(|run| run.violations).sum();
        let failures = runs().filter(|run| run.verdict() == Verdict::Failed).count() as u64;
        // Single void runs are left out of the best; without one that counts on each side there is no ratio.
        Verdict::new(violations, self.ratio.is_none(), failures)
    }
}

/// The least CPU per delivery among the runs that count.
fn best(runs: &[&FanoutResult]) -> Option<f64> {
    let counting = runs.iter().filter(|run| !run.void).filter_map(|run| run.server_cpu_us_per_delivery);
    counting.min_by(f64::total_cmp)
}

impl Figures for CompareResult {
    fn rows(&self) -> Vec<(String, String)> {
        let us = |value: Option<f64>| value.map_or("no run that counts".to_owned(), |us| format!("{us:.3} us"));
        let mut rows = vec![
            ("server, best run".to_owned(), us(self.gateway_us_per_delivery)),
            ("physical limit, best run".to_owned(), us(self.limit_us_per_delivery)),
            ("ratio".to_owned(), self.ratio.map_or("none".to_owned(), |ratio| format!("{ratio:.2}"))),
        ];
        for (number, (gateway, limit)) in self.gateway.iter().zip(&self.limit).enumerate() {
            let number = number + 1;
            rows.push((format!("server, run {number}"), line(gateway)));
            rows.push((format!("limit, run {number}"), line(&limit.fanout)));
        }
        rows
    }
}

fn line(run: &FanoutResult) -> String {
    let cpu = run.server_cpu_us_per_delivery.unwrap_or(0.0);
    let (latency, bytes, violations) = (&run.latency, run.message_bytes, run.violations);
    let void = if run.void { ", VOID" } else { "" };
    let (read, busy) = (run.deliveries_per_read, run.client.busy_share * 100.0);
    format!(
        "{cpu:.3} us per delivery, p50 {:.2} p99 {:.2} ms, {bytes:.0} bytes, {read:.2} per read, {violations} violations, \
         client {busy:.0} % busy{void}",
        latency.p50_ms, latency.p99_ms,
    )
}
