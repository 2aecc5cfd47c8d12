//! Who may write: a Lease, held by one candidate at a time.
//!
//! [`election`] decides what to do next from what was seen and the local clock, [`record`] reads and builds the object,
//! `campaign` talks to the API server.
//!
//! The Lease is judged without comparing clocks: another holder's tenure is over when the object has not changed for its
//! duration **as seen from here**, and one's own when the deadline has passed since the last renewal was *asked for*. Every
//! change carries the version it was based on, so the API server takes one of two that collide. Each tenure has a higher
//! **term** than all before it: that is how those who are acted on tell an old holder.

pub(crate) mod campaign;
pub mod election;
pub mod record;

pub use election::{Election, Step, Tenure};
pub use record::Record;
