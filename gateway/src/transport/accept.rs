//! One listener per shard on the same port (SO_REUSEPORT), and the loop that begins a handshake with each who comes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, RETRY_AFTER};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::arrivals::{Arrival, Arrivals};
use super::client_address::{AddressRules, ClientAddress};
use super::proxy_protocol;
use super::upgrade::CONNECTION_PATHS;
use crate::admission::{Crowded, Gate, Slot, retry_after};
use crate::config::Handshake;
use crate::metrics::CONNECTS;
use crate::node::Node;

/// Connections the kernel may hold for us until we take them: as many as it allows (`net.core.somaxconn`). A reconnect storm
/// arrives within milliseconds.
const BACKLOG: i32 = 65_535;

/// Handshakes begun before those that are under way get their turn. In a storm many more wait: to begin them all at once
/// would crowd the others, and most would have to be refused.
const BEGUN_PER_TURN: usize = 16;

/// How long nobody may get in before a connection does not wait any longer for one of the handshakes under way to end.
const CROWD_PATIENCE: Duration = Duration::from_millis(250);

/// How often it is looked whether one has ended.
const CROWD_PAUSE: Duration = Duration::from_millis(1);

/// Reads of 4 KiB from who is refused: as much as the longest head of a request by default.
const REFUSED_READS: usize = 4;

/// Pause when the process is out of descriptors: accepting again at once would only spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

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
    /// How many shards share the descriptors.
    pub shards: usize,
    /// Whom to believe about the addresses of clients.
    pub addresses: Arc<AddressRules>,
}

/// The accept loop of one shard.
#[derive(Clone)]
pub struct Acceptor {
    options: Rc<AcceptorOptions>,
    gate: Rc<Gate>,
}

impl Acceptor {
    /// An accept loop of the calling thread.
    pub fn new(options: AcceptorOptions) -> Self {
        let gate = Gate::new(options.handshake.in_flight, options.node.admission());
        gate.enter();
        Self { options: Rc::new(options), gate }
    }

    /// Accepts until the thread ends. Runs on a shard's `LocalSet`.
    pub async fn run(self, listener: StdListener) -> io::Result<()> {
        let mut arrivals = Arrivals::new(listener)?;
        let mut warned: Option<Instant> = None;
        loop {
            match arrivals.take_in(self.may_wait()).await {
                Ok(()) => {}
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                        warned = Some(Instant::now());
                        tracing::warn!(%error, "cannot accept; trying again");
                    }
                    if arrivals.is_empty() {
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                }
            }
            let is_crowd = self.begin_some(&mut arrivals);
            self.gate.set_waiting(arrivals.len());
            if is_crowd {
                tokio::time::sleep(CROWD_PAUSE).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Begins with those that have waited longest. True when the next one has to wait for others to end.
    fn begin_some(&self, arrivals: &mut Arrivals) -> bool {
        let timeout = self.options.handshake.queue_timeout;
        // Who is in time for the end of it must not be too late then.
        let patience = CROWD_PATIENCE.min(timeout / 2);
        for _ in 0..BEGUN_PER_TURN {
            let Some(waited) = arrivals.waited() else { break };
            if waited <= timeout && !self.gate.may_begin(waited, patience) {
                return true;
            }
            if let Some(arrival) = arrivals.take() {
                self.begin(arrival);
            }
        }
        false
    }

    /// How many connections may wait: what the configuration says, as far as there are descriptors, since each of them takes
    /// the place of a client that may still come; and as many as are begun at once in any case.
    fn may_wait(&self) -> usize {
        let AcceptorOptions { node, handshake, shards, .. } = &*self.options;
        handshake.queue_len.min(node.room() / shards).max(BEGUN_PER_TURN)
    }

    fn begin(&self, arrival: Arrival) {
        let Self { options, gate } = self;
        // Who has waited for long may have given up; to begin with everybody too late would be in vain for all of them.
        let is_late = arrival.waited() > options.handshake.queue_timeout;
        // No TLS handshake for a connection that would be refused after it.
        if is_late || gate.is_full() || (options.tls.is_some() && !options.node.has_room()) {
            metrics::counter!(CONNECTS, "result" => "overloaded").increment(1);
            options.node.placing.count_refused();
            if options.tls.is_none() {
                refuse(arrival.stream);
            }
            return;
        }
        let Arrival { stream, peer, .. } = arrival;
        tokio::task::spawn_local(self.clone().serve(stream, peer, gate.admit()));
    }

    async fn serve(self, mut stream: TcpStream, socket: IpAddr, slot: Slot) {
        // Frames are small and written whole: waiting for more would only add latency.
        let _ = stream.set_nodelay(true);
        let patience = self.options.handshake.header_timeout;
        let mut peer = socket;
        if self.options.addresses.proxy_protocol && self.options.addresses.trusts(socket) {
            match tokio::time::timeout(patience, proxy_protocol::read_header(&mut stream)).await {
                Ok(Ok(source)) => peer = source.unwrap_or(socket),
                failed => {
                    metrics::counter!(CONNECTS, "result" => "bad_proxy_header").increment(1);
                    match failed {
                        Ok(Err(error)) => tracing::debug!(%socket, %error, "no usable PROXY header"),
                        _ => tracing::debug!(%socket, "the PROXY header did not come in time"),
                    }
                    return;
                }
            }
        }
        match &self.options.tls {
            None => self.serve_http(TokioIo::new(stream), peer, slot).await,
            Some(acceptor) => match tokio::time::timeout(patience, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(TokioIo::new(stream), peer, slot).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
            },
        }
    }

    async fn serve_http<I>(&self, io: I, peer: IpAddr, slot: Slot)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let is_upgrade = request.uri().path().starts_with(CONNECTION_PATHS);
            let has_place = is_upgrade || slot.is_other();
            let mut request = request.map(Body::new);
            if is_upgrade && !slot.may_upgrade() {
                request.extensions_mut().insert(Crowded);
            }
            let client = self.options.addresses.client(peer, request.headers());
            request.extensions_mut().insert(ClientAddress(client));
            let router = self.options.router.clone();
            async move { if has_place { router.oneshot(request).await } else { Ok(busy()) } }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.options.handshake.header_timeout)
            .max_buf_size(self.options.handshake.header_bytes.max(HTTP_BUFFER_MIN))
            .serve_connection(io, service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "HTTP connection ended");
        }
    }
}

/// Too many connections that are not for clients.
fn busy() -> Response {
    let headers = [(RETRY_AFTER, retry_after()), (CONNECTION, http::HeaderValue::from_static("close"))];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "too many connections\n").into_response()
}

/// Tells a peer that it has to come back, as far as its socket takes it at once.
fn refuse(stream: TcpStream) {
    let Ok(mut stream) = stream.into_std() else { return };
    // A socket that is closed with something unread sends a reset, which may overtake the answer.
    let mut request = [0; 4096];
    for _ in 0..REFUSED_READS {
        if !stream.read(&mut request).is_ok_and(|read| read == request.len()) {
            break;
        }
    }
    let after = retry_after();
    let after = after.to_str().unwrap_or("2");
    let _ = write!(
        stream,
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {after}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
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
