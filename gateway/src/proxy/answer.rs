//! What is understood of an answer (protocol section 9.2). An answer has a result, an error or a disconnect; a
//! disconnect goes before an error, and that before a result.
//!
//! Unknown fields are ignored, a field that is `null` counts as absent. Anything else that is not as the protocol says
//! makes the whole answer one that cannot be used: guessing what an application meant would let in whom it refuses.

use std::collections::BTreeMap;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use session::CloseCode;
use session::io::{ConnectionGrant, Overrides, SubscriptionOptions};
use session::proxy::{
    ConnectVerdict, ProxyRefusal, ProxyResult, PublishOptions, PublishVerdict, RefreshVerdict, SubRefreshVerdict,
    SubscribeVerdict,
};

use crate::api::publish::check_labels;

/// Reads an answer; the text says why it cannot be used.
pub(super) type Read<T> = fn(&[u8]) -> Result<ProxyResult<T>, String>;

/// Standard base64; some encoders leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Error codes that an application may use: those of the protocol and its own (protocol section 5.1). SDKs give
/// meanings of their own to smaller ones.
const ERROR_CODES: std::ops::RangeInclusive<u32> = 100..=1999;

/// The reason beside the code of an application that gives none which SDKs understand (protocol section 5.3).
const DISCONNECT_REASON: &str = "disconnected by application";

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    disconnect: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: u32,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    temporary: Option<bool>,
}

#[derive(Deserialize)]
struct DisconnectBody {
    code: u32,
    #[serde(default)]
    reason: Option<String>,
}

/// A payload and its base64 form, which wins unless it is empty.
type Payload<'a> = (Option<&'a RawValue>, Option<String>);

#[derive(Deserialize)]
struct ConnectResult<'a> {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    expire_at: Option<f64>,
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    b64info: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(default)]
    channels: Option<Vec<String>>,
    #[serde(borrow, default)]
    subs: Option<BTreeMap<String, Option<&'a RawValue>>>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
}

/// An entry of `subs`, and the result about a subscription.
#[derive(Deserialize)]
struct SubResult<'a> {
    #[serde(default)]
    expire_at: Option<f64>,
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    b64info: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(default, rename = "override")]
    overrides: Option<OverrideBody>,
}

#[derive(Deserialize, Default)]
struct OverrideBody {
    #[serde(default)]
    presence: Option<BoolBody>,
    #[serde(default)]
    join_leave: Option<BoolBody>,
    #[serde(default)]
    force_recovery: Option<BoolBody>,
    #[serde(default)]
    force_positioning: Option<BoolBody>,
    #[serde(default)]
    force_push_join_leave: Option<BoolBody>,
}

#[derive(Deserialize)]
struct BoolBody {
    #[serde(default)]
    value: bool,
}

#[derive(Deserialize)]
struct RefreshResult<'a> {
    #[serde(default)]
    expired: Option<bool>,
    #[serde(default)]
    expire_at: Option<f64>,
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(default)]
    b64info: Option<String>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PublishResult<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
    #[serde(default)]
    skip_history: Option<bool>,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
    #[serde(default)]
    idempotency_key: Option<String>,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    version_epoch: Option<String>,
}

#[derive(Deserialize)]
struct RpcResult<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    b64data: Option<String>,
}

pub(super) fn connect(body: &[u8]) -> Result<ProxyResult<ConnectVerdict>, String> {
    read(body, |result: ConnectResult<'_>| {
        let mut subs = BTreeMap::new();
        for (channel, sub) in result.subs.unwrap_or_default() {
            subs.insert(channel, sub_options(sub)?);
        }
        if subs.is_empty() {
            let channels = result.channels.unwrap_or_default();
            subs.extend(channels.into_iter().map(|channel| (channel, SubscriptionOptions::default())));
        }
        if subs.contains_key("") {
            return Err("an empty channel".to_owned());
        }
        let grant = ConnectionGrant {
            user: result.user.unwrap_or_default().as_str().into(),
            expire_at: expire_at(result.expire_at),
            info: payload("b64info", (result.info, result.b64info))?.unwrap_or_default(),
            subs,
            meta: result.meta.map(raw).unwrap_or_default(),
        };
        Ok(ConnectVerdict { grant, data: payload("b64data", (result.data, result.b64data))?.unwrap_or_default() })
    })
}

fn sub_options(sub: Option<&RawValue>) -> Result<SubscriptionOptions, String> {
    match sub {
        Some(sub) => options(object(sub.get().as_bytes())?),
        None => Ok(SubscriptionOptions::default()),
    }
}

/// Refusals are not honoured here (protocol section 9.2): what has no result is over.
pub(super) fn refresh(body: &[u8]) -> Result<ProxyResult<RefreshVerdict>, String> {
    read_result(body, |result: RefreshResult<'_>| {
        Ok(RefreshVerdict {
            expired: result.expired.unwrap_or_default(),
            expire_at: expire_at(result.expire_at),
            info: payload("b64info", (result.info, result.b64info))?,
            meta: result.meta.map(raw),
        })
    })
}

pub(super) fn subscribe(body: &[u8]) -> Result<ProxyResult<SubscribeVerdict>, String> {
    read(body, |result: SubResult<'_>| {
        Ok(SubscribeVerdict { expire_at: expire_at(result.expire_at), options: options(result)? })
    })
}

/// Like [`refresh`].
pub(super) fn sub_refresh(body: &[u8]) -> Result<ProxyResult<SubRefreshVerdict>, String> {
    read_result(body, |result: RefreshResult<'_>| {
        Ok(SubRefreshVerdict {
            expired: result.expired.unwrap_or_default(),
            expire_at: expire_at(result.expire_at),
            info: payload("b64info", (result.info, result.b64info))?,
        })
    })
}

pub(super) fn publish(body: &[u8]) -> Result<ProxyResult<PublishVerdict>, String> {
    read(body, |result: PublishResult<'_>| {
        let options = PublishOptions {
            tags: result.tags.unwrap_or_default(),
            skip_history: result.skip_history.unwrap_or_default(),
            idempotency_key: result.idempotency_key.filter(|key| !key.is_empty()),
            version: result.version.unwrap_or_default(),
            version_epoch: result.version_epoch.unwrap_or_default(),
        };
        let key = options.idempotency_key.as_deref().unwrap_or_default();
        check_labels(&options.tags, key, &options.version_epoch)?;
        Ok(PublishVerdict { data: payload("b64data", (result.data, result.b64data))?, options })
    })
}

pub(super) fn rpc(body: &[u8]) -> Result<ProxyResult<Bytes>, String> {
    read(body, |result: RpcResult<'_>| Ok(payload("b64data", (result.data, result.b64data))?.unwrap_or_default()))
}

/// Reads an answer with its refusals.
fn read<'a, R: Deserialize<'a>, T>(
    body: &'a [u8],
    verdict: impl FnOnce(R) -> Result<T, String>,
) -> Result<ProxyResult<T>, String> {
    let envelope: Envelope<'a> = object(body)?;
    if let Some(disconnect) = envelope.disconnect {
        return Ok(Err(ProxyRefusal::Disconnect(close_code(object(disconnect.get().as_bytes())?)?)));
    }
    if let Some(error) = envelope.error {
        return Ok(Err(ProxyRefusal::Error(client_error(object(error.get().as_bytes())?)?)));
    }
    result(&envelope, verdict)
}

/// Reads an answer of which only the result counts.
fn read_result<'a, R: Deserialize<'a>, T>(
    body: &'a [u8],
    verdict: impl FnOnce(R) -> Result<T, String>,
) -> Result<ProxyResult<T>, String> {
    let envelope: Envelope<'a> = object(body)?;
    result(&envelope, verdict)
}

fn result<'a, R: Deserialize<'a>, T>(
    envelope: &Envelope<'a>,
    verdict: impl FnOnce(R) -> Result<T, String>,
) -> Result<ProxyResult<T>, String> {
    let Some(result) = envelope.result else { return Ok(Ok(None)) };
    Ok(Ok(Some(verdict(object(result.get().as_bytes())?)?)))
}

/// Parses a struct from a JSON object only: a derived `Deserialize` would take an array of the fields too.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err("a JSON object is expected".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn client_error(body: ErrorBody) -> Result<protocol::Error, String> {
    if !ERROR_CODES.contains(&body.code) {
        let (first, last) = (ERROR_CODES.start(), ERROR_CODES.end());
        return Err(format!("the error code {} is not in {first}..={last}", body.code));
    }
    let (message, temporary) = (body.message.unwrap_or_default(), body.temporary.unwrap_or_default());
    Ok(protocol::Error { code: body.code, message, temporary })
}

fn close_code(body: DisconnectBody) -> Result<CloseCode, String> {
    let reason = body.reason.unwrap_or_default();
    // The wish to have the client gone is clear, also when the text beside it would be misread by SDKs.
    CloseCode::custom(body.code, &reason)
        .or_else(|_| CloseCode::custom(body.code, DISCONNECT_REASON))
        .map_err(|error| error.to_string())
}

/// 0 never expires. The cast saturates: a time beyond the range stays "far away".
fn expire_at(seconds: Option<f64>) -> Option<i64> {
    seconds.map(|seconds| seconds.floor() as i64).filter(|seconds| *seconds != 0)
}

fn options(sub: SubResult<'_>) -> Result<SubscriptionOptions, String> {
    let overrides = sub.overrides.unwrap_or_default();
    let value = |option: Option<BoolBody>| option.map(|option| option.value);
    Ok(SubscriptionOptions {
        info: payload("b64info", (sub.info, sub.b64info))?.unwrap_or_default(),
        data: payload("b64data", (sub.data, sub.b64data))?.unwrap_or_default(),
        overrides: Overrides {
            presence: value(overrides.presence),
            join_leave: value(overrides.join_leave),
            force_recovery: value(overrides.force_recovery),
            force_positioning: value(overrides.force_positioning),
            force_push_join_leave: value(overrides.force_push_join_leave),
        },
    })
}

fn payload(field: &str, (json, base64): Payload<'_>) -> Result<Option<Bytes>, String> {
    match base64.filter(|text| !text.is_empty()) {
        Some(text) => match BASE64.decode(text) {
            Ok(data) => Ok(Some(data.into())),
            Err(error) => Err(format!("{field} is not base64: {error}")),
        },
        None => Ok(json.map(raw)),
    }
}

fn raw(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: std::fmt::Debug>(answer: Result<ProxyResult<T>, String>) -> ProxyRefusal {
        answer.expect("an answer that can be used").expect_err("a refusal")
    }

    #[test]
    fn a_disconnect_goes_before_an_error_and_that_before_a_result() {
        let error = r#""error":{"code":1000,"message":"no","temporary":true}"#;
        let gone = r#""disconnect":{"code":4500,"reason":"gone"}"#;
        let all = format!(r#"{{"result":{{}},{error},{gone}}}"#);
        let closed = ProxyRefusal::Disconnect(CloseCode::custom(4500, "gone").expect("a good code"));
        assert_eq!(refusal(rpc(all.as_bytes())), closed);
        assert_eq!(refusal(connect(all.as_bytes())), closed);
        let told = protocol::Error { code: 1000, message: "no".to_owned(), temporary: true };
        let body = format!(r#"{{"result":{{}},{error},"disconnect":null}}"#);
        assert_eq!(refusal(publish(body.as_bytes())), ProxyRefusal::Error(told.clone()));
        assert_eq!(refusal(subscribe(body.as_bytes())), ProxyRefusal::Error(told));
        // Where only a result counts.
        assert_eq!(refresh(all.as_bytes()), Ok(Ok(Some(RefreshVerdict::default()))));
        assert_eq!(sub_refresh(format!("{{{gone}}}").as_bytes()), Ok(Ok(None)));
    }

    #[test]
    fn an_answer_without_any_of_them_says_nothing() {
        for body in ["{}", r#"{"result":null,"error":null}"#, r#" {"other":[1]}"#] {
            assert_eq!(connect(body.as_bytes()), Ok(Ok(None)));
            assert_eq!(rpc(body.as_bytes()), Ok(Ok(None)));
        }
    }

    #[test]
    fn results_are_read() {
        let body = br#"{"result":{"user":"u","expire_at":1700000000.5,"info":{"a": 1},"b64info":"","b64data":"AP8",
            "channels":["ignored"],"subs":{"n:a":{"info":1,"override":{"presence":{"value":true},"join_leave":{}}},"n:b":null},
            "meta":{"m":1},"caps":[1]}}"#;
        let verdict = connect(body).expect("good").expect("no refusal").expect("a result");
        assert_eq!((verdict.grant.user.as_str(), verdict.grant.expire_at), ("u", Some(1_700_000_000)));
        assert_eq!((&*verdict.grant.info, &*verdict.data), (&b"{\"a\": 1}"[..], &[0, 255][..]));
        assert_eq!(&*verdict.grant.meta, b"{\"m\":1}");
        let overrides = Overrides { presence: Some(true), join_leave: Some(false), ..Overrides::default() };
        let first = SubscriptionOptions { info: Bytes::from_static(b"1"), overrides, ..SubscriptionOptions::default() };
        let subs = [("n:a".to_owned(), first), ("n:b".to_owned(), SubscriptionOptions::default())].into();
        assert_eq!(verdict.grant.subs, subs);

        let anonymous = connect(br#"{"result":{"user":null,"channels":["a"]}}"#).expect("good").expect("no refusal");
        let grant = anonymous.expect("a result").grant;
        assert!(grant.user.is_anonymous() && grant.subs.contains_key("a") && grant.expire_at.is_none());

        let body = br#"{"result":{"expired":true,"expire_at":0,"info":"i","meta":null}}"#;
        let info = Some(Bytes::from_static(b"\"i\""));
        assert_eq!(
            refresh(body),
            Ok(Ok(Some(RefreshVerdict { expired: true, expire_at: None, info: info.clone(), meta: None })))
        );
        assert_eq!(sub_refresh(body), Ok(Ok(Some(SubRefreshVerdict { expired: true, expire_at: None, info }))));

        let body = br#"{"result":{"data":[1],"skip_history":true,"tags":{"a":"b"},"idempotency_key":"","version":7,"version_epoch":"e","delta":true}}"#;
        let options = PublishOptions {
            tags: [("a".to_owned(), "b".to_owned())].into(),
            skip_history: true,
            idempotency_key: None,
            version: 7,
            version_epoch: "e".to_owned(),
        };
        let verdict = PublishVerdict { data: Some(Bytes::from_static(b"[1]")), options };
        assert_eq!(publish(body), Ok(Ok(Some(verdict))));
        assert_eq!(publish(br#"{"result":{}}"#), Ok(Ok(Some(PublishVerdict::default()))));
        assert_eq!(rpc(br#"{"result":{"data":null}}"#), Ok(Ok(Some(Bytes::new()))));
    }

    #[test]
    fn what_cannot_be_understood_says_why() {
        let tags = format!(r#"{{"result":{{"tags":{{"a":"{}"}}}}}}"#, "x".repeat(5000));
        for (body, part) in [
            ("", "object is expected"),
            ("[]", "object is expected"),
            ("<html>", "object is expected"),
            ("{", "EOF"),
            (r#"{"result":[]}"#, "object is expected"),
            (r#"{"result":"ok"}"#, "object is expected"),
            (r#"{"error":"no"}"#, "object is expected"),
            (r#"{"error":{"message":"no"}}"#, "missing field `code`"),
            (r#"{"error":{"code":99}}"#, "not in 100..=1999"),
            (r#"{"error":{"code":2000}}"#, "not in 100..=1999"),
            (r#"{"error":{"code":-1}}"#, "invalid value"),
            (r#"{"disconnect":{"code":1000,"reason":"x"}}"#, "not in 3000..=4999"),
            (r#"{"disconnect":{"reason":"x"}}"#, "missing field `code`"),
            (r#"{"result":{"b64data":"!"}}"#, "b64data is not base64"),
            (r#"{"result":{"version":-1}}"#, "invalid value"),
            (&tags, "tags of"),
        ] {
            let reason = publish(body.as_bytes()).expect_err(body);
            assert!(reason.contains(part), "{body}: {reason}");
        }
        assert!(connect(br#"{"result":{"user":7}}"#).is_err(), "a number is no user id");
        assert!(connect(br#"{"result":{"channels":[""]}}"#).is_err(), "an empty channel");
        assert!(connect(br#"{"result":{"subs":{"a":[]}}}"#).is_err(), "an array is no options");
    }

    #[test]
    fn a_reason_that_sdks_would_misread_is_replaced() {
        for reason in ["", "17", "geschlo\u{df}en"] {
            let body = format!(r#"{{"disconnect":{{"code":4001,"reason":"{reason}"}}}}"#);
            let expected = CloseCode::custom(4001, DISCONNECT_REASON).expect("a good code");
            assert_eq!(refusal(rpc(body.as_bytes())), ProxyRefusal::Disconnect(expected));
        }
    }
}
