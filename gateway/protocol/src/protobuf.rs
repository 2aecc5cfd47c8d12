//! Envelopes in Protobuf. The messages inside have their derived codec; the envelopes are written by hand because their
//! payload is an enum with an order of precedence, which no derive knows.

use bytes::{Buf, Bytes};
use prost::encoding::{
    self, DecodeContext, WireType, decode_key, encode_key, encode_varint, encoded_len_varint, key_len, skip_field,
    string, uint32,
};

use crate::messages::{Command, Publication, PushBody, Reply, ReplyBody, Request};
use crate::variants::{Member, PushParts, ReplyParts, Variants};

/// Field number of `id` in commands and replies.
const ID: u32 = 1;
/// Field number of `push` in a reply.
const PUSH: u32 = 4;
/// Field number of `channel` in a push.
const CHANNEL: u32 = 2;
/// Field number of `pub` in a push.
const PUBLICATION: u32 = 4;

/// Reads one command; payloads become slices of `message`.
pub(crate) fn read_command(mut message: Bytes) -> Result<Command, prost::DecodeError> {
    let mut command = Command::default();
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        let context = DecodeContext::default();
        if tag == ID {
            uint32::merge(wire_type, &mut command.id, &mut message, context)?;
        } else if !Request::merge_field(&mut command.request, tag, wire_type, &mut message, context.clone())? {
            skip_field(wire_type, tag, &mut message, context)?;
        }
    }
    Ok(command)
}

/// Reads one reply; payloads become slices of `message`.
pub(crate) fn read_reply(mut message: Bytes) -> Result<ReplyParts, prost::DecodeError> {
    let mut reply = ReplyParts::default();
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        let context = DecodeContext::default();
        match tag {
            ID => uint32::merge(wire_type, &mut reply.id, &mut message, context)?,
            PUSH => {
                // Taken like a payload first, which checks the length and copies nothing.
                let mut push = Bytes::new();
                encoding::bytes::merge(wire_type, &mut push, &mut message, context)?;
                read_push(reply.push.get_or_insert_default(), push)?;
            }
            _ if ReplyBody::merge_field(&mut reply.body, tag, wire_type, &mut message, context.clone())? => {}
            _ => skip_field(wire_type, tag, &mut message, context)?,
        }
    }
    Ok(reply)
}

/// Reads a push. A second one in the same reply is merged into the first, as Protobuf has it.
fn read_push(push: &mut PushParts, mut message: Bytes) -> Result<(), prost::DecodeError> {
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        let context = DecodeContext::default();
        if tag == CHANNEL {
            string::merge(wire_type, &mut push.channel, &mut message, context)?;
        } else if !PushBody::merge_field(&mut push.body, tag, wire_type, &mut message, context.clone())? {
            skip_field(wire_type, tag, &mut message, context)?;
        }
    }
    Ok(())
}

/// Appends one command behind its length.
pub(crate) fn write_command(command: &Command, out: &mut Vec<u8>) {
    write_envelope(command.id, command.request.as_ref().map(Variants::member), out);
}

/// Appends one reply behind its length.
pub(crate) fn write_reply(reply: &Reply, out: &mut Vec<u8>) {
    write_envelope(reply.id, reply.body.as_ref().map(Variants::member), out);
}

fn write_envelope(id: u32, member: Option<Member<'_>>, out: &mut Vec<u8>) {
    let payload_len = member.as_ref().map_or(0, |member| member.payload.protobuf_len());
    let id_len = if id == 0 { 0 } else { uint32::encoded_len(ID, &id) };
    let len = id_len + member.as_ref().map_or(0, |member| delimited_len(member.tag, payload_len));
    out.reserve(encoded_len_varint(len as u64) + len);
    encode_varint(len as u64, out);
    if id != 0 {
        uint32::encode(ID, &id, out);
    }
    if let Some(Member { tag, payload, .. }) = member {
        write_delimiter(tag, payload_len, out);
        payload.write_protobuf(out);
    }
}

/// Appends a reply that pushes a publication, behind its length.
pub(crate) fn write_publication(channel: &str, publication: &Publication, out: &mut Vec<u8>) {
    let publication_len = prost::Message::encoded_len(publication);
    let push_len = push_len(channel, PUBLICATION, publication_len);
    let len = delimited_len(PUSH, push_len);
    out.reserve(encoded_len_varint(len as u64) + len);
    encode_varint(len as u64, out);
    write_delimiter(PUSH, push_len, out);
    write_push_head(channel, PUBLICATION, publication_len, out);
    prost::Message::encode_raw(publication, out);
}

/// Length of a push to `channel` whose payload is field `tag` and `payload_len` bytes long.
pub(crate) fn push_len(channel: &str, tag: u32, payload_len: usize) -> usize {
    let channel_len = if channel.is_empty() { 0 } else { delimited_len(CHANNEL, channel.len()) };
    channel_len + delimited_len(tag, payload_len)
}

/// Appends a push up to the payload.
pub(crate) fn write_push_head(channel: &str, tag: u32, payload_len: usize, out: &mut Vec<u8>) {
    if !channel.is_empty() {
        write_delimiter(CHANNEL, channel.len(), out);
        out.extend_from_slice(channel.as_bytes());
    }
    write_delimiter(tag, payload_len, out);
}

/// Length of a delimited field of `len` bytes with its key and its length.
fn delimited_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

/// Appends key and length of a delimited field.
fn write_delimiter(tag: u32, len: usize, out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}
