//! A load balancer whose clients can be moved from one server to another, which they never notice but as a connection
//! that ended: SDKs before gateways, or gateways before Redis servers.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::gateway::Gateway;

/// Listens on an address of its own. Lives in the test's runtime.
pub struct Front {
    address: String,
    url: String,
    target: Target,
    /// Every change ends the connections there are.
    cuts: watch::Sender<()>,
    closes: Closes,
    accepting: JoinHandle<()>,
}

/// What servers have ended connections with.
type Closes = Arc<Mutex<Vec<Option<u16>>>>;

/// `host:port` of the server that new connections go to; `None` refuses them.
type Target = Arc<Mutex<Option<String>>>;

impl Front {
    /// A front that leads to this gateway.
    pub async fn to(gateway: &Gateway) -> Self {
        let mut front = Self::to_address(gateway.public_address()).await;
        front.url = gateway.url().replacen(gateway.public_address(), &front.address, 1);
        front
    }

    /// A front that leads to the server at this `host:port`.
    pub async fn to_address(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let target = Target::default();
        let (cuts, _) = watch::channel(());
        let closes = Closes::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&target), cuts.subscribe(), Arc::clone(&closes)));
        let front = Self { address, url: String::new(), target, cuts, closes, accepting };
        front.lead_to_address(server);
        front
    }

    /// Its own `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL for WebSocket clients, before a gateway.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// New connections go to this gateway; those there are stay where they are.
    pub fn lead_to(&self, gateway: &Gateway) {
        self.lead_to_address(gateway.public_address());
    }

    /// The same for any server.
    pub fn lead_to_address(&self, server: &str) {
        self.set(Some(server.to_owned()));
    }

    /// Ends every connection without a close frame and refuses new ones, until [`Front::lead_to`].
    pub fn cut(&self) {
        self.set(None);
        self.cuts.send_replace(());
    }

    /// The codes of the WebSocket close frames that gateways have ended connections with, `None` for an end without one.
    /// SDKs do not tell their applications codes below 3000.
    pub fn closes(&self) -> Vec<Option<u16>> {
        self.closes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, target: Option<String>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: Target, cuts: watch::Receiver<()>, closes: Closes) {
    while let Ok((near, _)) = listener.accept().await {
        let target = target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(target) = target {
            // The cuts before are not for this one, but one that comes before it has begun is.
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(forward(near, target, cuts, Arc::clone(&closes)));
        }
    }
}

/// Ends with either side, with a cut, and with the front.
async fn forward(mut near: TcpStream, target: String, mut cuts: watch::Receiver<()>, closes: Closes) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    // A client's next message must not wait for an acknowledgement of the last.
    let _only_slower = (near.set_nodelay(true), far.set_nodelay(true));
    let mut far = Overheard { stream: far, tail: Vec::new() };
    tokio::select! {
        _ended = copy_bidirectional(&mut near, &mut far) => {
            closes.lock().unwrap_or_else(PoisonError::into_inner).push(close_code(&far.tail));
        }
        _cut = cuts.changed() => {}
    }
}

/// The longest close frame of a server: its header, and a code with its reason.
const CLOSE_FRAME_BYTES_MAX: usize = 127;

/// A server whose last words are kept.
struct Overheard {
    stream: TcpStream,
    tail: Vec<u8>,
}

impl AsyncRead for Overheard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.tail.extend_from_slice(&buffer.filled()[before..]);
        let excess = self.tail.len().saturating_sub(CLOSE_FRAME_BYTES_MAX);
        self.tail.drain(..excess);
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The code of the close frame (RFC 6455 5.5.1) that these bytes end with.
fn close_code(tail: &[u8]) -> Option<u16> {
    const CLOSE: u8 = 0x88;
    (0..tail.len()).find_map(|start| match &tail[start..] {
        [CLOSE, length, first, second, reason @ ..] if usize::from(*length) == reason.len() + 2 => {
            Some(u16::from_be_bytes([*first, *second]))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_close_frame_at_the_end_is_found() {
        assert_eq!(close_code(b"\x81\x02{}\x88\x04\x03\xe9no"), Some(1001));
        assert_eq!(close_code(b"\x88\x02\x0f\xa1"), Some(4001));
        assert_eq!(close_code(b"\x88\x02\x0f\xa1\x81\x02{}"), None);
        assert_eq!(close_code(b""), None);
    }
}
