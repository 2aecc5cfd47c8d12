//! Tail loss: no delivery follows that would show it, so positions are compared with the backplane's tops, at once
//! after a disturbance and when a channel was quiet for long.

use backplane::{ChannelName, HistoryOptions, Offset, StreamPosition};
use session::time::Tick;

use super::channel::Stage;
use super::shard_hub::{Effect, Hub, Port};

/// A positioned channel whose top is to be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// The channel.
    pub channel: ChannelName,
    /// Its history options.
    pub options: HistoryOptions,
    /// The shard's offset when the question was asked.
    pub asked_at: Offset,
}

impl Hub {
    /// Live deliveries of one or all channels may be missing: their positions are compared soon.
    pub fn disturbed(&mut self, channel: Option<&str>) {
        match channel {
            Some(name) => {
                let Some(&index) = self.names.get(name) else { return };
                let channel = &mut self.channels[index as usize];
                channel.doubt();
                if !std::mem::replace(&mut channel.check_queued, true) {
                    self.checks.push_front(channel.name.clone());
                }
            }
            None => {
                self.checks.clear();
                for (_, channel) in &mut self.channels {
                    channel.doubt();
                    channel.check_queued = channel.stream.is_some();
                    if channel.check_queued {
                        self.checks.push_back(channel.name.clone());
                    }
                }
            }
        }
    }

    /// Looks at a part of the channels for positions that were not confirmed for a while. The whole table is seen
    /// about once a second.
    pub(super) fn sweep(&mut self, now: Tick) {
        let step = self.channels.capacity().div_ceil(10);
        let quiet = u64::try_from(self.settings.position_check.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..step {
            self.sweep_cursor =
                if self.sweep_cursor + 1 >= self.channels.capacity() { 0 } else { self.sweep_cursor + 1 };
            let Some(channel) = self.channels.get_mut(self.sweep_cursor) else { continue };
            if let Some(stream) = &mut channel.stream
                && channel.stage == Stage::Live
                && now.0.saturating_sub(stream.confirmed_at.0) >= quiet
            {
                stream.confirmed_at = now;
                if !std::mem::replace(&mut channel.check_queued, true) {
                    self.checks.push_back(channel.name.clone());
                }
            }
        }
    }

    /// Asks for the next positions that wait for it, as many as one tick allows, and none while others are being asked
    /// for: a backplane that has just come back is asked by a whole fleet, and paces it by the time it takes to answer.
    pub(super) fn issue_checks(&mut self, now: Tick, port: &mut impl Port) {
        if self.checks_under_way > 0 {
            return;
        }
        if std::mem::take(&mut self.checks_failed) {
            self.checks_from = now.after(self.settings.retry_delay);
        }
        if now < self.checks_from {
            return;
        }
        let mut batch = Vec::new();
        let mut busy = Vec::new();
        let mut budget = self.settings.checks_per_tick;
        while budget > 0 {
            budget -= 1;
            let Some(name) = self.checks.pop_front() else { break };
            let Some(&index) = self.names.get(&name) else { continue };
            let channel = &mut self.channels[index as usize];
            // A channel that lingers is compared too: whoever comes back joins at its position.
            match &mut channel.stream {
                Some(stream) if channel.stage == Stage::Live && stream.work.is_none() => {
                    channel.check_queued = false;
                    stream.confirmed_at = now;
                    batch.push(Check { channel: name, options: stream.options, asked_at: stream.position });
                }
                // What is under way may have read before the disturbance: look again afterwards.
                Some(_) => busy.push(name),
                None => channel.check_queued = false,
            }
        }
        self.checks.extend(busy);
        if !batch.is_empty() {
            self.checks_under_way = batch.len();
            self.checks_failed = true;
            port.effect(Effect::CheckPositions(batch));
        }
    }

    /// The answer to one [`Check`]; each has to be answered, however it went. After an error the channel is asked about
    /// again; after nothing but errors, which are no sign of a part that is away, no channel is for a while.
    pub fn checked(&mut self, check: &Check, top: Result<StreamPosition, String>, port: &mut impl Port) {
        self.checks_under_way = self.checks_under_way.saturating_sub(1);
        self.checks_failed &= top.is_err();
        let Some(&index) = self.names.get(&check.channel) else { return };
        let channel = &mut self.channels[index as usize];
        let Ok(top) = top else {
            if !std::mem::replace(&mut channel.check_queued, true) {
                self.checks.push_back(check.channel.clone());
            }
            return;
        };
        let Some(stream) = &mut channel.stream else { return };
        if channel.stage != Stage::Live {
            return;
        }
        let lost = top.epoch != stream.epoch || top.offset > stream.position || top.offset < check.asked_at;
        if lost {
            self.start_repair(index, port);
        } else if !channel.check_queued {
            stream.doubted = false;
        }
    }
}
