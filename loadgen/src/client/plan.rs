//! What a client is to do, settled before it starts.

use std::sync::Arc;
use std::time::Duration;

use protocol::Encoding;

use super::nodes::Nodes;
use crate::backoff::Sdk;
use crate::schedule::Schedule;
use crate::target::{Sources, Target};
use crate::token::Tokens;

/// Everything the workers need to know.
pub struct Plan {
    /// The server's WebSocket endpoints.
    pub nodes: Arc<Nodes>,
    /// Encoding of all connections.
    pub encoding: Encoding,
    /// Tokens of the subscribers.
    pub tokens: Tokens,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// Who subscribes to what.
    pub layout: Layout,
    /// Source addresses.
    pub sources: Sources,
    /// Connections to open per second; None opens as fast as the server takes them.
    pub connect_rate: Option<f64>,
    /// Connections being opened at the same time, over all workers.
    pub opening_max: usize,
    /// How long one connection may take from the first packet to the last subscribe reply.
    pub connect_timeout: Duration,
    /// What a connection does after a cut.
    pub reconnect: Reconnect,
    /// Each client names a session of its own in the URL, the same one on every connection (`?session=`).
    pub sessions: bool,
    /// So many of the first channels have presence: their subscribers ask for join and leave events.
    pub presence_channels: u32,
    /// Something is broken on purpose: where the server keeps no position, messages may be lost without a word.
    pub breaks_things: bool,
    /// Deliveries to a live subscription count as late beyond this, counted from the intended send time.
    pub late_after: Option<Duration>,
    /// How many connections the client drops itself, and how.
    pub drops: Drops,
    /// Share of the clients that stay away once the server or the network has cut them.
    pub stay_away: f64,
    /// How long nothing may be delivered after the last publish before what is missing counts as missing.
    pub settle: Duration,
    /// Identity of the run in its messages.
    pub run: u32,
    /// Length of each payload in bytes.
    pub payload_bytes: usize,
    /// What is published; without messages when nothing is.
    pub schedule: Schedule,
    /// Who publishes.
    pub publishing: Publishing,
    /// Receiving threads.
    pub threads: usize,
}

/// What a connection does after a cut.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Reconnect {
    /// It counts as lost.
    #[default]
    Never,
    /// It comes back and recovers within a fraction of a second.
    Quickly,
    /// It comes back and recovers as an SDK with default settings does; clients take the SDKs of the list in turn.
    LikeSdk(Vec<Sdk>),
}

/// How many connections the client drops itself.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Drops {
    /// How.
    pub how: DropHow,
    /// Share of the connections dropped at once when the scenario says so.
    pub share_at_once: f64,
    /// Connections dropped per second while the scenario says so.
    pub per_second: f64,
}

/// How the client ends a connection itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DropHow {
    /// TCP reset, as when a network is gone.
    #[default]
    Reset,
    /// Close frame, then the end of the stream.
    CloseFrame,
    /// One or the other, by chance.
    Either,
}

/// Who publishes the messages of the schedule.
pub enum Publishing {
    /// Nobody.
    Nobody,
    /// The server itself, by the same schedule: the physical-limit server does.
    Peer,
    /// The client, through the server API.
    Api {
        /// Publish endpoints, one per node; a single one stands for all of them.
        targets: Vec<Target>,
        /// Key to present.
        key: Option<String>,
        /// Unanswered requests per connection.
        depth: usize,
    },
    /// The client, as publish commands on connections of their own.
    WebSocket {
        /// Unanswered commands per connection.
        depth: usize,
    },
}

impl Plan {
    /// Cut connections come back and recover.
    pub fn resumes(&self) -> bool {
        self.reconnect != Reconnect::Never
    }

    /// The back-off a client follows, if it does.
    pub fn sdk_of(&self, client: usize) -> Option<Sdk> {
        match &self.reconnect {
            Reconnect::LikeSdk(sdks) => sdks.get(client % sdks.len().max(1)).copied(),
            Reconnect::Never | Reconnect::Quickly => None,
        }
    }

    /// Path and query of a client's WebSocket endpoint on a node.
    pub fn path_of(&self, client: usize, node: usize) -> String {
        let path = &self.nodes.target(node).path;
        if !self.sessions {
            return path.clone();
        }
        let separator = if path.contains('?') { '&' } else { '?' };
        // Of 24 characters, since servers want anonymous sessions to be hard to guess.
        format!("{path}{separator}session=lg{:08x}{client:014x}", self.run)
    }

    /// The client stays away once it was cut. Spread evenly over the clients.
    pub fn stays_away(&self, client: usize) -> bool {
        let share = self.stay_away.clamp(0.0, 1.0);
        (share * (client + 1) as f64).floor() > (share * client as f64).floor()
    }

    /// The subprotocol to offer; JSON needs none.
    pub fn subprotocol(&self) -> Option<&'static str> {
        subprotocol(self.encoding)
    }

    /// Deliveries if every message reaches each of its subscribers.
    pub fn deliveries(&self) -> u64 {
        self.layout.channels.iter().map(|channel| self.schedule.channel_len(*channel)).sum()
    }
}

/// The WebSocket subprotocol that selects an encoding.
pub fn subprotocol(encoding: Encoding) -> Option<&'static str> {
    match encoding {
        Encoding::Json => None,
        Encoding::Protobuf => Some("centrifuge-protobuf"),
    }
}

/// Which connection subscribes to which channels, all in two flat lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    starts: Vec<u32>,
    channels: Vec<u32>,
}

impl Layout {
    /// Connections with one channel each, in turn; with no channel at all when there are none.
    pub fn in_turn(connections: usize, channels: usize) -> Self {
        let channel = |connection: usize| connection.checked_rem(channels).map(|channel| channel as u32);
        Self::collect((0..connections).map(|connection| channel(connection).into_iter().collect()))
    }

    /// Rooms of `subscribers` each, spread evenly over the connections, none of which is in a room twice.
    pub fn rooms(connections: usize, channels: usize, subscribers: usize) -> Self {
        assert!(subscribers <= connections, "checked when the run was planned");
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); connections];
        for channel in 0..channels {
            for subscriber in 0..subscribers {
                lists[(channel * subscribers + subscriber) % connections].push(channel as u32);
            }
        }
        Self::collect(lists.into_iter())
    }

    /// Presence channels come first, each with `members` different subscribers; the other channels fill every connection up to
    /// `per_connection` in turn. Needs at least as many other channels as a connection takes.
    pub fn mixed(connections: usize, presence: usize, members: usize, others: usize, per_connection: usize) -> Self {
        assert!(members <= connections && per_connection <= others.max(1), "checked when the run was planned");
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); connections];
        for channel in 0..presence {
            for member in 0..members {
                lists[(channel * members + member) % connections].push(channel as u32);
            }
        }
        let mut turn = 0;
        for list in &mut lists {
            while others > 0 && list.len() < per_connection {
                list.push((presence + turn % others) as u32);
                turn += 1;
            }
        }
        Self::collect(lists.into_iter())
    }

    fn collect(lists: impl Iterator<Item = Vec<u32>>) -> Self {
        let (mut starts, mut channels) = (vec![0], Vec::new());
        for mut list in lists {
            // Sorted, because the receive path searches it.
            list.sort_unstable();
            channels.extend(list);
            starts.push(channels.len() as u32);
        }
        Self { starts, channels }
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of subscriptions.
    pub fn subscriptions(&self) -> usize {
        self.channels.len()
    }

    /// Index of a connection's first subscription among all.
    pub fn first_subscription(&self, connection: usize) -> usize {
        self.starts[connection] as usize
    }

    /// Channels of a connection, ascending.
    pub fn channels_of(&self, connection: usize) -> &[u32] {
        &self.channels[self.starts[connection] as usize..self.starts[connection + 1] as usize]
    }

    /// Channels of all subscriptions of the connections `from..to`.
    pub fn channels_between(&self, from: usize, to: usize) -> &[u32] {
        &self.channels[self.starts[from] as usize..self.starts[to] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_channels_in_turn() {
        let layout = Layout::in_turn(5, 2);
        assert_eq!((layout.connections(), layout.subscriptions()), (5, 5));
        assert_eq!((layout.channels_of(3), layout.channels_of(4)), (&[1][..], &[0][..]));
        assert_eq!(Layout::in_turn(5, 0).subscriptions(), 0);
    }

    #[test]
    fn presence_channels_have_their_members_and_everybody_has_enough_channels() {
        let layout = Layout::mixed(80, 5, 10, 20, 2);
        assert_eq!((layout.connections(), layout.subscriptions()), (80, 160));
        let mut members = [0; 25];
        for connection in 0..80 {
            let list = layout.channels_of(connection);
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]), "sorted and without repetition: {list:?}");
            list.iter().for_each(|channel| members[*channel as usize] += 1);
        }
        assert_eq!(members[..5], [10; 5]);
        assert!(members[5..].iter().all(|count| (5..=6).contains(count)), "{members:?}");
        assert_eq!(Layout::mixed(3, 0, 0, 2, 2).channels_of(1), [0, 1]);
    }

    #[test]
    fn rooms_are_full_and_nobody_is_in_one_twice() {
        for (connections, channels, subscribers) in [(100, 10, 10), (7, 10, 5), (3, 4, 3), (1000, 3, 10)] {
            let layout = Layout::rooms(connections, channels, subscribers);
            let mut members = vec![0; channels];
            for connection in 0..connections {
                let list = layout.channels_of(connection);
                assert!(list.windows(2).all(|pair| pair[0] < pair[1]), "sorted and without repetition: {list:?}");
                list.iter().for_each(|channel| members[*channel as usize] += 1);
            }
            assert_eq!(members, vec![subscribers; channels]);
        }
    }
}
