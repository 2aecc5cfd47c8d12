//! What loadgen says in the Centrifuge client protocol, and how it takes a frame apart.

use bytes::Bytes;
use protocol::{
    Command, ConnectRequest, Encoding, Limits, PublishRequest, Reply, Request, SubscribeRequest, decode_replies,
    encode_command, frame_payload,
};

use crate::frame;

/// Id of the connect command; the subscribe commands follow it.
pub const CONNECT_ID: u32 = 1;
/// Id of the first subscribe command.
pub const FIRST_SUBSCRIBE_ID: u32 = 2;

/// Where a subscription was when its connection was cut.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Offset of the last publication seen.
    pub offset: u64,
    /// Identity of the stream the offset belongs to.
    pub epoch: String,
}

/// What a subscribe command asks for.
#[derive(Clone, Copy, Debug)]
pub struct Subscription<'c> {
    /// Name of the channel.
    pub channel: &'c str,
    /// Where it was, if what was missed is to be recovered.
    pub position: Option<&'c Position>,
    /// It wants to hear who joins and leaves.
    pub join_leave: bool,
}

/// The WebSocket opcode of messages in an encoding.
pub fn opcode(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => frame::TEXT,
        Encoding::Protobuf => frame::BINARY,
    }
}

/// The payload of the first frame of a connection: connect and all subscribes at once, as SDKs do it.
pub fn first_frame<'c>(
    encoding: Encoding,
    token: String,
    subscriptions: impl Iterator<Item = Subscription<'c>>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let connect = ConnectRequest {
        token,
        name: "loadgen".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ConnectRequest::default()
    };
    append(encoding, CONNECT_ID, Request::Connect(connect), &mut out);
    for (id, subscription) in (FIRST_SUBSCRIBE_ID..).zip(subscriptions) {
        append(encoding, id, subscribe(subscription), &mut out);
    }
    frame_payload(encoding, &out).to_vec()
}

/// The payload of a frame with one subscribe command.
pub fn subscribe_frame(encoding: Encoding, id: u32, subscription: Subscription<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    append(encoding, id, subscribe(subscription), &mut out);
    frame_payload(encoding, &out).to_vec()
}

fn subscribe(subscription: Subscription<'_>) -> Request {
    let position = subscription.position.cloned().unwrap_or_default();
    Request::Subscribe(SubscribeRequest {
        channel: subscription.channel.to_owned(),
        recover: subscription.position.is_some(),
        epoch: position.epoch,
        offset: position.offset,
        join_leave: subscription.join_leave,
        ..SubscribeRequest::default()
    })
}

/// Appends a publish command; several may be appended and sent as one frame, see [`frame_payload`].
pub fn append_publish(encoding: Encoding, id: u32, channel: &str, data: Vec<u8>, out: &mut Vec<u8>) {
    let publish = PublishRequest { channel: channel.to_owned(), data: Bytes::from(data), ..PublishRequest::default() };
    append(encoding, id, Request::Publish(publish), out);
}

fn append(encoding: Encoding, id: u32, request: Request, out: &mut Vec<u8>) {
    encode_command(encoding, &Command { id, request: Some(request) }, out)
        .expect("only payloads can fail to encode, and those of loadgen are JSON");
}

/// The whole frame that answers a ping: an empty command, masked with `mask`.
pub fn pong_frame(encoding: Encoding, mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::new();
    let empty: &[u8] = match encoding {
        Encoding::Json => b"{}",
        Encoding::Protobuf => &[0],
    };
    frame::write_frame(opcode(encoding), empty, Some(mask), &mut out);
    out
}

/// Reads one message in full, given with its delimiter.
pub fn read_reply(encoding: Encoding, message: &[u8]) -> Result<Vec<Reply>, protocol::DecodeError> {
    decode_replies(encoding, &Bytes::copy_from_slice(message), &Limits::for_replies()).collect()
}

/// One message of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// With its length in front, where the encoding has one.
    pub framed: &'a [u8],
    /// The message proper.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// An empty reply: the server's ping.
    #[inline]
    pub fn is_ping(&self, encoding: Encoding) -> bool {
        match encoding {
            Encoding::Json => self.body == b"{}",
            Encoding::Protobuf => self.body.is_empty(),
        }
    }
}

/// Takes the first message off a frame's payload. None at its end; an error when a length points beyond it or a line is
/// empty.
#[inline]
pub fn next_message<'a>(encoding: Encoding, rest: &mut &'a [u8]) -> Option<Result<Message<'a>, Malformed>> {
    if rest.is_empty() {
        return None;
    }
    let all = *rest;
    match encoding {
        Encoding::Json => {
            let end = memchr::memchr(b'\n', all).unwrap_or(all.len());
            *rest = all.get(end + 1..).unwrap_or_default();
            let body = &all[..end];
            Some(if body.is_empty() { Err(Malformed) } else { Ok(Message { framed: body, body }) })
        }
        Encoding::Protobuf => {
            let (mut len, mut at) = (0u64, 0);
            loop {
                let Some(byte) = all.get(at).copied().filter(|_| at < 5) else {
                    *rest = &[];
                    return Some(Err(Malformed));
                };
                len |= u64::from(byte & 0x7f) << (7 * at);
                at += 1;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let end = at + len as usize;
            let Some(framed) = all.get(..end) else {
                *rest = &[];
                return Some(Err(Malformed));
            };
            *rest = &all[end..];
            Some(Ok(Message { framed, body: &framed[at..] }))
        }
    }
}

/// A frame's payload does not divide into messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// The offset behind a publication's data, if that is what follows next; SDKs and servers write it there, and other
/// fields in between are rare enough to decode the message in full.
#[inline]
pub fn offset_after_data(encoding: Encoding, tail: &[u8]) -> Option<u64> {
    match encoding {
        Encoding::Json => {
            let digits = tail.strip_prefix(b",\"offset\":")?;
            let len = digits.iter().position(|byte| !byte.is_ascii_digit())?;
            digits[..len].iter().try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        }
        Encoding::Protobuf => {
            // Field 6, a varint.
            let rest = tail.strip_prefix(&[0x30])?;
            let len = rest.iter().take(10).position(|byte| byte & 0x80 == 0)? + 1;
            Some(rest[..len].iter().rev().fold(0u64, |sum, byte| sum << 7 | u64::from(byte & 0x7f)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::{Publication, Push, PushBody, ReplyBody, encode_reply};

    const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

    fn publication(offset: u64) -> Reply {
        let publication = Publication { data: Bytes::from_static(b"{\"m\":1}"), offset, ..Publication::default() };
        let push = Push { channel: "room".to_owned(), body: PushBody::Publication(publication) };
        Reply { id: 0, body: Some(ReplyBody::Push(push)) }
    }

    proptest! {
        #[test]
        fn the_messages_of_a_frame_come_back_whole(offsets in prop::collection::vec(0u64..u64::MAX, 1..8)) {
            for encoding in ENCODINGS {
                let mut frame = Vec::new();
                for offset in &offsets {
                    encode_reply(encoding, &publication(*offset), &mut frame).expect("JSON data");
                    encode_reply(encoding, &Reply::default(), &mut frame).expect("a ping");
                }
                let mut rest = frame_payload(encoding, &frame);
                let mut seen = Vec::new();
                let mut pings = 0;
                while let Some(message) = next_message(encoding, &mut rest) {
                    let message = message.expect("well-formed");
                    if message.is_ping(encoding) {
                        pings += 1;
                        continue;
                    }
                    prop_assert_eq!(&read_reply(encoding, message.framed).expect("decodes")[..], &[publication(offsets[seen.len()])]);
                    let data = memchr::memmem::find(message.body, b"{\"m\":1}").expect("the data") + 7;
                    seen.push(offset_after_data(encoding, &message.body[data..]).unwrap_or(0));
                }
                prop_assert_eq!(&seen, &offsets);
                prop_assert_eq!(pings, offsets.len());
            }
        }

        #[test]
        fn arbitrary_frames_never_panic_and_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for encoding in ENCODINGS {
                let mut rest = &bytes[..];
                let mut messages = 0;
                while next_message(encoding, &mut rest).is_some() {
                    messages += 1;
                }
                prop_assert!(messages <= bytes.len());
                let _ = offset_after_data(encoding, &bytes);
            }
        }
    }

    #[test]
    fn a_blank_line_and_a_length_beyond_the_frame_are_malformed() {
        assert_eq!(next_message(Encoding::Json, &mut &b"\n{}"[..]), Some(Err(Malformed)));
        assert_eq!(next_message(Encoding::Protobuf, &mut &[5, 1][..]), Some(Err(Malformed)));
        assert_eq!(next_message(Encoding::Protobuf, &mut &[0x80; 9][..]), Some(Err(Malformed)));
        let mut trailing = &b"{}\n"[..];
        assert!(matches!(next_message(Encoding::Json, &mut trailing), Some(Ok(_))));
        assert_eq!(next_message(Encoding::Json, &mut trailing), None);
    }

    #[test]
    fn the_first_frame_holds_connect_and_every_subscribe() {
        let position = Position { offset: 41, epoch: "e".to_owned() };
        for encoding in ENCODINGS {
            let subscriptions = [
                Subscription { channel: "a", position: None, join_leave: true },
                Subscription { channel: "b", position: Some(&position), join_leave: false },
            ];
            let frame = Bytes::from(first_frame(encoding, "tok".to_owned(), subscriptions.into_iter()));
            let commands: Vec<Command> = protocol::decode_commands(encoding, &frame, &Limits::default())
                .collect::<Result<_, _>>()
                .expect("a server can read it");
            let requests: Vec<_> = commands.into_iter().map(|command| (command.id, command.request)).collect();
            let [
                (1, Some(Request::Connect(connect))),
                (2, Some(Request::Subscribe(a))),
                (3, Some(Request::Subscribe(b))),
            ] = &requests[..]
            else {
                panic!("unexpected commands {requests:?}")
            };
            assert_eq!((connect.token.as_str(), a.channel.as_str(), a.recover), ("tok", "a", false));
            assert_eq!((b.recover, b.offset, b.epoch.as_str()), (true, 41, "e"));
            assert_eq!((a.join_leave, b.join_leave), (true, false));
        }
    }
}
