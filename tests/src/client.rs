//! A WebSocket client that hides nothing: each message of each frame, each close code.

use std::collections::VecDeque;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};

use crate::tokens;
use crate::within;

/// How the server ended a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// The code of the close frame; `None` when the connection ended without one.
    pub code: Option<u16>,
    /// The reason of the close frame.
    pub reason: String,
}

/// One event on the socket.
#[derive(Clone, PartialEq, Debug)]
enum Event {
    /// One JSON message; a text frame may have carried several.
    Text(Value),
    /// One binary frame.
    Binary(Vec<u8>),
    Closed(Closed),
}

/// A connection. JSON by default; Protobuf frames come out of [`Client::binary`] as they are.
pub struct Client {
    ws: WebSocketStream<TcpStream>,
    /// Read, but asked for by nobody yet.
    stash: VecDeque<Event>,
    next_id: u32,
    answers_pings: bool,
    pings: usize,
}

impl Client {
    /// Opens a connection without a subprotocol.
    pub async fn open(url: &str) -> Self {
        let request = url.into_client_request().expect("the gateway's own URL is valid");
        Self::open_request(request).await.0
    }

    /// Opens a connection that speaks Protobuf.
    pub async fn open_protobuf(url: &str) -> Self {
        Self::open(&format!("{url}?format=protobuf")).await
    }

    /// Opens a connection with this handshake request; returns the response, too.
    pub async fn open_request(request: Request) -> (Self, Response) {
        let host = request.uri().authority().expect("the URL has a host").to_string();
        let stream = within("a TCP connection", TcpStream::connect(host)).await.expect("the gateway listens");
        Self::open_on(stream, request).await
    }

    /// The same on a TCP connection that is there already.
    pub async fn open_on(stream: TcpStream, request: Request) -> (Self, Response) {
        stream.set_nodelay(true).expect("a TCP socket knows the option");
        // The gateway's limits are under test, not this client's.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let handshake = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        let (ws, response) = within("a WebSocket handshake", handshake).await.expect("the handshake succeeds");
        (Self { ws, stash: VecDeque::new(), next_id: 1, answers_pings: true, pings: 0 }, response)
    }

    /// Leaves the pings of the protocol unanswered from now on.
    pub fn ignore_pings(&mut self) {
        self.answers_pings = false;
    }

    /// How many pings of the protocol have been read.
    pub fn pings(&self) -> usize {
        self.pings
    }

    /// Sends one text frame.
    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends one text frame with these commands, a line each.
    pub async fn send_all(&mut self, commands: &[Value]) {
        let lines: Vec<String> = commands.iter().map(Value::to_string).collect();
        self.send_text(&lines.join("\n")).await;
    }

    /// Sends one command as it is.
    pub async fn send_json(&mut self, command: Value) {
        self.send_text(&command.to_string()).await;
    }

    /// Sends one binary frame.
    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends a WebSocket message.
    pub async fn send(&mut self, message: Message) {
        within("room to send", self.ws.send(message)).await.expect("the connection is open");
    }

    /// Writes bytes beneath the WebSocket layer. The gateway may close while they are written, which is no error here.
    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let _closed_meanwhile = within("room to write", self.ws.get_mut().write_all(bytes)).await;
    }

    /// Ends the sending half of the TCP connection.
    pub async fn shut_down_writing(&mut self) {
        within("the end of writing", self.ws.get_mut().shutdown()).await.expect("the connection is open");
    }

    /// Gives up the connection without a close frame.
    pub fn vanish(self) {}

    /// Sends a command and returns its reply; what comes before the reply stays for the other methods.
    ///
    /// # Panics
    ///
    /// When the connection is closed instead.
    pub async fn call(&mut self, command: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let mut command = command;
        command["id"] = json!(id);
        self.send_json(command).await;
        self.reply(id).await
    }

    /// The reply with this id.
    pub async fn reply(&mut self, id: u32) -> Value {
        // Earlier events stay where they are: a search must not reorder them.
        let mut index = 0;
        loop {
            while index < self.stash.len() {
                if let Event::Text(value) = &self.stash[index]
                    && value["id"] == json!(id)
                {
                    let Some(Event::Text(value)) = self.stash.remove(index) else { unreachable!("it was just seen") };
                    return value;
                }
                if let Event::Closed(closed) = &self.stash[index] {
                    panic!("closed with {closed:?}, expected the reply to command {id}");
                }
                index += 1;
            }
            self.read().await;
        }
    }

    /// Connects as this user with a token of [`tokens`]; returns the connect result.
    pub async fn connect_as(&mut self, user: &str) -> Value {
        self.connect_with(&tokens::connection(json!({ "sub": user }))).await
    }

    /// Connects with this token; returns the connect result.
    pub async fn connect_with(&mut self, token: &str) -> Value {
        let reply = self.call(json!({ "connect": { "token": token } })).await;
        assert!(reply["connect"].is_object(), "connect failed: {reply}");
        reply["connect"].clone()
    }

    /// Subscribes; returns the subscribe result.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        self.subscribe_with(json!({ "channel": channel })).await
    }

    /// Subscribes with this request; returns the subscribe result.
    pub async fn subscribe_with(&mut self, request: Value) -> Value {
        let reply = self.call(json!({ "subscribe": request })).await;
        assert!(reply["subscribe"].is_object(), "subscribe failed: {reply}");
        reply["subscribe"].clone()
    }

    /// The error code of the reply to this command.
    pub async fn error_code(&mut self, command: Value) -> u64 {
        let reply = self.call(command).await;
        reply["error"]["code"].as_u64().unwrap_or_else(|| panic!("an error was expected: {reply}"))
    }

    /// The next JSON message that is no ping.
    pub async fn message(&mut self) -> Value {
        match self.event().await {
            Event::Text(value) => value,
            other => panic!("a message was expected: {other:?}"),
        }
    }

    /// A look at the next message, or `None` when the connection is closed instead.
    pub async fn peek_message(&mut self) -> Option<&Value> {
        while self.stash.is_empty() {
            self.read().await;
        }
        match self.stash.front() {
            Some(Event::Text(value)) => Some(value),
            Some(Event::Binary(_) | Event::Closed(_)) | None => None,
        }
    }

    /// The next message, which must be a push; returns the push.
    pub async fn push(&mut self) -> Value {
        let message = self.message().await;
        assert!(message["push"].is_object(), "a push was expected: {message}");
        message["push"].clone()
    }

    /// The next message, which must be a publication in this channel; returns the publication.
    pub async fn publication(&mut self, channel: &str) -> Value {
        let push = self.push().await;
        assert_eq!(push["channel"], json!(channel), "channel of {push}");
        assert!(push["pub"].is_object(), "a publication was expected: {push}");
        push["pub"].clone()
    }

    /// The next frame, which must be binary.
    pub async fn binary(&mut self) -> Vec<u8> {
        match self.event().await {
            Event::Binary(bytes) => bytes,
            other => panic!("a binary frame was expected: {other:?}"),
        }
    }

    /// How the server closes the connection; messages before that are dropped.
    pub async fn closed(&mut self) -> Closed {
        loop {
            if let Event::Closed(closed) = self.event().await {
                return closed;
            }
        }
    }

    /// The very next thing must be the close.
    pub async fn closed_next(&mut self) -> Closed {
        match self.event().await {
            Event::Closed(closed) => closed,
            other => panic!("a close was expected: {other:?}"),
        }
    }

    /// Answers the close frame that was read last, as every living client does, and waits for the end of the connection.
    pub async fn finish(mut self) {
        let ended = async { while let Some(Ok(_)) = self.ws.next().await {} };
        within("the end of the connection", ended).await;
    }

    /// Closes as SDKs do when they are told to disconnect.
    pub async fn say_goodbye(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "client disconnect".into() };
        self.send(Message::Close(Some(frame))).await;
        self.finish().await;
    }

    /// The server must close with this code and reason.
    pub async fn expect_close(&mut self, code: u16, reason: &str) {
        assert_eq!(self.closed().await, Closed { code: Some(code), reason: reason.to_owned() });
    }

    /// Reads until the next ping of the protocol; other messages stay for the other methods.
    pub async fn ping(&mut self) {
        let before = self.pings;
        while self.pings == before {
            self.read().await;
            if let Some(Event::Closed(closed)) = self.stash.back() {
                panic!("closed with {closed:?}, expected a ping");
            }
        }
    }

    /// Reads bytes beneath the WebSocket layer until the server ends the connection.
    pub async fn raw_to_end(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset after the last byte is an end, too.
        let _reset = within("the end of the connection", self.ws.get_mut().read_to_end(&mut bytes)).await;
        bytes
    }

    async fn event(&mut self) -> Event {
        while self.stash.is_empty() {
            self.read().await;
        }
        self.stash.pop_front().expect("the loop has filled it")
    }

    /// Reads one frame into the stash, answering a ping on the way.
    async fn read(&mut self) {
        let message = within("a frame from the gateway", self.ws.next()).await;
        let closed = |code, reason: &str| Event::Closed(Closed { code, reason: reason.to_owned() });
        match message {
            Some(Ok(Message::Text(text))) => self.read_text(text.as_str()).await,
            Some(Ok(Message::Binary(bytes))) => self.stash.push_back(Event::Binary(bytes.to_vec())),
            Some(Ok(Message::Close(Some(frame)))) => {
                self.stash.push_back(closed(Some(frame.code.into()), frame.reason.as_str()));
            }
            Some(Ok(Message::Close(None))) => self.stash.push_back(closed(None, "empty close frame")),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => self.stash.push_back(closed(None, &error.to_string())),
            None => self.stash.push_back(closed(None, "end of stream")),
        }
    }

    async fn read_text(&mut self, text: &str) {
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line:?}"));
            if value != json!({}) {
                self.stash.push_back(Event::Text(value));
                continue;
            }
            self.pings += 1;
            if self.answers_pings {
                // The connection may have been closed meanwhile; the next read tells.
                let _closed_meanwhile = within("room for a pong", self.ws.send(Message::text("{}"))).await;
            }
        }
    }
}
