//! Reading client frames with tungstenite, without a buffer per connection.
//!
//! Bytes are read into one scratch buffer per shard and fed to a [`WebSocketContext`]. Nearly always they are whole
//! frames, and then the context has nothing to remember: it is dropped, and an idle connection holds none. Only a
//! connection in the middle of a frame, of a fragmented message or of the closing handshake keeps its context.

use std::io::{self, Read, Write};

use bytes::Bytes;
use session::close::CloseCode;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::socket::{Sent, Socket};

/// What one read of the context gave.
#[derive(Debug)]
pub enum Event {
    /// A whole text or binary message.
    Message(Bytes),
    /// Nothing more in what was fed.
    Exhausted,
    /// The closing handshake is complete, or the peer is gone.
    Finished,
    /// The peer broke the protocol: close with this code; nothing after it can be read.
    Violation(CloseCode),
}

/// The reading side of a connection: a context, while there is something to remember.
#[derive(Debug, Default)]
pub struct Reader {
    context: Option<Box<WebSocketContext>>,
    /// Bytes fed to the context that no message has accounted for. More than fit here never come together.
    unaccounted: u32,
    /// The code of the peer's close frame.
    peer_close: Option<u16>,
}

/// What stands for a close frame without a code (RFC 6455 7.1.5).
const NO_CODE: u16 = 1005;

/// A burst of reading: the fed bytes and the context that reads them.
pub struct Burst<'a> {
    reader: &'a mut Reader,
    /// Taken back by the reader when the burst ends; `Some` until then.
    context: Option<Box<WebSocketContext>>,
    data: &'a [u8],
    at_end: bool,
    keep: bool,
}

impl Reader {
    /// Begins to read a piece of the stream. `at_end` tells that nothing follows it.
    pub fn burst<'a>(&'a mut self, data: &'a [u8], at_end: bool, message_bytes_max: usize) -> Burst<'a> {
        self.unaccounted = self.unaccounted.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        let context = self.context.take().unwrap_or_else(|| new_context(message_bytes_max));
        Burst { reader: self, context: Some(context), data, at_end, keep: false }
    }

    /// The code of the peer's close frame, if one has come; 1005 for one without a code.
    pub fn peer_close(&self) -> Option<u16> {
        self.peer_close
    }

    /// Starts the closing handshake: queues the close frame behind everything sent before. It is one small frame, sent
    /// once, so it has a place in the fullest queue.
    pub fn close(&mut self, code: &CloseCode, socket: &mut Socket, message_bytes_max: usize) {
        let context = self.context.get_or_insert_with(|| new_context(message_bytes_max));
        let frame = CloseFrame { code: code.code().into(), reason: Utf8Bytes::from(code.reason().to_owned()) };
        let mut wire = Wire { data: &mut &[][..], at_end: false, socket, queue_bytes_max: usize::MAX };
        // A socket that is broken by now is noticed by the next read.
        let _ = context.close(&mut wire, Some(frame));
    }
}

impl Burst<'_> {
    /// The next event.
    pub fn next(&mut self, socket: &mut Socket, queue_bytes_max: usize) -> Event {
        loop {
            let Some(context) = &mut self.context else { return Event::Finished };
            let mut wire = Wire { data: &mut self.data, at_end: self.at_end, socket, queue_bytes_max };
            match context.read(&mut wire) {
                Ok(Message::Text(text)) => return self.message(text.into()),
                Ok(Message::Binary(bytes)) => return self.message(bytes),
                Ok(Message::Ping(payload) | Message::Pong(payload)) => self.account(payload.len()),
                // The reply is sent by the next read, which then reports the end.
                Ok(Message::Close(frame)) => {
                    self.keep = true;
                    self.reader.peer_close = Some(frame.map_or(NO_CODE, |frame| frame.code.into()));
                }
                Ok(Message::Frame(_)) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Event::Exhausted,
                Err(error) => {
                    self.keep = true;
                    return judge(error);
                }
            }
        }
    }

    /// What was fed and not yet read: the driver keeps it when the session wants no more commands.
    pub fn rest(&self) -> &[u8] {
        self.data
    }

    fn message(&mut self, payload: Bytes) -> Event {
        self.account(payload.len());
        Event::Message(payload)
    }

    /// The least a masked frame with this payload takes on the wire. It may have taken more (fragments, a longer
    /// length form); then the context just stays.
    fn account(&mut self, payload_bytes: usize) {
        let length_bytes = match payload_bytes {
            0..126 => 0,
            126..65536 => 2,
            _ => 8,
        };
        let frame_bytes = u32::try_from(2 + length_bytes + 4 + payload_bytes).unwrap_or(u32::MAX);
        self.reader.unaccounted = self.reader.unaccounted.saturating_sub(frame_bytes);
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        // The rest will be fed again.
        let rest = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        self.reader.unaccounted = self.reader.unaccounted.saturating_sub(rest);
        let context = self.context.take();
        let closing = context.as_ref().is_some_and(|context| !context.can_write());
        if self.keep || closing || self.reader.unaccounted != 0 {
            self.reader.context = context;
        }
    }
}

/// What tungstenite takes of the fed bytes at a time. The buffer lives as long as the context, so an idle connection has
/// none; a command and its frame fit.
const READ_BUFFER_BYTES: usize = 512;

fn new_context(message_bytes_max: usize) -> Box<WebSocketContext> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(usize::MAX)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max));
    Box::new(WebSocketContext::new(Role::Server, Some(config)))
}

fn judge(error: Error) -> Event {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => Event::Violation(CloseCode::Slow),
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_) => Event::Finished,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Event::Finished,
        Error::Capacity(CapacityError::MessageTooLong { .. }) => Event::Violation(CloseCode::MessageTooBig),
        Error::Utf8(_) => Event::Violation(CloseCode::InvalidPayload),
        _ => Event::Violation(CloseCode::ProtocolError),
    }
}

/// What tungstenite reads from and writes to.
struct Wire<'a, 'd> {
    data: &'a mut &'d [u8],
    at_end: bool,
    socket: &'a mut Socket,
    queue_bytes_max: usize,
}

impl Read for Wire<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.data.is_empty() && !self.at_end {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.data.read(buf)
    }
}

impl Write for Wire<'_, '_> {
    fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        match self.socket.send_slice(frame, self.queue_bytes_max) {
            Sent::Written | Sent::Queued => Ok(frame.len()),
            // A peer that sends pings and reads no pongs.
            Sent::Overflow => Err(io::ErrorKind::QuotaExceeded.into()),
            Sent::Broken => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
