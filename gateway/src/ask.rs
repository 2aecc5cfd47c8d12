//! Asking the internal listener of a running gateway, for commands that do and end.
//!
//! One GET over plain TCP without the asynchronous machinery: these commands run in containers of which nothing else is
//! known, some of them every few seconds.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use url::Url;

/// How long connecting, and each step after it, may take: below the time limit of the probes that run `health`.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest answer that is read. A table of 1,000 nodes has 400 KiB.
const ANSWER_BYTES: u64 = 16 << 20;

/// Where an internal listener is, as an `http://` URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Host and port.
    authority: String,
    /// What stands before the paths of the gateway, without a slash at its end.
    prefix: String,
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Place {
    /// Reads a URL such as `http://127.0.0.1:9000`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("{error}; expected http://HOST:PORT"))?;
        if url.scheme() != "http" {
            return Err(format!("the scheme is {}; the internal listener speaks http only", url.scheme()));
        }
        let host = url.host_str().ok_or("it has no host")?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err("more than host, port and path; expected http://HOST:PORT".to_owned());
        }
        let port = url.port_or_known_default().unwrap_or(80);
        Ok(Self { authority: format!("{host}:{port}"), prefix: url.path().trim_end_matches('/').to_owned() })
    }

    /// Asks for a path.
    ///
    /// # Errors
    /// When nothing listens there, or it does not speak HTTP, or not in time.
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        get(&self.authority, &format!("{}{path}", self.prefix))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

/// Asks the server at `host:port` for a path.
///
/// # Errors
/// When nothing listens there, or it does not speak HTTP, or not in time.
pub fn get(address: &str, path: &str) -> io::Result<Answer> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // To a client of HTTP/1.0 nothing is sent in chunks, so the body is what comes until the end.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no HTTP server"))
}

/// To the first address of the name that answers.
fn connect(address: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn parse(answer: &[u8]) -> Option<Answer> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|bytes| bytes == END)?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some(Answer { status, body: answer[end + END.len()..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_host_port_and_what_stands_before_the_paths() {
        let shown = |text| Place::parse(text).map(|place| place.to_string());
        assert_eq!(shown("http://127.0.0.1:9000"), Ok("http://127.0.0.1:9000".to_owned()));
        assert_eq!(shown("http://pod-0.ws:9000/proxy/"), Ok("http://pod-0.ws:9000/proxy".to_owned()));
        assert_eq!(shown("http://[::1]"), Ok("http://[::1]:80".to_owned()));
        let wrong = |text, why: &str| {
            let error = shown(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        };
        wrong("127.0.0.1:9000", "http://HOST:PORT");
        wrong("localhost:9000", "the scheme is localhost");
        wrong("https://a.test", "http only");
        wrong("http://user@a.test", "more than host");
        wrong("http://a.test/?x=1", "more than host");
    }

    #[test]
    fn an_answer_has_a_status_and_what_follows_its_head() {
        let body = |answer: &str| parse(answer.as_bytes()).map(|answer| (answer.status, answer.body));
        assert_eq!(body("HTTP/1.0 200 OK\r\nX: y\r\n\r\n{}"), Some((200, b"{}".to_vec())));
        assert_eq!(body("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some((503, Vec::new())));
        assert_eq!(body("HTTP/1.0 200 OK\r\n"), None);
        assert_eq!(body("SSH-2.0\r\n\r\n"), None);
        assert_eq!(body("HTTP/1.1 2\r\n\r\n"), None);
    }
}
