//! Every stream and subject this backplane uses.
//!
//! `<p>` is the configured prefix, `<n>` the partition of a channel, `<c>` an encoded channel name, `<k>` the class of a
//! stream as `<size>-<seconds>`. Channels of the gateway itself have classes of their own, with an `I` or `i` in front.
//!
//! | Stream | Subjects | Content |
//! |---|---|---|
//! | `<p>_H<size>_<seconds>` | `<p>.s.<k>.<n>.<c>` | publications of channels that keep `size` of them, and positions for so many seconds |
//! | | `<p>.s.<k>.<n>.<c>.v` | the version of the last publication that had one |
//! | | `<p>.s.<k>.<n>.%-b` | barriers: written by a node of a cluster to see whether deliveries reach it |
//! | `<p>_once` | `<p>.o.<n>.<c>` | publications without history that must not be repeated |
//! | `<p>_meta` | `<p>.m.config` | what must be the same on all nodes |
//! | | `<p>.m.fence.<stream>` | fences of a stream: see [`fence`](super::fence) |
//! | | `<p>.m.clock` | written to learn the server's time |
//! | - | `<p>.l.<n>.<c>` | what nodes subscribe to: copies of what streams take, made by the server, and messages that are not stored |
//!
//! Names of channels, users and sessions are percent-encoded but for `[A-Za-z0-9_-]`, so that none of them can be several
//! tokens of a subject or a wildcard. A lone `%`, and one before a hyphen, are the encoding of no name.

use std::time::Duration;

use crate::encoding::{decode, encode};
use crate::{HistoryOptions, IDEMPOTENCY_TTL, INTERNAL_PREFIX};

/// Builds names under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    partitions: u16,
}

/// Which channels share a stream: those that keep as many publications, and positions for as long.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Class {
    /// Publications that a channel keeps.
    pub(super) size: usize,
    /// How long the stream keeps what is in it, in seconds.
    pub(super) seconds: u64,
    /// Its channels belong to the gateway itself.
    pub(super) is_internal: bool,
}

/// A century is longer than any use, and far from the sums that NATS refuses.
const CENTURY: u64 = 100 * 366 * 86_400;

impl Class {
    /// The class of channels with these options. Positions are kept at least for as long as results of repeated
    /// publishes are, because a stream forgets both together.
    pub(super) fn of(channel: &str, options: &HistoryOptions) -> Self {
        let keep = options.meta_ttl.max(options.ttl).max(IDEMPOTENCY_TTL);
        let seconds = keep.as_secs().saturating_add(u64::from(keep.subsec_nanos() > 0));
        let is_internal = channel.starts_with(INTERNAL_PREFIX);
        Self { size: options.size.clamp(1, 1 << 30), seconds: seconds.min(CENTURY), is_internal }
    }

    /// Its token in subjects.
    fn token(self) -> String {
        format!("{}{}-{}", if self.is_internal { "i" } else { "" }, self.size, self.seconds)
    }

    /// How long the stream keeps what is in it.
    pub(super) fn keep(self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

impl Names {
    /// Names below a prefix of `[A-Za-z0-9_-]`.
    pub(super) fn new(prefix: &str, partitions: u16) -> Self {
        Self { prefix: prefix.to_owned(), partitions }
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition of a channel: the same for ever and on all nodes.
    pub(super) fn partition(&self, channel: &str) -> u16 {
        let partition = fnv1a(channel.as_bytes()) % u64::from(self.partitions);
        u16::try_from(partition).expect("it is below a 16-bit number")
    }

    /// The stream of that short name.
    pub(super) fn stream(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    /// A subject of these tokens below the prefix. The caller encodes what needs it ([`token`]).
    pub(super) fn subject(&self, tokens: &[&str]) -> String {
        let mut subject = self.prefix.clone();
        for token in tokens {
            subject.push('.');
            subject.push_str(token);
        }
        subject
    }

    /// The stream of a class.
    pub(super) fn class_stream(&self, class: Class) -> String {
        let kind = if class.is_internal { 'I' } else { 'H' };
        self.stream(&format!("{kind}{}_{}", class.size, class.seconds))
    }

    /// The class whose stream has this name.
    pub(super) fn class_of_stream(&self, stream: &str) -> Option<Class> {
        let name = stream.strip_prefix(&self.prefix)?;
        let internal = name.strip_prefix("_I");
        let (size, seconds) = internal.or_else(|| name.strip_prefix("_H"))?.split_once('_')?;
        Some(Class { size: size.parse().ok()?, seconds: seconds.parse().ok()?, is_internal: internal.is_some() })
    }

    /// Everything in the stream of a class.
    pub(super) fn class_subjects(&self, class: Class) -> String {
        format!("{}.s.{}.>", self.prefix, class.token())
    }

    /// Where a channel's publications are stored.
    pub(super) fn stored(&self, class: Class, channel: &str) -> String {
        self.in_class(class, self.partition(channel), &token(channel))
    }

    /// Where all channels' publications are stored.
    pub(super) fn all_stored(&self) -> String {
        format!("{}.s.>", self.prefix)
    }

    /// Where a channel's publications are stored, whatever its class.
    pub(super) fn stored_in_any_class(&self, channel: &str) -> String {
        format!("{}.s.*.{}.{}", self.prefix, self.partition(channel), token(channel))
    }

    /// Where the version of a channel's last versioned publication is stored.
    pub(super) fn version(&self, class: Class, channel: &str) -> String {
        format!("{}.v", self.stored(class, channel))
    }

    /// Where barriers of a partition are written.
    pub(super) fn barrier(&self, class: Class, partition: u16) -> String {
        self.in_class(class, partition, BARRIER)
    }

    fn in_class(&self, class: Class, partition: u16, token: &str) -> String {
        format!("{}.s.{}.{partition}.{token}", self.prefix, class.token())
    }

    /// Where publications without history are written that must not be repeated.
    pub(super) fn once(&self, channel: &str) -> String {
        format!("{}.o.{}.{}", self.prefix, self.partition(channel), token(channel))
    }

    /// Where a channel's deliveries come from.
    pub(super) fn live(&self, channel: &str) -> String {
        format!("{}.l.{}.{}", self.prefix, self.partition(channel), token(channel))
    }

    /// Where all deliveries of a partition come from.
    pub(super) fn live_partition(&self, partition: u16) -> String {
        format!("{}.l.{partition}.*", self.prefix)
    }

    /// Where streams are told to copy to what they take.
    pub(super) fn live_all(&self) -> String {
        format!("{}.l.>", self.prefix)
    }
}

/// The last token of barriers: the encoding of no channel's name.
pub(super) const BARRIER: &str = "%-b";

/// A name as one token of a subject.
pub(super) fn token(name: &str) -> String {
    if name.is_empty() {
        return "%".to_owned();
    }
    let mut token = String::with_capacity(name.len());
    encode(name, &mut token);
    token
}

/// The name that a token stands for; `None` if it stands for none.
pub(super) fn name_of(token: &str) -> Option<String> {
    if token == "%" { Some(String::new()) } else { decode(token) }
}

/// The hash FNV-1a with 64 bits, as its authors describe it. Part of how channels are stored: never to be changed.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("ek", 1024)
    }

    #[test]
    fn partitions_stay_what_they_are() {
        // Test vectors of the authors of FNV.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(names().partition("a"), 0x8c);
        assert_eq!(names().partition("foobar"), 0x3e8);
    }

    #[test]
    fn subjects_have_the_tokens_they_should() {
        let class = Class { size: 100, seconds: 3600, is_internal: false };
        assert_eq!(names().stored(class, "a"), "ek.s.100-3600.140.a");
        assert_eq!(
            names().stored(class, "a.b *>%"),
            "ek.s.100-3600.1018.a%2Eb%20%2A%3E%25".replace("1018", &names().partition("a.b *>%").to_string())
        );
        assert_eq!(names().live(""), "ek.l.805.%".replace("805", &names().partition("").to_string()));
        assert_eq!(names().version(class, "a"), "ek.s.100-3600.140.a.v");
        assert_eq!(names().subject(&["p", "x"]), "ek.p.x");
    }

    #[test]
    fn classes_come_back_from_stream_names() {
        let class = Class { size: 100, seconds: 3600, is_internal: false };
        let stream = names().class_stream(class);
        assert_eq!(stream, "ek_H100_3600");
        assert_eq!(names().class_of_stream(&stream), Some(class));
        let internal = Class { is_internal: true, ..class };
        assert_eq!(names().class_stream(internal), "ek_I100_3600");
        assert_eq!(names().class_of_stream("ek_I100_3600"), Some(internal));
        for other in ["ek_once", "ek_H_1", "ek_H1", "xx_H1_1", "ek_H1_x"] {
            assert_eq!(names().class_of_stream(other), None, "{other}");
        }
    }

    #[test]
    fn a_class_keeps_what_was_promised() {
        let options = |size, ttl, meta_ttl| HistoryOptions {
            size,
            ttl: Duration::from_millis(ttl),
            meta_ttl: Duration::from_millis(meta_ttl),
        };
        let of = |options| Class::of("a", &options);
        let class = |size, seconds| Class { size, seconds, is_internal: false };
        assert_eq!(of(options(0, 1, 2)), class(1, 300));
        assert_eq!(of(options(9, 1_000, 3_600_001)), class(9, 3601));
        assert_eq!(of(options(9, 7_200_000, 1)), class(9, 7200));
        let for_ever = HistoryOptions { size: 1, ttl: Duration::MAX, meta_ttl: Duration::MAX };
        assert_eq!(of(for_ever).seconds, CENTURY);
        assert!(Class::of("\u{1}control", &for_ever).is_internal);
    }
}
