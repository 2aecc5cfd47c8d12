//! When which message is due, fixed before the run starts.
//!
//! The schedule is open-loop: message `m` is due at `start + m / rate` whether or not the server kept up with those before
//! it, and its latency counts from then. Message `m` goes to channel `m mod channels` and is sent by publisher
//! `m mod publishers`. A *lane* is one publisher's stream to one channel, the unit in which order can be demanded: two
//! publishers use two connections, and nobody promises an order between those.

use std::time::Duration;

/// Most messages of one run: their outcomes are kept, one byte each.
pub const MESSAGES_MAX: u64 = 50_000_000;

/// Who sends what, and when.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    /// Messages per second over all channels.
    pub rate: f64,
    /// Messages in all.
    pub total: u64,
    /// Channels messages go to, in turn.
    pub channels: u32,
    /// Publishers taking turns.
    pub publishers: u32,
    /// Messages after which channel and publisher repeat together, see [`Schedule::lanes`].
    lanes: u64,
}

/// Where one message belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Index of the channel.
    pub channel: u32,
    /// Index of the publisher.
    pub publisher: u32,
    /// Number of earlier messages in the same lane.
    pub sequence: u32,
}

impl Schedule {
    /// A schedule of `rate` messages per second for `duration`; at least one message.
    pub fn new(rate: f64, duration: Duration, channels: u32, publishers: u32) -> Self {
        let total = ((rate * duration.as_secs_f64()).round() as u64).clamp(1, MESSAGES_MAX);
        Self::with_total(rate, total, channels, publishers)
    }

    /// A schedule of a given number of messages.
    pub fn with_total(rate: f64, total: u64, channels: u32, publishers: u32) -> Self {
        assert!(rate > 0.0 && channels > 0 && publishers > 0, "checked when the run was planned");
        let (mut a, mut b) = (u64::from(channels), u64::from(publishers));
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Self { rate, total, channels, publishers, lanes: u64::from(channels) * u64::from(publishers) / a }
    }

    /// Nanoseconds after the start at which a message is due.
    pub fn due_ns(&self, message: u64) -> u64 {
        (message as f64 * 1e9 / self.rate) as u64
    }

    /// Nanoseconds from the start to the end of the schedule.
    pub fn duration_ns(&self) -> u64 {
        self.due_ns(self.total)
    }

    /// Messages after which channel and publisher repeat together: the number of lanes.
    pub fn lanes(&self) -> u64 {
        self.lanes
    }

    /// Lanes of each channel.
    pub fn lanes_per_channel(&self) -> u32 {
        (self.lanes / u64::from(self.channels)) as u32
    }

    /// Where a message belongs.
    pub fn place(&self, message: u64) -> Place {
        Place {
            channel: (message % u64::from(self.channels)) as u32,
            publisher: (message % u64::from(self.publishers)) as u32,
            sequence: (message / self.lanes) as u32,
        }
    }

    /// The message with this place; None when the schedule has no such message.
    pub fn message(&self, place: Place) -> Option<u64> {
        let first = self.lane_of(place.channel, place.publisher)?.first;
        let message = first + u64::from(place.sequence) * self.lanes;
        (message < self.total).then_some(message)
    }

    /// The lane of a publisher in a channel; None when that publisher never sends there.
    pub fn lane_of(&self, channel: u32, publisher: u32) -> Option<Lane> {
        if channel >= self.channels || publisher >= self.publishers {
            return None;
        }
        // Lane `i` of a channel starts with message `channel + i * channels`; the publisher of that names it.
        let lanes = self.lanes_per_channel();
        // With one lane per channel, the usual case of many rooms, and with one channel, the index is plain.
        let index = match (lanes, self.channels) {
            (1, _) => 0,
            (_, 1) => publisher,
            _ => (0..lanes)
                .find(|lane| self.first_of(channel, *lane) % u64::from(self.publishers) == u64::from(publisher))?,
        };
        let first = self.first_of(channel, index);
        (first % u64::from(self.publishers) == u64::from(publisher)).then_some(Lane { index, first })
    }

    /// The first message of a channel's lane.
    pub fn first_of(&self, channel: u32, lane: u32) -> u64 {
        u64::from(channel) + u64::from(lane) * u64::from(self.channels)
    }

    /// How many messages the whole schedule has in a lane that starts with message `first`.
    pub fn lane_len(&self, first: u64) -> u32 {
        self.total.saturating_sub(first).div_ceil(self.lanes) as u32
    }

    /// How many messages of a lane that starts with message `first` are due within `elapsed_ns` of the start.
    pub fn lane_due(&self, first: u64, elapsed_ns: u64) -> u32 {
        let due = (elapsed_ns as f64 * self.rate / 1e9) as u64 + 1;
        due.min(self.total).saturating_sub(first).div_ceil(self.lanes) as u32
    }

    /// How many messages the schedule has for a channel.
    pub fn channel_len(&self, channel: u32) -> u64 {
        self.total.saturating_sub(u64::from(channel)).div_ceil(u64::from(self.channels))
    }
}

/// One publisher's stream to one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lane {
    /// Index within the channel.
    pub index: u32,
    /// Its first message; the following ones are [`Schedule::lanes`] apart.
    pub first: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn every_message_has_one_place_and_lanes_count_without_holes(
            total in 1u64..400, channels in 1u32..12, publishers in 1u32..12,
        ) {
            let schedule = Schedule::with_total(100.0, total, channels, publishers);
            let mut lanes: HashMap<(u32, u32), u32> = HashMap::new();
            let mut per_channel: HashMap<u32, u64> = HashMap::new();
            for message in 0..total {
                let place = schedule.place(message);
                let next = lanes.entry((place.channel, place.publisher)).or_default();
                prop_assert_eq!(place.sequence, *next);
                *next += 1;
                *per_channel.entry(place.channel).or_default() += 1;
                prop_assert_eq!(schedule.message(place), Some(message));
            }
            for ((channel, publisher), count) in lanes {
                let lane = schedule.lane_of(channel, publisher).expect("a lane in use");
                prop_assert!(lane.index < schedule.lanes_per_channel());
                prop_assert_eq!(schedule.lane_len(lane.first), count);
                prop_assert_eq!(schedule.message(Place { channel, publisher, sequence: count }), None);
            }
            for channel in 0..channels {
                prop_assert_eq!(schedule.channel_len(channel), per_channel.get(&channel).copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn messages_are_due_at_even_distances_and_not_after_each_other() {
        let schedule = Schedule::new(250.0, Duration::from_secs(4), 3, 2);
        assert_eq!(schedule.total, 1000);
        assert_eq!((schedule.lane_due(0, 0), schedule.lane_due(0, 4_000_000_000)), (1, 167));
        assert_eq!((schedule.due_ns(0), schedule.due_ns(1), schedule.due_ns(1000)), (0, 4_000_000, 4_000_000_000));
    }

    #[test]
    fn a_publisher_that_never_sends_to_a_channel_has_no_lane_there() {
        let schedule = Schedule::with_total(1.0, 100, 4, 2);
        assert!(schedule.lane_of(0, 0).is_some());
        assert_eq!(schedule.lane_of(0, 1), None);
        assert_eq!(schedule.lane_of(4, 0), None);
        assert_eq!(schedule.lane_of(0, 2), None);
    }
}
