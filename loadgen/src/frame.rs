//! WebSocket frames (RFC 6455 section 5), read in place.
//!
//! A server's frames are not masked, so a whole message can be handed on as a slice of the receive buffer; only a
//! fragmented one is copied together.

use thiserror::Error;

/// Longest message taken from a server, in bytes. Centrifuge servers bound what clients send to 64 KiB, but coalesce
/// replies and recovered publications; 16 MiB is far above any of that and still a bound.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A frame or message that RFC 6455 does not allow, or that is too long for us.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// A reserved bit is set although no extension was negotiated.
    #[error("a frame has a reserved bit set")]
    ReservedBit,
    /// The opcode means nothing.
    #[error("a frame has the unknown opcode {0}")]
    Opcode(u8),
    /// Servers must not mask, clients must.
    #[error("a frame is {}masked", if *.0 { "" } else { "not " })]
    Masking(bool),
    /// A ping, pong or close that is fragmented or longer than 125 bytes.
    #[error("a control frame is fragmented or too long")]
    Control,
    /// A continuation without a start, or a start within a fragmented message.
    #[error("a fragment is out of place")]
    Fragment,
    /// The message is longer than the limit.
    #[error("a message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(u64),
}

/// The first bytes of a frame, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Last fragment of its message.
    pub fin: bool,
    /// Meaning of the payload, see the constants of this module.
    pub opcode: u8,
    /// Key the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Bytes before the payload.
    pub header_len: usize,
    /// Bytes of payload.
    pub payload_len: usize,
}

/// Opcode of a continuation frame.
pub const CONTINUATION: u8 = 0;
/// Opcode of a text message.
pub const TEXT: u8 = 1;
/// Opcode of a binary message.
pub const BINARY: u8 = 2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;
/// Opcode of a ping frame.
pub const PING: u8 = 9;
/// Opcode of a pong frame.
pub const PONG: u8 = 10;

impl FrameHeader {
    /// Decodes the header at the start of `input`; None when more bytes are needed.
    #[inline]
    pub fn parse(input: &[u8]) -> Result<Option<Self>, FrameError> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBit);
        }
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
            return Err(FrameError::Opcode(opcode));
        }
        let (len, len_bytes) = match second & 0x7f {
            126 => match rest.first_chunk::<2>() {
                Some(bytes) => (u64::from(u16::from_be_bytes(*bytes)), 2),
                None => return Ok(None),
            },
            127 => match rest.first_chunk::<8>() {
                Some(bytes) => (u64::from_be_bytes(*bytes), 8),
                None => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        if opcode >= CLOSE && (!fin || len > 125) {
            return Err(FrameError::Control);
        }
        if len > MESSAGE_BYTES_MAX as u64 {
            return Err(FrameError::TooLong(len));
        }
        let mask = match second & 0x80 {
            0 => None,
            _ => match rest[len_bytes..].first_chunk::<4>() {
                Some(key) => Some(*key),
                None => return Ok(None),
            },
        };
        let header_len = 2 + len_bytes + if mask.is_some() { 4 } else { 0 };
        Ok(Some(Self { fin, opcode, mask, header_len, payload_len: len as usize }))
    }
}

/// Something complete that a server sent.
#[derive(PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A text or binary message.
    Data(&'a [u8]),
    /// A ping to be answered with the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping.
    Pong,
    /// The server ends the connection, with the code and reason it gave.
    Close(Option<u16>, &'a [u8]),
}

/// Puts the frames of one connection together to messages.
#[derive(Default)]
pub struct Assembler {
    /// Fragments so far, or a whole message that was handed out and is dropped at the next call. Without memory for most
    /// connections, which never see a fragment.
    fragments: Vec<u8>,
    state: Fragments,
}

#[derive(Default, PartialEq)]
enum Fragments {
    #[default]
    None,
    Open,
    HandedOut,
}

impl Assembler {
    /// Takes the next message from the start of `input` and says how many bytes it used, or how many it could use
    /// without completing one.
    pub fn next<'s>(&'s mut self, input: &'s [u8]) -> Result<(usize, Option<Incoming<'s>>), FrameError> {
        if self.state == Fragments::HandedOut {
            (self.fragments, self.state) = (Vec::new(), Fragments::None);
        }
        let mut used = 0;
        loop {
            let Some(header) = FrameHeader::parse(&input[used..])? else { return Ok((used, None)) };
            if header.mask.is_some() {
                return Err(FrameError::Masking(true));
            }
            let start = used + header.header_len;
            let Some(payload) = input.get(start..start + header.payload_len) else { return Ok((used, None)) };
            used = start + header.payload_len;
            match header.opcode {
                PING => return Ok((used, Some(Incoming::Ping(payload)))),
                PONG => return Ok((used, Some(Incoming::Pong))),
                CLOSE => {
                    let code = payload.first_chunk::<2>().map(|code| u16::from_be_bytes(*code));
                    return Ok((used, Some(Incoming::Close(code, payload.get(2..).unwrap_or_default()))));
                }
                CONTINUATION if self.state != Fragments::Open => return Err(FrameError::Fragment),
                TEXT | BINARY if self.state == Fragments::Open => return Err(FrameError::Fragment),
                TEXT | BINARY if header.fin => return Ok((used, Some(Incoming::Data(payload)))),
                _ => {
                    let len = self.fragments.len() + payload.len();
                    if len > MESSAGE_BYTES_MAX {
                        return Err(FrameError::TooLong(len as u64));
                    }
                    self.fragments.extend_from_slice(payload);
                    self.state = Fragments::Open;
                    if header.fin {
                        self.state = Fragments::HandedOut;
                        return Ok((used, Some(Incoming::Data(&self.fragments))));
                    }
                }
            }
        }
    }
}

/// Appends a whole frame; with a key it is masked, as a client's must be.
pub fn write_frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => out.push(masked | len as u8),
        len @ 126..=65_535 => {
            out.push(masked | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(masked | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let Some(key) = mask else { return out.extend_from_slice(payload) };
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..], key);
}

/// Masks or unmasks a payload in place.
pub fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in the given pieces, keeping what is left over as a connection does.
    fn read_in_pieces(wire: &[u8], cuts: &[usize]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut assembler = Assembler::default();
        let (mut stash, mut seen) = (Vec::new(), Vec::new());
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        bounds.extend([0, wire.len()]);
        bounds.sort_unstable();
        for piece in bounds.windows(2).map(|pair| &wire[pair[0]..pair[1]]) {
            stash.extend_from_slice(piece);
            let mut used = 0;
            loop {
                let (step, incoming) = assembler.next(&stash[used..])?;
                used += step;
                match incoming {
                    None => break,
                    Some(Incoming::Data(data)) => seen.push(data.to_vec()),
                    Some(Incoming::Ping(data)) => seen.push([b"ping ", data].concat()),
                    Some(Incoming::Pong) => seen.push(b"pong".to_vec()),
                    Some(Incoming::Close(code, reason)) => {
                        seen.push([&code.unwrap_or(0).to_be_bytes(), reason].concat())
                    }
                }
            }
            stash.drain(..used);
        }
        assert!(stash.is_empty(), "{} bytes were never used", stash.len());
        Ok(seen)
    }

    fn fragment(opcode: u8, fin: bool, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        write_frame(opcode, payload, None, out);
        out[start] = opcode | if fin { 0x80 } else { 0 };
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..400)), 1..6),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let (mut wire, mut expected) = (Vec::new(), Vec::new());
            for (fragmented, payload) in &messages {
                if *fragmented {
                    let (head, tail) = payload.split_at(payload.len() / 2);
                    fragment(TEXT, false, head, &mut wire);
                    write_frame(PING, b"hi", None, &mut wire);
                    expected.push(b"ping hi".to_vec());
                    fragment(CONTINUATION, true, tail, &mut wire);
                } else {
                    write_frame(BINARY, payload, None, &mut wire);
                }
                expected.push(payload.clone());
            }
            write_frame(CLOSE, &[&3008u16.to_be_bytes()[..], b"slow"].concat(), None, &mut wire);
            expected.push([&3008u16.to_be_bytes()[..], b"slow"].concat());
            prop_assert_eq!(read_in_pieces(&wire, &cuts).expect("well-formed"), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut assembler = Assembler::default();
            let mut used = 0;
            while let Ok((step, Some(_))) = assembler.next(&bytes[used..]) {
                prop_assert!(step > 0);
                used += step;
            }
        }

        #[test]
        fn masking_is_undone_by_the_same_key(payload in prop::collection::vec(any::<u8>(), 0..70_000), key: [u8; 4]) {
            let mut wire = Vec::new();
            write_frame(TEXT, &payload, Some(key), &mut wire);
            let header = FrameHeader::parse(&wire).expect("well-formed").expect("complete");
            prop_assert_eq!((header.mask, header.payload_len), (Some(key), payload.len()));
            apply_mask(&mut wire[header.header_len..], key);
            prop_assert_eq!(&wire[header.header_len..], &payload[..]);
        }
    }

    #[test]
    fn a_message_longer_than_64_kib_has_an_eight_byte_length() {
        let mut wire = Vec::new();
        write_frame(TEXT, &vec![b'x'; 70_000], None, &mut wire);
        assert_eq!(read_in_pieces(&wire, &[3, 9, 40_000]).expect("well-formed")[0].len(), 70_000);
    }

    #[test]
    fn what_the_rfc_forbids_is_refused() {
        let error = |bytes: &[u8]| Assembler::default().next(bytes).expect_err("must be refused");
        assert_eq!(error(&[0xc1, 0]), FrameError::ReservedBit);
        assert_eq!(error(&[0x83, 0]), FrameError::Opcode(3));
        assert_eq!(error(&[0x81, 0x80, 0, 0, 0, 0]), FrameError::Masking(true));
        assert_eq!(error(&[0x09, 0]), FrameError::Control);
        assert_eq!(error(&[0x80, 0]), FrameError::Fragment);
        assert_eq!(error(&[0x81, 127, 0, 0, 0, 1, 0, 0, 0, 0]), FrameError::TooLong(1 << 32));
        assert_eq!(error(&[0x01, 0, 0x81, 0]), FrameError::Fragment);
    }
}
