//! Sockets: accepting them, upgrading HTTP to WebSocket, reading and writing frames.
//!
//! [`accept`] binds and accepts, who has to wait for it does so in [`arrivals`], [`proxy_protocol`] and [`client_address`]
//! find out who the client is ([`network`] is how operators write addresses), [`upgrade`] is the HTTP side of the
//! handshake, [`wire`] reads client frames with tungstenite, [`frame`] writes server frames, [`socket`] is the byte stream
//! with its bounded queue.

pub mod accept;
pub mod arrivals;
pub mod client_address;
pub mod frame;
pub mod network;
pub mod proxy_protocol;
pub mod socket;
pub mod tls;
pub mod upgrade;
pub mod wire;
