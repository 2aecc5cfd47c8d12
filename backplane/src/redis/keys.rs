//! Every key and pub/sub name this backplane uses.
//!
//! `<p>` is the configured prefix, `<c>` an encoded channel name, `<l>` a lease id (32 hexadecimal digits), `<u>` an
//! encoded user id, `<s>` an encoded session id. The braces are literal: they are the hash tag which keeps everything of a
//! channel, a user and so on on one node of a Redis Cluster, as the scripts require.
//!
//! | Key | Type | Content | Expires |
//! |---|---|---|---|
//! | `<p>:{<c>}:m` | hash | `s` top offset, `e` epoch, `l` replication id of the last publish, `v` and `ve` version | `meta_ttl` after the last use |
//! | `<p>:{<c>}:s` | stream | publications: entry id `<offset>-0`, `d` record, `p` offset before it | `ttl` after the last publish |
//! | `<p>:{<c>}:i:<key>` | string | result of the publish with this idempotency key | [`IDEMPOTENCY_TTL`](crate::IDEMPOTENCY_TTL) |
//! | `<p>:{<c>}:p` | hash | presence: client id (16 bytes) to lease id (16 bytes) and record | with its last entry |
//! | `<p>:{<c>}:w` | string | marker of a wait for replicas | 1 s after it was written |
//! | `<p>:{<c>}:c` | pub/sub name | deliveries | - |
//! | `<p>:leases` | hash | lease ids that may have presence entries, to the node's name | never |
//! | `<p>:buckets` | sorted set | buckets of presence entries that linger, to the time when they are emptied | with its last member |
//! | `<p>:l:<l>` | string | present while the lease lives | 30 s after its last renewal |
//! | `<p>:x:<l>` | set | names of the channels in which the lease, or bucket, has entries | with its last member |
//! | `<p>:n:{nodes}:r` | hash | node id (16 bytes) to what it reports | a minute after the last report |
//! | `<p>:n:{nodes}:t` | sorted set | node id to the time of its report in microseconds | like the reports |
//! | `<p>:r:{<name>}:h` | hash | lease on a role: `h` holder, `t` token, `l` replication id when it was given | with the lease |
//! | `<p>:r:{<name>}:t` | string | last token of the role | 30 days after it was given |
//! | `<p>:u:{<u>}:s:<s>` | hash | session: `v` revision, `d` data, `a` revision when it was last authorised | its `ttl` |
//! | `<p>:u:{<u>}:w` | sorted set | encoded ids of the user's sessions to their revisions | with the last session |
//! | `<p>:u:{<u>}:x` | string | revisions up to this one are revoked | not before the last session |
//!
//! Channel names, idempotency keys, user and session ids are percent-encoded but for `[A-Za-z0-9_-]`, so that no name can close the hash
//! tag, look like another key, or contain a pattern character.

use uuid::Uuid;

use crate::encoding::{encode, is_plain};

/// Builds key names under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

/// The keys of one channel that a publish or a read touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelKeys {
    /// The common part, up to the last colon.
    stem: String,
}

/// The keys of one user's sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserKeys {
    /// The common part, up to the last colon.
    stem: String,
}

impl Keys {
    /// Keys below `prefix`, which must consist of `[A-Za-z0-9_.:-]`; `None` if it does not or is empty.
    pub fn new(prefix: &str) -> Option<Self> {
        let legal = |byte: u8| is_plain(byte) || matches!(byte, b'.' | b':');
        (!prefix.is_empty() && prefix.bytes().all(legal)).then(|| Self { prefix: prefix.to_owned() })
    }

    /// The keys of a channel.
    pub fn channel(&self, channel: &str) -> ChannelKeys {
        ChannelKeys { stem: format!("{}:{}", self.prefix, tag(channel)) }
    }

    /// The keys of a user's sessions.
    pub fn user(&self, user: &str) -> UserKeys {
        UserKeys { stem: format!("{}:u:{}", self.prefix, tag(user)) }
    }

    /// The keys of a user that nobody can be, to try things out.
    pub fn nobody(&self) -> UserKeys {
        UserKeys { stem: format!("{}:u:{{%%}}:", self.prefix) }
    }

    /// What nodes report.
    pub fn reports(&self) -> String {
        format!("{}:n:{{nodes}}:r", self.prefix)
    }

    /// When they reported.
    pub fn report_times(&self) -> String {
        format!("{}:n:{{nodes}}:t", self.prefix)
    }

    /// The lease on a role, whose name needs no encoding.
    pub fn role(&self, name: &str) -> String {
        format!("{}:r:{{{name}}}:h", self.prefix)
    }

    /// The last token of a role.
    pub fn role_token(&self, name: &str) -> String {
        format!("{}:r:{{{name}}}:t", self.prefix)
    }

    /// The keys of a channel that no client can use, another one for each number: a percent sign followed by a hyphen is
    /// not in the encoding of any name.
    pub(super) fn probe(&self, number: u32) -> ChannelKeys {
        ChannelKeys { stem: format!("{}:{{%-{number}}}:", self.prefix) }
    }

    /// The table of leases that may have presence entries.
    pub fn leases(&self) -> String {
        format!("{}:leases", self.prefix)
    }

    /// The buckets of presence entries that linger.
    pub fn buckets(&self) -> String {
        format!("{}:buckets", self.prefix)
    }

    /// What lives as long as a lease.
    pub fn lease(&self, lease: Uuid) -> String {
        format!("{}:l:{}", self.prefix, lease.simple())
    }

    /// The channels in which a lease has entries.
    pub fn lease_channels(&self, lease: Uuid) -> String {
        format!("{}:x:{}", self.prefix, lease.simple())
    }
}

impl ChannelKeys {
    /// Top, epoch, lineage and version.
    pub fn meta(&self) -> String {
        self.with("m")
    }

    /// The retained publications.
    pub fn stream(&self) -> String {
        self.with("s")
    }

    /// The presence entries.
    pub fn presence(&self) -> String {
        self.with("p")
    }

    /// Written to see whether replicas have it.
    pub fn marker(&self) -> String {
        self.with("w")
    }

    /// The pub/sub name.
    pub fn pubsub(&self) -> String {
        self.with("c")
    }

    /// The result of an idempotency key.
    pub fn idempotency(&self, key: &str) -> String {
        let mut name = self.with("i:");
        encode(key, &mut name);
        name
    }

    fn with(&self, end: &str) -> String {
        format!("{}{end}", self.stem)
    }
}

impl UserKeys {
    /// A session's record. The name ends with the encoded id.
    pub fn session(&self, session: &str) -> String {
        format!("{}s:{}", self.stem, Self::encoded(session))
    }

    /// The order in which sessions were written.
    pub fn written(&self) -> String {
        format!("{}w", self.stem)
    }

    /// Up to where sessions are revoked.
    pub fn revoked(&self) -> String {
        format!("{}x", self.stem)
    }

    /// The id of a session as the order and the end of its key have it.
    pub fn encoded(session: &str) -> String {
        let mut encoded = String::new();
        encode(session, &mut encoded);
        encoded
    }
}

/// The hash tag of a name, with the colon after it.
fn tag(name: &str) -> String {
    // An empty hash tag would be none. A lone percent sign is not the encoding of any name.
    let mut tag = if name.is_empty() { "{%".to_owned() } else { "{".to_owned() };
    encode(name, &mut tag);
    tag.push_str("}:");
    tag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::new("ek").expect("a legal prefix")
    }

    fn hash_tag(key: &str) -> Option<String> {
        key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag.to_owned())
    }

    #[test]
    fn names_are_as_documented() {
        let channel = keys().channel("chat:{a}.b%");
        assert_eq!(channel.meta(), "ek:{chat%3A%7Ba%7D%2Eb%25}:m");
        assert_eq!(channel.pubsub(), "ek:{chat%3A%7Ba%7D%2Eb%25}:c");
        assert_eq!(channel.idempotency("k:1"), "ek:{chat%3A%7Ba%7D%2Eb%25}:i:k%3A1");
        assert_eq!(keys().channel("").stream(), "ek:{%}:s");
        assert_eq!(keys().lease(Uuid::nil()), format!("ek:l:{}", "0".repeat(32)));
        let user = keys().user("a{b}");
        assert_eq!(user.session("s:1"), "ek:u:{a%7Bb%7D}:s:s%3A1");
        assert_eq!((user.written().as_str(), user.revoked().as_str()), ("ek:u:{a%7Bb%7D}:w", "ek:u:{a%7Bb%7D}:x"));
        assert_eq!(keys().user("").session(""), "ek:u:{%}:s:");
        assert_eq!((keys().reports().as_str(), keys().role("a").as_str()), ("ek:n:{nodes}:r", "ek:r:{a}:h"));
    }

    #[test]
    fn prefixes_cannot_hold_a_hash_tag() {
        for prefix in ["", "a{b", "a}", "a b", "\u{e4}", "a*"] {
            assert!(Keys::new(prefix).is_none(), "{prefix:?}");
        }
        assert!(Keys::new("prod:ek-1_x.y").is_some());
    }

    proptest! {
        #[test]
        fn different_channels_have_different_keys(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(keys().channel(&a) == keys().channel(&b), a == b);
        }

        /// The first pair of braces is the tag, and it holds the same for each key of the channel.
        #[test]
        fn one_hash_tag_per_channel(name in ".{0,12}", key in ".{0,12}") {
            let channel = keys().channel(&name);
            let expected = hash_tag(&channel.meta());
            prop_assert!(expected.as_deref().is_some_and(|tag| !tag.is_empty()));
            for other in [channel.stream(), channel.presence(), channel.marker(), channel.pubsub(), channel.idempotency(&key)] {
                prop_assert_eq!(hash_tag(&other), expected.clone());
            }
        }

        /// The same for a user, and no two sessions share a record.
        #[test]
        fn one_hash_tag_per_user(name in ".{0,12}", one in ".{0,12}", other in ".{0,12}") {
            let user = keys().user(&name);
            let expected = hash_tag(&user.written());
            prop_assert!(expected.as_deref().is_some_and(|tag| !tag.is_empty()));
            for key in [user.session(&one), user.revoked()] {
                prop_assert_eq!(hash_tag(&key), expected.clone());
            }
            prop_assert!(user != keys().nobody());
            prop_assert_eq!(user.session(&one) == user.session(&other), one == other);
            prop_assert_eq!(user.session(&one) == keys().user(&other).session(&one), name == other);
        }
    }
}
