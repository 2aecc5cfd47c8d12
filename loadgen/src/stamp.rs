//! The audit stamp: what every published message says about itself.
//!
//! A payload is the JSON object `{"m":"<stamp><filler>"}`. The stamp has a fixed length and only characters that no JSON
//! or Protobuf encoder changes, so the receiver finds it by a byte scan and reads it without a parser:
//!
//! | Bytes | Field |
//! |---|---|
//! | 4 | `evk1`, the version of this format |
//! | 8 | run, so that messages of an earlier run in a channel's history are told apart |
//! | 6 | channel index |
//! | 4 | publisher index |
//! | 8 | sequence within (channel, publisher), from 0 |
//! | 16 | intended send time, nanoseconds of the monotonic clock |
//! | 6 | length of the whole payload |
//! | 16 | checksum of everything else |
//!
//! Numbers are lower-case hexadecimal. The checksum covers the filler too, so any changed byte is noticed.

use memchr::memmem;
use thiserror::Error;

/// Length of the stamp.
pub const STAMP_LEN: usize = 68;
/// Shortest payload that holds a stamp.
pub const PAYLOAD_LEN_MIN: usize = OPEN.len() + STAMP_LEN + CLOSE.len();
/// Longest payload: the default message limit of Centrifuge servers, 64 KiB, less room for the envelope.
pub const PAYLOAD_LEN_MAX: usize = 64 * 1024 - 512;

const OPEN: &[u8] = b"{\"m\":\"";
const CLOSE: &[u8] = b"\"}";
/// How a payload starts, and what a receiver looks for.
pub const MARKER: &[u8] = b"{\"m\":\"evk1";
const VERSION_LEN: usize = 4;
const CHECKSUM_AT: usize = STAMP_LEN - 16;

/// What a message says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Identity of the run.
    pub run: u32,
    /// Index of the channel it was published to.
    pub channel: u32,
    /// Index of the publisher.
    pub publisher: u16,
    /// How many messages this publisher had sent to this channel before.
    pub sequence: u32,
    /// When the schedule wanted it sent, see [`monotonic_ns`](crate::sys::monotonic_ns).
    pub intended_ns: u64,
}

/// Why a message that should carry a stamp is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Damage {
    /// No stamp at all.
    #[error("the message has no stamp")]
    NoStamp,
    /// A field is not a number, or the message ends early.
    #[error("the stamp is unreadable or cut off")]
    Unreadable,
    /// Some byte of the message was changed.
    #[error("the checksum is wrong")]
    Checksum,
}

/// Appends a payload of exactly `len` bytes, at least [`PAYLOAD_LEN_MIN`].
pub fn write_payload(stamp: &Stamp, len: usize, out: &mut Vec<u8>) {
    assert!(
        (PAYLOAD_LEN_MIN..=PAYLOAD_LEN_MAX).contains(&len),
        "payload length {len} was checked when the run was planned"
    );
    out.extend_from_slice(OPEN);
    let start = out.len();
    out.extend_from_slice(b"evk1");
    hex(u64::from(stamp.run), 8, out);
    hex(u64::from(stamp.channel), 6, out);
    hex(u64::from(stamp.publisher), 4, out);
    hex(u64::from(stamp.sequence), 8, out);
    hex(stamp.intended_ns, 16, out);
    hex(len as u64, 6, out);
    out.extend_from_slice(&[b'0'; 16]);
    let filler = len - PAYLOAD_LEN_MIN;
    // Neither constant nor periodic with the sequence, so that a shifted or mixed-up filler has another checksum.
    let letter = |at: usize| b'a' + ((at * at + 7 * at + stamp.sequence as usize) % 26) as u8;
    out.extend((0..filler).map(letter));
    let checksum = checksum(&out[start..start + CHECKSUM_AT], &out[start + STAMP_LEN..]);
    let mut digits = Vec::with_capacity(16);
    hex(checksum, 16, &mut digits);
    out[start + CHECKSUM_AT..start + STAMP_LEN].copy_from_slice(&digits);
    out.extend_from_slice(CLOSE);
}

/// Finds payloads in messages, and remembers where the last one was: the messages of a run look alike, so the scan is
/// rarely needed.
pub struct Scanner {
    finder: memmem::Finder<'static>,
    usual_place: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { finder: memmem::Finder::new(MARKER), usual_place: 0 }
    }
}

impl Scanner {
    /// The position of the first payload in a message.
    #[inline]
    pub fn find(&mut self, message: &[u8]) -> Option<usize> {
        if message.get(self.usual_place..).is_some_and(|rest| rest.starts_with(MARKER)) {
            return Some(self.usual_place);
        }
        let place = self.finder.find(message)?;
        self.usual_place = place;
        Some(place)
    }
}

/// Reads and checks the payload at the start of `input`; returns the stamp and the payload's length.
#[inline]
pub fn read_payload(input: &[u8]) -> Result<(Stamp, usize), Damage> {
    if !input.starts_with(MARKER) {
        return Err(Damage::NoStamp);
    }
    let stamp = input.get(OPEN.len()..OPEN.len() + STAMP_LEN).ok_or(Damage::Unreadable)?;
    let field = |from: usize, len: usize| unhex(&stamp[from..from + len]).ok_or(Damage::Unreadable);
    let run = field(VERSION_LEN, 8)? as u32;
    let channel = field(12, 6)? as u32;
    let publisher = field(18, 4)? as u16;
    let sequence = field(22, 8)? as u32;
    let intended_ns = field(30, 16)?;
    let len = field(46, 6)? as usize;
    let expected = field(CHECKSUM_AT, 16)?;
    if len < PAYLOAD_LEN_MIN {
        return Err(Damage::Unreadable);
    }
    let payload = input.get(..len).ok_or(Damage::Unreadable)?;
    let filler = &payload[OPEN.len() + STAMP_LEN..len - CLOSE.len()];
    if !payload.ends_with(CLOSE) || checksum(&stamp[..CHECKSUM_AT], filler) != expected {
        return Err(Damage::Checksum);
    }
    Ok((Stamp { run, channel, publisher, sequence, intended_ns }, len))
}

/// A fast 64-bit mix, eight bytes a step. It guards against accidents, not against forgery.
fn checksum(stamp: &[u8], filler: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = ODD ^ (filler.len() as u64);
    let mut mix = |word: u64| state = (state ^ word).wrapping_mul(ODD).rotate_left(29);
    for part in [stamp, filler] {
        let (words, rest) = part.as_chunks::<8>();
        words.iter().for_each(|word| mix(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        mix(u64::from_le_bytes(last));
    }
    state ^ (state >> 32)
}

fn hex(value: u64, digits: usize, out: &mut Vec<u8>) {
    let digit = |at: usize| b"0123456789abcdef"[(value >> (4 * at)) as usize & 15];
    out.extend((0..digits).rev().map(digit));
}

#[inline]
fn unhex(digits: &[u8]) -> Option<u64> {
    const BAD: u8 = 0xff;
    const VALUES: [u8; 256] = {
        let mut values = [BAD; 256];
        let mut digit = 0;
        while digit < 16 {
            values[b"0123456789abcdef"[digit] as usize] = digit as u8;
            digit += 1;
        }
        values
    };
    let (mut value, mut seen) = (0u64, 0u8);
    for digit in digits {
        let digit = VALUES[usize::from(*digit)];
        // One test at the end instead of a branch per digit: only a bad one sets a high bit.
        seen |= digit;
        value = value << 4 | u64::from(digit & 15);
    }
    (seen < 16).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Stamp {
        Stamp { run: 0xdead_beef, channel: 999, publisher: 7, sequence: 41, intended_ns: 1 << 50 }
    }

    fn payload(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        write_payload(&sample(), len, &mut out);
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            run: u32, channel in 0u32..1 << 24, publisher: u16, sequence: u32, intended_ns: u64,
            len in PAYLOAD_LEN_MIN..2000,
        ) {
            let stamp = Stamp { run, channel, publisher, sequence, intended_ns };
            let mut out = Vec::new();
            write_payload(&stamp, len, &mut out);
            prop_assert_eq!(out.len(), len);
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
            out.extend_from_slice(b",\"offset\":3}}}");
            prop_assert_eq!(read_payload(&out), Ok((stamp, len)));
        }

        #[test]
        fn any_changed_byte_is_noticed(at in 0usize..200, with: u8) {
            let mut damaged = payload(200);
            prop_assume!(damaged[at] != with);
            damaged[at] = with;
            prop_assert!(read_payload(&damaged).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_payload(&bytes);
            bytes.splice(0..0, MARKER.iter().copied());
            let _ = read_payload(&bytes);
        }
    }

    #[test]
    fn exchanged_filler_bytes_are_noticed() {
        let mut swapped = payload(300);
        swapped.swap(100, 101);
        assert_ne!(swapped, payload(300));
        assert_eq!(read_payload(&swapped), Err(Damage::Checksum));
    }

    #[test]
    fn a_cut_payload_is_unreadable() {
        let whole = payload(150);
        assert_eq!(read_payload(&whole[..149]), Err(Damage::Unreadable));
        assert_eq!(read_payload(&whole[..40]), Err(Damage::Unreadable));
        assert_eq!(read_payload(b"{}"), Err(Damage::NoStamp));
    }

    #[test]
    fn the_scanner_follows_when_the_place_moves() {
        let mut scanner = Scanner::default();
        let body = payload(128);
        for prefix in [&b"{\"push\":{"[..], b"{\"push\":{", b"xy", b"", b"a longer start than before"] {
            assert_eq!(scanner.find(&[prefix, &body].concat()), Some(prefix.len()));
        }
        assert_eq!(scanner.find(b"{}"), None);
    }
}
