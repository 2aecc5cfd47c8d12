//! Sockets: accepting them, upgrading HTTP to WebSocket, reading and writing frames.
//!
//! [`accept`] binds and accepts, [`upgrade`] is the HTTP side of the handshake, [`wire`] reads client frames with
//! tungstenite, [`frame`] writes server frames, [`socket`] is the byte stream with its bounded queue.

pub mod accept;
pub mod frame;
pub mod socket;
pub mod tls;
pub mod upgrade;
pub mod wire;
