//! Sessions that outlive a connection (design section 4).
//!
//! Reading order: this page (settings, ids), [`record`] (what is kept, and the pure decision what a connection gets of it),
//! [`store`] (reading and writing records), [`verdict`] (what the application has said about a client, and to which
//! question it is the answer), [`recall`] (finding that before the user is known). What a shard does about them is
//! `shard/resume.rs` and `shard/verdicts.rs`.
//!
//! # Who may have what
//! - A record is kept under user **and** session id, and looked up only after the user was authenticated: another user's
//!   id finds nothing.
//! - The id is a name, not a secret, except for anonymous users, who share one user id: there it must have 22 characters
//!   (128 bits in base64), and it is off unless configured.
//! - Tokens are verified on every connect. A record adds to what the token grants only what the server API had given to
//!   this very session, and nothing after a revocation: `disconnect`, `unsubscribe` and `refresh` of the server API
//!   revoke all records of the user, and a revoked record is not resumed.
//! - What the application has said when it was asked about a connect or a subscribe is said again to a client that comes
//!   back, for `session.verdict_ttl` after it was asked, if the question is the same: see `docs/proxies.md`. Only where
//!   the question has something of the client in it, so that the id alone lets nobody in, and only while the session of
//!   the user it was about is there and was not revoked.
//! - The id is part of the address, so addresses are never logged.

pub mod recall;
pub mod record;
pub mod store;
pub mod verdict;

use std::time::Duration;

/// Lengths of an id.
const ID_BYTES: std::ops::RangeInclusive<usize> = 8..=64;

/// The shortest id of an anonymous user: 128 random bits in base64.
const ANONYMOUS_ID_BYTES: usize = 22;

/// What an operator can set about sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionSettings {
    /// Clients may have sessions.
    pub enabled: bool,
    /// How long a session outlives its last connection. 2 min: longer than a phone needs to find another network.
    pub ttl: Duration,
    /// How long a member of a channel may be away before others are told. 25 s: more than the longest pause between two
    /// attempts of the SDKs (20 s), and below what people take for a delay.
    pub presence_grace: Duration,
    /// How long what the application has said about a client is said again without asking. 60 s: a storm of clients that
    /// come back is over by then, and whoever forgets to tell the gateway about a ban waits no longer. Zero always asks.
    pub verdict_ttl: Duration,
    /// Anonymous users may have sessions, with ids of at least 22 characters.
    pub anonymous: bool,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            ttl: Duration::from_secs(120),
            presence_grace: Duration::from_secs(25),
            verdict_ttl: Duration::from_secs(60),
            anonymous: false,
        }
    }
}

/// Whether a client may call its session so.
pub fn is_valid_id(id: &str) -> bool {
    ID_BYTES.contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Whether the id is long enough to be a secret.
pub(crate) fn is_secret(id: &str) -> bool {
    id.len() >= ANONYMOUS_ID_BYTES
}

/// The id of a session in the query of an address: `Ok(None)` without one, an error for one that is not valid.
pub fn requested(query: &str) -> Result<Option<Box<str>>, InvalidId> {
    let mut ids = query.split('&').filter_map(|pair| pair.strip_prefix("session="));
    match (ids.next(), ids.next()) {
        (None, _) => Ok(None),
        // Every character of an id stands for itself in an address, so nothing has to be decoded.
        (Some(id), None) if is_valid_id(id) => Ok(Some(id.into())),
        (Some(_), _) => Err(InvalidId),
    }
}

/// The address asks for a session with an id that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("session must be 8 to 64 of the characters A-Z a-z 0-9 _ -, given once")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_from_the_query_and_checked() {
        let id = |id: &str| Ok(Some(Box::from(id)));
        let long = "x".repeat(64);
        for (query, expected) in [
            ("", Ok(None)),
            ("format=protobuf", Ok(None)),
            ("xsession=12345678", Ok(None)),
            ("session=12345678", id("12345678")),
            ("a=b&session=Aa_-1234&c", id("Aa_-1234")),
            (&format!("session={long}"), id(&long)),
            (&format!("session={long}x"), Err(InvalidId)),
            ("session=", Err(InvalidId)),
            ("session=1234567", Err(InvalidId)),
            ("session=1234%355678", Err(InvalidId)),
            ("session=1234 5678", Err(InvalidId)),
            ("session=12345678&session=12345678", Err(InvalidId)),
        ] {
            assert_eq!(requested(query), expected, "{query}");
        }
        assert!(is_secret(&"x".repeat(22)) && !is_secret(&"x".repeat(21)));
    }
}
