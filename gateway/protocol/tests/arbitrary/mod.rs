//! Any message, for property tests.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use protocol::*;

/// A strategy for a message from strategies for its fields.
macro_rules! message {
    ($message:ident { $($field:ident: $strategy:expr),+ $(,)? }) => {
        ($($strategy,)+).prop_map(|($($field,)+)| $message { $($field),+ })
    };
}

fn text() -> impl Strategy<Value = String> + Clone {
    vec(any::<char>(), 0..6).prop_map(String::from_iter)
}

/// Numbers of which many are zero, the value that is left out.
fn number<T: Arbitrary + Default + Clone + 'static>() -> impl Strategy<Value = T> {
    prop_oneof![Just(T::default()), any::<T>()]
}

fn map<T: std::fmt::Debug>(entry: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<String, T>> {
    btree_map(text(), entry, 0..3)
}

/// A payload that the encoding gives back as it is: in JSON anything but `null` and without white space around it.
fn payload(encoding: Encoding) -> BoxedStrategy<Bytes> {
    match encoding {
        Encoding::Protobuf => vec(any::<u8>(), 0..8).prop_map(Bytes::from).boxed(),
        Encoding::Json => {
            let quoted = text().prop_map(|text| serde_json::to_string(&text).expect("strings have a JSON form"));
            let leaf = prop_oneof![
                Just("true".to_owned()),
                Just("1e400".to_owned()),
                Just("-0.10".to_owned()),
                Just(r#""\ud800""#.to_owned()),
                quoted.clone(),
            ];
            let value = leaf.prop_recursive(4, 12, 3, move |inner| {
                prop_oneof![
                    vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(" ,\t"))),
                    vec((quoted.clone(), prop_oneof![inner, Just("null".to_owned())]), 0..3).prop_map(|members| {
                        let members: Vec<_> = members.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                        format!("{{{}}}", members.join(", "))
                    }),
                ]
            });
            prop_oneof![Just(Bytes::new()), value.prop_map(Bytes::from)].boxed()
        }
    }
}

fn client_info(e: Encoding) -> impl Strategy<Value = ClientInfo> {
    message!(ClientInfo { user: text(), client: text(), conn_info: payload(e), chan_info: payload(e) })
}

pub fn publication(e: Encoding) -> BoxedStrategy<Publication> {
    message!(Publication {
        data: payload(e),
        info: prop::option::of(client_info(e)),
        offset: number(),
        tags: map(text()),
        delta: any::<bool>(),
    })
    .boxed()
}

fn subscribe_request(e: Encoding) -> impl Strategy<Value = SubscribeRequest> {
    message!(SubscribeRequest {
        channel: text(),
        token: text(),
        recover: any::<bool>(),
        epoch: text(),
        offset: number(),
        data: payload(e),
        positioned: any::<bool>(),
        recoverable: any::<bool>(),
        join_leave: any::<bool>(),
        delta: text(),
        flag: number(),
        r#type: number(),
    })
}

fn request(e: Encoding) -> impl Strategy<Value = Request> {
    let since = prop::option::of(message!(StreamPosition { offset: number(), epoch: text() }));
    prop_oneof![
        message!(ConnectRequest {
            token: text(),
            data: payload(e),
            subs: map(subscribe_request(e)),
            name: text(),
            version: text(),
            headers: map(text()),
        })
        .prop_map(Request::Connect),
        subscribe_request(e).prop_map(Request::Subscribe),
        message!(UnsubscribeRequest { channel: text() }).prop_map(Request::Unsubscribe),
        message!(PublishRequest { channel: text(), data: payload(e), r#type: number() }).prop_map(Request::Publish),
        message!(PresenceRequest { channel: text() }).prop_map(Request::Presence),
        message!(PresenceStatsRequest { channel: text() }).prop_map(Request::PresenceStats),
        message!(HistoryRequest { channel: text(), limit: number(), since: since, reverse: any::<bool>() })
            .prop_map(Request::History),
        message!(RpcRequest { data: payload(e), method: text() }).prop_map(Request::Rpc),
        message!(SendRequest { data: payload(e) }).prop_map(Request::Send),
        message!(RefreshRequest { token: text() }).prop_map(Request::Refresh),
        message!(SubRefreshRequest { channel: text(), token: text(), r#type: number() }).prop_map(Request::SubRefresh),
        Just(Request::Ping(PingRequest {})),
    ]
}

pub fn command(e: Encoding) -> BoxedStrategy<Command> {
    (number(), prop::option::of(request(e))).prop_map(|(id, request)| Command { id, request }).boxed()
}

fn subscribe_result(e: Encoding) -> impl Strategy<Value = SubscribeResult> {
    message!(SubscribeResult {
        expires: any::<bool>(),
        ttl: number(),
        recoverable: any::<bool>(),
        epoch: text(),
        publications: vec(publication(e), 0..3),
        recovered: any::<bool>(),
        offset: number(),
        positioned: any::<bool>(),
        data: payload(e),
        was_recovering: any::<bool>(),
        delta: any::<bool>(),
    })
}

fn push(e: Encoding) -> impl Strategy<Value = Push> {
    let info = move || prop::option::of(client_info(e));
    let body = prop_oneof![
        publication(e).prop_map(PushBody::Publication),
        message!(Join { info: info() }).prop_map(PushBody::Join),
        message!(Leave { info: info() }).prop_map(PushBody::Leave),
        message!(Unsubscribe { code: number(), reason: text() }).prop_map(PushBody::Unsubscribe),
        message!(Message { data: payload(e) }).prop_map(PushBody::Message),
        message!(Subscribe {
            recoverable: any::<bool>(),
            epoch: text(),
            offset: number(),
            positioned: any::<bool>(),
            data: payload(e),
        })
        .prop_map(PushBody::Subscribe),
        message!(Connect {
            client: text(),
            version: text(),
            data: payload(e),
            subs: map(subscribe_result(e)),
            expires: any::<bool>(),
            ttl: number(),
            ping: number(),
            pong: any::<bool>(),
            session: text(),
            node: text(),
            time: number(),
        })
        .prop_map(PushBody::Connect),
        message!(Disconnect { code: number(), reason: text() }).prop_map(PushBody::Disconnect),
        message!(Refresh { expires: any::<bool>(), ttl: number() }).prop_map(PushBody::Refresh),
    ];
    message!(Push { channel: text(), body: body })
}

pub fn reply(e: Encoding) -> BoxedStrategy<Reply> {
    let body = prop_oneof![
        message!(Error { code: number(), message: text(), temporary: any::<bool>() }).prop_map(ReplyBody::Error),
        push(e).prop_map(ReplyBody::Push),
        message!(ConnectResult {
            client: text(),
            version: text(),
            expires: any::<bool>(),
            ttl: number(),
            data: payload(e),
            subs: map(subscribe_result(e)),
            ping: number(),
            pong: any::<bool>(),
            session: text(),
            node: text(),
            time: number(),
        })
        .prop_map(ReplyBody::Connect),
        subscribe_result(e).prop_map(ReplyBody::Subscribe),
        Just(ReplyBody::Unsubscribe(UnsubscribeResult {})),
        Just(ReplyBody::Publish(PublishResult {})),
        message!(PresenceResult { presence: map(client_info(e)) }).prop_map(ReplyBody::Presence),
        message!(PresenceStatsResult { num_clients: number(), num_users: number() }).prop_map(ReplyBody::PresenceStats),
        message!(HistoryResult { publications: vec(publication(e), 0..3), epoch: text(), offset: number() })
            .prop_map(ReplyBody::History),
        Just(ReplyBody::Ping(PingResult {})),
        message!(RpcResult { data: payload(e) }).prop_map(ReplyBody::Rpc),
        message!(RefreshResult { client: text(), version: text(), expires: any::<bool>(), ttl: number() })
            .prop_map(ReplyBody::Refresh),
        message!(SubRefreshResult { expires: any::<bool>(), ttl: number() }).prop_map(ReplyBody::SubRefresh),
    ];
    message!(Reply { id: number(), body: prop::option::of(body) }).boxed()
}
