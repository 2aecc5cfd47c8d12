//! The client session as a pure state machine, and the channel rules it applies.
//!
//! A [`Session`] is given one [`Input`] at a time together with the time, appends [`Output`]s to a list, and says when
//! it wants to be called again. It does no IO, reads no clock, draws no random number and takes no lock, so whatever a
//! client can bring about can be brought about in a test.
//!
//! Read in this order: [`io`] (what goes in and out), [`time`], [`settings`] (limits, and what each call is given), the
//! session itself (one module per kind of command), [`proxy`] (what the application is asked), [`channels`] and [`permissions`] (pure rules), [`error`] and
//! [`close`] (the only places that name a number of the protocol).
//!
//! # Invariants
//! - [`Output::Close`] comes at most once, and after it only clean-up does.
//! - Every command with an id gets exactly one reply, unless the connection closes or its connect command is refused.
//! - A subscribe reply, or the connect reply, precedes every push of the channel; nothing of the channel follows its
//!   unsubscribe reply or push.
//! - Every presence entry asked for is removed once, and every announced join is followed by one announced leave.
//! - Whatever a client can make a session keep is bounded by [`Settings`].

#![forbid(unsafe_code)]

pub mod channels;
pub mod close;
mod connect;
pub mod convert;
mod deadlines;
pub mod error;
pub mod io;
mod join;
mod operations;
pub mod permissions;
mod plan;
mod proxied;
pub mod proxy;
mod quota;
mod refresh;
mod server;
mod session;
pub mod settings;
mod subscribe;
mod subscriptions;
pub mod time;

pub use channels::{ChannelError, ChannelOptions, ChannelSyntax, Channels, DataFormat, RecoveryMode};
pub use close::CloseCode;
pub use error::{ClientError, UnsubscribeCode};
pub use io::{Input, Output};
pub use session::Session;
pub use settings::{Context, Settings};
pub use subscriptions::Subscription;
pub use time::{Now, Tick};

#[cfg(test)]
mod tests;
