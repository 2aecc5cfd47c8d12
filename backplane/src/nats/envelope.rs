//! What stands before a record in a stored or delivered message.
//!
//! | | |
//! |---|---|
//! | version | one byte, 1 |
//! | kind | one byte: see [`Content`] |
//! | fences | 32 bits: how many fences the writer knew (see [`fence`](super::fence)); 0 where numbers mean nothing |
//! | epoch | 32 bits of a hash of the epoch that the writer knew |
//! | id | 64 bits, random, so that a message is told from another one with its number |
//!
//! Then what belongs to the kind. Numbers have their most significant byte first. There are no NATS headers, because
//! they cost much on every message.

use crate::Epoch;

const VERSION: u8 = 1;

/// Bytes before what belongs to the kind.
const HEAD: usize = 18;

/// Where the id is.
const ID: std::ops::Range<usize> = 10..18;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content<'a> {
    /// `P`: a publication with a position, and the version it was published with, if there was one. Written as a byte 0,
    /// or a byte 1 and the version; then the record.
    Publication { version: Option<Version<'a>>, record: &'a [u8] },
    /// `M`: a publication without a position, a join or a leave.
    Message { record: &'a [u8] },
    /// `S`: nothing, in a channel without publications, so that it has a position.
    Seed,
    /// `R`: everything up to the message with this number was removed.
    Removed { previous: u64 },
    /// `B`: to see whether deliveries arrive.
    Barrier,
    /// `V`: the version of the publication with this number.
    Versioned { number: u64, version: Version<'a> },
}

/// What a publisher calls the state that a publication brings: 64 bits, and the length-prefixed epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version<'a> {
    pub(super) number: u64,
    pub(super) epoch: &'a str,
}

impl Version<'_> {
    /// Whether a publication with the version `next` is to be skipped when this is the stored one.
    pub(super) fn outdates(&self, next: &Version<'_>) -> bool {
        next.number <= self.number && (next.epoch.is_empty() || next.epoch == self.epoch)
    }
}

/// What a writer knew of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Knowledge {
    /// How many fences there were.
    pub(super) fences: u32,
    /// See [`check_of`].
    pub(super) epoch_check: u32,
}

impl Knowledge {
    /// Whether `other` knew of more fences of the same stream.
    pub(super) fn is_behind(self, other: Self) -> bool {
        self.epoch_check == other.epoch_check && self.fences < other.fences
    }
}

/// A message, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Envelope<'a> {
    pub(super) knowledge: Knowledge,
    pub(super) id: u64,
    pub(super) content: Content<'a>,
}

/// A message that this version cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that this version cannot read: {0}")]
pub(super) struct EnvelopeError(&'static str);

/// 32 bits of a hash of an epoch.
pub(super) fn check_of(epoch: &Epoch) -> u32 {
    let hash = epoch.as_str().bytes();
    // FNV-1a with 32 bits. Part of what is stored: never to be changed.
    hash.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The random id of a stored message.
pub(super) fn id_of(payload: &[u8]) -> Option<u64> {
    payload.get(ID)?.try_into().ok().map(u64::from_be_bytes)
}

impl Envelope<'_> {
    /// The message as it is stored.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, record): (u8, &[u8]) = match &self.content {
            Content::Publication { record, .. } => (b'P', record),
            Content::Message { record } => (b'M', record),
            Content::Seed => (b'S', &[]),
            Content::Removed { .. } => (b'R', &[]),
            Content::Barrier => (b'B', &[]),
            Content::Versioned { .. } => (b'V', &[]),
        };
        let mut out = Vec::with_capacity(HEAD + 32 + record.len());
        out.extend([VERSION, kind]);
        out.extend(self.knowledge.fences.to_be_bytes());
        out.extend(self.knowledge.epoch_check.to_be_bytes());
        out.extend(self.id.to_be_bytes());
        match self.content {
            Content::Publication { version: None, .. } => out.push(0),
            Content::Publication { version: Some(version), .. } => {
                out.push(1);
                put_version(&mut out, version);
            }
            Content::Removed { previous } => out.extend(previous.to_be_bytes()),
            Content::Versioned { number, version } => {
                out.extend(number.to_be_bytes());
                put_version(&mut out, version);
            }
            Content::Message { .. } | Content::Seed | Content::Barrier => {}
        }
        out.extend_from_slice(record);
        out
    }
}

/// Takes a message apart.
pub(super) fn decode(payload: &[u8]) -> Result<Envelope<'_>, EnvelopeError> {
    let short = EnvelopeError("it ends too early");
    let (head, mut rest) = payload.split_at_checked(HEAD).ok_or(short)?;
    if head[0] != VERSION {
        return Err(EnvelopeError("its version is unknown"));
    }
    let four = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let content = match head[1] {
        b'P' => {
            let is_versioned = take::<1>(&mut rest).ok_or(short)? != [0];
            let version = if is_versioned { Some(take_version(&mut rest).ok_or(short)?) } else { None };
            Content::Publication { version, record: rest }
        }
        b'M' => Content::Message { record: rest },
        b'S' => Content::Seed,
        b'R' => Content::Removed { previous: take_u64(&mut rest).ok_or(short)? },
        b'B' => Content::Barrier,
        b'V' => {
            let number = take_u64(&mut rest).ok_or(short)?;
            Content::Versioned { number, version: take_version(&mut rest).ok_or(short)? }
        }
        _ => return Err(EnvelopeError("its kind is unknown")),
    };
    let knowledge = Knowledge { fences: four(2), epoch_check: four(6) };
    Ok(Envelope { knowledge, id: id_of(head).unwrap_or_default(), content })
}

fn put_version(out: &mut Vec<u8>, version: Version<'_>) {
    out.extend(version.number.to_be_bytes());
    let len = u32::try_from(version.epoch.len()).expect("a version epoch is shorter than 4 GB");
    out.extend(len.to_be_bytes());
    out.extend_from_slice(version.epoch.as_bytes());
}

fn take_version<'a>(rest: &mut &'a [u8]) -> Option<Version<'a>> {
    let number = take_u64(rest)?;
    let len = usize::try_from(u32::from_be_bytes(take(rest)?)).ok()?;
    let (epoch, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(Version { number, epoch: str::from_utf8(epoch).ok()? })
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_be_bytes)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [Content<'static>; 7] {
        let version = Version { number: u64::MAX, epoch: "e" };
        [
            Content::Publication { version: None, record: b"record" },
            Content::Publication { version: Some(version), record: b"" },
            Content::Message { record: b"\0" },
            Content::Seed,
            Content::Removed { previous: 7 },
            Content::Barrier,
            Content::Versioned { number: 9, version },
        ]
    }

    #[test]
    fn messages_come_back_and_shorter_ones_are_refused() {
        for content in all() {
            let knowledge = Knowledge { fences: 3, epoch_check: check_of(&Epoch::from("abc")) };
            let envelope = Envelope { knowledge, id: 0x0102_0304_0506_0708, content };
            let encoded = envelope.encode();
            assert_eq!(decode(&encoded), Ok(envelope));
            assert_eq!(id_of(&encoded), Some(envelope.id));
            let tail = match content {
                Content::Publication { record, .. } | Content::Message { record } => record.len(),
                _ => 0,
            };
            for cut in 0..encoded.len() - tail {
                assert!(decode(&encoded[..cut]).is_err(), "{content:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn messages_of_the_future_are_refused() {
        let mut encoded = Envelope { knowledge: Knowledge::default(), id: 0, content: Content::Seed }.encode();
        encoded[1] = b'Z';
        assert!(decode(&encoded).is_err());
        encoded[0] = 2;
        assert!(decode(&encoded).is_err());
    }

    #[test]
    fn versions_are_compared_within_their_epoch() {
        let stored = Version { number: 5, epoch: "x" };
        let outdates = |number, epoch| stored.outdates(&Version { number, epoch });
        assert!(outdates(5, "x") && outdates(4, "") && !outdates(6, "x") && !outdates(1, "y"));
    }
}
