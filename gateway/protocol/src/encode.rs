//! Messages into bytes. Each is appended with its delimiter, so that a frame is the messages one after the other.

use crate::{Command, EncodeError, Encoding, Publication, Reply, json, protobuf};

/// Appends one reply and its delimiter: a JSON text and a newline, or a length and a Protobuf message.
///
/// A ping, which is the default reply, becomes `{}` or one zero byte. On an error `out` is as it was.
///
/// # Errors
///
/// [`EncodeError::NotJson`] when a payload cannot be embedded in a JSON message; Protobuf never fails.
pub fn encode_reply(encoding: Encoding, reply: &Reply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match encoding {
        Encoding::Json => restore_on_error(out, |out| json::write_reply(reply, out)),
        Encoding::Protobuf => {
            protobuf::write_reply(reply, out);
            Ok(())
        }
    }
}

/// Appends the reply that pushes `publication` to the subscribers of `channel`, byte for byte what [`encode_reply`]
/// makes of it, without a copy of either. On an error `out` is as it was.
///
/// # Errors
///
/// As for [`encode_reply`].
pub fn encode_publication(
    encoding: Encoding,
    channel: &str,
    publication: &Publication,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    match encoding {
        Encoding::Json => restore_on_error(out, |out| json::write_publication(channel, publication, out)),
        Encoding::Protobuf => {
            protobuf::write_publication(channel, publication, out);
            Ok(())
        }
    }
}

/// Appends one command and its delimiter, as a client does. On an error `out` is as it was.
///
/// # Errors
///
/// As for [`encode_reply`].
pub fn encode_command(encoding: Encoding, command: &Command, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match encoding {
        Encoding::Json => restore_on_error(out, |out| json::write_command(command, out)),
        Encoding::Protobuf => {
            protobuf::write_command(command, out);
            Ok(())
        }
    }
}

/// What to send in a frame: the messages without the last newline in JSON, all of it in Protobuf.
pub fn frame_payload(encoding: Encoding, messages: &[u8]) -> &[u8] {
    match encoding {
        Encoding::Json => messages.strip_suffix(b"\n").unwrap_or(messages),
        Encoding::Protobuf => messages,
    }
}

fn restore_on_error(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let len = out.len();
    write(out).inspect_err(|_| out.truncate(len))
}
