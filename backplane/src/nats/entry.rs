//! Entries of presence as they are stored.
//!
//! The entry of a client that is there is the record of its leave, because that is what becomes of it. Before that record
//! there is more when the client has gone:
//!
//! | | |
//! |---|---|
//! | mark | one byte: `W` it waits, `G` it goes; records begin with another one |
//! | version | one byte, 1 |
//! | until | 64 bits: the end of waiting, in nanoseconds since 1970 by the server's clock |
//! | id | 64 bits, random, so that a row is told from another one with its number |
//!
//! Numbers have their most significant byte first.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::request::Stored;
use super::table::{Answer, unreadable};
use crate::record::{Record, decode, encode_presence};
use crate::{ClientId, ClientInfo, PresenceEvent};

const VERSION: u8 = 1;
const WAITS: u8 = b'W';
const GOES: u8 = b'G';

/// Bytes before the record of a client that has gone.
const HEAD: usize = 18;

/// An entry that nobody has removed so long after its time, for whatever reason, is not shown any more, in nanoseconds.
const FORGOTTEN: u64 = 600 * 1_000_000_000;

/// What is known of a client by its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It is connected to the node under whose lease the entry is.
    Present,
    /// It may come back until this time of the server, in nanoseconds since 1970. The lease does not matter any more.
    Lingers { until: u64 },
    /// Its leave is being announced, and whoever finds the entry has to see to it.
    Leaves,
}

/// An entry, as it was read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) subject: String,
    /// The number of its row.
    pub(super) number: u64,
    /// When it was written, by the server's clock, in nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) lease: Uuid,
    pub(super) client: ClientId,
    pub(super) state: State,
    /// The record of its leave.
    pub(super) record: Bytes,
}

/// The record of a client that is there.
pub(super) fn record(info: &Arc<ClientInfo>) -> Bytes {
    encode_presence(&PresenceEvent::Leave(Arc::clone(info))).into()
}

/// What to write for a client in this state.
pub(super) fn payload(state: State, record: &Bytes) -> Bytes {
    let (mark, until) = match state {
        State::Present => return record.clone(),
        State::Lingers { until } => (WAITS, until),
        State::Leaves => (GOES, 0),
    };
    let mut out = Vec::with_capacity(HEAD + record.len());
    out.extend([mark, VERSION]);
    out.extend(until.to_be_bytes());
    out.extend(rand::random::<[u8; 8]>());
    out.extend_from_slice(record);
    out.into()
}

impl Entry {
    pub(super) fn parse(row: Stored) -> Answer<Self> {
        let mut tokens = row.subject.rsplit('.').map(Uuid::try_parse);
        let (Some(Ok(client)), Some(Ok(lease))) = (tokens.next(), tokens.next()) else {
            return Err(unreadable(&row.subject, "it is not that of an entry"));
        };
        let (state, record) = state(&row)?;
        let Stored { number, subject, time, .. } = row;
        Ok(Self { subject, number, time, lease, client: ClientId(client), state, record })
    }

    /// Its channel, as it stands in the subject.
    pub(super) fn channel_token(&self) -> &str {
        self.subject.rsplit('.').nth(2).unwrap_or_default()
    }

    /// The client.
    pub(super) fn info(&self) -> Answer<Arc<ClientInfo>> {
        match decode(&self.record, None) {
            Ok(Record::Presence(PresenceEvent::Join(info) | PresenceEvent::Leave(info))) => Ok(info),
            Ok(Record::Publication(_)) => Err(unreadable(&self.subject, "it is a publication")),
            Err(error) => Err(unreadable(&self.subject, error)),
        }
    }

    /// Whether the client of an entry that lingers, or leaves, is to be shown; `None` for one under a lease.
    pub(super) fn is_shown(&self, now: u64) -> Option<bool> {
        match self.state {
            State::Present => None,
            State::Lingers { until } => Some(now < until.saturating_add(FORGOTTEN)),
            State::Leaves => Some(false),
        }
    }

    /// Whether there is still time to come back.
    pub(super) fn has_time(&self, now: u64) -> bool {
        matches!(self.state, State::Lingers { until } if now < until)
    }
}

fn state(row: &Stored) -> Answer<(State, Bytes)> {
    let mark = row.payload.first().copied();
    if !matches!(mark, Some(WAITS | GOES)) {
        return Ok((State::Present, row.payload.clone()));
    }
    let short = || unreadable(&row.subject, "it ends too early");
    let head = row.payload.get(..HEAD).ok_or_else(short)?;
    if head[1] != VERSION {
        return Err(unreadable(&row.subject, format!("version {}, this node reads version {VERSION}", head[1])));
    }
    let until = head[2..10].try_into().map(u64::from_be_bytes).map_err(|_| short())?;
    let state = if mark == Some(WAITS) { State::Lingers { until } } else { State::Leaves };
    Ok((state, row.payload.slice(HEAD..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(payload: Bytes) -> Stored {
        let (lease, client) = (Uuid::from_u128(1).simple(), Uuid::from_u128(2).simple());
        Stored { number: 7, subject: format!("ek.p.e.a%2Eb.{lease}.{client}"), time: 5, payload }
    }

    #[test]
    fn entries_come_back_in_every_state_and_others_are_refused() {
        let client = ClientId(Uuid::from_u128(2));
        let info = ClientInfo { client, user: "ann".into(), conn_info: Bytes::new(), chan_info: Bytes::new() };
        let info = Arc::new(info);
        for state in [State::Present, State::Lingers { until: 1 << 60 }, State::Leaves] {
            let written = payload(state, &record(&info));
            let entry = Entry::parse(stored(written.clone())).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((entry.state, entry.lease, entry.client), (state, Uuid::from_u128(1), client));
            assert_eq!((entry.channel_token(), entry.info()), ("a%2Eb", Ok(Arc::clone(&info))));
            if state != State::Present {
                for length in 1..HEAD {
                    assert!(Entry::parse(stored(written.slice(..length))).is_err(), "{length} bytes");
                }
                let newer = [&written[..1], &[VERSION + 1], &written[2..]].concat();
                assert!(Entry::parse(stored(newer.into())).is_err());
            }
        }
        assert!(Entry::parse(Stored { subject: "ek.p.k.a".to_owned(), ..stored(Bytes::new()) }).is_err());
    }

    #[test]
    fn who_lingers_is_shown_also_somewhat_later() {
        let at = |state| Entry::parse(stored(payload(state, &Bytes::new()))).unwrap_or_else(|error| panic!("{error}"));
        let lingers = at(State::Lingers { until: 100 });
        assert!(lingers.has_time(99) && !lingers.has_time(100));
        assert_eq!((lingers.is_shown(100), lingers.is_shown(100 + FORGOTTEN)), (Some(true), Some(false)));
        assert_eq!((at(State::Leaves).is_shown(0), at(State::Present).is_shown(0)), (Some(false), None));
    }
}
