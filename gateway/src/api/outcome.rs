//! What a command answers, and its JSON (protocol section 7.2).
//!
//! Payloads are embedded as they are. One that is not JSON cannot be: its field is then `null` (or absent, where it is
//! optional), and a field with the prefix `b64` beside it holds the base64, as in requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use backplane::{
    ChannelName, ClientId, ClientInfo, HistoryPage, PresenceStats, Publication, StoredPublication, StreamPosition,
};
use base64::Engine;
use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::error::ApiError;
use super::info::NodeInfo;
use super::request::{BASE64, Method};
use crate::sessions::store::{StateWrite, View};

/// The result of a command that was carried out.
#[derive(Debug)]
pub enum Outcome {
    /// There is nothing to tell.
    Done,
    /// Where the publication is, if it was stored.
    Published(Option<StreamPosition>),
    /// The same for each channel.
    Broadcast(Vec<Result<Option<StreamPosition>, ApiError>>),
    /// The members of a channel.
    Presence(Vec<Arc<ClientInfo>>),
    /// How many they are.
    PresenceStats(PresenceStats),
    /// A part of a stream.
    History(HistoryPage),
    /// Channels and their numbers of subscribers.
    Channels(BTreeMap<ChannelName, usize>),
    /// The nodes.
    Info(Vec<NodeInfo>),
    /// A session, if there is one.
    Session(Option<View>),
    /// What became of a state.
    State(StateWrite),
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Done => serializer.serialize_map(Some(0))?.end(),
            Self::Published(position) => PositionView(position.as_ref()).serialize(serializer),
            Self::Broadcast(responses) => {
                let views =
                    Seq(|| responses.iter().map(|response| Answer::of(response.as_ref().map(PositionView::of))));
                one(serializer, "responses", &views)
            }
            Self::Presence(members) => one(serializer, "presence", &PresenceView(members)),
            Self::PresenceStats(stats) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("num_clients", &stats.num_clients)?;
                map.serialize_entry("num_users", &stats.num_users)?;
                map.end()
            }
            Self::History(page) => {
                let mut map = serializer.serialize_map(Some(3))?;
                map.serialize_entry("publications", &Seq(|| page.publications.iter().map(PublicationView::of)))?;
                map.serialize_entry("epoch", page.top.epoch.as_str())?;
                map.serialize_entry("offset", &page.top.offset.0)?;
                map.end()
            }
            Self::Channels(channels) => one(serializer, "channels", &ChannelsView(channels)),
            Self::Info(nodes) => one(serializer, "nodes", nodes),
            Self::Session(view) => SessionView(view.as_ref()).serialize(serializer),
            Self::State(write) => {
                let (stored, exists, revision) = match write {
                    StateWrite::Stored(revision) => (true, true, *revision),
                    StateWrite::Conflict(revision) => (false, true, *revision),
                    StateWrite::NoSession | StateWrite::TooLarge => (false, false, 0),
                };
                let mut map = serializer.serialize_map(Some(3))?;
                map.serialize_entry("stored", &stored)?;
                map.serialize_entry("exists", &exists)?;
                map.serialize_entry("revision", &revision)?;
                map.end()
            }
        }
    }
}

/// `{"result": ...}` or `{"error": ...}`.
pub(super) enum Answer<'a, T> {
    Result(T),
    Error(&'a ApiError),
}

impl<'a, T> Answer<'a, T> {
    pub fn of(result: Result<T, &'a ApiError>) -> Self {
        match result {
            Ok(result) => Self::Result(result),
            Err(error) => Self::Error(error),
        }
    }
}

impl<T: Serialize> Serialize for Answer<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Result(result) => one(serializer, "result", result),
            Self::Error(error) => one(serializer, "error", error),
        }
    }
}

/// `{"<method>": ...}` or `{"error": ...}`: one of the replies of a batch.
#[derive(Debug)]
pub(super) enum Reply {
    Result(Method, Outcome),
    Error(ApiError),
}

impl Serialize for Reply {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Result(method, outcome) => one(serializer, method.name(), outcome),
            Self::Error(error) => one(serializer, "error", error),
        }
    }
}

/// The replies of a batch, which are not wrapped in a result.
pub(super) struct Replies<'a>(pub &'a [Reply]);

impl Serialize for Replies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        one(serializer, "replies", self.0)
    }
}

fn one<S: Serializer>(serializer: S, key: &str, value: &(impl Serialize + ?Sized)) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

/// A list that is made while it is written.
struct Seq<F>(F);

impl<F, I> Serialize for Seq<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0())
    }
}

/// Both fields, or neither.
struct PositionView<'a>(Option<&'a StreamPosition>);

impl<'a> PositionView<'a> {
    fn of(position: &'a Option<StreamPosition>) -> Self {
        Self(position.as_ref())
    }
}

impl Serialize for PositionView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(position) = self.0 {
            map.serialize_entry("offset", &position.offset.0)?;
            map.serialize_entry("epoch", position.epoch.as_str())?;
        }
        map.end()
    }
}

struct SessionView<'a>(Option<&'a View>);

impl Serialize for SessionView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("exists", &self.0.is_some())?;
        if let Some(view) = self.0 {
            map.serialize_entry("client", &IdView(view.client))?;
            map.serialize_entry("connected", &view.is_connected)?;
            for (name, is_so) in [("forked", view.is_forked), ("revoked", view.is_revoked)] {
                if is_so {
                    map.serialize_entry(name, &true)?;
                }
            }
            if let Some(state) = view.state.as_ref().and_then(|state| json(state.as_bytes())) {
                map.serialize_entry("state", state)?;
            }
            map.serialize_entry("revision", &view.revision)?;
        }
        map.end()
    }
}

struct PublicationView<'a>(&'a Publication);

impl<'a> PublicationView<'a> {
    fn of(stored: &'a StoredPublication) -> Self {
        Self(&stored.publication)
    }
}

impl Serialize for PublicationView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let publication = self.0;
        let mut map = serializer.serialize_map(None)?;
        match json(&publication.data) {
            Some(data) => map.serialize_entry("data", data)?,
            None => {
                // API clients insist on `data`.
                map.serialize_entry("data", &())?;
                map.serialize_entry("b64data", &BASE64.encode(&publication.data))?;
            }
        }
        if let Some(offset) = publication.offset {
            map.serialize_entry("offset", &offset.0)?;
        }
        if let Some(info) = &publication.info {
            map.serialize_entry("info", &InfoView(info))?;
        }
        if !publication.tags.is_empty() {
            map.serialize_entry("tags", &publication.tags)?;
        }
        map.end()
    }
}

struct PresenceView<'a>(&'a [Arc<ClientInfo>]);

impl Serialize for PresenceView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|info| (IdView(info.client), InfoView(info))))
    }
}

struct IdView(ClientId);

impl Serialize for IdView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

struct InfoView<'a>(&'a ClientInfo);

impl Serialize for InfoView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("user", self.0.user.as_str())?;
        map.serialize_entry("client", &IdView(self.0.client))?;
        optional(&mut map, "conn_info", "b64conn_info", &self.0.conn_info)?;
        optional(&mut map, "chan_info", "b64chan_info", &self.0.chan_info)?;
        map.end()
    }
}

fn optional<M: SerializeMap>(map: &mut M, name: &str, base64_name: &str, payload: &Bytes) -> Result<(), M::Error> {
    match json(payload) {
        _ if payload.is_empty() => Ok(()),
        Some(json) => map.serialize_entry(name, json),
        None => map.serialize_entry(base64_name, &BASE64.encode(payload)),
    }
}

struct ChannelsView<'a>(&'a BTreeMap<ChannelName, usize>);

impl Serialize for ChannelsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Count(usize);
        impl Serialize for Count {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                one(serializer, "num_clients", &self.0)
            }
        }
        serializer.collect_map(self.0.iter().map(|(channel, subscribers)| (channel.as_str(), Count(*subscribers))))
    }
}

/// The payload, if it can be embedded.
fn json(payload: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(payload).ok()
}

/// Appends the JSON of an answer.
pub(super) fn write(answer: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, answer).expect("memory takes every write, and every key of an answer is a string");
}

#[cfg(test)]
mod tests {
    use backplane::{Epoch, Offset, Previous, UserId};

    use super::*;
    use crate::api::error::ErrorCode;

    fn check(outcome: &Outcome, expected: &str) {
        let mut out = Vec::new();
        write(outcome, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    fn position(offset: u64) -> StreamPosition {
        StreamPosition { epoch: Epoch::from("e\"1"), offset: Offset(offset) }
    }

    fn info(conn_info: &'static [u8], chan_info: &'static [u8]) -> Arc<ClientInfo> {
        let client = ClientId::parse("6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11").unwrap();
        let [conn_info, chan_info] = [conn_info, chan_info].map(Bytes::from_static);
        Arc::new(ClientInfo { client, user: UserId::from("u\u{e9}"), conn_info, chan_info })
    }

    fn stored(publication: Publication) -> StoredPublication {
        StoredPublication { publication: Arc::new(publication), previous: Previous::Unknown }
    }

    #[test]
    fn positions_have_both_fields_or_none() {
        check(&Outcome::Done, "{}");
        check(&Outcome::Published(None), "{}");
        check(&Outcome::Published(Some(position(9))), r#"{"offset":9,"epoch":"e\"1"}"#);
        let responses = vec![Ok(Some(position(1))), Err(ErrorCode::UnknownChannel.into()), Ok(None)];
        check(
            &Outcome::Broadcast(responses),
            r#"{"responses":[{"result":{"offset":1,"epoch":"e\"1"}},{"error":{"code":102,"message":"unknown channel"}},{"result":{}}]}"#,
        );
    }

    #[test]
    fn payloads_are_embedded_as_they_are() {
        let plain = Publication {
            offset: Some(Offset(1)),
            data: Bytes::from_static(b"{\"a\" :1.50}"),
            info: None,
            tags: BTreeMap::new(),
        };
        let full = Publication {
            offset: Some(Offset(2)),
            data: Bytes::from_static(b"null"),
            info: Some(info(b"{\"n\":1}", b"")),
            tags: BTreeMap::from([("kind".to_owned(), "system".to_owned())]),
        };
        let binary =
            Publication { data: Bytes::from_static(&[0, 1, 2]), info: Some(info(b"\xff", b"no")), ..plain.clone() };
        let empty = Publication { offset: None, data: Bytes::new(), ..plain.clone() };
        let publications = vec![stored(plain), stored(full), stored(binary), stored(empty)];
        let page = HistoryPage { top: position(9), publications, covered: false };
        check(
            &Outcome::History(page),
            concat!(
                r#"{"publications":[{"data":{"a" :1.50},"offset":1},"#,
                r#"{"data":null,"offset":2,"info":{"user":"ué","client":"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11","conn_info":{"n":1}},"tags":{"kind":"system"}},"#,
                r#"{"data":null,"b64data":"AAEC","offset":1,"info":{"user":"ué","client":"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11","b64conn_info":"/w==","b64chan_info":"bm8="}},"#,
                r#"{"data":null,"b64data":""}],"epoch":"e\"1","offset":9}"#
            ),
        );
        let page = HistoryPage { top: position(0), publications: Vec::new(), covered: false };
        check(&Outcome::History(page), r#"{"publications":[],"epoch":"e\"1","offset":0}"#);
    }

    #[test]
    fn lists_are_there_even_when_empty() {
        check(&Outcome::Presence(Vec::new()), r#"{"presence":{}}"#);
        check(&Outcome::PresenceStats(PresenceStats::default()), r#"{"num_clients":0,"num_users":0}"#);
        check(&Outcome::Channels(BTreeMap::new()), r#"{"channels":{}}"#);
        check(
            &Outcome::Presence(vec![info(b"", b"[1]")]),
            r#"{"presence":{"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11":{"user":"ué","client":"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11","chan_info":[1]}}}"#,
        );
        check(
            &Outcome::Channels(BTreeMap::from([(ChannelName::from("a:b"), 2), (ChannelName::from("c\""), 1)])),
            r#"{"channels":{"a:b":{"num_clients":2},"c\"":{"num_clients":1}}}"#,
        );
    }
}
