//! The client session as a pure state machine, and the channel rules it applies.

#![forbid(unsafe_code)]

pub mod channels;
pub mod io;
pub mod time;
