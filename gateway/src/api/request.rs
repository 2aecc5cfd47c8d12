//! The requests of the server API (protocol section 7.2), borrowed from the body as far as possible.
//!
//! A field that is `null` counts as absent, as it does for the reference server; unknown fields are ignored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use backplane::{Epoch, Offset, StreamPosition};
use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use super::error::{ApiError, Malformed};

/// Standard base64; some encoders leave the padding out.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A method that stands alone or is a command among others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Publish into a channel.
    Publish,
    /// Publish the same into several channels.
    Broadcast,
    /// Subscribe the connections of a user.
    Subscribe,
    /// End a subscription of a user's connections.
    Unsubscribe,
    /// Close the connections of a user.
    Disconnect,
    /// Change when the connections of a user expire.
    Refresh,
    /// Who is in a channel.
    Presence,
    /// How many are in a channel.
    PresenceStats,
    /// Read a channel's stream.
    History,
    /// Drop a channel's publications.
    HistoryRemove,
    /// Channels with subscribers.
    Channels,
    /// What the nodes are doing.
    Info,
    /// Read a session of a user.
    SessionGet,
    /// Set the application's state in a session.
    SessionSet,
    /// Call an extension.
    Rpc,
}

impl Method {
    /// Every method, in the order of its declaration.
    pub const ALL: [Self; 15] = [
        Self::Publish,
        Self::Broadcast,
        Self::Subscribe,
        Self::Unsubscribe,
        Self::Disconnect,
        Self::Refresh,
        Self::Presence,
        Self::PresenceStats,
        Self::History,
        Self::HistoryRemove,
        Self::Channels,
        Self::Info,
        Self::SessionGet,
        Self::SessionSet,
        Self::Rpc,
    ];

    /// The name in paths and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Broadcast => "broadcast",
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Disconnect => "disconnect",
            Self::Refresh => "refresh",
            Self::Presence => "presence",
            Self::PresenceStats => "presence_stats",
            Self::History => "history",
            Self::HistoryRemove => "history_remove",
            Self::Channels => "channels",
            Self::Info => "info",
            Self::SessionGet => "session_get",
            Self::SessionSet => "session_set",
            Self::Rpc => "rpc",
        }
    }

    /// The method of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// Reads one request. The parser recurses only as deep as the request types are: payloads are skipped over.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Malformed> {
    // Without this an array would be taken for the fields in their order.
    match text.trim_ascii_start().first() {
        Some(b'{') | None => Ok(serde_json::from_slice(text)?),
        // What is not JSON at all is told so.
        Some(_) => match serde_json::from_slice::<&RawValue>(text) {
            Ok(_) => Err(Malformed::NotObject),
            Err(error) => Err(error.into()),
        },
    }
}

/// `publish` and `broadcast`, which differ only in `channel` and `channels`.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct PublishRequest<'a> {
    #[serde(borrow)]
    pub channel: Text<'a>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub channels: Vec<Text<'a>>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub b64data: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub skip_history: bool,
    #[serde(deserialize_with = "nullable")]
    pub tags: BTreeMap<String, String>,
    #[serde(borrow)]
    pub idempotency_key: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub version: u64,
    #[serde(borrow)]
    pub version_epoch: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct SubscribeRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub channel: Text<'a>,
    #[serde(borrow)]
    pub client: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
    #[serde(borrow)]
    pub info: Option<&'a RawValue>,
    #[serde(borrow)]
    pub b64info: Text<'a>,
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub b64data: Text<'a>,
    #[serde(borrow)]
    pub recover_since: Option<Position<'a>>,
    #[serde(deserialize_with = "nullable")]
    pub expire_at: i64,
    #[serde(deserialize_with = "nullable")]
    pub r#override: OverrideRequest,
}

#[derive(Deserialize, Clone, Copy, Debug, Default)]
#[serde(default)]
pub(super) struct OverrideRequest {
    pub presence: Option<Setting>,
    pub join_leave: Option<Setting>,
    pub force_recovery: Option<Setting>,
    pub force_positioning: Option<Setting>,
    pub force_push_join_leave: Option<Setting>,
}

#[derive(Deserialize, Clone, Copy, Debug, Default)]
#[serde(default)]
pub(super) struct Setting {
    #[serde(deserialize_with = "nullable")]
    pub value: bool,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct UnsubscribeRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub channel: Text<'a>,
    #[serde(borrow)]
    pub client: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct DisconnectRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub client: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
    #[serde(borrow, deserialize_with = "nullable")]
    pub whitelist: Vec<Text<'a>>,
    #[serde(borrow)]
    pub disconnect: Option<CloseRequest<'a>>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct CloseRequest<'a> {
    #[serde(deserialize_with = "nullable")]
    pub code: u32,
    #[serde(borrow)]
    pub reason: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct RefreshRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub client: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub expired: bool,
    #[serde(deserialize_with = "nullable")]
    pub expire_at: i64,
    #[serde(borrow)]
    pub info: Option<&'a RawValue>,
}

/// `presence`, `presence_stats` and `history_remove`.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct ChannelRequest<'a> {
    #[serde(borrow)]
    pub channel: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct HistoryRequest<'a> {
    #[serde(borrow)]
    pub channel: Text<'a>,
    #[serde(deserialize_with = "nullable")]
    pub limit: i64,
    #[serde(borrow)]
    pub since: Option<Position<'a>>,
    #[serde(deserialize_with = "nullable")]
    pub reverse: bool,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct ChannelsRequest<'a> {
    #[serde(borrow)]
    pub pattern: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct InfoRequest {}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct SessionGetRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct SessionSetRequest<'a> {
    #[serde(borrow)]
    pub user: Text<'a>,
    #[serde(borrow)]
    pub session: Text<'a>,
    #[serde(borrow)]
    pub state: Option<&'a RawValue>,
    pub revision: Option<u64>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct RpcRequest<'a> {
    #[serde(borrow)]
    pub method: Text<'a>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Position<'a> {
    #[serde(deserialize_with = "nullable")]
    pub offset: u64,
    #[serde(borrow)]
    pub epoch: Text<'a>,
}

impl From<Position<'_>> for StreamPosition {
    fn from(position: Position<'_>) -> Self {
        Self { epoch: Epoch::from(&*position.epoch), offset: Offset(position.offset) }
    }
}

/// A string that is borrowed where it has no escapes. Absent, `null` and empty are one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// An owned copy, unless it is empty.
    pub fn given(&self) -> Option<String> {
        if self.is_empty() { None } else { Some(self.0.clone().into_owned()) }
    }
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E: Error>(self) -> Result<Text<'de>, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A payload: the base64 form wins unless it is empty; JSON stays as it was written. It is copied, once, because the
/// body is a part of the connection's read buffer, which a stored publication would otherwise keep alive.
///
/// # Errors
/// 107 when the base64 form is none; `field` names it.
pub(super) fn payload(field: &str, json: Option<&RawValue>, base64: &str) -> Result<Bytes, ApiError> {
    if base64.is_empty() {
        return Ok(json.map_or_else(Bytes::new, |json| Bytes::copy_from_slice(json.get().as_bytes())));
    }
    match BASE64.decode(base64) {
        Ok(data) => Ok(data.into()),
        Err(error) => Err(ApiError::bad_request(format_args!("{field} is not base64: {error}"))),
    }
}

/// Whether objects and arrays are nested deeper than `limit`. Of text that is not JSON it answers something; the
/// parser refuses such text.
pub(super) fn is_deeper_than(limit: usize, text: &[u8]) -> bool {
    let brackets = text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if brackets <= limit {
        // So it is with nearly every request, and counting needs no look at strings.
        return false;
    }
    let mut depth = 0_usize;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => _ = bytes.next(),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_borrowed_and_null_is_absent() {
        let body = br#"{"channel":"a:b","idempotency_key":"\u00e9","version":7,"data": {"n" : 1} ,"delta":true,"tags":{"k":"v"}}"#;
        let request: PublishRequest<'_> = parse(body).unwrap();
        assert!(matches!(request.channel, Text(Cow::Borrowed("a:b"))));
        assert_eq!((&*request.idempotency_key, request.version), ("\u{e9}", 7));
        assert_eq!(request.data.map(RawValue::get), Some(r#"{"n" : 1}"#));
        assert_eq!(request.tags, BTreeMap::from([("k".to_owned(), "v".to_owned())]));

        let nulls = br#"{"channel":null,"channels":null,"data":null,"b64data":null,"skip_history":null,"tags":null,"version":null}"#;
        let request: PublishRequest<'_> = parse(nulls).unwrap();
        assert!(request.channel.is_empty() && request.channels.is_empty() && request.data.is_none());
        assert!(request.b64data.is_empty() && !request.skip_history && request.tags.is_empty());
        let request: SubscribeRequest<'_> =
            parse(br#"{"override":{"presence":{"value":true},"join_leave":null},"recover_since":null}"#).unwrap();
        assert_eq!(request.r#override.presence.map(|setting| setting.value), Some(true));
        assert!(request.r#override.join_leave.is_none() && request.recover_since.is_none());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for body in ["", " ", "null", "17", "[]", r#"["a",[],1]"#, "{", r#"{"channel":17}"#, r#"{"channel":"a"}{}"#] {
            assert!(parse::<PublishRequest<'_>>(body.as_bytes()).is_err(), "{body}");
        }
        assert!(parse::<PublishRequest<'_>>(b"{\"channel\":\"\xff\"}").is_err());
        assert!(parse::<PublishRequest<'_>>(b"{\"data\":\"\xff\"}").is_err(), "payloads are UTF-8 too");
        assert!(matches!(parse::<InfoRequest>(b" [1]"), Err(Malformed::NotObject)));
        assert!(matches!(parse::<InfoRequest>(b"hello"), Err(Malformed::Json(_))));
    }

    #[test]
    fn base64_wins_unless_it_is_empty() {
        let json = serde_json::from_str::<&RawValue>("[1, 2]").unwrap();
        assert_eq!(payload("b64data", Some(json), "").unwrap(), "[1, 2]");
        assert_eq!(payload("b64data", Some(json), "AAEC/w==").unwrap(), &[0, 1, 2, 255][..]);
        assert_eq!(payload("b64data", None, "AAEC/w").unwrap(), &[0, 1, 2, 255][..]);
        assert_eq!(payload("b64data", None, "").unwrap(), "");
        for text in ["***", "AAEC_w==", "A", "AA EC"] {
            let error = payload("b64data", Some(json), text).unwrap_err();
            assert!(error.message.contains("b64data"), "{error}");
        }
    }

    #[test]
    fn methods_have_their_names() {
        for (index, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, index, "arrays are indexed by methods");
            assert_eq!(Method::parse(method.name()), Some(method));
        }
        for name in ["", "Publish", "batch", "connections"] {
            assert_eq!(Method::parse(name), None, "{name}");
        }
    }

    #[test]
    fn depth_is_that_of_objects_and_arrays_outside_strings() {
        for (text, depth) in [
            ("", 0),
            ("17", 0),
            ("[]", 1),
            ("[{},{},[]]", 2),
            (r#"{"a":{"b":[1]}}"#, 3),
            (r#"["[[[[[[[[\"[[[","\\",[1]]"#, 2),
            ("[[[", 3),
            (r#"["open [[[["#, 1),
            ("]]][", 1),
        ] {
            assert!(!is_deeper_than(depth, text.as_bytes()), "{text}");
            assert!(depth == 0 || is_deeper_than(depth - 1, text.as_bytes()), "{text}");
        }
    }
}
