//! Requests to JetStream, as far as this backplane needs them, and what their answers mean.
//!
//! They are written out here instead of taken from the client library, because the library cannot read many messages by
//! one request, and does not understand some answers of servers older than 2.10.

use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::connection::{Answer, Connection};
use crate::BackplaneError;

/// Messages in one answer. With the largest usual payloads that is some megabytes.
pub(super) const PAGE_MAX: usize = 1024;

/// Messages that are asked for one by one, on servers without batches, before a consumer is made for the rest: about what
/// making one costs.
const SINGLE_READS_MAX: usize = 4;

/// Subjects of which the server tells the last messages by one request, and the status by which it refuses more.
const LAST_MAX: usize = 1024;
const TOO_MANY: u64 = 413;

/// A consumer that was forgotten is removed by the server after this.
const CONSUMER_LINGERS: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// No answer, or one that says "not now". What was to be written may be written.
    #[error("{0}")]
    Unavailable(String),
    /// The stream is not there, or nobody answers for it. Nothing was written.
    #[error("nats has no stream that answers")]
    NoStream,
    /// The last message of the subject, or of the stream, is not the one that was expected. Nothing was written.
    #[error("another message was written in between")]
    Conflict,
    /// It was understood and refused. Nothing was written.
    #[error("nats refuses ({code}): {description}")]
    Refused {
        /// The error code of JetStream, or the status.
        code: u64,
        /// In the server's words.
        description: String,
    },
    /// The answer is not one that this version understands.
    #[error("nats answered something unexpected: {0}")]
    Unexpected(String),
}

impl CallError {
    /// There is no connection, or it ended before the answer.
    pub(super) fn away() -> Self {
        Self::Unavailable("nats is not connected".to_owned())
    }

    fn unexpected(what: impl std::fmt::Display) -> Self {
        Self::Unexpected(what.to_string())
    }
}

impl From<CallError> for BackplaneError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unavailable(why) => Self::Unavailable(why),
            CallError::NoStream => Self::Unavailable(error.to_string()),
            CallError::Conflict => Self::Unavailable("too many others wrote at the same time".to_owned()),
            CallError::Refused { .. } | CallError::Unexpected(_) => Self::Protocol(error.to_string()),
        }
    }
}

/// What to write, and under which condition.
#[derive(Clone, Debug, Default)]
pub(super) struct Write {
    /// Where.
    pub(super) subject: String,
    /// What.
    pub(super) payload: Bytes,
    /// A second write with the same id, anywhere in the stream, is answered with the first one's number.
    pub(super) id: Option<String>,
    /// Only if the last message of the subject has this number; 0: if it has none.
    pub(super) expected: Option<u64>,
    /// Removes all earlier messages of the subject in the same step. The stream must allow it.
    pub(super) replaces_all: bool,
    /// How long the message lives, in seconds. Ignored by servers older than 2.11; the stream must allow it.
    pub(super) ttl_seconds: Option<u64>,
}

impl Write {
    /// A write without conditions.
    pub(super) fn new(subject: String, payload: impl Into<Bytes>) -> Self {
        Self { subject, payload: payload.into(), ..Self::default() }
    }

    fn headers(&self) -> Option<HeaderMap> {
        // Most publications have none: they cost much, also at the server.
        let is_plain = self.id.is_none() && self.expected.is_none() && !self.replaces_all && self.ttl_seconds.is_none();
        if is_plain {
            return None;
        }
        let mut headers = HeaderMap::new();
        if let Some(id) = &self.id {
            headers.insert("Nats-Msg-Id", id.as_str());
        }
        if let Some(expected) = self.expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        }
        if self.replaces_all {
            headers.insert("Nats-Rollup", "sub");
        }
        if let Some(seconds) = self.ttl_seconds {
            headers.insert("Nats-TTL", format!("{seconds}s"));
        }
        Some(headers)
    }
}

/// A write that was carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// The number of the message in the stream.
    pub(super) number: u64,
    /// It was written before, under this number.
    pub(super) is_repeat: bool,
}

/// A message in a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Stored {
    /// Its number in the stream.
    pub(super) number: u64,
    /// Where it was written.
    pub(super) subject: String,
    /// When, by the server's clock, in nanoseconds since 1970.
    pub(super) time: u64,
    /// What was written.
    pub(super) payload: Bytes,
}

/// A part of the messages of a subject, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Page {
    /// The messages.
    pub(super) messages: Vec<Stored>,
    /// There were more when it was read.
    pub(super) has_more: bool,
}

/// What a stream is, and how it is meant to be.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    /// The settings as the server understood them.
    pub(super) config: Value,
    /// When it was created, in the server's words.
    pub(super) created: String,
    /// What is in it.
    pub(super) state: StreamState,
    /// Who has it, where there are several servers.
    pub(super) cluster: Option<StreamCluster>,
}

/// What is in a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    /// The number of the last message, also when it was removed.
    pub(super) last_seq: u64,
}

/// Who has a stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamCluster {
    /// The server that takes writes; none during an election.
    pub(super) leader: Option<String>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl From<ApiError> for CallError {
    fn from(error: ApiError) -> Self {
        // 10059: stream not found; 10071: wrong last sequence of the subject; 10164: the same, where a stream counts
        // the last one as zero; 10008: JetStream is not available now; 10023: insufficient resources.
        match (error.err_code, error.code) {
            (10059, _) => Self::NoStream,
            (10071 | 10164, _) => Self::Conflict,
            (10008 | 10023, _) | (_, 503) => Self::Unavailable(format!("nats: {}", error.description)),
            (0, code) | (code, _) => Self::Refused { code, description: error.description },
        }
    }
}

/// The code of JetStream for a message that is not there.
const NO_MESSAGE: u64 = 10037;

impl Connection {
    /// One request to the API of JetStream.
    pub(super) async fn api<T: DeserializeOwned>(&self, subject: &str, body: &Value) -> Result<T, CallError> {
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let answer = self.ask(format!("$JS.API.{subject}"), None, payload).await?.get().await?;
        parse(&answer)
    }

    /// The stream as it is; `None` if there is none.
    pub(super) async fn stream_info(&self, name: &str) -> Result<Option<StreamInfo>, CallError> {
        match self.api(&format!("STREAM.INFO.{name}"), &Value::Null).await {
            Ok(info) => Ok(Some(info)),
            Err(CallError::NoStream) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a stream, or finds it as it is meant to be.
    pub(super) async fn create_stream(&self, name: &str, config: &Value) -> Result<StreamInfo, CallError> {
        self.api(&format!("STREAM.CREATE.{name}"), config).await
    }

    /// Changes a stream.
    pub(super) async fn update_stream(&self, name: &str, config: &Value) -> Result<StreamInfo, CallError> {
        self.api(&format!("STREAM.UPDATE.{name}"), config).await
    }

    /// The names of all streams that take this subject, which may hold wildcards.
    pub(super) async fn streams_of(&self, subject: &str) -> Result<Vec<String>, CallError> {
        #[derive(Deserialize)]
        struct Names {
            #[serde(default)]
            streams: Option<Vec<String>>,
        }
        let names: Names = self.api("STREAM.NAMES", &json!({ "subject": subject })).await?;
        Ok(names.streams.unwrap_or_default())
    }

    /// Removes all messages of the subjects that match `filter`.
    pub(super) async fn purge(&self, stream: &str, filter: &str) -> Result<(), CallError> {
        let _: Value = self.api(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": filter })).await?;
        Ok(())
    }

    /// Removes the message with this number; whether it was there. Cheap however large the stream is, unlike a purge.
    pub(super) async fn delete(&self, stream: &str, number: u64) -> Result<bool, CallError> {
        // Not overwritten on disk: it is no secret.
        let body = json!({ "seq": number, "no_erase": true });
        match self.api::<Value>(&format!("STREAM.MSG.DELETE.{stream}"), &body).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the messages of the subjects that match `filter` up to this number; later ones stay.
    pub(super) async fn purge_up_to(&self, stream: &str, filter: &str, number: u64) -> Result<(), CallError> {
        // The server takes the first number that stays.
        let body = json!({ "filter": filter, "seq": number + 1 });
        let _: Value = self.api(&format!("STREAM.PURGE.{stream}"), &body).await?;
        Ok(())
    }

    /// How many subjects that match `filter` have messages.
    pub(super) async fn count_subjects(&self, stream: &str, filter: &str) -> Result<usize, CallError> {
        #[derive(Deserialize)]
        struct Info {
            state: State,
        }
        #[derive(Deserialize)]
        struct State {
            #[serde(default)]
            subjects: Option<serde_json::Map<String, Value>>,
        }
        let info: Info = self.api(&format!("STREAM.INFO.{stream}"), &json!({ "subjects_filter": filter })).await?;
        Ok(info.state.subjects.map_or(0, |subjects| subjects.len()))
    }

    /// Hands a write to the connection: see [`ask`](Self::ask). The answer is for [`written`].
    pub(super) async fn begin_write(&self, write: Write) -> Result<Answer, CallError> {
        let headers = write.headers();
        self.ask(write.subject, headers, write.payload).await
    }

    /// Writes and waits for the answer.
    pub(super) async fn write(&self, write: Write) -> Result<Written, CallError> {
        written(&self.begin_write(write).await?.get().await?)
    }

    /// The last message of a subject, by the server that takes writes.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, CallError> {
        self.message(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The message with this number, by the server that takes writes.
    pub(super) async fn at(&self, stream: &str, number: u64) -> Result<Option<Stored>, CallError> {
        self.message(stream, &json!({ "seq": number })).await
    }

    async fn message(&self, stream: &str, query: &Value) -> Result<Option<Stored>, CallError> {
        #[derive(Deserialize)]
        struct Got {
            message: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            subject: String,
            seq: u64,
            #[serde(default)]
            data: String,
            time: String,
        }
        let got: Got = match self.api(&format!("STREAM.MSG.GET.{stream}"), query).await {
            Ok(got) => got,
            Err(CallError::Refused { code: NO_MESSAGE, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Content { subject, seq, data, time } = got.message;
        let payload = STANDARD.decode(data).map_err(CallError::unexpected)?;
        Ok(Some(Stored { number: seq, subject, time: nanoseconds(&time)?, payload: payload.into() }))
    }

    /// Messages of a subject from a number on, at most `count`, by any server that has the stream: it may not have the
    /// latest ones yet. `subject` may hold wildcards.
    pub(super) async fn read(&self, stream: &str, subject: &str, from: u64, count: usize) -> Result<Page, CallError> {
        let count = count.clamp(1, PAGE_MAX);
        if self.server.reads_batches() {
            return self
                .read_batch(stream, &json!({ "seq": from.max(1), "next_by_subj": subject, "batch": count }))
                .await;
        }
        let mut page = Page::default();
        let mut next = from.max(1);
        while page.messages.len() < count.min(SINGLE_READS_MAX) {
            let query = json!({ "seq": next, "next_by_subj": subject });
            let Some(message) = self.read_one(stream, &query).await? else { return Ok(page) };
            next = message.number + 1;
            page.messages.push(message);
        }
        let rest = self.consume(stream, subject, next, count - page.messages.len()).await?;
        page.messages.extend(rest.messages);
        page.has_more = rest.has_more;
        Ok(page)
    }

    /// The last message of a subject, by any server that has the stream.
    pub(super) async fn read_last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, CallError> {
        self.read_one(stream, &json!({ "last_by_subj": subject })).await
    }

    /// The last message of each subject that matches `filter`, in the order in which they were written.
    pub(super) async fn last_of_each(&self, stream: &str, filter: &str) -> Result<Vec<Stored>, CallError> {
        if self.server.reads_batches() {
            match self.read_batch(stream, &json!({ "multi_last": [filter], "batch": LAST_MAX })).await {
                Ok(page) if !page.has_more => return Ok(page.messages),
                Ok(_) | Err(CallError::Refused { code: TOO_MANY, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut page = self
            .consume_by(stream, consumer(filter, json!({ "deliver_policy": "last_per_subject" })), usize::MAX)
            .await?;
        page.messages.sort_by_key(|message| message.number);
        Ok(page.messages)
    }

    async fn read_one(&self, stream: &str, query: &Value) -> Result<Option<Stored>, CallError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let answer = self.ask(subject, None, Bytes::from(query.to_string())).await?.get().await?;
        match status(&answer)? {
            None => direct(answer).map(Some),
            Some(404) => Ok(None),
            Some(code) => Err(refused(code, &answer)),
        }
    }

    async fn read_batch(&self, stream: &str, query: &Value) -> Result<Page, CallError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let mut answers = self.ask_for_many(subject, Bytes::from(query.to_string())).await?;
        let mut page = Page::default();
        loop {
            let answer = answers.next().await?;
            match status(&answer)? {
                None => page.messages.push(direct(answer)?),
                // The end of the batch says how many are left.
                Some(204) => {
                    page.has_more = header(&answer, "Nats-Num-Pending").is_some_and(|pending| pending != "0");
                    return Ok(page);
                }
                Some(404) => return Ok(page),
                Some(code) => return Err(refused(code, &answer)),
            }
        }
    }

    async fn consume(&self, stream: &str, subject: &str, from: u64, count: usize) -> Result<Page, CallError> {
        if count == 0 {
            // It is not known without asking.
            let next = self.read_one(stream, &json!({ "seq": from, "next_by_subj": subject })).await?;
            return Ok(Page { messages: Vec::new(), has_more: next.is_some() });
        }
        let start = json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": from });
        self.consume_by(stream, consumer(subject, start), count).await
    }

    /// Reads by a consumer that is made for it.
    async fn consume_by(&self, stream: &str, config: Value, count: usize) -> Result<Page, CallError> {
        #[derive(Deserialize)]
        struct Made {
            name: String,
            num_pending: u64,
        }
        let request = json!({ "stream_name": stream, "config": config });
        let made: Made = self.api(&format!("CONSUMER.CREATE.{stream}"), &request).await?;
        let pending = usize::try_from(made.num_pending).unwrap_or(usize::MAX);
        let page = self.pull(stream, &made.name, pending.min(count)).await;
        // The server removes it by itself; nobody waits for that.
        let _ = self.send(format!("$JS.API.CONSUMER.DELETE.{stream}.{}", made.name), Bytes::new()).await;
        page.map(|messages| Page { messages, has_more: pending > count })
    }

    async fn pull(&self, stream: &str, consumer: &str, count: usize) -> Result<Vec<Stored>, CallError> {
        let mut messages = Vec::with_capacity(count.min(PAGE_MAX));
        let mut mailbox = self.mailbox().await?;
        while messages.len() < count {
            let batch = (count - messages.len()).min(PAGE_MAX);
            let before = messages.len();
            let request = json!({ "batch": batch, "no_wait": true }).to_string();
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
            mailbox.ask(subject, Bytes::from(request)).await?;
            while messages.len() < before + batch {
                let answer = mailbox.next().await?;
                match status(&answer)? {
                    None => messages.push(consumed(answer)?),
                    // No more, at the time: some were removed meanwhile.
                    Some(404 | 408) => return Ok(messages),
                    Some(code) => return Err(refused(code, &answer)),
                }
            }
        }
        Ok(messages)
    }
}

/// The settings of a consumer that is read from once.
fn consumer(filter: &str, start: Value) -> Value {
    let mut config = json!({
        "filter_subject": filter,
        "ack_policy": "none",
        "replay_policy": "instant",
        "mem_storage": true,
        "num_replicas": 1,
        "inactive_threshold": u64::try_from(CONSUMER_LINGERS.as_nanos()).unwrap_or(u64::MAX),
    });
    if let (Some(config), Value::Object(start)) = (config.as_object_mut(), start) {
        config.extend(start);
    }
    config
}

/// What the server says of a write.
pub(super) fn written(answer: &Message) -> Result<Written, CallError> {
    #[derive(Deserialize)]
    struct Ack {
        seq: u64,
        #[serde(default)]
        duplicate: bool,
    }
    let ack: Ack = parse(answer)?;
    Ok(Written { number: ack.seq, is_repeat: ack.duplicate })
}

/// Reads an answer in JSON. The error comes first: a write that was refused names the number 0 as well.
fn parse<T: DeserializeOwned>(answer: &Message) -> Result<T, CallError> {
    #[derive(Deserialize)]
    struct Envelope {
        error: Option<ApiError>,
    }
    if let Some(code) = status(answer)? {
        return Err(refused(code, answer));
    }
    let envelope: Envelope = serde_json::from_slice(&answer.payload).map_err(CallError::unexpected)?;
    match envelope.error {
        Some(error) => Err(error.into()),
        None => serde_json::from_slice(&answer.payload).map_err(CallError::unexpected),
    }
}

/// The status of an answer without content. That nobody answers is an error of its own.
fn status(answer: &Message) -> Result<Option<u16>, CallError> {
    match answer.status {
        None | Some(StatusCode::OK) => Ok(None),
        Some(StatusCode::NO_RESPONDERS) => Err(CallError::NoStream),
        Some(status) => Ok(Some(status.as_u16())),
    }
}

fn refused(code: u16, answer: &Message) -> CallError {
    let description = answer.description.clone().unwrap_or_default();
    CallError::Refused { code: code.into(), description }
}

/// A header that the server adds.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

/// A header that the server adds, as a number.
pub(super) fn number_header(message: &Message, name: &'static str) -> Option<u64> {
    header(message, name)?.parse().ok()
}

/// A message as a direct read answers it.
fn direct(answer: Message) -> Result<Stored, CallError> {
    let number = number_header(&answer, "Nats-Sequence");
    let number = number.ok_or_else(|| CallError::unexpected("a message without a number"))?;
    let time = header(&answer, "Nats-Time-Stamp").ok_or_else(|| CallError::unexpected("a message without a time"))?;
    let time = nanoseconds(time)?;
    let subject = header(&answer, "Nats-Subject").unwrap_or_default().to_owned();
    Ok(Stored { number, subject, time, payload: answer.payload })
}

/// A message as a consumer gets it: the reply subject tells where it is from.
fn consumed(answer: Message) -> Result<Stored, CallError> {
    let (number, time) = answer.reply.as_deref().and_then(place).ok_or_else(|| {
        CallError::unexpected(format!("a message with the reply {:?}", answer.reply.as_deref().unwrap_or_default()))
    })?;
    Ok(Stored { number, subject: answer.subject.to_string(), time, payload: answer.payload })
}

/// Number and time from `$JS.ACK.<stream>.<consumer>.<delivered>.<number>.<consumer's number>.<time>.<pending>`, where newer
/// servers may have a domain and an account after `ACK`, and a random token at the end.
fn place(reply: &str) -> Option<(u64, u64)> {
    let tokens: Vec<&str> = reply.split('.').collect();
    let at = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    Some((tokens[at].parse().ok()?, tokens[at + 2].parse().ok()?))
}

/// Nanoseconds since 1970 from a time as RFC 3339 writes it.
pub(super) fn nanoseconds(time: &str) -> Result<u64, CallError> {
    let parsed = async_nats::datetime::parse_rfc3339(time).ok();
    let nanoseconds = parsed.and_then(|time| u64::try_from(time.unix_timestamp_nanos()).ok());
    nanoseconds.ok_or_else(|| CallError::unexpected(format!("the time {time:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &'static str) -> Message {
        Message {
            subject: "a".into(),
            reply: None,
            payload: Bytes::from_static(payload.as_bytes()),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn a_refused_write_is_not_taken_for_number_zero() {
        let stored = answer(r#"{"stream":"ek_H1_300","seq":7}"#);
        assert_eq!(written(&stored), Ok(Written { number: 7, is_repeat: false }));
        let repeat = answer(r#"{"stream":"ek_H1_300","seq":7,"duplicate":true}"#);
        assert_eq!(written(&repeat), Ok(Written { number: 7, is_repeat: true }));
        let refused = answer(
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"ek_H1_300","seq":0}"#,
        );
        assert_eq!(written(&refused), Err(CallError::Conflict));
    }

    #[test]
    fn errors_are_for_now_or_for_good() {
        let error = |text| written(&answer(text)).expect_err("it is an error");
        let now = error(
            r#"{"error":{"code":503,"err_code":10008,"description":"jetstream system temporarily unavailable"}}"#,
        );
        assert!(matches!(BackplaneError::from(now), BackplaneError::Unavailable(why) if why.contains("temporarily")));
        assert_eq!(
            error(r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#),
            CallError::NoStream
        );
        let good =
            error(r#"{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}"#);
        assert!(matches!(BackplaneError::from(good), BackplaneError::Protocol(why) if why.contains("10054")));
        let nobody = Message { status: Some(StatusCode::NO_RESPONDERS), ..answer("") };
        assert_eq!(written(&nobody), Err(CallError::NoStream));
        assert!(matches!(error("{}"), CallError::Unexpected(_)));
        assert!(matches!(error("no JSON"), CallError::Unexpected(_)));
    }

    #[test]
    fn plain_writes_have_no_headers() {
        assert_eq!(Write::new("a".to_owned(), "b").headers(), None);
        let write = Write {
            id: Some("x".to_owned()),
            expected: Some(0),
            replaces_all: true,
            ttl_seconds: Some(5),
            ..Write::default()
        };
        let headers = write.headers().expect("it has conditions");
        let value = |name| headers.get(name).map(async_nats::HeaderValue::as_str);
        assert_eq!(value("Nats-Msg-Id"), Some("x"));
        assert_eq!(value("Nats-Expected-Last-Subject-Sequence"), Some("0"));
        assert_eq!(value("Nats-Rollup"), Some("sub"));
        assert_eq!(value("Nats-TTL"), Some("5s"));
    }

    #[test]
    fn times_and_places_are_read() {
        assert_eq!(nanoseconds("1970-01-01T00:00:01.000000005Z"), Ok(1_000_000_005));
        assert_eq!(nanoseconds("2026-11-28T12:23:08Z"), Ok(1_795_868_588_000_000_000));
        assert!(nanoseconds("yesterday").is_err());
        assert_eq!(place("$JS.ACK.ek_H1_300.c.1.42.1.1795868588000000000.0"), Some((42, 1_795_868_588_000_000_000)));
        assert_eq!(
            place("$JS.ACK._.hash.ek_H1_300.c.1.42.1.1795868588000000000.0"),
            Some((42, 1_795_868_588_000_000_000))
        );
        assert_eq!(place("$JS.ACK._.hash.ek_H1_300.c.1.42.1.5.0.random"), Some((42, 5)));
        assert_eq!(place("_INBOX.a.1"), None);
    }
}
