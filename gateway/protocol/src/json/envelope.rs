//! Commands, replies and pushes in JSON.

use bytes::Bytes;
use serde::de::MapAccess;

use super::values::write_plain;
use super::{ReadJson, ReadObject, WriteJson, WriteObject, read_field, skip_field};
use crate::messages::{Command, Publication, Reply, Request};
use crate::variants::{Member, PushParts, ReplyParts, Variants};
use crate::{EncodeError, PushBody, ReplyBody};

/// Reads one command. `message` must be a part of `frame`.
pub(crate) fn read_command(frame: &Bytes, message: &str) -> Result<Command, serde_json::Error> {
    read(frame, message)
}

/// Reads one reply. `message` must be a part of `frame`.
pub(crate) fn read_reply(frame: &Bytes, message: &str) -> Result<ReplyParts, serde_json::Error> {
    read(frame, message)
}

fn read<T: ReadJson>(frame: &Bytes, message: &str) -> Result<T, serde_json::Error> {
    let mut input = serde_json::Deserializer::from_str(message);
    let value = T::read(frame, &mut input)?;
    input.end()?;
    Ok(value)
}

/// Appends one command, the payload before the id as SDKs do.
pub(crate) fn write_command(command: &Command, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    command.write(out)?;
    out.push(b'\n');
    Ok(())
}

/// Appends one reply.
pub(crate) fn write_reply(reply: &Reply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.push(b'{');
    if reply.id != 0 {
        out.extend_from_slice(b"\"id\":");
        write_plain(&reply.id, out);
        if reply.body.is_some() {
            out.push(b',');
        }
    }
    if let Some(body) = &reply.body {
        let Member { name, payload, .. } = body.member();
        write_name(name, out);
        payload.write_json(out)?;
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

/// Appends a reply that pushes a publication.
pub(crate) fn write_publication(
    channel: &str,
    publication: &Publication,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    // Names, braces and numbers of a publication without tags take up to about 80 bytes.
    out.reserve(publication.data.len() + channel.len() + 96);
    out.extend_from_slice(b"{\"push\":");
    write_push(channel, "pub", |out| publication.write(out), out)?;
    out.extend_from_slice(b"}\n");
    Ok(())
}

/// Appends a push whose payload `body` writes.
pub(crate) fn write_push(
    channel: &str,
    name: &str,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    out.push(b'{');
    if !channel.is_empty() {
        out.extend_from_slice(b"\"channel\":");
        write_plain(channel, out);
        out.push(b',');
    }
    write_name(name, out);
    body(out)?;
    out.push(b'}');
    Ok(())
}

/// Appends the name of a member; the names of the protocol need no escapes.
fn write_name(name: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

impl ReadObject for Command {
    fn read_member<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        frame: &Bytes,
        members: &mut A,
    ) -> Result<(), A::Error> {
        if name == "id" {
            self.id = read_field(frame, members)?;
        } else if !Request::read_member(&mut self.request, name, frame, members)? {
            skip_field(members)?;
        }
        Ok(())
    }
}

impl WriteObject for Command {
    fn write_members(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if let Some(request) = &self.request {
            let Member { name, payload, .. } = request.member();
            write_name(name, out);
            payload.write_json(out)?;
            out.push(b',');
        }
        if self.id != 0 {
            out.extend_from_slice(b"\"id\":");
            write_plain(&self.id, out);
            out.push(b',');
        }
        Ok(())
    }
}

impl ReadObject for ReplyParts {
    fn read_member<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        frame: &Bytes,
        members: &mut A,
    ) -> Result<(), A::Error> {
        match name {
            "id" => self.id = read_field(frame, members)?,
            "push" => self.push = read_field(frame, members)?,
            _ if ReplyBody::read_member(&mut self.body, name, frame, members)? => {}
            _ => skip_field(members)?,
        }
        Ok(())
    }
}

impl ReadObject for PushParts {
    fn read_member<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        frame: &Bytes,
        members: &mut A,
    ) -> Result<(), A::Error> {
        if name == "channel" {
            self.channel = read_field(frame, members)?;
        } else if !PushBody::read_member(&mut self.body, name, frame, members)? {
            skip_field(members)?;
        }
        Ok(())
    }
}
