//! `loadgen limit`: the physical limit, as a server to measure and as a run by itself.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::fanout::{FanoutResult, measured};
use super::options::{ClientOptions, ScheduleOptions, WireEncoding, channel_names};
use super::process::Server;
use crate::client::plan::{Layout, Publishing};
use crate::limit::{ServePlan, Stats, serve};
use crate::report::{Figures, Report};
use crate::stamp::PAYLOAD_LEN_MAX;
use crate::target::Target;

/// Channel of the limit server.
const CHANNEL: &str = "loadgen-0";
/// From the last subscriber to the first message. The client has this long to notice that all are connected.
const START_AFTER: f64 = 1.0;

/// The physical limit: a bare epoll server with one send() per delivery
#[derive(Subcommand, Clone, Debug)]
pub enum LimitCommand {
    /// Serve one run on loopback: wait for subscribers, send the schedule, print what it cost
    Serve(ServeOptions),
    /// Serve in a process of its own, load it, and report
    Run(RunOptions),
}

/// Options of `loadgen limit serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeOptions {
    /// Loopback address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Subscribers to wait for
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    #[command(flatten)]
    /// What is sent.
    pub schedule: ScheduleOptions,
    /// Fill each message up to this many bytes with spaces
    #[arg(long, value_name = "BYTES")]
    pub message_bytes: Option<usize>,
    /// Identity of the run in the messages
    #[arg(long, default_value_t = 0)]
    pub run: u32,
    /// Seconds from the last subscriber to the first message
    #[arg(long, value_name = "SECS", default_value_t = START_AFTER, value_parser = super::options::seconds)]
    pub start_after: f64,
}

/// Options of `loadgen limit run`.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    /// The client.
    pub client: ClientOptions,
    /// Subscribers
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    #[command(flatten)]
    /// What is sent.
    pub schedule: ScheduleOptions,
    /// Fill each message up to this many bytes with spaces
    #[arg(long, value_name = "BYTES")]
    pub message_bytes: Option<usize>,
    /// Run the server on this core only
    #[arg(long, value_name = "CORE")]
    pub pin_server: Option<usize>,
}

/// First line of the output of `loadgen limit serve`.
#[derive(Serialize, Deserialize)]
struct Listening {
    listening: SocketAddr,
}

/// A run against the limit server.
#[derive(Clone, Debug, Serialize)]
pub struct LimitResult {
    /// As the client and `/proc` saw it.
    pub fanout: FanoutResult,
    /// As the server counted.
    pub server: Stats,
}

/// Serves one run.
pub fn run_serve(options: &ServeOptions) -> Result<()> {
    if !options.listen.ip().is_loopback() {
        bail!("{} is not a loopback address; the limit server is for loopback only", options.listen);
    }
    if options.message_bytes.is_some_and(|bytes| bytes > PAYLOAD_LEN_MAX) {
        bail!("--message-bytes is more than {PAYLOAD_LEN_MAX}");
    }
    let plan = ServePlan {
        listen: options.listen,
        subscribers: options.connections as usize,
        schedule: options.schedule.schedule(1, 1)?,
        payload_bytes: options.schedule.size,
        message_bytes: options.message_bytes,
        channel: CHANNEL.to_owned(),
        run: options.run,
        start_after: Duration::from_secs_f64(options.start_after),
    };
    let listening = |address| {
        let line = serde_json::to_string(&Listening { listening: address });
        println!("{}", line.expect("an address is JSON"));
    };
    let stats = serve(plan, listening)?;
    println!("{}", serde_json::to_string(&stats)?);
    Ok(())
}

/// Runs the limit server and a client against it.
pub fn run_limit(options: &RunOptions) -> Result<Report<LimitResult>> {
    let result = measure_limit(options)?;
    Ok(Report::new("limit", result.fanout.verdict(), result))
}

/// One run against a fresh limit server.
pub fn measure_limit(options: &RunOptions) -> Result<LimitResult> {
    let RunOptions { client, connections, schedule: what, .. } = options;
    if client.encoding != WireEncoding::Json {
        bail!("the limit server speaks JSON only; leave out --encoding");
    }
    client.check_pins(options.pin_server)?;
    let schedule = what.schedule(1, 1)?;
    let layout = Layout::in_turn(*connections as usize, 1);
    let run: u32 = rand::random();
    let mut command = Command::new(std::env::current_exe().context("cannot find the own program")?);
    command.args(["limit", "serve", "-n", &connections.to_string(), "--run", &run.to_string()]);
    command.args(["--rate", &what.rate.to_string(), "--size", &what.size.to_string()]);
    command.args(["--duration", &what.duration.to_string()]);
    if let Some(bytes) = options.message_bytes {
        command.args(["--message-bytes", &bytes.to_string()]);
    }
    let mut server = Server::spawn(command, options.pin_server, true)?;
    let (line, mut output) = server.first_line()?;
    let Listening { listening } =
        serde_json::from_str(&line).context("the limit server did not say where it listens")?;
    let target = Target::parse(&format!("ws://{listening}/"), "ws", false)?;
    let mut plan = client.plan(target, channel_names(CHANNEL, 1)?, layout, schedule)?;
    plan.publishing = Publishing::Peer;
    plan.payload_bytes = what.size;
    plan.run = run;
    let fanout = measured(plan, Some(server.pid()))?;
    // The clients are gone by now, so the server ends at once.
    let status = server.wait(Duration::from_secs(60))?;
    let mut stats = String::new();
    output.by_ref().take(64 * 1024).read_to_string(&mut stats)?;
    if !status.success() {
        bail!("the limit server ended with {status}");
    }
    Ok(LimitResult { fanout, server: serde_json::from_str(&stats).context("the limit server did not report")? })
}

impl Figures for LimitResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = self.fanout.rows();
        let Stats { frame_bytes, cpu_us_per_delivery, refused, .. } = &self.server;
        let own = format!("{cpu_us_per_delivery:.3} us per send() of {frame_bytes} bytes, {refused} refused");
        rows.push(("server's own count".to_owned(), own));
        rows
    }
}
