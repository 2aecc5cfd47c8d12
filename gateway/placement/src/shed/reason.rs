//! What a node does about its connections, and why, in words.

use std::fmt;
use std::time::Duration;

use crate::digest::Pause;

/// What a node does now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Shed {
    /// It closes connections.
    Moving {
        /// So many now; may be none, when the rate is below one a second.
        close: u64,
        /// So many per second.
        rate: f64,
    },
    /// It closes none.
    Held(Hold),
}

impl Shed {
    /// The connections to close now.
    pub fn close(&self) -> u64 {
        match self {
            Self::Moving { close, .. } => *close,
            Self::Held(_) => 0,
        }
    }
}

impl fmt::Display for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moving { rate, .. } => write!(f, "moving {rate:.1} connections a second"),
            Self::Held(hold) => hold.fmt(f),
        }
    }
}

/// Why a node closes no connection in order to move it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Hold {
    /// Rebalancing is switched off.
    Off,
    /// The node is on its way in or out: other machinery empties it.
    NotStaying,
    /// It has not more than it should.
    Level {
        /// Its connections in comparison with its share.
        times: f64,
    },
    /// It has more, but not more than chance brings about.
    Chance {
        /// Its connections in comparison with its share.
        times: f64,
    },
    /// No digest has come yet.
    NoDigest,
    /// The last one is too old.
    DigestStale {
        /// How old.
        age: Duration,
    },
    /// The open set was not written for too long.
    PlacementStale {
        /// How long; nothing if nobody knows.
        age: Option<Duration>,
    },
    /// The coordinator says so.
    Paused(Pause),
    /// All its connections are too young, or cannot recover.
    TooYoung,
    /// Nothing of the budget is left for it, or it has been over its share for some seconds only.
    NoBudget,
    /// No order to retire is in force.
    NoOrder,
}

impl Hold {
    /// Whether it goes on where it was once the reason has passed.
    pub(crate) fn is_pause(&self) -> bool {
        match self {
            Self::Off | Self::NotStaying | Self::Level { .. } | Self::Chance { .. } | Self::NoOrder => false,
            Self::NoDigest
            | Self::DigestStale { .. }
            | Self::PlacementStale { .. }
            | Self::Paused(_)
            | Self::TooYoung
            | Self::NoBudget => true,
        }
    }

    /// Whether the node has more connections than it should, and is kept from moving them.
    pub fn is_against_need(&self) -> bool {
        matches!(self, Self::PlacementStale { .. } | Self::Paused(_) | Self::TooYoung | Self::NoBudget)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("not moved: rebalancing is switched off"),
            Self::NotStaying => f.write_str("not moved: the node is starting, draining or retiring"),
            Self::Level { times } => write!(f, "level: {times:.2} times its share"),
            Self::Chance { times } => write!(f, "not moved: {times:.2} times its share is within chance at this size"),
            Self::NoDigest => f.write_str("not moved: the state of the fleet is not known yet"),
            Self::DigestStale { age } => {
                write!(f, "not moved: the state of the fleet is {:.0} s old", age.as_secs_f64())
            }
            Self::PlacementStale { age: Some(age) } => {
                write!(f, "not moved: the open set was last written {:.0} s ago", age.as_secs_f64())
            }
            Self::PlacementStale { age: None } => f.write_str("not moved: no writer of the open set is known"),
            Self::Paused(pause) => write!(f, "not moved: {pause}"),
            Self::TooYoung => f.write_str("not moved: the connections are too young or cannot recover"),
            Self::NoBudget => f.write_str("not moved: the share of the cluster's budget is used up or not known yet"),
            Self::NoOrder => f.write_str("not moved: the node has no order to retire"),
        }
    }
}
