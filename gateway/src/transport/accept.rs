//! One listener per shard on the same port (SO_REUSEPORT), and the loop that accepts from it.

use std::cell::Cell;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::config::Handshake;
use crate::metrics::CONNECTS;
use crate::node::Node;

/// Connections the kernel may hold for us between two accepts. A reconnect storm arrives within milliseconds.
const BACKLOG: i32 = 4096;

/// Pause when the process is out of descriptors: accepting again at once would only spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// The answer when too many handshakes are under way, before anything was read.
const OVERLOADED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A condition that lasts is logged this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The smallest read buffer hyper accepts.
const HTTP_BUFFER_MIN: usize = 8192;

/// Binds `count` listeners to one address. Port 0 picks a free one for all of them.
///
/// # Errors
/// When the address cannot be bound, also when another process (a second gateway) listens there: SO_REUSEPORT alone
/// would silently share the port with it.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    drop(probe);
    let listeners = (0..count)
        .map(|_| {
            let socket = socket(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect::<io::Result<_>>()?;
    Ok((address, listeners))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What accept loops need beside their listeners.
#[derive(Clone)]
pub struct AcceptorOptions {
    /// The node.
    pub node: Arc<Node>,
    /// The routes of the public port.
    pub router: Router,
    /// TLS, when a certificate is configured.
    pub tls: Option<TlsAcceptor>,
    /// Bounds on connections that are not WebSockets yet. A slow-loris ends at their timeout.
    pub handshake: Handshake,
}

/// The accept loop of one shard.
#[derive(Clone)]
pub struct Acceptor {
    options: Rc<AcceptorOptions>,
    /// HTTP connections of this shard: handshakes under way and API clients.
    serving: Rc<Cell<usize>>,
}

/// Counts one HTTP connection for as long as it is served.
struct Serving(Rc<Cell<usize>>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Acceptor {
    /// An accept loop of the calling thread.
    pub fn new(options: AcceptorOptions) -> Self {
        Self { options: Rc::new(options), serving: Rc::default() }
    }

    /// Accepts until the thread ends. Runs on a shard's `LocalSet`.
    pub async fn run(self, listener: StdListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut warned: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let full = self.serving.get() >= self.options.handshake.in_flight;
                    if full || (self.options.tls.is_some() && !self.options.node.has_room()) {
                        // No handshake for a connection that would be refused after it.
                        metrics::counter!(CONNECTS, "result" => "overloaded").increment(1);
                        if self.options.tls.is_none() {
                            refuse(stream);
                        }
                        continue;
                    }
                    self.serving.set(self.serving.get() + 1);
                    tokio::task::spawn_local(self.clone().serve(stream, Serving(self.serving.clone())));
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept; trying again");
                    }
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream, _serving: Serving) {
        // Frames are small and written whole: waiting for more would only add latency.
        let _ = stream.set_nodelay(true);
        match &self.options.tls {
            None => self.serve_http(TokioIo::new(stream)).await,
            Some(acceptor) => {
                let handshake = tokio::time::timeout(self.options.handshake.header_timeout, acceptor.accept(stream));
                match handshake.await {
                    Ok(Ok(stream)) => self.serve_http(TokioIo::new(stream)).await,
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake timed out"),
                }
            }
        }
    }

    async fn serve_http<I>(&self, io: I)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let service = TowerToHyperService::new(self.options.router.clone());
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.handshake.header_timeout)
            .max_buf_size(self.options.handshake.header_bytes.max(HTTP_BUFFER_MIN))
            .serve_connection(io, service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "HTTP connection ended");
        }
    }
}

/// Tells a peer that it has to come back, as far as its socket takes it at once.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(OVERLOADED);
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_cannot_share_the_port() {
        let (address, first) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(bind(address, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind(address, 1).unwrap();
    }
}
