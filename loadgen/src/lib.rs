//! Load generator and auditor for servers that speak the Centrifuge client protocol.
//!
//! It knows a server only by its wire protocol, so it measures any of them by the same rules: latency counts from the
//! moment a message was *to be* sent, every subscriber's stream is audited message by message, and a run in which the
//! client itself was too busy is void.
//!
//! In reading order: [`stamp`] and [`schedule`] say what is published and when, [`audit`] what must arrive, [`frame`],
//! [`http`] and [`wire`] are the bytes, [`client`] the connections, [`limit`] the server that shows the physical limit,
//! [`backoff`] is how clients come back and [`timeline`] what happened when,
//! [`scenario`] puts them to use, [`report`] says what came out, and [`html`] draws it.
#![deny(unsafe_code)]

pub mod audit;
pub mod backoff;
pub mod client;
pub mod frame;
pub mod html;
pub mod http;
pub mod limit;
pub mod procfs;
pub mod progress;
pub mod report;
pub mod scenario;
pub mod schedule;
pub mod stamp;
pub mod sys;
pub mod target;
pub mod timeline;
pub mod token;
pub mod usage;
pub mod wire;
