//! Frames into messages.

use std::iter::FusedIterator;
use std::ops::Range;

use bytes::Bytes;

use crate::variants::ReplyParts;
use crate::{Command, DecodeError, Encoding, Limits, Reply, json, protobuf};

/// Reads the commands of a client's frame, one at a time and in order, so that those before a malformed one are not
/// lost. Nothing is read after the first error.
///
/// Payloads of the commands are slices of the frame and keep all of it alive.
pub fn decode_commands<'a>(encoding: Encoding, frame: &'a Bytes, limits: &Limits) -> Commands<'a> {
    Commands(Splitter::new(encoding, frame, limits))
}

/// Reads the replies of a server's frame, one at a time and in order. Nothing is read after the first error.
///
/// A push of a kind that this version does not know is left out, though it counts towards the limit. Payloads of the
/// replies are slices of the frame and keep all of it alive.
pub fn decode_replies<'a>(encoding: Encoding, frame: &'a Bytes, limits: &Limits) -> Replies<'a> {
    Replies(Splitter::new(encoding, frame, limits))
}

/// The commands of a frame; made by [`decode_commands`].
#[derive(Debug)]
pub struct Commands<'a>(Splitter<'a>);

impl Iterator for Commands<'_> {
    type Item = Result<Command, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(json::read_command, protobuf::read_command)
    }
}

impl FusedIterator for Commands<'_> {}

/// The replies of a frame; made by [`decode_replies`].
#[derive(Debug)]
pub struct Replies<'a>(Splitter<'a>);

impl Iterator for Replies<'_> {
    type Item = Result<Reply, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next(json::read_reply, protobuf::read_reply)?.map(ReplyParts::into_reply) {
                Ok(Some(reply)) => return Some(Ok(reply)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl FusedIterator for Replies<'_> {}

/// Finds the messages of a frame and applies the limits.
#[derive(Debug)]
struct Splitter<'a> {
    encoding: Encoding,
    frame: &'a Bytes,
    limits: Limits,
    /// Where the next message begins.
    at: usize,
    /// Messages begun.
    count: usize,
    /// An error was reported; nothing follows.
    failed: bool,
}

impl<'a> Splitter<'a> {
    fn new(encoding: Encoding, frame: &'a Bytes, limits: &Limits) -> Self {
        Self { encoding, frame, limits: *limits, at: 0, count: 0, failed: false }
    }

    /// Reads the next message with the reader of the frame's encoding.
    fn next<T>(
        &mut self,
        read_json: impl FnOnce(&Bytes, &str) -> Result<T, serde_json::Error>,
        read_protobuf: impl FnOnce(Bytes) -> Result<T, prost::DecodeError>,
    ) -> Option<Result<T, DecodeError>> {
        if self.failed || (self.count > 0 && self.at == self.frame.len()) {
            return None;
        }
        let message = self.admit().and_then(|()| match self.encoding {
            Encoding::Json => {
                let line = self.next_line()?;
                let text = self.check_line(line.clone())?;
                read_json(self.frame, text).map_err(|source| DecodeError::Json { at: line.start, source })
            }
            Encoding::Protobuf => {
                let body = self.next_delimited()?;
                read_protobuf(self.frame.slice(body.clone()))
                    .map_err(|source| DecodeError::Protobuf { at: body.start, source })
            }
        });
        self.failed = message.is_err();
        Some(message)
    }

    /// Checks what can be told without looking at the next message, and counts it.
    fn admit(&mut self) -> Result<(), DecodeError> {
        if self.count == 0 {
            let (bytes, limit) = (self.frame.len(), self.limits.frame_bytes);
            if bytes > limit {
                return Err(DecodeError::FrameTooLarge { bytes, limit });
            }
            if bytes == 0 {
                return Err(DecodeError::Empty);
            }
        }
        if self.count == self.limits.commands {
            return Err(DecodeError::TooManyMessages { limit: self.limits.commands });
        }
        self.count += 1;
        Ok(())
    }

    /// Takes the bytes up to the next newline or the end. A newline at the end of the frame ends its last line and
    /// begins none.
    fn next_line(&mut self) -> Result<Range<usize>, DecodeError> {
        let at = self.at;
        let end = memchr::memchr(b'\n', &self.frame[at..]).map_or(self.frame.len(), |len| at + len);
        self.at = self.frame.len().min(end + 1);
        if self.frame[at..end].trim_ascii().is_empty() {
            return Err(DecodeError::BlankLine { at });
        }
        Ok(at..end)
    }

    /// Checks a line for what the parser must not meet.
    fn check_line(&self, line: Range<usize>) -> Result<&'a str, DecodeError> {
        let at = line.start;
        let line = &self.frame[line];
        if is_deeper_than(self.limits.depth, line) {
            return Err(DecodeError::TooDeep { at, limit: self.limits.depth });
        }
        std::str::from_utf8(line).map_err(|source| DecodeError::NotUtf8 { at, source })
    }

    /// Takes a length and as many bytes as it says.
    fn next_delimited(&mut self) -> Result<Range<usize>, DecodeError> {
        let at = self.at;
        let rest = &self.frame[at..];
        let mut varint = rest;
        // Ten bytes hold any 64-bit number; if none of them ends it, the number is longer than that.
        let len = match prost::encoding::decode_varint(&mut varint) {
            Ok(len) => len,
            Err(_) if rest.len() < 10 && rest.iter().all(|byte| byte & 0x80 != 0) => {
                return Err(DecodeError::Truncated { at });
            }
            Err(_) => return Err(DecodeError::Varint { at }),
        };
        let start = at + (rest.len() - varint.len());
        match usize::try_from(len) {
            Ok(len) if len <= varint.len() => {
                self.at = start + len;
                Ok(start..self.at)
            }
            _ => Err(DecodeError::Truncated { at }),
        }
    }
}

/// Whether objects and arrays are nested deeper than `limit` in a JSON text. Of text that is not JSON it answers
/// something; the parser refuses such text, and the depth it reaches until then is at most the depth counted here.
fn is_deeper_than(limit: usize, text: &[u8]) -> bool {
    // A text cannot be deeper than it has opening brackets, in or out of strings. Counting them needs no branches and
    // settles nearly every message. Blocks of 255 bytes keep the count in one byte, which is what lets the compiler
    // count many at once. '[' and '{' differ in one bit, which no other byte shares.
    let brackets = |block: &[u8]| block.iter().map(|byte| u8::from(*byte | 0x20 == b'{')).sum::<u8>();
    if text.chunks(255).map(|block| usize::from(brackets(block))).sum::<usize>() <= limit {
        return false;
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}
