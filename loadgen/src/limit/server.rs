//! The bare epoll server.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use protocol::{ConnectResult, Encoding, Limits, Reply, ReplyBody, Request, SubscribeResult};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::client::allow_descriptors;
use crate::frame::{CLOSE, FrameHeader, TEXT, apply_mask, write_frame};
use crate::http::{Head, WEBSOCKET_ACCEPT, WEBSOCKET_KEY};
use crate::schedule::Schedule;
use crate::stamp::{Stamp, write_payload};
use crate::{procfs, sys};

/// Connections waiting to be accepted: the kernel's usual maximum.
const BACKLOG: i32 = 4096;
/// How long the subscribers may take to come, and later to leave.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long clients may take to read the last message and close.
const FAREWELL: Duration = Duration::from_secs(30);
const LISTENER: u64 = u64::MAX;

/// What to serve.
pub struct ServePlan {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Subscribers to wait for, and not more.
    pub subscribers: usize,
    /// When messages are sent. One channel, one publisher.
    pub schedule: Schedule,
    /// Length of the JSON payload.
    pub payload_bytes: usize,
    /// Length of a whole message, to match another server's whose envelope is longer; spaces fill it up.
    pub message_bytes: Option<usize>,
    /// Name of the channel.
    pub channel: String,
    /// Identity of the run.
    pub run: u32,
    /// From the last subscriber to the first message.
    pub start_after: Duration,
}

/// What the server did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Messages of the schedule.
    pub messages: u64,
    /// Frames the kernel took.
    pub deliveries: u64,
    /// Frames it did not take, because the receiver was too slow.
    pub refused: u64,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Own CPU time while the schedule ran, user and system.
    pub cpu_seconds: f64,
    /// The same per frame taken, in microseconds.
    pub cpu_us_per_delivery: f64,
}

#[derive(Default)]
struct Peer {
    socket: Option<TcpStream>,
    input: Vec<u8>,
    upgraded: bool,
    subscribed: bool,
}

struct Server {
    plan: ServePlan,
    epoll: sys::Epoll,
    listener: TcpListener,
    peers: Vec<Peer>,
    subscribed: usize,
    open: usize,
    buffer: Vec<u8>,
}

/// Serves one run; `listening` is told the address.
pub fn serve(plan: ServePlan, listening: impl FnOnce(SocketAddr)) -> Result<Stats> {
    allow_descriptors(plan.subscribers)?;
    let socket = Socket::new(Domain::for_address(plan.listen), Type::STREAM, None).context("cannot make a socket")?;
    socket.set_reuse_address(true)?;
    socket.bind(&plan.listen.into()).with_context(|| format!("cannot listen on {}", plan.listen))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from(socket);
    let epoll = sys::Epoll::new()?;
    epoll.add_readable(&listener, LISTENER)?;
    listening(listener.local_addr()?);
    let mut server =
        Server { plan, epoll, listener, peers: Vec::new(), subscribed: 0, open: 0, buffer: vec![0; 64 * 1024] };
    server.wait_for_subscribers()?;
    let stats = server.send_all()?;
    server.wait_for_farewell()?;
    Ok(stats)
}

impl Server {
    fn wait_for_subscribers(&mut self) -> Result<()> {
        let deadline = sys::monotonic_ns() + PATIENCE.as_nanos() as u64;
        while self.subscribed < self.plan.subscribers {
            if sys::monotonic_ns() > deadline {
                bail!("only {} of {} subscribers came within {PATIENCE:?}", self.subscribed, self.plan.subscribers);
            }
            self.handle_events(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn send_all(&mut self) -> Result<Stats> {
        let start = sys::monotonic_ns() + self.plan.start_after.as_nanos() as u64;
        while sys::monotonic_ns() < start {
            self.handle_events(Duration::from_nanos(start.saturating_sub(sys::monotonic_ns())))?;
        }
        let own = std::process::id();
        let cpu_before = procfs::process_cpu_seconds(own)?;
        let (mut deliveries, mut refused) = (0, 0);
        let mut frame = Vec::new();
        for message in 0..self.plan.schedule.total {
            let due = start + self.plan.schedule.due_ns(message);
            loop {
                let wait = Duration::from_nanos(due.saturating_sub(sys::monotonic_ns()));
                // Looks at the sockets now and then even when late, for those that were closed.
                if !wait.is_zero() || message % 64 == 0 {
                    self.handle_events(wait)?;
                }
                if sys::monotonic_ns() >= due {
                    break;
                }
            }
            self.encode(message, due, &mut frame);
            for peer in self.peers.iter_mut().filter(|peer| peer.subscribed) {
                let Some(socket) = &mut peer.socket else { continue };
                match socket.write(&frame) {
                    Ok(written) if written == frame.len() => deliveries += 1,
                    // Half a frame: nothing sensible can follow it.
                    Ok(_) => {
                        peer.socket = None;
                        self.open -= 1;
                        refused += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        let cpu_seconds = procfs::process_cpu_seconds(own)? - cpu_before;
        Ok(Stats {
            messages: self.plan.schedule.total,
            deliveries,
            refused,
            frame_bytes: frame.len(),
            cpu_seconds,
            cpu_us_per_delivery: cpu_seconds * 1e6 / (deliveries.max(1)) as f64,
        })
    }

    fn wait_for_farewell(&mut self) -> Result<()> {
        let deadline = sys::monotonic_ns() + FAREWELL.as_nanos() as u64;
        while self.open > 0 && sys::monotonic_ns() < deadline {
            self.handle_events(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn encode(&self, message: u64, due_ns: u64, frame: &mut Vec<u8>) {
        let plan = &self.plan;
        let place = plan.schedule.place(message);
        let stamp = Stamp {
            run: plan.run,
            channel: place.channel,
            publisher: place.publisher as u16,
            sequence: place.sequence,
            intended_ns: due_ns,
        };
        let mut text = format!("{{\"push\":{{\"channel\":\"{}\",\"pub\":{{\"data\":", plan.channel).into_bytes();
        write_payload(&stamp, plan.payload_bytes, &mut text);
        let end = plan.message_bytes.unwrap_or(0).saturating_sub(3);
        while text.len() < end {
            text.push(b' ');
        }
        text.extend_from_slice(b"}}}");
        frame.clear();
        write_frame(TEXT, &text, None, frame);
    }

    fn handle_events(&mut self, timeout: Duration) -> Result<()> {
        let mut events = [sys::Event::EMPTY; 256];
        for event in self.epoll.wait(&mut events, timeout)? {
            if event.token() == LISTENER {
                self.accept()?;
                continue;
            }
            let index = event.token() as usize;
            if self.read(index).is_err() {
                let peer = &mut self.peers[index];
                self.open -= usize::from(peer.socket.is_some());
                self.subscribed -= usize::from(peer.subscribed);
                *peer = Peer::default();
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) if self.peers.len() < self.plan.subscribers => {
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    self.epoll.add_readable(&socket, self.peers.len() as u64)?;
                    self.peers.push(Peer { socket: Some(socket), ..Peer::default() });
                    self.open += 1;
                }
                // One too many: it was planned for a known number.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot accept"),
            }
        }
    }

    fn read(&mut self, index: usize) -> Result<()> {
        let peer = &mut self.peers[index];
        let Some(socket) = &mut peer.socket else { return Ok(()) };
        match socket.read(&mut self.buffer) {
            Ok(0) => bail!("closed"),
            Ok(count) => peer.input.extend_from_slice(&self.buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if !peer.upgraded {
            let Some(head) = Head::parse(&peer.input)? else { return Ok(()) };
            if head.field("sec-websocket-key") != Some(WEBSOCKET_KEY) {
                socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
                bail!("not loadgen");
            }
            let len = head.len;
            let accepted = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\n\r\n"
            );
            socket.write_all(accepted.as_bytes())?;
            peer.input.drain(..len);
            peer.upgraded = true;
        }
        while let Some(header) = FrameHeader::parse(&peer.input)? {
            let end = header.header_len + header.payload_len;
            if peer.input.len() < end {
                break;
            }
            let mut payload = peer.input[header.header_len..end].to_vec();
            peer.input.drain(..end);
            apply_mask(&mut payload, header.mask.context("a client's frame is masked")?);
            if header.opcode == CLOSE {
                bail!("closed");
            }
            if header.opcode == TEXT && !peer.subscribed {
                socket.write_all(&answers(payload)?)?;
                peer.subscribed = true;
                self.subscribed += 1;
            }
        }
        if peer.input.is_empty() {
            peer.input = Vec::new();
        }
        Ok(())
    }
}

/// The frame that answers the first frame of a client: connect and subscribe always succeed.
fn answers(payload: Vec<u8>) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for command in protocol::decode_commands(Encoding::Json, &Bytes::from(payload), &Limits::default()) {
        let command = command?;
        let body = match command.request {
            Some(Request::Connect(_)) => {
                let version = "physical limit".to_owned();
                ReplyBody::Connect(ConnectResult { client: "limit".to_owned(), version, ..ConnectResult::default() })
            }
            Some(Request::Subscribe(_)) => ReplyBody::Subscribe(SubscribeResult::default()),
            other => bail!("the limit server only knows connect and subscribe, not {other:?}"),
        };
        protocol::encode_reply(Encoding::Json, &Reply { id: command.id, body: Some(body) }, &mut text)?;
    }
    let mut frame = Vec::new();
    write_frame(TEXT, protocol::frame_payload(Encoding::Json, &text), None, &mut frame);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_frame_is_answered_in_order() {
        let frame = answers(b"{\"connect\":{},\"id\":1}\n{\"subscribe\":{\"channel\":\"a\"},\"id\":2}".to_vec());
        let frame = frame.expect("both are known");
        let text = std::str::from_utf8(&frame[2..]).expect("text");
        let ids: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["id"].as_u64().expect("an id"))
            .collect();
        assert_eq!(ids, [1, 2]);
        assert!(answers(b"{\"rpc\":{\"method\":\"x\",\"data\":1},\"id\":3}".to_vec()).is_err());
    }
}
