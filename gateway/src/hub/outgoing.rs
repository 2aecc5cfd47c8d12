//! One delivery on its way to local subscribers, encoded at most once per wire format for the whole node.

use std::sync::OnceLock;
use std::time::Instant;

use backplane::{ChannelName, Delivery, PresenceEvent};
use bytes::Bytes;
use protocol::{Encoding, Push, PushBody, Reply, ReplyBody};
use session::convert;

/// A delivery plus its encoded messages. Shared between shards; encoding happens on the first one that needs it.
#[derive(Debug)]
pub struct Outgoing {
    /// The channel.
    pub channel: ChannelName,
    /// What to deliver.
    pub delivery: Delivery,
    /// When this node received it; the start of `gateway_fanout_seconds`.
    pub received: Instant,
    json: OnceLock<Option<Encoded>>,
    protobuf: OnceLock<Option<Encoded>>,
}

/// One message in one wire format.
#[derive(Debug)]
pub struct Encoded {
    /// The delimited message, ready to be joined with others into a frame.
    pub message: Bytes,
    /// The message alone in a whole WebSocket frame.
    pub frame: Bytes,
}

impl Outgoing {
    /// Wraps a delivery.
    pub fn new(channel: ChannelName, delivery: Delivery, received: Instant) -> Self {
        Self { channel, delivery, received, json: OnceLock::new(), protobuf: OnceLock::new() }
    }

    /// The encoded push, or `None` if the payload cannot be carried in this format: it is not JSON and the connection
    /// speaks JSON (protocol section 1.3: close 3506).
    pub fn encoded(&self, encoding: Encoding) -> Option<&Encoded> {
        let cell = match encoding {
            Encoding::Json => &self.json,
            Encoding::Protobuf => &self.protobuf,
        };
        cell.get_or_init(|| self.encode(encoding)).as_ref()
    }

    /// Rough memory held while queued, in bytes.
    pub fn weight(&self) -> usize {
        const OVERHEAD: usize = 256;
        OVERHEAD
            + match &self.delivery {
                Delivery::Unpositioned(publication) | Delivery::Positioned { publication, .. } => {
                    publication.data.len()
                }
                Delivery::Presence(_) => 0,
            }
    }

    fn encode(&self, encoding: Encoding) -> Option<Encoded> {
        let mut message = Vec::new();
        let encoded = match &self.delivery {
            Delivery::Unpositioned(publication) | Delivery::Positioned { publication, .. } => {
                let publication = convert::publication(publication);
                message.reserve(publication.data.len() + self.channel.len() + 96);
                protocol::encode_publication(encoding, &self.channel, &publication, &mut message)
            }
            Delivery::Presence(event) => {
                let body = match event {
                    PresenceEvent::Join(info) => {
                        PushBody::Join(protocol::Join { info: Some(convert::client_info(info)) })
                    }
                    PresenceEvent::Leave(info) => {
                        PushBody::Leave(protocol::Leave { info: Some(convert::client_info(info)) })
                    }
                };
                let push = Push { channel: self.channel.to_string(), body };
                protocol::encode_reply(encoding, &Reply { id: 0, body: Some(ReplyBody::Push(push)) }, &mut message)
            }
        };
        encoded.ok()?;
        let payload = protocol::frame_payload(encoding, &message);
        let mut frame = Vec::with_capacity(payload.len() + crate::transport::frame::HEADER_MAX);
        crate::transport::frame::append(&mut frame, encoding, payload);
        Some(Encoded { message: message.into(), frame: frame.into() })
    }
}
