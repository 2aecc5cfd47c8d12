//! Opening and writing to non-blocking sockets, and why connections end.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;

use crate::frame::FrameError;
use crate::http::HttpError;
use crate::sys;

/// Most bytes a connection may have waiting to be written. A client writes little; a server that does not take this
/// much has stopped reading.
const OUTBOX_BYTES_MAX: usize = 4 << 20;

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Cut {
    /// The server sent a close frame.
    #[error("closed by the server: {} {reason}", code.map_or("no code".to_owned(), |code| code.to_string()))]
    Closed {
        /// Close code.
        code: Option<u16>,
        /// Close reason.
        reason: String,
    },
    /// The server ended the connection without a close frame.
    #[error("cut by the server without a close frame")]
    Ended,
    /// The network failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The handshake failed.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The server broke the WebSocket protocol.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A frame of the server could not be decoded.
    #[error("undecodable frame: {0}")]
    Undecodable(String),
    /// A command was answered with an error.
    #[error("{command} error {code}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Error code.
        code: u32,
        /// Error message.
        message: String,
        /// The server advises to try again.
        temporary: bool,
    },
    /// It took too long.
    #[error("not ready within the connect timeout")]
    Timeout,
    /// The client dropped it itself, as the scenario wants.
    #[error("dropped by loadgen")]
    Dropped,
    /// The server does not read.
    #[error("the server does not read: {OUTBOX_BYTES_MAX} bytes are waiting")]
    Stalled,
    /// No token could be made.
    #[error("{0}")]
    Token(String),
}

impl Cut {
    /// A client following the protocol stays away after this.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Closed { code: Some(code), .. } => *code == 1009 || matches!(code, 3500..=3999 | 4500..=4999),
            // 109 is an expired token, for which SDKs fetch a new one.
            Self::Refused { code, temporary, .. } => !temporary && *code != 109,
            Self::Token(_) => true,
            _ => false,
        }
    }

    /// The reason in a word or two, for counting failed attempts.
    pub fn kind(&self) -> String {
        match self {
            Self::Http(HttpError::Refused(status)) => status.chars().take(3).collect(),
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => "reset".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Ended => "ended".to_owned(),
            Self::Closed { code: Some(code), .. } => format!("closed {code}"),
            other => other.to_string(),
        }
    }
}

/// Starts to connect. The socket becomes writable when that has ended either way.
pub fn open(address: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        sys::choose_port_at_connect(&socket)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Ends a connection as a network that is gone does: the peer gets a reset.
pub fn reset(socket: TcpStream) {
    // Without it the connection would be ended in good order; the peer is told either way.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Bytes that could not be written yet. Empty, and without memory, for nearly every connection.
#[derive(Default)]
pub struct Outbox(Vec<u8>);

impl Outbox {
    /// Writes, or keeps what the socket does not take, in order.
    pub fn write(&mut self, socket: &mut TcpStream, bytes: &[u8]) -> Result<(), Cut> {
        let written = if self.0.is_empty() { write_some(socket, bytes)? } else { 0 };
        let rest = &bytes[written..];
        if self.0.len() + rest.len() > OUTBOX_BYTES_MAX {
            return Err(Cut::Stalled);
        }
        self.0.extend_from_slice(rest);
        Ok(())
    }

    /// Writes what was kept.
    pub fn flush(&mut self, socket: &mut TcpStream) -> Result<(), Cut> {
        if self.0.is_empty() {
            return Ok(());
        }
        let written = write_some(socket, &self.0)?;
        if written == self.0.len() {
            self.0 = Vec::new();
        } else {
            self.0.drain(..written);
        }
        Ok(())
    }
}

fn write_some(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn what_the_socket_does_not_take_is_kept_in_order_and_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (mut far, _) = listener.accept().expect("accept");
        near.set_nonblocking(true).expect("non-blocking");
        let (mut outbox, mut sent) = (Outbox::default(), Vec::new());
        let stalled = (0u32..).find_map(|i| {
            let block = [i as u8; 100_000];
            let result = outbox.write(&mut near, &block);
            result.is_ok().then(|| sent.extend_from_slice(&block));
            result.err()
        });
        assert!(matches!(stalled, Some(Cut::Stalled)));
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            far.read_to_end(&mut seen).expect("read");
            seen
        });
        near.set_nonblocking(false).expect("blocking");
        outbox.flush(&mut near).expect("flush");
        drop(near);
        assert!(reader.join().expect("the reader") == sent);
    }

    #[test]
    fn a_reset_is_seen_as_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (mut far, _) = listener.accept().expect("accept");
        reset(near);
        let error = far.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(Cut::Io(error).kind(), "reset");
    }

    #[test]
    fn only_permanent_refusals_keep_a_client_away() {
        let refused = |code, temporary| Cut::Refused { command: "connect", code, message: String::new(), temporary };
        assert!(refused(103, false).is_terminal());
        assert!(!refused(100, true).is_terminal() && !refused(109, false).is_terminal());
        assert_eq!(Cut::Http(HttpError::Refused("503 Service Unavailable".to_owned())).kind(), "503");
    }

    #[test]
    fn terminal_codes_are_those_of_the_protocol() {
        let closed = |code| Cut::Closed { code, reason: String::new() }.is_terminal();
        let terminal = [1009, 3500, 3999, 4500, 4999].map(|code| closed(Some(code)));
        let temporary = [Some(1001), Some(3008), Some(3499), Some(4000), Some(4499), None].map(closed);
        assert_eq!((terminal, temporary), ([true; 5], [false; 6]));
    }
}
