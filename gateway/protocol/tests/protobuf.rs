//! Field numbers and types of the Protobuf encoding, against bytes written by hand from the tables of protocol section 2.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::*;

/// A field of up to 127 bytes: key, length, content. Keys stay one byte up to field number 15.
fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut field = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    field.extend_from_slice(content);
    field
}

/// A message in a frame, behind its length.
fn delimited(message: impl AsRef<[u8]>) -> Bytes {
    let message = message.as_ref();
    let mut frame = match u8::try_from(message.len()).unwrap() {
        short @ ..128 => vec![short],
        long => vec![long, 1],
    };
    frame.extend_from_slice(message);
    Bytes::from(frame)
}

/// The request as field `number` of a command with id 1.
#[track_caller]
fn command(number: u8, body: &[u8], request: Request) {
    let frame = delimited([&[0x08, 0x01], &field(number, body)[..]].concat());
    let command = Command { id: 1, request: Some(request) };
    let mut out = Vec::new();
    encode_command(Encoding::Protobuf, &command, &mut out).unwrap();
    assert_eq!(out, frame);
    let read: Vec<_> = decode_commands(Encoding::Protobuf, &frame, &Limits::default()).map(Result::unwrap).collect();
    assert_eq!(read, [command]);
}

#[track_caller]
fn check_reply(message: &[u8], reply: Reply) {
    let frame = delimited(message);
    let mut out = Vec::new();
    encode_reply(Encoding::Protobuf, &reply, &mut out).unwrap();
    assert_eq!(out, frame);
    let read: Vec<_> = decode_replies(Encoding::Protobuf, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
    assert_eq!(read, [reply]);
}

/// The body as field `number` of a reply with id 1.
#[track_caller]
fn reply(number: u8, body: &[u8], reply_body: ReplyBody) {
    check_reply(&[&[0x08, 0x01], &field(number, body)[..]].concat(), Reply { id: 1, body: Some(reply_body) });
}

/// The body as field `number` of a push to channel `c`.
#[track_caller]
fn push(number: u8, body: &[u8], push_body: PushBody) {
    let push = [b"\x12\x01c", &field(number, body)[..]].concat();
    let body = ReplyBody::Push(Push { channel: "c".into(), body: push_body });
    check_reply(&field(4, push), Reply { id: 0, body: Some(body) });
}

fn one<T>(entry: T) -> BTreeMap<String, T> {
    BTreeMap::from([("k".into(), entry)])
}

fn data() -> Bytes {
    Bytes::from_static(b"\xff\n")
}

#[test]
fn requests() {
    command(
        4,
        b"\x0a\x01t\x12\x02\xff\n\x1a\x07\x0a\x01k\x12\x02\x18\x01\x22\x01n\x2a\x01v\x32\x06\x0a\x01k\x12\x01h",
        Request::Connect(ConnectRequest {
            token: "t".into(),
            data: data(),
            subs: one(SubscribeRequest { recover: true, ..Default::default() }),
            name: "n".into(),
            version: "v".into(),
            headers: one("h".into()),
        }),
    );
    command(
        5,
        b"\x0a\x01c\x12\x01t\x18\x01\x32\x01e\x38\x07\x42\x02\xff\n\x48\x01\x50\x01\x58\x01\x62\x01d\x70\x03\x78\x04",
        Request::Subscribe(SubscribeRequest {
            channel: "c".into(),
            token: "t".into(),
            recover: true,
            epoch: "e".into(),
            offset: 7,
            data: data(),
            positioned: true,
            recoverable: true,
            join_leave: true,
            delta: "d".into(),
            flag: 3,
            r#type: 4,
        }),
    );
    command(6, b"\x0a\x01c", Request::Unsubscribe(UnsubscribeRequest { channel: "c".into() }));
    command(
        7,
        b"\x0a\x01c\x12\x02\xff\n\x18\x01",
        Request::Publish(PublishRequest { channel: "c".into(), data: data(), r#type: 1 }),
    );
    command(8, b"\x0a\x01c", Request::Presence(PresenceRequest { channel: "c".into() }));
    command(9, b"\x0a\x01c", Request::PresenceStats(PresenceStatsRequest { channel: "c".into() }));
    command(
        10,
        // A negative int32 takes ten bytes.
        b"\x0a\x01c\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x42\x05\x08\x09\x12\x01e\x48\x01",
        Request::History(HistoryRequest {
            channel: "c".into(),
            limit: -1,
            since: Some(StreamPosition { offset: 9, epoch: "e".into() }),
            reverse: true,
        }),
    );
    command(11, b"", Request::Ping(PingRequest {}));
    command(12, b"\x0a\x02\xff\n", Request::Send(SendRequest { data: data() }));
    command(13, b"\x0a\x02\xff\n\x12\x01m", Request::Rpc(RpcRequest { data: data(), method: "m".into() }));
    command(14, b"\x0a\x01t", Request::Refresh(RefreshRequest { token: "t".into() }));
    command(
        15,
        b"\x0a\x01c\x12\x01t\x18\x02",
        Request::SubRefresh(SubRefreshRequest { channel: "c".into(), token: "t".into(), r#type: 2 }),
    );
}

#[test]
fn results() {
    reply(2, b"\x08\x66\x12\x01m\x18\x01", ReplyBody::Error(Error { code: 102, message: "m".into(), temporary: true }));
    reply(
        5,
        b"\x0a\x01c\x12\x01v\x18\x01\x20\x3c\x2a\x02\xff\n\x32\x07\x0a\x01k\x12\x02\x50\x01\x38\x19\x40\x01\x4a\x01s\x52\x01n\x58\x05",
        ReplyBody::Connect(ConnectResult {
            client: "c".into(),
            version: "v".into(),
            expires: true,
            ttl: 60,
            data: data(),
            subs: one(SubscribeResult { positioned: true, ..Default::default() }),
            ping: 25,
            pong: true,
            session: "s".into(),
            node: "n".into(),
            time: 5,
        }),
    );
    reply(
        6,
        b"\x08\x01\x10\x3c\x18\x01\x32\x01e\x3a\x02\x30\x08\x3a\x02\x30\x09\x40\x01\x48\x07\x50\x01\x5a\x02\xff\n\x60\x01\x68\x01",
        ReplyBody::Subscribe(SubscribeResult {
            expires: true,
            ttl: 60,
            recoverable: true,
            epoch: "e".into(),
            publications: vec![
                Publication { offset: 8, ..Default::default() },
                Publication { offset: 9, ..Default::default() },
            ],
            recovered: true,
            offset: 7,
            positioned: true,
            data: data(),
            was_recovering: true,
            delta: true,
        }),
    );
    reply(7, b"", ReplyBody::Unsubscribe(UnsubscribeResult {}));
    reply(8, b"", ReplyBody::Publish(PublishResult {}));
    reply(
        9,
        b"\x0a\x08\x0a\x01k\x12\x03\x0a\x01u",
        ReplyBody::Presence(PresenceResult { presence: one(ClientInfo { user: "u".into(), ..Default::default() }) }),
    );
    reply(10, b"\x08\x02\x10\x01", ReplyBody::PresenceStats(PresenceStatsResult { num_clients: 2, num_users: 1 }));
    reply(
        11,
        b"\x0a\x02\x30\x08\x12\x01e\x18\x09",
        ReplyBody::History(HistoryResult {
            publications: vec![Publication { offset: 8, ..Default::default() }],
            epoch: "e".into(),
            offset: 9,
        }),
    );
    reply(12, b"", ReplyBody::Ping(PingResult {}));
    reply(13, b"\x0a\x02\xff\n", ReplyBody::Rpc(RpcResult { data: data() }));
    reply(
        14,
        b"\x0a\x01c\x12\x01v\x18\x01\x20\x3c",
        ReplyBody::Refresh(RefreshResult { client: "c".into(), version: "v".into(), expires: true, ttl: 60 }),
    );
    reply(15, b"\x08\x01\x10\x3c", ReplyBody::SubRefresh(SubRefreshResult { expires: true, ttl: 60 }));
}

#[test]
fn pushes() {
    let info = || ClientInfo { user: "u".into(), client: "i".into(), conn_info: data(), chan_info: data() };
    push(
        4,
        b"\x22\x02\xff\n\x2a\x0e\x0a\x01u\x12\x01i\x1a\x02\xff\n\x22\x02\xff\n\x30\x08\x3a\x06\x0a\x01k\x12\x01v\x40\x01",
        PushBody::Publication(Publication {
            data: data(),
            info: Some(info()),
            offset: 8,
            tags: one("v".into()),
            delta: true,
        }),
    );
    let member = b"\x0a\x0e\x0a\x01u\x12\x01i\x1a\x02\xff\n\x22\x02\xff\n";
    push(5, member, PushBody::Join(Join { info: Some(info()) }));
    push(6, member, PushBody::Leave(Leave { info: Some(info()) }));
    push(7, b"\x10\xc4\x13\x1a\x01r", PushBody::Unsubscribe(Unsubscribe { code: 2500, reason: "r".into() }));
    push(8, b"\x0a\x02\xff\n", PushBody::Message(Message { data: data() }));
    push(
        9,
        b"\x08\x01\x22\x01e\x28\x07\x30\x01\x3a\x02\xff\n",
        PushBody::Subscribe(Subscribe {
            recoverable: true,
            epoch: "e".into(),
            offset: 7,
            positioned: true,
            data: data(),
        }),
    );
    push(
        10,
        b"\x0a\x01c\x12\x01v\x1a\x02\xff\n\x22\x07\x0a\x01k\x12\x02\x50\x01\x28\x01\x30\x3c\x38\x19\x40\x01\x4a\x01s\x52\x01n\x58\x05",
        PushBody::Connect(Connect {
            client: "c".into(),
            version: "v".into(),
            data: data(),
            subs: one(SubscribeResult { positioned: true, ..Default::default() }),
            expires: true,
            ttl: 60,
            ping: 25,
            pong: true,
            session: "s".into(),
            node: "n".into(),
            time: 5,
        }),
    );
    push(11, b"\x08\xb9\x17\x12\x01r", PushBody::Disconnect(Disconnect { code: 3001, reason: "r".into() }));
    push(12, b"\x08\x01\x10\x3c", PushBody::Refresh(Refresh { expires: true, ttl: 60 }));
}

fn read_command(message: &[u8]) -> Result<Command, DecodeError> {
    let frame = delimited(message);
    decode_commands(Encoding::Protobuf, &frame, &Limits::default()).next().expect("a frame has a message or an error")
}

#[test]
fn payloads_are_slices_of_the_frame() {
    let frame = delimited(b"\x3a\x04\x12\x02\xff\n");
    let command = decode_commands(Encoding::Protobuf, &frame, &Limits::default()).next().unwrap().unwrap();
    let Some(Request::Publish(publish)) = command.request else { panic!("{command:?}") };
    assert_eq!(publish.data, data());
    assert!(frame.as_ptr_range().contains(&publish.data.as_ptr()));
}

#[test]
fn unknown_fields_are_skipped() {
    // Command: reserved field 2 and unknown field 200 of every wire type; SubscribeRequest: the fields left out.
    let subscribe = b"\x0a\x01c\x6a\x02\x0a\x00\x80\x01\x02\x8a\x01\x01q\x90\x01\x05\x98\x01\x01";
    let unknown = b"\x10\x01\xc0\x0c\x01\xc1\x0c12345678\xc2\x0c\x01x\xc3\x0c\x08\x01\xc4\x0c\xc5\x0c1234";
    let read = read_command(&[&unknown[..], &field(5, subscribe)].concat()).unwrap();
    let subscribe = SubscribeRequest { channel: "c".into(), ..Default::default() };
    assert_eq!(read.request, Some(Request::Subscribe(subscribe)));
    assert_eq!(read_command(b"\x08\x03\xa2\x06\x00").unwrap(), Command { id: 3, request: None });
}

#[test]
fn the_order_of_precedence_picks_one_of_several_requests() {
    let numbers = [4, 5, 6, 7, 8, 9, 10, 13, 12, 14, 15, 11];
    for (first, number) in numbers.into_iter().enumerate() {
        let winner = read_command(&field(number, b"")).unwrap();
        assert!(winner.request.is_some());
        let mut fields: Vec<_> = numbers[first..].iter().map(|number| field(*number, b"")).collect();
        for _ in 0..2 {
            assert_eq!(read_command(&fields.concat()).unwrap(), winner);
            fields.reverse();
        }
    }
}

#[test]
fn parts_of_a_message_are_merged() {
    let refresh = [field(15, b"\x0a\x01c"), field(15, b"\x12\x01t")].concat();
    let sub_refresh = SubRefreshRequest { channel: "c".into(), token: "t".into(), r#type: 0 };
    assert_eq!(read_command(&refresh).unwrap().request, Some(Request::SubRefresh(sub_refresh)));

    let push = [field(4, b"\x12\x01c"), field(4, b"\x2a\x00")].concat();
    let read = decode_replies(Encoding::Protobuf, &delimited(push), &Limits::for_replies()).next().unwrap().unwrap();
    let join = ReplyBody::Push(Push { channel: "c".into(), body: PushBody::Join(Join::default()) });
    assert_eq!(read, Reply { id: 0, body: Some(join) });
}

#[test]
fn a_push_of_an_unknown_kind_is_no_ping() {
    let frame = Bytes::from_static(b"\x05\x22\x03\x12\x01c\x00\x02\x22\x00");
    let read: Vec<_> = decode_replies(Encoding::Protobuf, &frame, &Limits::for_replies()).map(Result::unwrap).collect();
    assert_eq!(read, [Reply::default()]);
}

#[test]
fn malformed_messages_are_refused() {
    for message in [
        &b"\x08"[..],
        b"\x08\x80",
        b"\x0a\x01x",
        b"\x00\x00",
        b"\x20\x01",
        b"\x22\x01\x0a",
        b"\x22\x05\x0a\x01t",
        b"\x22\x03\x0a\x01\xff",
        b"\x22\x02\x08\x01",
        b"\x0f",
        b"\xa2\x06\x05",
        b"\xa3\x06",
    ] {
        let error = read_command(message).unwrap_err();
        assert!(matches!(error, DecodeError::Protobuf { at: 1, .. }), "{message:?}: {error:?}");
    }
    // Groups are long gone from Protobuf, but unknown ones are skipped by recursion, which has an end.
    let groups = Bytes::from([&[0xa0, 0x9c, 0x01][..], &b"\xa3\x06".repeat(10_000)].concat());
    let mut read = decode_commands(Encoding::Protobuf, &groups, &Limits::default());
    assert!(matches!(read.next(), Some(Err(DecodeError::Protobuf { at: 3, .. }))));
}
