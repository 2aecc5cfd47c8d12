//! As much HTTP/1.1 as a load generator needs: the WebSocket handshake and answers to API calls.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use thiserror::Error;

use crate::target::Target;

/// Longest head of a response, in bytes. Servers answer with a few hundred.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest body of an API answer, in bytes; that of a publish has fewer than a hundred.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The nonce of every handshake. RFC 6455 section 4.1 wants it random so that caches and confused servers are found out;
/// here the same one (that of the RFC's example) for all lets the answer be compared without hashing.
pub const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The only right answer to [`WEBSOCKET_KEY`].
pub const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A response that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum HttpError {
    /// Not HTTP/1, or a malformed line.
    #[error("the answer is not HTTP/1.1")]
    Malformed,
    /// The head does not end within [`HEAD_BYTES_MAX`].
    #[error("the head of the answer is longer than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// The body is longer than [`BODY_BYTES_MAX`], or of unknown length.
    #[error("the body of the answer has no length of at most {BODY_BYTES_MAX} bytes")]
    BodyLength,
    /// The handshake was refused.
    #[error("the server refused the WebSocket handshake: HTTP {0}")]
    Refused(String),
    /// The server agreed to something that was not asked for.
    #[error("the server's WebSocket handshake is wrong: {0}")]
    Handshake(&'static str),
}

/// The head of a request or response.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Request or status line.
    pub first_line: &'a str,
    fields: &'a str,
    /// Bytes up to the body.
    pub len: usize,
}

impl<'a> Head<'a> {
    /// Reads the head at the start of `input`; None when more bytes are needed.
    pub fn parse(input: &'a [u8]) -> Result<Option<Self>, HttpError> {
        let Some(end) = memchr::memmem::find(&input[..input.len().min(HEAD_BYTES_MAX)], b"\r\n\r\n") else {
            return if input.len() >= HEAD_BYTES_MAX { Err(HttpError::HeadTooLong) } else { Ok(None) };
        };
        let text = std::str::from_utf8(&input[..end]).map_err(|_| HttpError::Malformed)?;
        let (first_line, fields) = text.split_once("\r\n").unwrap_or((text, ""));
        Ok(Some(Self { first_line, fields, len: end + 4 }))
    }

    /// The value of a field, by its lower- or upper-case name.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        let mut fields = self.fields.split("\r\n").filter_map(|line| line.split_once(':'));
        fields.find_map(|(field, value)| field.eq_ignore_ascii_case(name).then_some(value.trim()))
    }

    /// Status code and phrase of a response, such as `403 Forbidden`.
    pub fn status(&self) -> Result<(u16, &'a str), HttpError> {
        let status =
            self.first_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..)).ok_or(HttpError::Malformed)?;
        let code = status.get(..3).and_then(|code| code.parse().ok()).ok_or(HttpError::Malformed)?;
        Ok((code, status))
    }
}

/// A handshake request. `protocol` is the subprotocol to offer.
pub fn upgrade_request(host: &str, path: &str, protocol: Option<&str>) -> Vec<u8> {
    let offer = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n{offer}\r\n"
    )
    .into_bytes()
}

/// Checks the answer to a handshake. Returns how many bytes it has; None when it is not complete.
pub fn read_upgrade(input: &[u8], protocol: Option<&str>) -> Result<Option<usize>, HttpError> {
    let Some(head) = Head::parse(input)? else { return Ok(None) };
    let (code, status) = head.status()?;
    if code != 101 {
        return Err(HttpError::Refused(status.chars().take(80).collect()));
    }
    if head.field("sec-websocket-accept") != Some(WEBSOCKET_ACCEPT) {
        return Err(HttpError::Handshake("Sec-WebSocket-Accept does not answer the key"));
    }
    if head.field("sec-websocket-extensions").is_some() {
        return Err(HttpError::Handshake("an extension was chosen that was not offered"));
    }
    match (protocol, head.field("sec-websocket-protocol")) {
        (Some(offered), Some(chosen)) if offered == chosen => Ok(Some(head.len)),
        (None, None) => Ok(Some(head.len)),
        (Some(_), _) => Err(HttpError::Handshake("the offered subprotocol is not echoed")),
        (None, Some(_)) => Err(HttpError::Handshake("a subprotocol was chosen that was not offered")),
    }
}

/// An API call with a JSON body.
pub fn append_post(host: &str, path: &str, key: Option<&str>, body: &[u8], out: &mut Vec<u8>) {
    let key = key.map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
    let length = body.len();
    out.extend_from_slice(
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        )
        .as_bytes(),
    );
    out.extend_from_slice(body);
}

/// A complete answer to an API call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer<'a> {
    /// Status code.
    pub code: u16,
    /// Status code and phrase.
    pub status: &'a str,
    /// Body.
    pub body: &'a [u8],
    /// Bytes of head and body.
    pub len: usize,
}

/// Reads an answer at the start of `input`; None when more bytes are needed.
pub fn read_answer(input: &[u8]) -> Result<Option<Answer<'_>>, HttpError> {
    let Some(head) = Head::parse(input)? else { return Ok(None) };
    let (code, status) = head.status()?;
    let length = head.field("content-length").and_then(|length| length.parse::<usize>().ok());
    let length = length.filter(|length| *length <= BODY_BYTES_MAX).ok_or(HttpError::BodyLength)?;
    let len = head.len + length;
    Ok(input.get(head.len..len).map(|body| Answer { code, status, body, len }))
}

/// Sends a request on a connection of its own, and reads until `find` has found in the answer what is wanted. Connecting,
/// writing and each read may take `patience`.
///
/// # Errors
/// When something takes longer, the answer ends before, or `find` fails.
pub fn exchange<T>(
    target: &Target,
    request: &[u8],
    patience: Duration,
    find: impl Fn(&[u8]) -> Result<Option<T>, HttpError>,
) -> io::Result<T> {
    let mut socket = TcpStream::connect_timeout(&target.address, patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    socket.write_all(request)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..count]);
        if let Some(found) = find(&answer).map_err(io::Error::other)? {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    #[test]
    fn a_handshake_is_accepted_once_it_is_complete() {
        let answer = format!("{ACCEPTED}\r\n\x01\x02");
        assert_eq!(read_upgrade(&answer.as_bytes()[..answer.len() - 3], None), Ok(None));
        assert_eq!(read_upgrade(answer.as_bytes(), None), Ok(Some(answer.len() - 2)));
        let echoed = format!("{ACCEPTED}sec-websocket-protocol: centrifuge-protobuf\r\n\r\n");
        assert_eq!(read_upgrade(echoed.as_bytes(), Some("centrifuge-protobuf")), Ok(Some(echoed.len())));
    }

    #[test]
    fn a_wrong_handshake_says_what_is_wrong() {
        let refused = read_upgrade(b"HTTP/1.1 403 Forbidden\r\n\r\n", None).expect_err("refused");
        assert_eq!(refused.to_string(), "the server refused the WebSocket handshake: HTTP 403 Forbidden");
        let complete = format!("{ACCEPTED}\r\n");
        assert!(matches!(read_upgrade(complete.as_bytes(), Some("x")), Err(HttpError::Handshake(_))));
        let other = complete.replace("s3p", "S3p");
        assert!(matches!(read_upgrade(other.as_bytes(), None), Err(HttpError::Handshake(_))));
        assert_eq!(read_upgrade(b"SSH-2.0-x\r\n\r\n", None), Err(HttpError::Malformed));
        assert_eq!(read_upgrade(&vec![b'x'; HEAD_BYTES_MAX], None), Err(HttpError::HeadTooLong));
    }

    #[test]
    fn pipelined_answers_are_told_apart() {
        let one = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"result\":{}}";
        let both = format!("{one}HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
        let first = read_answer(both.as_bytes()).expect("well-formed").expect("complete");
        assert_eq!((first.code, first.body, first.len), (200, &b"{\"result\":{}}"[..], one.len()));
        let second = read_answer(&both.as_bytes()[first.len..]).expect("well-formed").expect("complete");
        assert_eq!((second.code, second.status), (401, "401 Unauthorized"));
        assert_eq!(read_answer(&one.as_bytes()[..one.len() - 1]), Ok(None));
        assert_eq!(read_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(HttpError::BodyLength));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_answer(&[&b"HTTP/1.1 "[..], &bytes, b"\r\n\r\n"].concat());
            let _ = read_upgrade(&[&bytes[..], b"\r\n\r\n"].concat(), None);
        }
    }
}
