//! Who is connected and what is published to them, in the scenarios that break things.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::fanout::PublishingOptions;
use super::options::{ClientOptions, channel_names, payload_bytes, percent, rate, seconds};
use crate::backoff::Sdk;
use crate::client::plan::{Layout, Plan, Reconnect};
use crate::schedule::{MESSAGES_MAX, Schedule};
use crate::target::Target;

/// Publishing ends when the scenario does; its schedule is fixed for this long at most.
const LONGEST: f64 = 3600.0;

/// Clients, channels and messages.
#[derive(Args, Clone, Debug)]
pub struct PopulationOptions {
    /// Clients
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Subscriptions of each client
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub per_client: u32,
    /// Channels with history and recovery
    #[arg(long, value_name = "C", default_value_t = 100)]
    pub channels: u32,
    /// Their names; `{}` becomes the index. Whether they have history is the server's configuration
    #[arg(long, value_name = "PATTERN", default_value = "loadgen-{}")]
    pub channel: String,
    /// Channels without history, where a fault may cost messages without a word
    #[arg(long, value_name = "C", default_value_t = 0)]
    pub plain_channels: u32,
    /// Their names
    #[arg(long, value_name = "PATTERN", default_value = "plain-{}")]
    pub plain_channel: String,
    /// Channels with history and presence, whose join and leave events are counted
    #[arg(long, value_name = "C", default_value_t = 0)]
    pub presence_channels: u32,
    /// Their names
    #[arg(long, value_name = "PATTERN", default_value = "presence-{}")]
    pub presence_channel: String,
    /// Subscribers of each of them
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub presence_subscribers: u32,
    /// Each client names a session of its own in the URL (`?session=`)
    #[arg(long)]
    pub sessions: bool,
    /// Back-off of the clients: that of an SDK with default settings, or of several that clients follow in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "js")]
    pub sdk: Vec<Sdk>,
    /// Share of the clients that stay away once they were cut, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub stay_away: f64,
    /// Messages per second over all channels
    #[arg(long, value_name = "MSGS/S", default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// Length of each JSON payload in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = payload_bytes)]
    pub size: usize,
    /// Seconds after which a live delivery counts as late
    #[arg(long, value_name = "SECS", default_value_t = 1.0, value_parser = seconds)]
    pub late: f64,
}

impl PopulationOptions {
    /// The plan for these clients on these nodes.
    pub fn plan(&self, client: &ClientOptions, publishing: &PublishingOptions, targets: Vec<Target>) -> Result<Plan> {
        let (names, layout) = self.channels()?;
        let publishers = publishing.publishers.max(1);
        let longest = LONGEST.min(MESSAGES_MAX as f64 / self.rate);
        let schedule = Schedule::new(self.rate, Duration::from_secs_f64(longest), names.len() as u32, publishers);
        let mut plan = client.plan_for(targets, names, layout, schedule)?;
        plan.publishing = publishing.resolve(&plan.nodes, client.allow_remote)?;
        plan.payload_bytes = self.size;
        plan.reconnect = Reconnect::LikeSdk(self.sdk.clone());
        plan.sessions = self.sessions;
        plan.presence_channels = self.presence_channels;
        plan.breaks_things = true;
        plan.late_after = Some(Duration::from_secs_f64(self.late));
        plan.stay_away = self.stay_away / 100.0;
        Ok(plan)
    }

    /// Names of all channels, those with presence first, and who subscribes to what.
    fn channels(&self) -> Result<(Vec<String>, Layout)> {
        let (clients, members) = (self.clients as usize, self.presence_subscribers as usize);
        let others = self.channels as usize + self.plain_channels as usize;
        if self.presence_channels > 0 && members > clients {
            bail!("--presence-subscribers {members} cannot be different ones of {clients} clients");
        }
        if others < self.per_client as usize {
            bail!("--per-client {} needs as many --channels or --plain-channels", self.per_client);
        }
        let mut names = channel_names(&self.presence_channel, self.presence_channels as usize)?;
        names.extend(channel_names(&self.channel, self.channels as usize)?);
        names.extend(channel_names(&self.plain_channel, self.plain_channels as usize)?);
        let members = if self.presence_channels == 0 { 0 } else { members };
        let presence = self.presence_channels as usize;
        Ok((names, Layout::mixed(clients, presence, members, others, self.per_client as usize)))
    }
}
