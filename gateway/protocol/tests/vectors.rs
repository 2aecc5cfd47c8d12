//! The transcripts of protocol section 12, byte for byte and in both directions.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::*;

/// The command is read from this text, and a client would write it so.
#[track_caller]
fn command(text: &str, command: Command) {
    let frame = Bytes::copy_from_slice(text.as_bytes());
    let read: Vec<_> = decode_commands(Encoding::Json, &frame, &Limits::default()).map(Result::unwrap).collect();
    let mut out = Vec::new();
    encode_command(Encoding::Json, &command, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), format!("{text}\n"));
    assert_eq!(read, [command]);
}

/// The reply is written as this text, and a client reads it so.
#[track_caller]
fn reply(text: &str, reply: Reply) {
    let mut out = Vec::new();
    encode_reply(Encoding::Json, &reply, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), format!("{text}\n"));
    let frame = Bytes::copy_from_slice(text.as_bytes());
    let read: Vec<_> = decode_replies(Encoding::Json, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
    assert_eq!(read, [reply]);
}

fn request(id: u32, request: Request) -> Command {
    Command { id, request: Some(request) }
}

fn answer(id: u32, body: ReplyBody) -> Reply {
    Reply { id, body: Some(body) }
}

fn push(channel: &str, body: PushBody) -> Reply {
    answer(0, ReplyBody::Push(Push { channel: channel.into(), body }))
}

fn json(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn system_publication() -> Publication {
    Publication {
        data: json(r#"{"text":"maintenance"}"#),
        offset: 9,
        tags: BTreeMap::from([("kind".into(), "system".into())]),
        ..Default::default()
    }
}

#[test]
fn connect_and_subscribe_share_the_first_frame() {
    let frame = Bytes::from_static(
        br##"{"connect":{"token":"eyJ...","name":"js"},"id":1}
{"subscribe":{"channel":"orders:eu-7","flag":1},"id":2}"##,
    );
    let commands = [
        request(
            1,
            Request::Connect(ConnectRequest { token: "eyJ...".into(), name: "js".into(), ..Default::default() }),
        ),
        request(
            2,
            Request::Subscribe(SubscribeRequest { channel: "orders:eu-7".into(), flag: 1, ..Default::default() }),
        ),
    ];
    let read: Vec<_> = decode_commands(Encoding::Json, &frame, &Limits::default()).map(Result::unwrap).collect();
    assert_eq!(read, commands);
    let mut out = Vec::new();
    for command in &commands {
        encode_command(Encoding::Json, command, &mut out).unwrap();
    }
    assert_eq!(frame_payload(Encoding::Json, &out), frame);

    let frame = Bytes::from_static(
        br##"{"id":1,"connect":{"client":"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11","version":"0.1.0 RS","expires":true,"ttl":600,"ping":25,"pong":true,"subs":{"inbox:#u17":{"recoverable":true,"epoch":"QmTzLpVa","positioned":true}}}}
{"id":2,"subscribe":{"recoverable":true,"epoch":"hWqRtyUo","offset":41,"positioned":true}}"##,
    );
    let inbox = SubscribeResult { recoverable: true, epoch: "QmTzLpVa".into(), positioned: true, ..Default::default() };
    let replies = [
        answer(
            1,
            ReplyBody::Connect(ConnectResult {
                client: "6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11".into(),
                version: "0.1.0 RS".into(),
                expires: true,
                ttl: 600,
                ping: 25,
                pong: true,
                subs: BTreeMap::from([("inbox:#u17".into(), inbox)]),
                ..Default::default()
            }),
        ),
        answer(
            2,
            ReplyBody::Subscribe(SubscribeResult {
                recoverable: true,
                epoch: "hWqRtyUo".into(),
                offset: 41,
                positioned: true,
                ..Default::default()
            }),
        ),
    ];
    let mut out = Vec::new();
    for reply in &replies {
        encode_reply(Encoding::Json, reply, &mut out).unwrap();
    }
    assert_eq!(frame_payload(Encoding::Json, &out), frame);
    let read: Vec<_> = decode_replies(Encoding::Json, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
    assert_eq!(read, replies);
}

#[test]
fn ping_and_pong_are_empty_objects() {
    reply("{}", Reply::default());
    command("{}", Command::default());
}

#[test]
fn resubscribe_with_recovery() {
    command(
        r#"{"subscribe":{"channel":"orders:eu-7","flag":1,"recover":true,"epoch":"hWqRtyUo","offset":41},"id":2}"#,
        request(
            2,
            Request::Subscribe(SubscribeRequest {
                channel: "orders:eu-7".into(),
                flag: 1,
                recover: true,
                epoch: "hWqRtyUo".into(),
                offset: 41,
                ..Default::default()
            }),
        ),
    );
    let publication = |data, offset| Publication { data: Bytes::from_static(data), offset, ..Default::default() };
    reply(
        r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"hWqRtyUo","publications":[{"data":{"order":9001,"state":"paid"},"offset":42},{"data":{"order":9001,"state":"packed"},"offset":43}],"recovered":true,"offset":41,"positioned":true,"was_recovering":true}}"#,
        answer(
            2,
            ReplyBody::Subscribe(SubscribeResult {
                recoverable: true,
                epoch: "hWqRtyUo".into(),
                publications: vec![
                    publication(br#"{"order":9001,"state":"paid"}"#, 42),
                    publication(br#"{"order":9001,"state":"packed"}"#, 43),
                ],
                recovered: true,
                offset: 41,
                positioned: true,
                was_recovering: true,
                ..Default::default()
            }),
        ),
    );
    reply(
        r#"{"id":2,"subscribe":{"recoverable":true,"epoch":"ZzBnMkLp","offset":3,"positioned":true,"was_recovering":true}}"#,
        answer(
            2,
            ReplyBody::Subscribe(SubscribeResult {
                recoverable: true,
                epoch: "ZzBnMkLp".into(),
                offset: 3,
                positioned: true,
                was_recovering: true,
                ..Default::default()
            }),
        ),
    );
}

#[test]
fn client_publish_server_push_and_join() {
    command(
        r#"{"publish":{"channel":"room:attic","data":{"text":"hi"}},"id":5}"#,
        request(
            5,
            Request::Publish(PublishRequest {
                channel: "room:attic".into(),
                data: json(r#"{"text":"hi"}"#),
                ..Default::default()
            }),
        ),
    );
    reply(
        r#"{"push":{"channel":"room:attic","pub":{"data":{"text":"hi"},"info":{"user":"u17","client":"6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11","conn_info":{"nick":"Mo"}},"offset":8}}}"#,
        push(
            "room:attic",
            PushBody::Publication(Publication {
                data: json(r#"{"text":"hi"}"#),
                info: Some(ClientInfo {
                    user: "u17".into(),
                    client: "6f0f2f5e-8f0d-4b53-9a52-0a4a1d3c9b11".into(),
                    conn_info: json(r#"{"nick":"Mo"}"#),
                    ..Default::default()
                }),
                offset: 8,
                ..Default::default()
            }),
        ),
    );
    reply(r#"{"id":5,"publish":{}}"#, answer(5, ReplyBody::Publish(PublishResult {})));
    reply(
        r#"{"push":{"channel":"room:attic","join":{"info":{"user":"u20","client":"0d6f7d58-1d2f-4c4c-9d0b-3f1f6f0b7a02"}}}}"#,
        push(
            "room:attic",
            PushBody::Join(Join {
                info: Some(ClientInfo {
                    user: "u20".into(),
                    client: "0d6f7d58-1d2f-4c4c-9d0b-3f1f6f0b7a02".into(),
                    ..Default::default()
                }),
            }),
        ),
    );
    reply(
        r#"{"push":{"channel":"room:attic","pub":{"data":{"text":"maintenance"},"offset":9,"tags":{"kind":"system"}}}}"#,
        push("room:attic", PushBody::Publication(system_publication())),
    );
}

#[test]
fn errors_presence_and_history() {
    command(
        r#"{"subscribe":{"channel":"nosuch:thing","flag":1},"id":6}"#,
        request(
            6,
            Request::Subscribe(SubscribeRequest { channel: "nosuch:thing".into(), flag: 1, ..Default::default() }),
        ),
    );
    reply(
        r#"{"id":6,"error":{"code":102,"message":"unknown channel"}}"#,
        answer(6, ReplyBody::Error(Error { code: 102, message: "unknown channel".into(), temporary: false })),
    );
    command(
        r#"{"rpc":{"method":"slow","data":{}},"id":7}"#,
        request(7, Request::Rpc(RpcRequest { method: "slow".into(), data: json("{}") })),
    );
    reply(
        r#"{"id":7,"error":{"code":100,"message":"internal server error","temporary":true}}"#,
        answer(7, ReplyBody::Error(Error { code: 100, message: "internal server error".into(), temporary: true })),
    );
    command(
        r#"{"presence_stats":{"channel":"room:attic"},"id":8}"#,
        request(8, Request::PresenceStats(PresenceStatsRequest { channel: "room:attic".into() })),
    );
    reply(
        r#"{"id":8,"presence_stats":{"num_clients":2,"num_users":2}}"#,
        answer(8, ReplyBody::PresenceStats(PresenceStatsResult { num_clients: 2, num_users: 2 })),
    );
    command(
        r#"{"history":{"channel":"room:attic","limit":1,"reverse":true},"id":9}"#,
        request(
            9,
            Request::History(HistoryRequest {
                channel: "room:attic".into(),
                limit: 1,
                reverse: true,
                ..Default::default()
            }),
        ),
    );
    reply(
        r#"{"id":9,"history":{"publications":[{"data":{"text":"maintenance"},"offset":9,"tags":{"kind":"system"}}],"epoch":"hWqRtyUo","offset":9}}"#,
        answer(
            9,
            ReplyBody::History(HistoryResult {
                publications: vec![system_publication()],
                epoch: "hWqRtyUo".into(),
                offset: 9,
            }),
        ),
    );
    command(
        r#"{"history":{"channel":"room:attic"},"id":10}"#,
        request(10, Request::History(HistoryRequest { channel: "room:attic".into(), ..Default::default() })),
    );
    reply(
        r#"{"id":10,"history":{"publications":[],"epoch":"hWqRtyUo","offset":9}}"#,
        answer(10, ReplyBody::History(HistoryResult { publications: vec![], epoch: "hWqRtyUo".into(), offset: 9 })),
    );
}

#[test]
fn refresh() {
    command(
        r#"{"refresh":{"token":"eyJ...new"},"id":11}"#,
        request(11, Request::Refresh(RefreshRequest { token: "eyJ...new".into() })),
    );
    reply(
        r#"{"id":11,"refresh":{"expires":true,"ttl":600}}"#,
        answer(11, ReplyBody::Refresh(RefreshResult { expires: true, ttl: 600, ..Default::default() })),
    );
    command(
        r#"{"sub_refresh":{"channel":"vault:k3","token":"eyJ...sub"},"id":12}"#,
        request(
            12,
            Request::SubRefresh(SubRefreshRequest {
                channel: "vault:k3".into(),
                token: "eyJ...sub".into(),
                ..Default::default()
            }),
        ),
    );
    reply(
        r#"{"id":12,"sub_refresh":{"expires":true,"ttl":120}}"#,
        answer(12, ReplyBody::SubRefresh(SubRefreshResult { expires: true, ttl: 120 })),
    );
}

#[test]
fn server_unsubscribe() {
    let unsubscribe = |code, reason: &str| PushBody::Unsubscribe(Unsubscribe { code, reason: reason.into() });
    reply(
        r#"{"push":{"channel":"orders:eu-7","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#,
        push("orders:eu-7", unsubscribe(2500, "insufficient state")),
    );
    command(
        r#"{"subscribe":{"channel":"orders:eu-7","flag":1,"recover":true,"epoch":"hWqRtyUo","offset":43},"id":13}"#,
        request(
            13,
            Request::Subscribe(SubscribeRequest {
                channel: "orders:eu-7".into(),
                flag: 1,
                recover: true,
                epoch: "hWqRtyUo".into(),
                offset: 43,
                ..Default::default()
            }),
        ),
    );
    reply(
        r#"{"push":{"channel":"room:attic","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#,
        push("room:attic", unsubscribe(2000, "server unsubscribe")),
    );
}

#[test]
fn emulated_connection() {
    command(
        r#"{"connect":{"name":"js"},"id":1}"#,
        request(1, Request::Connect(ConnectRequest { name: "js".into(), ..Default::default() })),
    );
    reply(
        r#"{"id":1,"connect":{"client":"b1c9...","version":"0.1.0 RS","ping":25,"pong":true,"session":"1f3e...","node":"77aa..."}}"#,
        answer(
            1,
            ReplyBody::Connect(ConnectResult {
                client: "b1c9...".into(),
                version: "0.1.0 RS".into(),
                ping: 25,
                pong: true,
                session: "1f3e...".into(),
                node: "77aa...".into(),
                ..Default::default()
            }),
        ),
    );
    reply(r#"{"id":2,"subscribe":{}}"#, answer(2, ReplyBody::Subscribe(SubscribeResult::default())));
    reply(
        r#"{"push":{"disconnect":{"code":3001,"reason":"shutdown"}}}"#,
        push("", PushBody::Disconnect(Disconnect { code: 3001, reason: "shutdown".into() })),
    );
}

#[test]
fn protobuf_bytes() {
    let mut out = Vec::new();
    encode_reply(Encoding::Protobuf, &Reply::default(), &mut out).unwrap();
    assert_eq!(out, [0x00]);

    let connect = request(1, Request::Connect(ConnectRequest::default()));
    let frame = Bytes::from_static(&[0x04, 0x08, 0x01, 0x22, 0x00]);
    let read: Vec<_> = decode_commands(Encoding::Protobuf, &frame, &Limits::default()).map(Result::unwrap).collect();
    let mut out = Vec::new();
    encode_command(Encoding::Protobuf, &connect, &mut out).unwrap();
    assert_eq!(out, frame);
    assert_eq!(read, [connect]);
}
