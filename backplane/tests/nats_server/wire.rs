//! A connection of a test's own, which speaks the protocol of NATS as far as a test needs it, and blocks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::access::Access;

/// Longer than any server takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Wire {
    stream: BufReader<TcpStream>,
    requests: u64,
}

impl Wire {
    /// Connects as the administrator of a server with this access; not over TLS.
    pub fn connect(port: u16, access: &Access) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the server is running");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        let mut wire = Self { stream: BufReader::new(stream), requests: 0 };
        let info = wire.line().expect("the server greets");
        assert!(info.starts_with("INFO "), "the server begins with {info}");
        wire.send(&format!("CONNECT {}\r\nPING\r\n", access.admin_connect(&info)));
        wire.until("PONG").expect("the server answers");
        wire
    }

    /// Publishes, and returns when the server has it.
    pub fn publish(&mut self, subject: &str, payload: &str) {
        self.send(&format!("PUB {subject} {}\r\n{payload}\r\nPING\r\n", payload.len()));
        self.until("PONG").expect("the server answers");
    }

    /// The answer to a request, as text without headers.
    pub fn ask(&mut self, subject: &str, payload: &str) -> String {
        self.try_ask(subject, payload, PATIENCE).unwrap_or_else(|| panic!("{subject} is not answered"))
    }

    /// The same within this time. Afterwards the connection is of no use.
    pub fn try_ask(&mut self, subject: &str, payload: &str, patience: Duration) -> Option<String> {
        self.stream.get_ref().set_read_timeout(Some(patience)).expect("a limit that is not zero");
        self.requests += 1;
        let inbox = format!("_INBOX.test.{}.{}", std::process::id(), self.requests);
        let number = self.requests;
        self.send(&format!("SUB {inbox} {number}\r\nUNSUB {number} 1\r\n"));
        self.send(&format!("PUB {subject} {inbox} {}\r\n{payload}\r\n", payload.len()));
        let head = self.until("MSG ")?;
        let sizes: Vec<usize> = head.split(' ').rev().map_while(|word| word.parse().ok()).collect();
        let total = *sizes.first().expect("a message has a length");
        let headers = if head.starts_with('H') { sizes[1] } else { 0 };
        let mut body = vec![0; total + 2];
        self.stream.read_exact(&mut body).expect("the whole message");
        Some(String::from_utf8_lossy(&body[headers..total]).into_owned())
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).expect("the server listens");
    }

    /// `None` when there is none in time.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok()?;
        assert!(!line.is_empty(), "the server has closed the connection");
        Some(line.trim_end().to_owned())
    }

    /// The first line that begins with this word, or with it after an `H`.
    fn until(&mut self, word: &str) -> Option<String> {
        loop {
            let line = self.line()?;
            if line.starts_with("-ERR") {
                panic!("the server refuses: {line}");
            } else if line == "PING" {
                self.send("PONG\r\n");
            } else if line.trim_start_matches('H').starts_with(word) {
                return Some(line);
            }
        }
    }
}

/// What is under a path of the monitoring port.
pub fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the server is running");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the server listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).expect("an answer has a body")
}
