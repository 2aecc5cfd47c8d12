//! HTTP requests written by hand, for what an HTTP library would refuse to send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::within;

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What came with the headers and until the server ended the connection or `Content-Length` was reached.
    pub body: String,
}

impl Response {
    /// The value of the first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// A WebSocket handshake as text, whose lines a test may change.
pub fn handshake_lines(host: &str) -> Vec<String> {
    [
        "GET /connection/websocket HTTP/1.1".to_owned(),
        format!("Host: {host}"),
        "Upgrade: websocket".to_owned(),
        "Connection: Upgrade".to_owned(),
        "Sec-WebSocket-Version: 13".to_owned(),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
    ]
    .into()
}

/// Sends these lines as a request head and reads the response.
pub async fn request(host: &str, lines: &[String]) -> Response {
    request_with_body(host, lines, b"").await
}

/// Sends these lines and this body and reads the response.
pub async fn request_with_body(host: &str, lines: &[String], body: &[u8]) -> Response {
    let mut stream = within("a TCP connection", TcpStream::connect(host)).await.expect("the gateway listens");
    let mut bytes = format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes();
    bytes.extend_from_slice(body);
    // A server may answer and close before it has read everything; the answer is what counts.
    let _closed_meanwhile = within("room to write", stream.write_all(&bytes)).await;
    read_response(&mut stream).await
}

async fn read_response(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    loop {
        if let Some(response) = parse(&bytes) {
            return response;
        }
        let mut chunk = [0; 4096];
        let read = within("a response", stream.read(&mut chunk)).await.unwrap_or(0);
        if read == 0 {
            return parse_to_end(&bytes).unwrap_or_else(|| panic!("no HTTP response: {bytes:?}"));
        }
        bytes.extend_from_slice(&chunk[..read]);
    }
}

/// A complete response, if it is one already.
fn parse(bytes: &[u8]) -> Option<Response> {
    let response = parse_to_end(bytes)?;
    let expected: usize = match response.header("content-length") {
        Some(len) => len.parse().expect("Content-Length is a number"),
        // No body follows a 101; anything else without a length ends with the connection.
        None if response.status == 101 => 0,
        None => return None,
    };
    (response.body.len() >= expected).then_some(response)
}

fn parse_to_end(bytes: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Response { status, headers, body: body.to_owned() })
}
