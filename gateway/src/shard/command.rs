//! What the server API and operators ask of a shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use backplane::{ChannelName, ClientId, UserId};
use bytes::Bytes;
use session::close::CloseCode;
use session::io::ServerSubscribe;
use tokio::sync::oneshot;

use crate::placing::MoveRule;
use crate::sessions::record::HandedOver;

/// Which connections a command means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Every connection of this user; the empty id is the bucket of anonymous users.
    pub user: UserId,
    /// Only this one of them. A text that is no client id matches none.
    pub client: Option<String>,
    /// These are left alone (`whitelist`).
    pub except: Vec<ClientId>,
}

/// A change of the lifetime of connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refresh {
    /// Close with 3005.
    pub expired: bool,
    /// New expiry, Unix seconds; `None` never.
    pub expire_at: Option<i64>,
    /// New connection info.
    pub info: Option<Bytes>,
}

/// What to do with the connections a [`Target`] means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Subscribe them.
    Subscribe(ServerSubscribe),
    /// End a subscription with push 2000.
    Unsubscribe(ChannelName),
    /// Close them.
    Disconnect(CloseCode),
    /// Change their lifetime.
    Refresh(Refresh),
}

impl Action {
    /// Whether sessions of the user that nobody is connected to are not to be resumed after it: what they had may have
    /// been taken away by it.
    pub fn revokes(&self) -> bool {
        match self {
            Self::Subscribe(_) => false,
            Self::Unsubscribe(_) | Self::Disconnect(_) | Self::Refresh(_) => true,
        }
    }
}

/// How many connections an action met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Connections it was carried out on.
    pub matched: usize,
    /// Connections that were subscribed already (`subscribe` only).
    pub already_subscribed: usize,
}

/// What became of the connection whose session another one takes over.
#[derive(Clone, PartialEq, Debug)]
pub struct TakenOver {
    /// It was open until then.
    pub was_open: bool,
    /// What it had; `None` when the record has it.
    pub handed_over: Option<HandedOver>,
}

/// Numbers of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardCounts {
    /// Live connections.
    pub connections: usize,
    /// Subscriptions.
    pub subscriptions: usize,
}

/// A survey's answer: channels and users as sets would be large, so they are merged by the caller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    /// Numbers.
    pub counts: ShardCounts,
    /// Distinct users with a connection here.
    pub users: Vec<UserId>,
    /// Channels with at least one subscriber here, and how many.
    pub channels: BTreeMap<ChannelName, usize>,
}

/// One command, with the way to answer it.
#[derive(Debug)]
pub enum Command {
    /// Act on connections.
    Apply {
        /// Which.
        target: Target,
        /// What.
        action: Arc<Action>,
        /// The answer.
        done: oneshot::Sender<Applied>,
    },
    /// Close the connection that has a session, because another one takes it over.
    TakeOver {
        /// Whose.
        user: UserId,
        /// The client of both.
        client: ClientId,
        /// Of the new connection; those of earlier generations are meant.
        generation: u64,
        /// `None` if there was none; answered once it can do nothing any more.
        done: oneshot::Sender<Option<TakenOver>>,
    },
    /// Report what is here.
    Survey {
        /// The answer.
        done: oneshot::Sender<Survey>,
    },
    /// Count the connections that may be moved.
    CountMovable {
        /// Which may be.
        rule: MoveRule,
        /// The answer.
        done: oneshot::Sender<usize>,
    },
    /// Close some connections with 3011, so that their clients connect elsewhere.
    Move {
        /// Which may be.
        rule: MoveRule,
        /// How many at most, chosen at random.
        count: usize,
        /// How many were told to go.
        done: oneshot::Sender<usize>,
    },
    /// Close whoever still comes, at once: the node is being emptied.
    StopAccepting {
        /// How many connections are here.
        done: oneshot::Sender<usize>,
    },
    /// Close some of those that were here then with 1001, in random order; all of them if there are fewer.
    CloseSome {
        /// How many.
        count: usize,
    },
}
