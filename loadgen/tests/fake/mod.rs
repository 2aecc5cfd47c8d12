//! A small server that speaks the protocol correctly except for one planted fault.
#![allow(dead_code)] // Each test program uses its own part.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use loadgen::frame::{BINARY, CLOSE, CONTINUATION, FrameHeader, TEXT, apply_mask, write_frame};
use loadgen::http::{Head, WEBSOCKET_ACCEPT};
use loadgen::stamp::{Stamp, read_payload, write_payload};
use protocol::{
    ConnectResult, Encoding, Error, Limits, Publication, PublishResult, Push, PushBody, Reply, ReplyBody, Request,
    SubscribeRequest, SubscribeResult, Unsubscribe,
};

/// What goes wrong, once, at offset [`AT`] of a channel and only for its first subscriber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    None,
    /// The message is not delivered.
    Drop,
    /// It is delivered twice.
    Repeat,
    /// It comes after the next one.
    Reorder,
    /// One letter of it is changed.
    Corrupt,
    /// Its stamp is destroyed.
    Unstamp,
    /// It is delivered under the other channel's name.
    WrongName,
    /// It is delivered to a subscriber of the other channel.
    WrongSubscriber,
    /// A message nobody published comes before it.
    Forge,
    /// The publish is refused, but delivered.
    RefuseButDeliver,
    /// The publish is refused, and delivered twice.
    RefuseButDeliverTwice,
    /// The connection is closed before it, for good.
    Close,
    /// The connection is cut before it; the resubscribe recovers everything.
    CutAndRecover,
    /// The same, but one recovered message is missing.
    CutAndRecoverWithHole,
    /// The same, but nothing is recovered, although the reply says so.
    CutAndLie,
    /// The same, and the reply admits that nothing was recovered.
    CutAndTell,
    /// The same, and the reply recovers everything and, before that, a message the client has seen.
    CutAndRepeat,
    /// The same, and the recovered messages come in the wrong order.
    CutAndReorder,
    /// The same, and the stream is another one, which the reply admits.
    CutAndChangeEpoch,
    /// The same, and the reply claims to have recovered from a stream that is another one.
    CutAndLieAboutEpoch,
    /// The same, and the reply admits that nothing was recovered, but has the missed messages.
    CutAndContradict,
    /// Not a fault of its own: recovery brings nothing, although the reply says so, whoever cut the connection.
    LieAlways,
    /// The subscription is ended with 2500; the resubscribe recovers everything.
    Unsubscribe,
    /// The server cuts the connection of a publisher without answering.
    CutPublisher,
    /// Not a fault: three messages share a fragmented frame with a ping.
    Coalesce,
    /// The handshake is refused with 503.
    RefuseHandshake,
    /// Connect is answered with error 109.
    RefuseConnect,
    /// Subscribe is answered with error 103.
    RefuseSubscribe,
}

/// The offset at which the fault strikes.
pub const AT: u64 = 10;

#[derive(Default)]
struct Channel {
    history: Vec<Bytes>,
    subscribers: Vec<Subscriber>,
    struck: bool,
}

struct Subscriber {
    socket: TcpStream,
    encoding: Encoding,
    /// The first one of its channel ever, which the fault strikes.
    first: bool,
    /// Messages held back to be sent with later ones.
    held: Vec<Reply>,
}

#[derive(Default)]
pub struct State {
    channels: HashMap<String, Channel>,
    /// Tokens seen in connect commands.
    pub tokens: Vec<String>,
    /// Paths of the WebSocket handshakes.
    pub paths: Vec<String>,
    /// Pings answered.
    pub pongs: usize,
    publisher_cut: bool,
}

pub struct Fake {
    pub address: SocketAddr,
    fault: Fault,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Starts serving until the test ends.
    pub fn start(fault: Fault) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let fake = Arc::new(Self { address, fault, state: Arc::default() });
        let server = fake.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (server, socket) = (server.clone(), socket.expect("a connection"));
                // Ends with an error when the client closes, which is how all of them end.
                std::thread::spawn(move || server.serve(socket));
            }
        });
        fake
    }

    pub fn url(&self) -> String {
        format!("ws://{}/connection/websocket", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test thread panicked")
    }

    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        let mut input = Vec::new();
        loop {
            let (path, encoding, len, body) = loop {
                if let Some(head) = Head::parse(&input).expect("an HTTP head") {
                    let encoding = match head.field("sec-websocket-protocol") {
                        Some("centrifuge-protobuf") => Encoding::Protobuf,
                        _ => Encoding::Json,
                    };
                    let body = head.field("content-length").map_or(0, |length| length.parse().expect("a length"));
                    if input.len() >= head.len + body {
                        let path = head.first_line.strip_prefix("GET ").and_then(|line| line.split(' ').next());
                        break (path.map(str::to_owned), encoding, head.len, body);
                    }
                }
                more(&mut socket, &mut input)?;
            };
            if let Some(path) = path {
                self.state().paths.push(path);
                input.drain(..len);
                return self.serve_websocket(socket, input, encoding);
            }
            let request: serde_json::Value = serde_json::from_slice(&input[len..len + body]).expect("a JSON body");
            // The payload as it was written, not as serde_json would write it again.
            let raw = std::str::from_utf8(&input[len..len + body]).expect("text");
            let data = &raw[raw.find("\"data\":").expect("data") + 7..raw.len() - 1];
            let channel = request["channel"].as_str().expect("a channel");
            let answer = match self.publish(channel, Bytes::copy_from_slice(data.as_bytes()))? {
                Ok(offset) => format!("{{\"result\":{{\"offset\":{offset},\"epoch\":\"e\"}}}}"),
                Err(error) => format!("{{\"error\":{{\"code\":{},\"message\":\"{}\"}}}}", error.code, error.message),
            };
            input.drain(..len + body);
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
            socket.write_all(format!("{head}{answer}").as_bytes()).ok()?;
        }
    }

    fn serve_websocket(&self, mut socket: TcpStream, mut input: Vec<u8>, encoding: Encoding) -> Option<()> {
        if self.fault == Fault::RefuseHandshake {
            socket.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").ok()?;
            return None;
        }
        let echo = match encoding {
            Encoding::Protobuf => "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n",
            Encoding::Json => "",
        };
        let accepted = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{echo}\
             Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\n\r\n"
        );
        socket.write_all(accepted.as_bytes()).ok()?;
        loop {
            let header = loop {
                match FrameHeader::parse(&input).expect("a WebSocket frame") {
                    Some(header) if input.len() >= header.header_len + header.payload_len => break header,
                    _ => more(&mut socket, &mut input)?,
                }
            };
            let end = header.header_len + header.payload_len;
            let mut payload = input[header.header_len..end].to_vec();
            input.drain(..end);
            apply_mask(&mut payload, header.mask.expect("clients mask"));
            if header.opcode == CLOSE {
                return None;
            }
            let commands: Vec<_> = protocol::decode_commands(encoding, &Bytes::from(payload), &Limits::default())
                .collect::<Result<_, _>>()
                .expect("well-formed commands");
            let mut replies = Vec::new();
            for command in commands {
                let Some(request) = command.request else {
                    self.state().pongs += 1;
                    continue;
                };
                let body = match request {
                    Request::Connect(connect) => self.connect(connect.token),
                    Request::Subscribe(subscribe) => {
                        self.subscribe(&socket, encoding, command.id, subscribe, &mut replies)
                    }
                    Request::Publish(publish) => Some(match self.publish(&publish.channel, publish.data)? {
                        Ok(_) => ReplyBody::Publish(PublishResult {}),
                        Err(error) => ReplyBody::Error(error),
                    }),
                    other => panic!("loadgen does not send {other:?}"),
                };
                replies.extend(body.map(|body| Reply { id: command.id, body: Some(body) }));
            }
            send(&socket, encoding, &replies);
        }
    }

    fn connect(&self, token: String) -> Option<ReplyBody> {
        self.state().tokens.push(token);
        Some(match self.fault {
            Fault::RefuseConnect => refusal(109, "token expired"),
            _ => ReplyBody::Connect(ConnectResult {
                client: "c".to_owned(),
                version: "fake".to_owned(),
                ping: 25,
                pong: true,
                ..ConnectResult::default()
            }),
        })
    }

    /// Registers the subscriber and answers under one lock, so that no publication comes in between.
    fn subscribe(
        &self,
        socket: &TcpStream,
        encoding: Encoding,
        id: u32,
        request: SubscribeRequest,
        earlier: &mut Vec<Reply>,
    ) -> Option<ReplyBody> {
        if self.fault == Fault::RefuseSubscribe {
            return Some(refusal(103, "permission denied"));
        }
        if self.fault == Fault::CutAndReorder && request.recover {
            // There must be two messages to exchange.
            while self.state().channels[&request.channel].history.len() as u64 <= request.offset + 1 {
                std::thread::yield_now();
            }
        }
        let mut state = self.state();
        let channel = state.channels.entry(request.channel).or_default();
        let offset = channel.history.len() as u64;
        let mut missed = Vec::new();
        for (at, data) in (1..).zip(&channel.history).filter(|(at, _)| *at > request.offset) {
            missed.push(Publication { data: data.clone(), offset: at, ..Publication::default() });
        }
        match self.fault {
            Fault::CutAndRecoverWithHole if request.recover => drop(missed.remove(0)),
            Fault::CutAndLie | Fault::CutAndTell | Fault::CutAndChangeEpoch | Fault::LieAlways => missed.clear(),
            Fault::CutAndRepeat if request.recover => {
                let data = channel.history[request.offset as usize - 1].clone();
                missed.insert(0, Publication { data, offset: request.offset, ..Publication::default() });
            }
            Fault::CutAndReorder if request.recover => missed.swap(0, 1),
            _ => {}
        }
        let admits = matches!(self.fault, Fault::CutAndTell | Fault::CutAndChangeEpoch | Fault::CutAndContradict);
        let recovered = request.recover && !admits;
        let another_epoch = matches!(self.fault, Fault::CutAndChangeEpoch | Fault::CutAndLieAboutEpoch);
        let contradicts = request.recover && self.fault == Fault::CutAndContradict;
        let result = SubscribeResult {
            recoverable: true,
            positioned: true,
            epoch: if request.recover && another_epoch { "f" } else { "e" }.to_owned(),
            was_recovering: request.recover,
            recovered,
            offset: if recovered { request.offset } else { offset },
            publications: if recovered || contradicts { missed } else { Vec::new() },
            ..SubscribeResult::default()
        };
        earlier.push(Reply { id, body: Some(ReplyBody::Subscribe(result)) });
        // The first ping shares the frame.
        earlier.push(Reply::default());
        send(socket, encoding, earlier);
        earlier.clear();
        channel.subscribers.push(Subscriber {
            socket: socket.try_clone().expect("a descriptor"),
            encoding,
            first: channel.subscribers.is_empty() && !channel.struck,
            held: Vec::new(),
        });
        None
    }

    /// Publishes; None when the publisher is to be cut instead of answered.
    fn publish(&self, name: &str, data: Bytes) -> Option<Result<u64, Error>> {
        let mut state = self.state();
        let state = &mut *state;
        let channel = state.channels.entry(name.to_owned()).or_default();
        channel.history.push(data.clone());
        let offset = channel.history.len() as u64;
        let publication = Publication { data, offset, ..Publication::default() };
        let strikes = offset == AT;
        let mut others = Vec::new();
        channel.subscribers.retain_mut(|subscriber| {
            let struck = strikes && subscriber.first;
            let keep = deliver(self.fault, name, &publication, subscriber, struck, &mut others);
            channel.struck |= struck;
            keep
        });
        for other in others {
            let (_, wrong) = state.channels.iter().find(|(other, _)| *other != name).expect("a second channel");
            let subscriber = wrong.subscribers.first().expect("a subscriber of it");
            send(&subscriber.socket, subscriber.encoding, &[other]);
        }
        match self.fault {
            Fault::RefuseButDeliver | Fault::RefuseButDeliverTwice if strikes => {
                Some(Err(Error { code: 100, message: "internal server error".to_owned(), temporary: true }))
            }
            Fault::CutPublisher if strikes && !state.publisher_cut => {
                state.publisher_cut = true;
                None
            }
            _ => Some(Ok(offset)),
        }
    }
}

/// Delivers a publication, and says whether the subscriber stays.
fn deliver(
    fault: Fault,
    name: &str,
    publication: &Publication,
    subscriber: &mut Subscriber,
    struck: bool,
    elsewhere: &mut Vec<Reply>,
) -> bool {
    let push = |channel: &str, publication: &Publication| {
        let body = PushBody::Publication(publication.clone());
        Reply { id: 0, body: Some(ReplyBody::Push(Push { channel: channel.to_owned(), body })) }
    };
    let plain = push(name, publication);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut data = publication.data.to_vec();
        change(&mut data);
        push(name, &Publication { data: Bytes::from(data), ..publication.clone() })
    };
    let mut frame = std::mem::take(&mut subscriber.held);
    match fault {
        Fault::Coalesce => {
            frame.extend([plain, Reply::default()]);
            // The number of messages must be a multiple of three, or the last ones stay here.
            if frame.len() == 6 {
                send_fragmented(subscriber, &frame);
            } else {
                subscriber.held = frame;
            }
            return true;
        }
        _ if !struck => {
            frame.insert(0, plain);
        }
        Fault::Drop => {}
        Fault::Repeat | Fault::RefuseButDeliverTwice => frame.extend([plain.clone(), plain]),
        Fault::Reorder => subscriber.held = vec![plain],
        Fault::Corrupt => frame.push(changed(&|data| {
            let last = data.len() - 3;
            data[last] = if data[last] == b'x' { b'y' } else { b'x' };
        })),
        Fault::Unstamp => frame.push(changed(&|data| *data = b"{\"m\":\"hello\"}".to_vec())),
        Fault::WrongName => frame.push(push(if name == "loadgen-0" { "loadgen-1" } else { "loadgen-0" }, publication)),
        Fault::WrongSubscriber => {
            elsewhere.push(plain.clone());
            frame.push(plain);
        }
        Fault::Forge => {
            let forged = changed(&|data| {
                let (stamp, len) = read_payload(data).expect("a payload of loadgen");
                data.clear();
                write_payload(&Stamp { sequence: stamp.sequence + 1_000_000, ..stamp }, len, data);
            });
            frame.extend([forged, plain]);
        }
        Fault::Close
        | Fault::CutAndRecover
        | Fault::CutAndRecoverWithHole
        | Fault::CutAndLie
        | Fault::CutAndTell
        | Fault::CutAndRepeat
        | Fault::CutAndReorder
        | Fault::CutAndChangeEpoch
        | Fault::CutAndLieAboutEpoch
        | Fault::CutAndContradict => {
            let mut close = Vec::new();
            let (code, reason) = if fault == Fault::Close { (3008u16, "slow") } else { (3001, "shutdown") };
            write_frame(CLOSE, &[&code.to_be_bytes()[..], reason.as_bytes()].concat(), None, &mut close);
            subscriber.socket.write_all(&close).expect("the client reads");
            subscriber.socket.shutdown(Shutdown::Write).expect("an open socket");
            return false;
        }
        Fault::Unsubscribe => {
            let unsubscribe = Unsubscribe { code: 2500, reason: "insufficient state".to_owned() };
            let push = Push { channel: name.to_owned(), body: PushBody::Unsubscribe(unsubscribe) };
            frame.push(Reply { id: 0, body: Some(ReplyBody::Push(push)) });
            send(&subscriber.socket, subscriber.encoding, &frame);
            return false;
        }
        Fault::None
        | Fault::LieAlways
        | Fault::RefuseButDeliver
        | Fault::CutPublisher
        | Fault::RefuseHandshake
        | Fault::RefuseConnect
        | Fault::RefuseSubscribe => frame.push(plain),
    }
    send(&subscriber.socket, subscriber.encoding, &frame);
    true
}

fn refusal(code: u32, message: &str) -> ReplyBody {
    ReplyBody::Error(Error { code, message: message.to_owned(), temporary: false })
}

fn encode(encoding: Encoding, replies: &[Reply]) -> Vec<u8> {
    let mut text = Vec::new();
    for reply in replies {
        protocol::encode_reply(encoding, reply, &mut text).expect("JSON payloads");
    }
    protocol::frame_payload(encoding, &text).to_vec()
}

/// Sends replies in one frame. The client may be gone, which its own thread notices.
fn send(mut socket: &TcpStream, encoding: Encoding, replies: &[Reply]) {
    if replies.is_empty() {
        return;
    }
    let mut frame = Vec::new();
    write_frame(opcode(encoding), &encode(encoding, replies), None, &mut frame);
    let _ = socket.write_all(&frame);
}

fn send_fragmented(subscriber: &mut Subscriber, replies: &[Reply]) {
    let payload = encode(subscriber.encoding, replies);
    let (head, tail) = payload.split_at(payload.len() / 2);
    let mut wire = Vec::new();
    write_frame(opcode(subscriber.encoding), head, None, &mut wire);
    // Not the last fragment.
    wire[0] &= 0x7f;
    write_frame(CONTINUATION, tail, None, &mut wire);
    // In two writes at an odd place, so that a frame arrives in pieces too.
    for part in [&wire[..head.len() / 3], &wire[head.len() / 3..]] {
        let _ = subscriber.socket.write_all(part);
    }
}

fn opcode(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => TEXT,
        Encoding::Protobuf => BINARY,
    }
}

fn more(socket: &mut TcpStream, input: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 16 * 1024];
    let count = socket.read(&mut buffer).ok().filter(|count| *count > 0)?;
    input.extend_from_slice(&buffer[..count]);
    Some(())
}
