//! The Protobuf encoding, against bytes written by hand.

use serde_json::json;
use tests::client::Client;
use tests::gateway::Gateway;
use tests::tokens;
use tests::wire::{Field, Message, bytes_of, fields, number_of, split};

/// The number of a request and of its result in Command and Reply.
const CONNECT: (u32, u32) = (4, 5);
const SUBSCRIBE: (u32, u32) = (5, 6);
const UNSUBSCRIBE: (u32, u32) = (6, 7);
const PUBLISH: (u32, u32) = (7, 8);
const PRESENCE: (u32, u32) = (8, 9);
const PRESENCE_STATS: (u32, u32) = (9, 10);
const HISTORY: (u32, u32) = (10, 11);
const RPC: (u32, u32) = (13, 14);
/// Fields of Reply, Push and Publication.
const ERROR: u32 = 2;
const PUSH: u32 = 4;
const PUSH_CHANNEL: u32 = 2;
const PUSH_PUB: u32 = 4;

struct Peer {
    client: Client,
    next_id: u64,
    waiting: Vec<Vec<u8>>,
}

impl Peer {
    async fn connect(gateway: &Gateway) -> Self {
        let client = Client::open_protobuf(gateway.url()).await;
        let mut peer = Self { client, next_id: 1, waiting: Vec::new() };
        let token = tokens::connection(json!({ "sub": "ann" }));
        let result = peer.ok(CONNECT, Message::new().bytes(1, token.as_bytes())).await;
        assert_eq!(bytes_of(&result, 1).len(), 36, "client id");
        assert_eq!(
            (number_of(&result, 3), number_of(&result, 7), number_of(&result, 8)),
            (1, 25, 1),
            "expires, ping, pong"
        );
        peer
    }

    async fn next(&mut self) -> Vec<u8> {
        while self.waiting.is_empty() {
            self.waiting = split(&self.client.binary().await);
        }
        self.waiting.remove(0)
    }

    /// The reply to this command; pushes that come first are dropped.
    async fn call(&mut self, field: (u32, u32), request: Message) -> Vec<u8> {
        let id = self.next_id;
        self.next_id += 1;
        self.client.send_binary(&Message::new().number(1, id).message(field.0, &request).framed()).await;
        loop {
            let reply = self.next().await;
            if number_of(&reply, 1) == id {
                return reply;
            }
        }
    }

    async fn ok(&mut self, field: (u32, u32), request: Message) -> Vec<u8> {
        let reply = self.call(field, request).await;
        bytes_of(&reply, field.1)
    }

    async fn publication(&mut self) -> (String, Vec<u8>) {
        let push = bytes_of(&self.next().await, PUSH);
        let channel = String::from_utf8(bytes_of(&push, PUSH_CHANNEL)).expect("a channel is text");
        (channel, bytes_of(&push, PUSH_PUB))
    }
}

fn channel(name: &str) -> Message {
    Message::new().bytes(1, name.as_bytes())
}

#[tokio::test]
async fn every_command_has_its_numbers() {
    let gateway = Gateway::start();
    let mut peer = Peer::connect(&gateway).await;
    let result = peer.ok(SUBSCRIBE, channel("chat:a")).await;
    assert_eq!((number_of(&result, 3), number_of(&result, 10)), (1, 1), "recoverable, positioned");
    let epoch = bytes_of(&result, 6);
    assert_eq!(peer.ok(PUBLISH, channel("chat:a").bytes(2, b"{\"n\":1}")).await, b"");
    gateway.api().publish("chat:a", json!({ "n": 2 })).await;
    let result = peer.ok(HISTORY, channel("chat:a").number(7, 10)).await;
    let publications: Vec<Vec<u8>> = fields(&result)
        .into_iter()
        .filter_map(|field| if let Field::Bytes(1, publication) = field { Some(publication) } else { None })
        .collect();
    assert_eq!(publications.len(), 2);
    assert_eq!((bytes_of(&publications[0], 4), number_of(&publications[0], 6)), (b"{\"n\":1}".to_vec(), 1));
    assert_eq!(bytes_of(&bytes_of(&publications[0], 5), 1), b"ann", "the publisher");
    assert_eq!((bytes_of(&result, 2), number_of(&result, 3)), (epoch.clone(), 2));
    let since = Message::new().number(1, 1).bytes(2, &epoch);
    let result = peer.ok(HISTORY, channel("chat:a").number(7, 10).message(8, &since)).await;
    assert_eq!(number_of(&bytes_of(&result, 1), 6), 2, "since");
    let stats = peer.ok(PRESENCE_STATS, channel("chat:a")).await;
    assert_eq!((number_of(&stats, 1), number_of(&stats, 2)), (1, 1));
    let entry = bytes_of(&peer.ok(PRESENCE, channel("chat:a")).await, 1);
    assert_eq!(bytes_of(&bytes_of(&entry, 2), 1), b"ann", "the map's value is a ClientInfo");
    assert_eq!(bytes_of(&bytes_of(&entry, 2), 2), bytes_of(&entry, 1), "the map's key is the client");
    let error = bytes_of(&peer.call(RPC, Message::new()).await, ERROR);
    assert_eq!((number_of(&error, 1), bytes_of(&error, 2)), (108, b"not available".to_vec()));
    assert_eq!(peer.ok(UNSUBSCRIBE, channel("chat:a")).await, b"");
}

#[tokio::test]
async fn payloads_are_any_bytes() {
    let gateway = Gateway::start();
    let mut peer = Peer::connect(&gateway).await;
    peer.ok(SUBSCRIBE, channel("binary:a")).await;
    gateway.api().ok("publish", json!({ "channel": "binary:a", "b64data": "AAEC/w==" })).await;
    let (name, publication) = peer.publication().await;
    assert_eq!((name.as_str(), bytes_of(&publication, 4)), ("binary:a", vec![0, 1, 2, 255]));
}

#[tokio::test]
async fn recovery_in_protobuf() {
    let gateway = Gateway::start();
    for n in 1..=3 {
        gateway.api().publish("chat:a", json!(n)).await;
    }
    let mut peer = Peer::connect(&gateway).await;
    let result = peer.ok(SUBSCRIBE, channel("chat:a").number(3, 1).number(7, 1)).await;
    let offsets: Vec<u64> = fields(&result)
        .iter()
        .filter_map(
            |field| if let Field::Bytes(7, publication) = field { Some(number_of(publication, 6)) } else { None },
        )
        .collect();
    assert_eq!(offsets, [2, 3]);
    assert_eq!((number_of(&result, 8), number_of(&result, 9), number_of(&result, 12)), (1, 1, 1));
}

#[tokio::test]
async fn several_commands_share_a_frame() {
    let gateway = Gateway::start();
    let mut client = Client::open_protobuf(gateway.url()).await;
    let token = tokens::connection(json!({ "sub": "ann" }));
    let connect = Message::new().bytes(1, token.as_bytes());
    let mut frame = Message::new().number(1, 1).message(CONNECT.0, &connect).framed();
    frame.extend(Message::new().number(1, 2).message(SUBSCRIBE.0, &channel("bare:a")).framed());
    client.send_binary(&frame).await;
    let mut replies = Vec::new();
    while replies.len() < 2 {
        replies.extend(split(&client.binary().await));
    }
    assert_eq!((number_of(&replies[0], 1), number_of(&replies[1], 1)), (1, 2));
    assert_eq!(bytes_of(&replies[1], SUBSCRIBE.1), b"", "an empty result is there all the same");
}

#[tokio::test]
async fn an_empty_server_side_subscription_is_there_in_the_map() {
    let gateway = Gateway::start();
    let mut client = Client::open_protobuf(gateway.url()).await;
    let token = tokens::connection(json!({ "sub": "ann", "channels": ["bare:a"] }));
    let connect = Message::new().bytes(1, token.as_bytes());
    client.send_binary(&Message::new().number(1, 1).message(CONNECT.0, &connect).framed()).await;
    let result = bytes_of(&split(&client.binary().await)[0], CONNECT.1);
    let entry = bytes_of(&result, 6);
    // Without the value, which encoders like to leave out when it is empty, SDKs find null where they expect an object.
    assert_eq!(fields(&entry), [Field::Bytes(1, b"bare:a".to_vec()), Field::Bytes(2, vec![])]);
}

#[tokio::test]
async fn malformed_frames_close_with_bad_request() {
    let gateway = Gateway::start();
    for (what, frame) in [
        ("no message", vec![]),
        ("a length without a message", vec![5]),
        ("a length beyond the frame", vec![5, 8, 1]),
        ("a length that never ends", vec![0xff; 12]),
        ("a field cut short", vec![2, 0x22, 9]),
        ("an unknown wire type", vec![2, 0x0f, 0]),
        ("a command without a payload", Message::new().number(1, 2).framed()),
        (
            "text that is not UTF-8",
            Message::new().number(1, 2).message(5, &Message::new().bytes(1, &[0xff, 0xfe])).framed(),
        ),
    ] {
        let mut peer = Peer::connect(&gateway).await;
        peer.client.send_binary(&frame).await;
        let closed = peer.client.closed().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(3501), "bad request"), "{what}");
    }
}
