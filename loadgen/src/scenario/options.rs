//! Options several scenarios share, and how they become a plan.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use protocol::Encoding;

use crate::client::nodes::Nodes;
use crate::client::plan::{Drops, Layout, Plan, Publishing, Reconnect};
use crate::schedule::{MESSAGES_MAX, Schedule};
use crate::stamp::{PAYLOAD_LEN_MAX, PAYLOAD_LEN_MIN};
use crate::sys;
use crate::target::{Sources, Target};
use crate::token::Tokens;

/// Most channels, as many as the stamp can number.
const CHANNELS_MAX: usize = 1 << 24;
/// Most publishers: each is a connection, and a lane in the audit of every subscription of one channel.
const PUBLISHERS_MAX: usize = 1024;
/// Most lanes over all subscriptions. Each takes 8 bytes, so this is 1 GiB.
const LANES_MAX: usize = 128 << 20;

/// How to reach and load a server.
#[derive(Args, Clone, Debug)]
pub struct ConnectionOptions {
    /// WebSocket URL of the server
    #[arg(long, default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub url: String,
    #[command(flatten)]
    /// Options that do not depend on the server's address.
    pub client: ClientOptions,
    /// Process whose CPU and memory are reported
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

/// How the client behaves, whatever the server.
#[derive(Args, Clone, Debug)]
pub struct ClientOptions {
    /// Encoding of all connections
    #[arg(long, value_enum, default_value_t)]
    pub encoding: WireEncoding,
    /// Sign an HS256 token for each connection with this secret; users are u0, u1, ...
    #[arg(long, value_name = "SECRET", env = "LOADGEN_TOKEN_SECRET", hide_env_values = true)]
    pub token_secret: Option<String>,
    /// Connect with this token
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_secret")]
    pub token: Option<String>,
    /// Connections being opened at the same time
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub opening: u32,
    /// Seconds one connection may take until its last subscribe reply
    #[arg(long, value_name = "SECS", default_value_t = 10.0, value_parser = seconds)]
    pub connect_timeout: f64,
    /// Seconds without any delivery, after the last publish, before what is missing counts as missing
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub settle: f64,
    /// Receiving threads; the first one publishes too
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Run the client on this core only
    #[arg(long, value_name = "CORE")]
    pub pin_client: Option<usize>,
    /// Allow targets that are not on this machine
    #[arg(long)]
    pub allow_remote: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write the report with plots to this file, as a page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Encoding of a connection, as spelled on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum WireEncoding {
    /// Text frames.
    #[default]
    Json,
    /// Binary frames.
    Protobuf,
}

impl From<WireEncoding> for Encoding {
    fn from(encoding: WireEncoding) -> Self {
        match encoding {
            WireEncoding::Json => Self::Json,
            WireEncoding::Protobuf => Self::Protobuf,
        }
    }
}

/// What is published, and how long the messages are.
#[derive(Args, Clone, Debug)]
pub struct ScheduleOptions {
    /// Messages per second over all channels
    #[arg(long, value_name = "MSGS/S", default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// Length of each JSON payload in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = payload_bytes)]
    pub size: usize,
    /// Seconds to publish for
    #[arg(long, value_name = "SECS", default_value_t = 10.0, value_parser = seconds)]
    pub duration: f64,
}

impl ScheduleOptions {
    /// The schedule for a number of channels and publishers.
    pub fn schedule(&self, channels: usize, publishers: usize) -> Result<Schedule> {
        if self.rate * self.duration > MESSAGES_MAX as f64 {
            bail!("--rate times --duration is more than {MESSAGES_MAX} messages");
        }
        if publishers == 0 || publishers > PUBLISHERS_MAX {
            bail!("--publishers is {publishers}; it must be 1 to {PUBLISHERS_MAX}");
        }
        let duration = Duration::from_secs_f64(self.duration);
        Ok(Schedule::new(self.rate, duration, channels as u32, publishers as u32))
    }
}

impl ClientOptions {
    /// Applies `--pin-client`, before any thread is started.
    pub fn pin(&self) -> Result<()> {
        match self.pin_client {
            Some(core) => sys::pin_thread(0, core).with_context(|| format!("cannot run on core {core}")),
            None => Ok(()),
        }
    }

    /// Refuses to pin the client alone where servers are started too: they would inherit its core.
    pub fn check_pins(&self, server: Option<usize>) -> Result<()> {
        match (self.pin_client, server) {
            (Some(_), None) => bail!("with --pin-client give --pin-server too, or both would share the core"),
            (Some(client), Some(server)) if client == server => {
                bail!("--pin-client and --pin-server are the same core")
            }
            _ => Ok(()),
        }
    }

    /// A plan against a server. Nothing is published unless the caller says so.
    pub fn plan(&self, target: Target, channels: Vec<String>, layout: Layout, schedule: Schedule) -> Result<Plan> {
        self.plan_for(vec![target], channels, layout, schedule)
    }

    /// A plan against several nodes.
    pub fn plan_for(
        &self,
        targets: Vec<Target>,
        channels: Vec<String>,
        layout: Layout,
        schedule: Schedule,
    ) -> Result<Plan> {
        let connections = layout.connections();
        if targets.is_empty() {
            bail!("at least one server is needed");
        }
        if connections == 0 {
            bail!("at least one connection is needed");
        }
        let lanes = layout.subscriptions().saturating_mul(schedule.lanes_per_channel() as usize);
        if lanes > LANES_MAX {
            bail!("subscriptions times publishers per channel is {lanes}, more than {LANES_MAX}: use fewer publishers");
        }
        let run = rand::random();
        Ok(Plan {
            encoding: self.encoding.into(),
            tokens: Tokens::new(self.token_secret.as_deref(), self.token.as_deref()),
            channels,
            sources: Sources::new(&targets[0], run),
            nodes: Arc::new(Nodes::new(targets)),
            connect_rate: None,
            opening_max: self.opening as usize,
            connect_timeout: Duration::from_secs_f64(self.connect_timeout),
            reconnect: Reconnect::Never,
            sessions: false,
            presence_channels: 0,
            breaks_things: false,
            late_after: None,
            drops: Drops::default(),
            stay_away: 0.0,
            settle: Duration::from_secs_f64(self.settle),
            run,
            payload_bytes: PAYLOAD_LEN_MIN,
            publishing: Publishing::Nobody,
            threads: (self.threads as usize).min(connections),
            layout,
            schedule,
        })
    }
}

/// Names of `count` channels: `{}` in the pattern becomes the index.
pub fn channel_names(pattern: &str, count: usize) -> Result<Vec<String>> {
    if count > CHANNELS_MAX {
        bail!("{count} channels are more than {CHANNELS_MAX}");
    }
    if count > 1 && !pattern.contains("{}") {
        bail!("--channel `{pattern}` has no `{{}}` for the index, but there are {count} channels");
    }
    if pattern.is_empty() || pattern.contains(['"', '\\']) || pattern.chars().any(char::is_control) {
        bail!("--channel `{pattern}` is empty or has characters that JSON would escape");
    }
    Ok((0..count).map(|index| pattern.replace("{}", &index.to_string())).collect())
}

/// A positive number of seconds, at most a week.
pub fn seconds(text: &str) -> Result<f64, String> {
    number(text, 604_800.0)
}

/// A positive number per second, at most ten million.
pub fn rate(text: &str) -> Result<f64, String> {
    number(text, 10_000_000.0)
}

fn number(text: &str, max: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("must be a number above 0 and at most {max}")),
    }
}

/// A share in percent, 0 to 100.
pub fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=100.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 100".to_owned()),
    }
}

/// A payload length that holds a stamp and that servers accept.
pub fn payload_bytes(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(bytes) if (PAYLOAD_LEN_MIN..=PAYLOAD_LEN_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("must be {PAYLOAD_LEN_MIN} (the audit stamp) to {PAYLOAD_LEN_MAX} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_patterns_are_filled_in_or_refused() {
        assert_eq!(channel_names("room-{}", 2).expect("valid"), ["room-0", "room-1"]);
        assert_eq!(channel_names("one", 1).expect("valid"), ["one"]);
        assert!(channel_names("one", 2).is_err());
        assert!(channel_names("a\"b", 1).is_err());
        assert!(channel_names("", 1).is_err());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!((seconds("0.5"), payload_bytes("128")), (Ok(0.5), Ok(128)));
        for text in ["0", "-1", "NaN", "inf", "x"] {
            assert!(seconds(text).is_err() && rate(text).is_err(), "{text}");
        }
        assert!(percent("101").is_err() && percent("-1").is_err() && percent("100") == Ok(100.0));
        assert!(payload_bytes("40").is_err() && payload_bytes("65536").is_err());
    }

    #[test]
    fn a_schedule_that_is_too_long_is_refused() {
        let options = ScheduleOptions { rate: 1e6, size: 128, duration: 100.0 };
        assert!(options.schedule(1, 1).is_err());
        assert!(ScheduleOptions { duration: 1.0, ..options }.schedule(1, 0).is_err());
    }
}
