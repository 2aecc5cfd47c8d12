//! Input that no well-behaved client sends. Each line has its exact answer, and a bystander notices nothing.

use serde_json::json;
use tests::bystander::Bystander;
use tests::client::{Client, Closed};
use tests::frames::{self, Frame};
use tests::gateway::Gateway;
use tests::until;

async fn expect(gateway: &Gateway, what: &str, bytes: &[u8], code: u16, reason: &str) {
    let mut client = gateway.connect("mallory").await;
    client.send_raw(bytes).await;
    assert_eq!(client.closed().await, Closed { code: Some(code), reason: reason.to_owned() }, "{what}");
}

#[tokio::test]
async fn broken_websocket_frames() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    let command = br#"{"id":9,"rpc":{}}"#;
    let broken = [
        ("a reserved bit", Frame::new(frames::TEXT, command).reserved(0x40).bytes()),
        ("all reserved bits", Frame::new(frames::TEXT, command).reserved(0x70).bytes()),
        ("a reserved data opcode", Frame::new(0x3, command).bytes()),
        ("a reserved control opcode", Frame::new(0xB, b"").bytes()),
        ("no mask", Frame::new(frames::TEXT, command).unmasked().bytes()),
        ("a continuation of nothing", Frame::new(frames::CONTINUATION, command).bytes()),
        ("a fragmented ping", Frame::new(frames::PING, b"").not_final().bytes()),
        ("a ping that is too long", Frame::new(frames::PING, &[0; 126]).bytes()),
        (
            "a message inside a fragmented one",
            [Frame::new(frames::TEXT, b"{").not_final().bytes(), Frame::new(frames::TEXT, command).bytes()].concat(),
        ),
    ];
    for (what, bytes) in broken {
        expect(&gateway, what, &bytes, 1002, "protocol error").await;
        bystander.noticed_nothing(&gateway).await;
    }
    let not_text = Frame::new(frames::TEXT, b"{\"id\":9,\"rpc\":{\"method\":\"\xff\xfe\"}}").bytes();
    expect(&gateway, "invalid UTF-8", &not_text, 1007, "invalid payload").await;
    bystander.noticed_nothing(&gateway).await;
}

#[tokio::test]
async fn half_a_frame_and_then_nothing() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    let whole = Frame::new(frames::TEXT, br#"{"id":9,"rpc":{}}"#).bytes();
    for len in [1, 2, 5, whole.len() - 1] {
        let mut client = gateway.connect("mallory").await;
        client.subscribe("open:a").await;
        client.send_raw(&whole[..len]).await;
        client.shut_down_writing().await;
        // Nothing was said that could be answered, so the connection just ends, and leaves its channels.
        let closed = client.closed().await;
        assert_eq!(closed.code, None, "{len} bytes: {closed:?}");
        bystander.noticed_nothing(&gateway).await;
        let left = async || {
            let stats = gateway.api().ok("presence_stats", json!({ "channel": "open:a" })).await;
            stats["num_clients"] == json!(0)
        };
        until(&format!("the end of its subscription after {len} bytes"), left).await;
    }
    // The other half may come late: a frame in pieces is a frame.
    let mut client = gateway.connect("mallory").await;
    for byte in &whole {
        client.send_raw(&[*byte]).await;
    }
    assert_eq!(client.reply(9).await["error"]["code"], json!(108));
    // So may its fragments, with a ping between them.
    let (left, right) = br#"{"id":10,"rpc":{}}"#.split_at(7);
    client.send_raw(&Frame::new(frames::TEXT, left).not_final().bytes()).await;
    client.send_raw(&Frame::new(frames::PING, b"hello").bytes()).await;
    client.send_raw(&Frame::new(frames::CONTINUATION, right).bytes()).await;
    assert_eq!(client.reply(10).await["error"]["code"], json!(108));
}

#[tokio::test]
async fn malformed_commands_close_with_bad_request() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    let deep =
        |levels: usize| format!("{{\"id\":9,\"rpc\":{{\"data\":{}1{}}}}}", "[".repeat(levels), "]".repeat(levels));
    let many = vec![r#"{"id":9,"rpc":{}}"#; 3000].join("\n");
    let malformed = [
        ("nothing", String::new()),
        ("a blank line", "\n".to_owned()),
        ("a blank line between commands", "{\"id\":9,\"rpc\":{}}\n\n{\"id\":10,\"rpc\":{}}".to_owned()),
        ("no JSON", "hello".to_owned()),
        ("half a JSON", "{\"id\":9,\"rpc\":{".to_owned()),
        ("a number", "17".to_owned()),
        ("an array", "[]".to_owned()),
        ("null", "null".to_owned()),
        ("an id that is text", r#"{"id":"9","rpc":{}}"#.to_owned()),
        ("a negative id", r#"{"id":-1,"rpc":{}}"#.to_owned()),
        ("an id beyond 32 bits", r#"{"id":4294967296,"rpc":{}}"#.to_owned()),
        ("a request that is text", r#"{"id":9,"subscribe":"chat:a"}"#.to_owned()),
        ("a channel that is a number", r#"{"id":9,"subscribe":{"channel":1}}"#.to_owned()),
        ("an unknown command", r#"{"id":9,"fly":{}}"#.to_owned()),
        ("two values in a line", r#"{"id":9,"rpc":{}} {}"#.to_owned()),
        ("deeply nested JSON", deep(30_000)),
        ("just too deeply nested JSON", deep(63)),
        ("thousands of commands", many),
        ("a NUL byte", "{\"id\":9,\"rpc\":{\"method\":\"\0\"}}".to_owned()),
        ("half a surrogate pair", r#"{"id":9,"rpc":{"method":"\ud800"}}"#.to_owned()),
    ];
    for (what, text) in malformed {
        let mut client = gateway.connect("mallory").await;
        client.send_text(&text).await;
        let closed = client.closed().await;
        assert_eq!((closed.code, closed.reason.as_str()), (Some(3501), "bad request"), "{what}");
        bystander.noticed_nothing(&gateway).await;
    }
    // Within the limits all is well.
    let mut client = gateway.connect("ann").await;
    client.send_text(&deep(61)).await;
    assert_eq!(client.reply(9).await["error"]["code"], json!(108));
    let hundreds: Vec<_> = (100..1100).map(|id| json!({ "id": id, "rpc": {} })).collect();
    client.send_all(&hundreds).await;
    for id in 100..1100 {
        assert_eq!(client.reply(id).await["error"]["code"], json!(108));
    }
    // The opcode of a JSON frame is not looked at.
    client.send_binary(br#"{"id":2000,"rpc":{}}"#).await;
    assert_eq!(client.reply(2000).await["error"]["code"], json!(108));
}

#[tokio::test]
async fn the_same_before_connect() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    for text in ["", "hello", "[[[[", "{\"connect\":", "{\"id\":1,\"connect\":[]}"] {
        let mut client = gateway.open().await;
        client.send_text(text).await;
        client.expect_close(3501, "bad request").await;
        bystander.noticed_nothing(&gateway).await;
    }
}

#[tokio::test]
async fn an_oversize_message_closes_with_1009() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    let padded = |len: usize| {
        let empty = json!({ "id": 9, "rpc": { "data": "" } }).to_string().len();
        json!({ "id": 9, "rpc": { "data": "x".repeat(len - empty) } }).to_string()
    };
    let mut client = gateway.connect("mallory").await;
    client.send_text(&padded(65_536)).await;
    assert_eq!(client.reply(9).await["error"]["code"], json!(108), "the limit itself is allowed");
    client.send_text(&padded(65_537)).await;
    client.expect_close(1009, "message size limit exceeded").await;
    bystander.noticed_nothing(&gateway).await;
    // A length that is only announced is refused at once, long before memory could fill.
    for announced in [65_537, 1 << 32, 1 << 62] {
        let frame = Frame::new(frames::TEXT, b"{").announcing(announced).bytes();
        expect(&gateway, "announced", &frame, 1009, "message size limit exceeded").await;
        bystander.noticed_nothing(&gateway).await;
    }
    // The fragments of one message count together.
    let mut client = gateway.connect("mallory").await;
    client.send_raw(&Frame::new(frames::TEXT, &[b' '; 40_000]).not_final().bytes()).await;
    client.send_raw(&Frame::new(frames::CONTINUATION, &[b' '; 40_000]).bytes()).await;
    client.expect_close(1009, "message size limit exceeded").await;
    bystander.noticed_nothing(&gateway).await;
}

#[tokio::test]
async fn a_client_that_closes_gets_its_close_back() {
    let gateway = Gateway::start();
    for payload in [vec![], 1000_u16.to_be_bytes().to_vec(), [&1000_u16.to_be_bytes()[..], b"bye"].concat()] {
        let client = gateway.connect("ann").await;
        let mut client = client;
        client.send_raw(&Frame::new(frames::CLOSE, &payload).bytes()).await;
        let bytes = client.raw_to_end().await;
        assert_eq!(bytes.first(), Some(&(0x80 | frames::CLOSE)), "{bytes:?}");
    }
    // A close frame that breaks the rules is a protocol error.
    for payload in [vec![0x03], 999_u16.to_be_bytes().to_vec(), 1005_u16.to_be_bytes().to_vec()] {
        let mut client = gateway.connect("ann").await;
        client.send_raw(&Frame::new(frames::CLOSE, &payload).bytes()).await;
        let bytes = client.raw_to_end().await;
        assert_eq!(bytes.get(..4), Some(&[0x88, bytes[1], 0x03, 0xea][..]), "1002 for {payload:?}: {bytes:?}");
    }
}

#[tokio::test]
async fn random_bytes_disturb_nobody() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::join(&gateway).await;
    // A fixed xorshift sequence: what fails today fails tomorrow.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    for round in 0..100 {
        let mut client = if round % 2 == 0 { gateway.open().await } else { Client::open_protobuf(gateway.url()).await };
        let noise: Vec<u8> = (0..64).map(|_| byte()).collect();
        match round % 3 {
            0 => client.send_raw(&noise).await,
            1 => client.send_raw(&Frame::new(frames::BINARY, &noise).bytes()).await,
            _ => client.send_raw(&Frame::new(frames::TEXT, String::from_utf8_lossy(&noise).as_bytes()).bytes()).await,
        }
        client.shut_down_writing().await;
        client.raw_to_end().await;
    }
    bystander.noticed_nothing(&gateway).await;
}
