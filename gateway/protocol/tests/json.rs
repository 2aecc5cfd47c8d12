//! Rules of the JSON encoding: what is left out, what never is, what is ignored and what is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::*;

fn read(text: &str) -> Vec<Result<Command, DecodeError>> {
    decode_commands(Encoding::Json, &Bytes::copy_from_slice(text.as_bytes()), &Limits::default()).collect()
}

#[track_caller]
fn read_one(text: &str) -> Command {
    let mut read = read(text);
    assert_eq!(read.len(), 1, "{read:?}");
    read.remove(0).unwrap()
}

#[track_caller]
fn read_reply(text: &str) -> Option<Reply> {
    let frame = Bytes::copy_from_slice(text.as_bytes());
    let mut read = decode_replies(Encoding::Json, &frame, &Limits::for_replies());
    let reply = read.next().map(Result::unwrap);
    assert!(read.next().is_none());
    reply
}

fn write(id: u32, body: ReplyBody) -> String {
    let mut out = Vec::new();
    encode_reply(Encoding::Json, &Reply { id, body: Some(body) }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn push(body: PushBody) -> ReplyBody {
    ReplyBody::Push(Push { channel: "c".into(), body })
}

#[test]
fn zero_values_are_left_out_of_results() {
    let cases = [
        (ReplyBody::Connect(ConnectResult::default()), r#"{"id":1,"connect":{}}"#),
        (ReplyBody::Subscribe(SubscribeResult::default()), r#"{"id":1,"subscribe":{}}"#),
        (ReplyBody::Unsubscribe(UnsubscribeResult {}), r#"{"id":1,"unsubscribe":{}}"#),
        (ReplyBody::Publish(PublishResult {}), r#"{"id":1,"publish":{}}"#),
        (ReplyBody::Ping(PingResult {}), r#"{"id":1,"ping":{}}"#),
        (ReplyBody::Rpc(RpcResult::default()), r#"{"id":1,"rpc":{}}"#),
        (ReplyBody::Refresh(RefreshResult::default()), r#"{"id":1,"refresh":{}}"#),
        (ReplyBody::SubRefresh(SubRefreshResult::default()), r#"{"id":1,"sub_refresh":{}}"#),
        (ReplyBody::Error(Error::default()), r#"{"id":1,"error":{}}"#),
    ];
    for (body, text) in cases {
        assert_eq!(write(1, body), format!("{text}\n"));
    }
}

#[test]
fn some_fields_are_written_even_when_zero() {
    let cases = [
        (ReplyBody::Presence(PresenceResult::default()), r#"{"id":1,"presence":{"presence":{}}}"#),
        (
            ReplyBody::Presence(PresenceResult { presence: BTreeMap::from([("x".into(), ClientInfo::default())]) }),
            r#"{"id":1,"presence":{"presence":{"x":{"user":"","client":""}}}}"#,
        ),
        (
            ReplyBody::PresenceStats(PresenceStatsResult::default()),
            r#"{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}"#,
        ),
        (
            ReplyBody::History(HistoryResult::default()),
            r#"{"id":1,"history":{"publications":[],"epoch":"","offset":0}}"#,
        ),
    ];
    for (body, text) in cases {
        assert_eq!(write(1, body), format!("{text}\n"));
    }
    let cases = [
        (PushBody::Join(Join { info: Some(ClientInfo::default()) }), r#"{"join":{"info":{"user":"","client":""}}}"#),
        (PushBody::Join(Join::default()), r#"{"join":{}}"#),
        (PushBody::Publication(Publication::default()), r#"{"pub":{}}"#),
        (PushBody::Message(Message::default()), r#"{"message":{}}"#),
        (PushBody::Subscribe(Subscribe::default()), r#"{"subscribe":{}}"#),
        (PushBody::Connect(Connect::default()), r#"{"connect":{}}"#),
        (PushBody::Refresh(Refresh::default()), r#"{"refresh":{}}"#),
    ];
    for (body, text) in cases {
        let channel = String::new();
        let out = write(0, ReplyBody::Push(Push { channel, body }));
        assert_eq!(out, format!("{{\"push\":{text}}}\n"));
    }
}

#[test]
fn newlines_of_a_payload_are_stripped_and_nothing_else_is_touched() {
    let data = Bytes::from_static(b" {\r\n\t\"a\" : [ 1.50,\n1e2 ],\n \"b\":\"\\n\\u00e9\\/\"\n}\n");
    let out = write(0, push(PushBody::Message(Message { data })));
    assert_eq!(
        out,
        "{\"push\":{\"channel\":\"c\",\"message\":{\"data\": {\t\"a\" : [ 1.50,1e2 ], \"b\":\"\\n\\u00e9\\/\"}}}}\n"
    );
}

#[test]
fn a_payload_that_is_not_json_is_refused_and_leaves_no_trace() {
    for data in [
        &b"{"[..],
        b"}",
        b"hello",
        b"1 2",
        b"{} {}",
        b"[1,]",
        b"01",
        b"\"a\nb\"",
        b"\"\xff\"",
        b" ",
        b"nul",
        b"\x00",
        br#"{"a":1}},"b":{"#,
    ] {
        let publication = Publication { data: Bytes::from_static(data), ..Default::default() };
        let mut out = b"before".to_vec();
        let error = encode_publication(Encoding::Json, "c", &publication, &mut out).unwrap_err();
        assert!(matches!(error, EncodeError::NotJson(_)));
        assert_eq!(out, b"before");

        let body = Some(push(PushBody::Publication(publication.clone())));
        encode_reply(Encoding::Json, &Reply { id: 0, body }, &mut out).unwrap_err();
        assert_eq!(out, b"before");

        let request = PublishRequest { data: publication.data.clone(), ..Default::default() };
        let command = Command { id: 1, request: Some(Request::Publish(request)) };
        encode_command(Encoding::Json, &command, &mut out).unwrap_err();
        assert_eq!(out, b"before");

        encode_publication(Encoding::Protobuf, "c", &publication, &mut out).unwrap();
        assert!(out.ends_with(data), "Protobuf takes any payload");
    }
}

#[test]
fn strings_are_escaped() {
    let error = Error { code: 1, message: "\"\\\n\u{1}\u{2028}é".into(), temporary: false };
    assert_eq!(
        write(7, ReplyBody::Error(error)),
        "{\"id\":7,\"error\":{\"code\":1,\"message\":\"\\\"\\\\\\n\\u0001\u{2028}é\"}}\n"
    );
}

#[test]
fn a_frame_is_the_messages_without_the_last_newline() {
    let mut out = Vec::new();
    encode_reply(Encoding::Json, &Reply::default(), &mut out).unwrap();
    encode_reply(Encoding::Json, &Reply::default(), &mut out).unwrap();
    assert_eq!(frame_payload(Encoding::Json, &out), b"{}\n{}");
    assert_eq!(frame_payload(Encoding::Json, b""), b"");
    assert_eq!(frame_payload(Encoding::Protobuf, b"\x01\n"), b"\x01\n");
}

#[test]
fn payloads_are_slices_of_the_frame() {
    let frame = Bytes::from_static(br#"{"id":1,"publish":{"channel":"c","data": {"a" : [1, 2]} }}"#);
    let command = decode_commands(Encoding::Json, &frame, &Limits::default()).next().unwrap().unwrap();
    let Some(Request::Publish(publish)) = command.request else { panic!("{command:?}") };
    assert_eq!(publish.data, r#"{"a" : [1, 2]}"#);
    assert!(frame.as_ptr_range().contains(&publish.data.as_ptr()));
}

#[test]
fn unknown_members_are_ignored() {
    let command = read_one(
        r#"{"x":{"id":9},"id":1,"subscribe":{"tf":{"op":"and"},"channel":"c","phase":2,"cursor":"q","zz":[null]},"y":1}"#,
    );
    let subscribe = SubscribeRequest { channel: "c".into(), ..Default::default() };
    assert_eq!(command, Command { id: 1, request: Some(Request::Subscribe(subscribe)) });
    assert_eq!(read_one(r#"{"id":3,"unheard_of":{}}"#), Command { id: 3, request: None });
}

#[test]
fn null_says_that_a_field_is_absent() {
    assert_eq!(read_one(r#"{"id":null,"connect":null}"#), Command::default());
    let command = read_one(r#"{"id":1,"connect":{"token":null,"data":null,"subs":null,"headers":null,"name":"js"}}"#);
    let connect = ConnectRequest { name: "js".into(), ..Default::default() };
    assert_eq!(command.request, Some(Request::Connect(connect)));
    let command = read_one(r#"{"id":1,"history":{"limit":null,"since":null,"reverse":null}}"#);
    assert_eq!(command.request, Some(Request::History(HistoryRequest::default())));
    let command = read_one(r#"{"id":1,"rpc":null,"send":{"data":"null"}}"#);
    assert_eq!(command.request, Some(Request::Send(SendRequest { data: Bytes::from_static(b"\"null\"") })));
}

#[test]
fn the_order_of_precedence_picks_one_of_several_requests() {
    let names = [
        "connect",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "rpc",
        "send",
        "refresh",
        "sub_refresh",
        "ping",
    ];
    let requests: Vec<Request> =
        names.iter().map(|name| read_one(&format!(r#"{{"{name}":{{}}}}"#)).request.expect(name)).collect();
    for (first, winner) in requests.iter().enumerate() {
        let mut members: Vec<_> = names[first..].iter().map(|name| format!(r#""{name}":{{}}"#)).collect();
        for _ in 0..2 {
            let command = read_one(&format!("{{{}}}", members.join(",")));
            assert_eq!(command.request.as_ref(), Some(winner));
            members.reverse();
        }
    }
}

#[test]
fn the_last_of_repeated_members_stays() {
    let command = read_one(r#"{"id":1,"id":2,"refresh":{"token":"a"},"refresh":{"token":"b"}}"#);
    assert_eq!(command, Command { id: 2, request: Some(Request::Refresh(RefreshRequest { token: "b".into() })) });
}

#[test]
fn wrong_types_and_bad_grammar_are_refused() {
    for text in [
        "null",
        "[]",
        "1",
        "\"\"",
        "{",
        "{}}",
        "{} {}",
        "{}x",
        "{,}",
        r#"{"id":-1}"#,
        r#"{"id":1.0}"#,
        r#"{"id":"1"}"#,
        r#"{"id":4294967296}"#,
        r#"{"id":true}"#,
        r#"{"connect":[]}"#,
        r#"{"connect":1}"#,
        r#"{"connect":{"token":1}}"#,
        r#"{"connect":{"subs":[]}}"#,
        r#"{"connect":{"subs":{"c":null}}}"#,
        r#"{"connect":{"headers":{"h":null}}}"#,
        r#"{"connect":{"headers":{"h":1}}}"#,
        r#"{"connect":{"data":{"a"}}}"#,
        r#"{"connect":{"data":nul}}"#,
        r#"{"connect":{"unknown":[1,}}"#,
        r#"{"connect":{"token":"\ud800"}}"#,
        r#"{"subscribe":{"recover":1}}"#,
        r#"{"subscribe":{"offset":-1}}"#,
        r#"{"history":{"limit":2147483648}}"#,
        r#"{"history":{"since":[]}}"#,
        "{\"a\u{0}\":1}",
    ] {
        let read = read(text);
        assert!(matches!(&read[..], [Err(DecodeError::Json { at: 0, .. })]), "{text}: {read:?}");
    }
}

#[test]
fn an_error_says_where() {
    let mut read = read("{}\n{\"id\":x}\n{}");
    assert_eq!(read.len(), 2);
    let error = read.pop().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "malformed JSON message at byte 3");
    let DecodeError::Json { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.column(), 7);
}

#[test]
fn a_push_of_an_unknown_kind_is_no_ping() {
    assert_eq!(read_reply(r#"{"push":{"channel":"c","novelty":{}}}"#), None);
    assert_eq!(read_reply(r#"{"novelty":{}}"#), Some(Reply::default()));
    assert_eq!(read_reply(r#"{"id":4,"novelty":{}}"#), Some(Reply { id: 4, body: None }));
    let frame = Bytes::from_static(b"{\"push\":{}}\n{\"push\":{\"join\":{}}}\n{}\n");
    let read: Vec<_> = decode_replies(Encoding::Json, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
    let join = ReplyBody::Push(Push { channel: String::new(), body: PushBody::Join(Join::default()) });
    assert_eq!(read, [Reply { id: 0, body: Some(join) }, Reply::default()]);
}

#[test]
fn a_client_ignores_what_it_does_not_know() {
    let reply = read_reply(
        r#"{"id":1,"error":null,"connect":{"client":"x","dict":{"id":"d"},"flag":1,"subs":{"c":{"publications":[{"data":1,"score":"-3"}]}}}}"#,
    );
    let publication = Publication { data: Bytes::from_static(b"1"), ..Default::default() };
    let sub = SubscribeResult { publications: vec![publication], ..Default::default() };
    let connect = ConnectResult { client: "x".into(), subs: BTreeMap::from([("c".into(), sub)]), ..Default::default() };
    assert_eq!(reply, Some(Reply { id: 1, body: Some(ReplyBody::Connect(connect)) }));
}
