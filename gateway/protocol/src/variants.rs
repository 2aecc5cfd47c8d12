//! The messages an envelope can carry: one table for each envelope, with names and field numbers, for both encodings.

use bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, message};
use serde::de::MapAccess;

use crate::EncodeError;
use crate::json::{WriteJson, read_field, write_push};
use crate::messages::{Push, PushBody, ReplyBody, Request};
use crate::protobuf::{push_len, write_push_head};

/// What an envelope carries, seen by the encoders.
pub(crate) struct Member<'a> {
    /// JSON name.
    pub(crate) name: &'static str,
    /// Protobuf field number.
    pub(crate) tag: u32,
    pub(crate) payload: &'a dyn Payload,
}

/// A message that knows both of its forms. One virtual call for each level of an envelope is cheaper than a copy of the
/// encoders for each of the thirty messages.
pub(crate) trait Payload {
    /// Appends the JSON object.
    fn write_json(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    /// Bytes that `write_protobuf` appends.
    fn protobuf_len(&self) -> usize;
    /// Appends the fields, without a length.
    fn write_protobuf(&self, out: &mut Vec<u8>);
}

impl<T: prost::Message + WriteJson> Payload for T {
    fn write_json(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.write(out)
    }

    fn protobuf_len(&self) -> usize {
        self.encoded_len()
    }

    fn write_protobuf(&self, out: &mut Vec<u8>) {
        self.encode_raw(out);
    }
}

/// An enum of messages of which an envelope carries one.
pub(crate) trait Variants: Sized {
    /// Field numbers, the variant that wins over all others first.
    const TAGS: &'static [u32];

    /// The message with its name and number.
    fn member(&self) -> Member<'_>;

    /// Reads the value of the JSON member `name` if it is one of the variants, and tells whether it was.
    fn read_member<'de, A: MapAccess<'de>>(
        slot: &mut Option<Self>,
        name: &str,
        frame: &Bytes,
        members: &mut A,
    ) -> Result<bool, A::Error>;

    /// Reads the Protobuf field `tag` if it is one of the variants, and tells whether it was.
    fn merge_field(
        slot: &mut Option<Self>,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<bool, prost::DecodeError>;

    /// Puts the variant just read into the slot unless the one that is there takes precedence. Of two alike the later
    /// one stays, as with any repeated field.
    fn offer(self, slot: &mut Option<Self>) {
        let rank = |variant: &Self| Self::TAGS.iter().position(|tag| *tag == variant.member().tag);
        if slot.as_ref().is_none_or(|held| rank(&self) <= rank(held)) {
            *slot = Some(self);
        }
    }
}

/// Implements [`Variants`] from a table in order of precedence. Variants under `elsewhere` are written like the others
/// but not read, because their reader has more to do.
macro_rules! variants {
    (
        $enum:ident { $($variant:ident = $tag:literal $name:literal,)+ }
        $(elsewhere { $($other:ident = $other_tag:literal $other_name:literal,)+ })?
    ) => {
        impl Variants for $enum {
            const TAGS: &'static [u32] = &[$($tag),+];

            fn member(&self) -> Member<'_> {
                match self {
                    $(Self::$variant(payload) => Member { name: $name, tag: $tag, payload },)+
                    $($(Self::$other(payload) => Member { name: $other_name, tag: $other_tag, payload },)+)?
                }
            }

            fn read_member<'de, A: MapAccess<'de>>(
                slot: &mut Option<Self>,
                name: &str,
                frame: &Bytes,
                members: &mut A,
            ) -> Result<bool, A::Error> {
                match name {
                    $($name => {
                        if let Some(message) = read_field::<Option<_>, _>(frame, members)? {
                            Self::$variant(message).offer(slot);
                        }
                    })+
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn merge_field(
                slot: &mut Option<Self>,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                context: DecodeContext,
            ) -> Result<bool, prost::DecodeError> {
                match tag {
                    $($tag => if let Some(Self::$variant(held)) = slot {
                        message::merge(wire_type, held, buf, context)?;
                    } else {
                        let mut fresh = Default::default();
                        message::merge(wire_type, &mut fresh, buf, context)?;
                        Self::$variant(fresh).offer(slot);
                    })+
                    _ => return Ok(false),
                }
                Ok(true)
            }
        }
    };
}

// Protocol section 1.4 gives this order, in which `rpc` stands before `send`. It does not mention `ping`.
variants!(Request {
    Connect = 4 "connect",
    Subscribe = 5 "subscribe",
    Unsubscribe = 6 "unsubscribe",
    Publish = 7 "publish",
    Presence = 8 "presence",
    PresenceStats = 9 "presence_stats",
    History = 10 "history",
    Rpc = 13 "rpc",
    Send = 12 "send",
    Refresh = 14 "refresh",
    SubRefresh = 15 "sub_refresh",
    Ping = 11 "ping",
});

variants!(ReplyBody {
    Error = 2 "error",
    Connect = 5 "connect",
    Subscribe = 6 "subscribe",
    Unsubscribe = 7 "unsubscribe",
    Publish = 8 "publish",
    Presence = 9 "presence",
    PresenceStats = 10 "presence_stats",
    History = 11 "history",
    Ping = 12 "ping",
    Rpc = 13 "rpc",
    Refresh = 14 "refresh",
    SubRefresh = 15 "sub_refresh",
} elsewhere {
    Push = 4 "push",
});

variants!(PushBody {
    Publication = 4 "pub",
    Join = 5 "join",
    Leave = 6 "leave",
    Unsubscribe = 7 "unsubscribe",
    Message = 8 "message",
    Subscribe = 9 "subscribe",
    Connect = 10 "connect",
    Disconnect = 11 "disconnect",
    Refresh = 12 "refresh",
});

impl Payload for Push {
    fn write_json(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let Member { name, payload, .. } = self.body.member();
        write_push(&self.channel, name, |out| payload.write_json(out), out)
    }

    fn protobuf_len(&self) -> usize {
        let Member { tag, payload, .. } = self.body.member();
        push_len(&self.channel, tag, payload.protobuf_len())
    }

    fn write_protobuf(&self, out: &mut Vec<u8>) {
        let Member { tag, payload, .. } = self.body.member();
        write_push_head(&self.channel, tag, payload.protobuf_len(), out);
        payload.write_protobuf(out);
    }
}

/// A push whose payload may be one that this version does not know.
#[derive(Default)]
pub(crate) struct PushParts {
    pub(crate) channel: String,
    pub(crate) body: Option<PushBody>,
}

/// A reply as it is read.
#[derive(Default)]
pub(crate) struct ReplyParts {
    pub(crate) id: u32,
    pub(crate) body: Option<ReplyBody>,
    pub(crate) push: Option<PushParts>,
}

impl ReplyParts {
    /// The reply, or `None` if it is a push that this version does not know. Such a push must be skipped: without it
    /// the reply would look like a ping, and an unexpected pong costs the connection.
    pub(crate) fn into_reply(self) -> Option<crate::Reply> {
        let body = match (self.body, self.push) {
            (None, Some(PushParts { channel, body })) => Some(ReplyBody::Push(Push { channel, body: body? })),
            (body, _) => body,
        };
        Some(crate::Reply { id: self.id, body })
    }
}
