//! The physical limit: what sending the same bytes costs a server that does nothing else.
//!
//! A bare epoll server accepts WebSocket connections, answers connect and subscribe, and then, for each message of its own
//! schedule, encodes one frame and hands it to each connection with one `send()`. It has no channels, no queue and no API,
//! so its CPU time is the kernel's price of a delivery, as near as a program can come to it. A gateway is compared with it
//! under the same client, message rate and message length.

mod server;

pub use server::{ServePlan, Stats, serve};
