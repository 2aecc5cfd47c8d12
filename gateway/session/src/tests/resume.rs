//! Sessions that outlive a connection: what a client that comes back has again, and what its end leaves behind.

use backplane::ClientId;
use bytes::Bytes;

use super::harness::*;
use crate::CloseCode;
use crate::io::{Back, Input, Joined, Overrides, Resumption, ServerSubscribe};

const FORMER: &str = "90000000-0000-4000-8000-000000000009";

const CONNECT: &str = r#"{"id":1,"connect":{"token":"t"}}"#;

fn dynamic(channel: &str) -> ServerSubscribe {
    ServerSubscribe {
        channel: name(channel),
        info: Bytes::from_static(b"{\"c\":1}"),
        data: Bytes::new(),
        recover_since: None,
        expire_at: None,
        overrides: Overrides { presence: Some(true), join_leave: Some(true), ..Overrides::default() },
    }
}

fn back(subscriptions: Vec<ServerSubscribe>) -> Input {
    let client = ClientId::parse(FORMER).expect("a UUID");
    Input::Resumed(Resumption::Back(Box::new(Back { client, subscriptions })))
}

/// A client that is back, up to the question what it left behind.
fn returning(connect: &str) -> World {
    let mut world = World::resumable();
    assert_eq!(world.send(connect), ["verify connection t"]);
    assert_eq!(world.give(Input::ConnectionVerified(Ok(grant("u")))), [r#"resume "u""#]);
    assert!(!world.session.is_established());
    world
}

#[test]
fn a_session_is_looked_up_only_for_those_who_ask_and_are_who_they_say() {
    let mut plain = World::new();
    plain.send(CONNECT);
    let established = plain.give(Input::ConnectionVerified(Ok(grant("u"))));
    assert_eq!(established[0], r#"established "u""#);
    let mut forged = World::resumable();
    forged.send(CONNECT);
    assert_eq!(forged.give(Input::ConnectionVerified(Err(invalid()))), [CLOSE_3500]);
    let mut nobody = World::resumable();
    assert_eq!(nobody.send(r#"{"id":1,"connect":{}}"#), [CLOSE_3501], "anonymous users are not allowed");
    assert_eq!(nobody.give(Input::Resumed(Resumption::Fresh)), [""; 0]);
}

#[test]
fn whoever_comes_back_has_the_same_id_and_what_the_server_had_added() {
    let mut world = returning(CONNECT);
    let asked = world.give(back(vec![dynamic("room:a"), dynamic("nosuch:b"), dynamic("log:c")]));
    let expected = [
        r#"established "u""#,
        r#"join room:a presence({"c":1}) push"#,
        r#"join log:c presence({"c":1}) positioned history"#,
    ];
    assert_eq!(asked, expected);
    assert_eq!(world.give(Input::Adopted { channel: name("room:a") }), [""; 0]);
    assert_eq!(world.joined("room:a", Joined::default()), [""; 0]);
    let reply = world.joined("log:c", at("e", 3));
    assert!(reply[0].contains(FORMER) && reply[0].contains(r#""room:a":{}"#), "{}", reply[0]);
    // Adopted: everybody believes it is still there. The other one is announced.
    assert_eq!(reply[1..], [r#"announce join log:c u({"c":1})"#]);
    assert_eq!(world.session.client().to_string(), FORMER);
    let ended = world.give(Input::Gone);
    let expected = [
        "detach log:c presence dynamic, room:a presence dynamic",
        "leave log:c hub",
        "linger log:c",
        "leave room:a hub",
        "linger room:a",
    ];
    assert_eq!(ended, expected);
}

#[test]
fn the_token_comes_first_and_the_client_says_where_to_recover() {
    let connect = r#"{"id":1,"connect":{"token":"t","subs":{"log:a":{"recover":true,"epoch":"e","offset":7}}}}"#;
    let mut world = World::resumable();
    world.send(connect);
    world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["room:b"]))));
    let asked = world.give(back(vec![dynamic("log:a"), dynamic("room:b")]));
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked[1], "join room:b presence() push");
    assert_eq!(asked[2], r#"join log:a presence({"c":1}) positioned history stream from 7@e"#);
}

#[test]
fn restored_subscriptions_stay_within_the_limit() {
    let mut world = returning(CONNECT);
    world.settings.channels_per_connection = 2;
    let asked = world.give(back(vec![dynamic("a"), dynamic("b"), dynamic("c")]));
    assert_eq!(asked.len(), 1 + 2, "{asked:?}");
}

#[test]
fn expired_subscriptions_are_not_restored() {
    let mut world = returning(CONNECT);
    let asked = world.give(back(vec![ServerSubscribe { expire_at: Some(world.now.unix), ..dynamic("a") }]));
    assert_eq!(asked.len(), 2, "established and the connect reply: {asked:?}");
}

/// What each kind of end does to a member of a room.
#[test]
fn members_linger_only_if_the_client_may_come_back() {
    let lingers = ["detach room:a presence", "leave room:a hub", "linger room:a"];
    let leaves = ["detach room:a presence", "leave room:a hub presence", "announce leave room:a u()"];
    let end = |input: Input| {
        let mut world = World::with_session();
        world.subscribe("room:a");
        let mut outputs = world.give(input);
        outputs.retain(|output| !output.starts_with("close"));
        outputs
    };
    assert_eq!(end(Input::Gone), lingers);
    assert_eq!(end(Input::Left), leaves);
    for code in CloseCode::BUILT_IN {
        let expected = if code.reconnect() { lingers } else { leaves };
        assert_eq!(end(Input::Close(code.clone())), expected, "{code:?}");
    }
    let mut without = World::open();
    without.subscribe("room:a");
    assert_eq!(without.give(Input::Gone), ["leave room:a hub presence", "announce leave room:a u()"]);
}

#[test]
fn events_without_presence_are_not_held_back() {
    let mut world = World::with_session();
    let overrides = Overrides { join_leave: Some(true), ..Overrides::default() };
    world.give(Input::ServerSubscribe(Box::new(ServerSubscribe { overrides, ..dynamic("a") })));
    world.joined("a", Joined::default());
    let ended = world.give(Input::Gone);
    assert_eq!(ended, ["detach a dynamic", "leave a hub", r#"announce leave a u({"c":1})"#]);
}

#[test]
fn an_unsubscribe_ends_membership_at_once() {
    let mut world = World::with_session();
    world.subscribe("room:a");
    let ended = world.send(r#"{"id":7,"unsubscribe":{"channel":"room:a"}}"#);
    assert_eq!(ended[..2], ["leave room:a hub presence", "announce leave room:a u()"]);
    assert_eq!(world.give(Input::Gone), ["detach "]);
}

#[test]
fn a_lost_position_keeps_all_members() {
    let mut world = World::with_session();
    world.give(Input::ServerSubscribe(Box::new(dynamic("log:a"))));
    world.joined("log:a", at("e", 3));
    world.subscribe("room:b");
    let expected = [
        "close 3010 insufficient state",
        "detach log:a presence dynamic, room:b presence",
        "linger log:a",
        "leave room:b hub",
        "linger room:b",
    ];
    assert_eq!(world.give(Input::PositionLost { channel: name("log:a") }), expected);
}

#[test]
fn a_join_that_comes_too_late_lingers_too() {
    let mut world = World::with_session();
    world.send(r#"{"id":7,"subscribe":{"channel":"room:a"}}"#);
    world.send(r#"{"id":8,"subscribe":{"channel":"room:b"}}"#);
    assert_eq!(world.give(Input::Close(CloseCode::TakenOver)), ["close 4001 session taken over", "detach "]);
    assert_eq!(world.joined("room:a", Joined::default()), ["leave room:a hub", "linger room:a"]);
    assert_eq!(world.join_failed("room:b"), ["linger room:b"]);
}

#[test]
fn without_a_session_the_connection_is_like_any_other() {
    let mut world = returning(CONNECT);
    let reply = world.give(Input::Resumed(Resumption::Without));
    assert!(reply[1].contains(CLIENT), "{reply:?}");
    world.subscribe("room:a");
    assert_eq!(world.give(Input::Gone), ["leave room:a hub presence", "announce leave room:a u()"]);
}
