//! Protocol section 7.2 as a session sees it: subscribe, unsubscribe, refresh and disconnect by the server API.

use bytes::Bytes;

use super::harness::*;
use crate::io::{Input, Joined, Overrides, ServerSubscribe};
use crate::{CloseCode, Settings};

fn request(channel: &str) -> ServerSubscribe {
    ServerSubscribe {
        channel: name(channel),
        info: Bytes::new(),
        data: Bytes::new(),
        recover_since: None,
        expire_at: None,
        overrides: Overrides::default(),
    }
}

fn subscribe(world: &mut World, request: ServerSubscribe) -> Vec<String> {
    world.give(Input::ServerSubscribe(Box::new(request)))
}

fn unsubscribe(channel: &str, code: u32, reason: &'static str) -> Input {
    Input::ServerUnsubscribe { channel: name(channel), code, reason }
}

#[test]
fn a_subscription_by_the_server_is_pushed() {
    let mut world = World::open();
    let full = ServerSubscribe {
        info: Bytes::from_static(b"{\"c\":1}"),
        data: Bytes::from_static(b"{\"d\":1}"),
        overrides: Overrides { presence: Some(true), join_leave: Some(true), ..Overrides::default() },
        ..request("log:a")
    };
    assert_eq!(subscribe(&mut world, full), [r#"join log:a presence({"c":1}) positioned history"#]);
    assert_eq!(subscribe(&mut world, request("log:a")), [""; 0], "it is being made");
    assert_eq!(world.send(r#"{"id":2,"subscribe":{"channel":"log:a"}}"#), [error(2, 105)]);
    let push = concat!(
        r#"{"push":{"channel":"log:a","subscribe":{"recoverable":true,"epoch":"e","offset":3,"positioned":true,"#,
        r#""data":{"d":1}}}}"#
    );
    assert_eq!(world.joined("log:a", at("e", 3)), [push, r#"announce join log:a u({"c":1})"#]);
    assert_eq!(subscribe(&mut world, request("log:a")), [""; 0]);
    let closed = world.give(Input::PositionLost { channel: name("log:a") });
    let expected = ["close 3010 insufficient state", "leave log:a presence", r#"announce leave log:a u({"c":1})"#];
    assert_eq!(closed, expected);
}

#[test]
fn closed_namespaces_are_open_to_the_server_and_unknown_ones_are_not() {
    let mut world = World::open();
    assert_eq!(subscribe(&mut world, request("closed:a")), ["join closed:a"]);
    assert_eq!(world.joined("closed:a", Joined::default()), [r#"{"push":{"channel":"closed:a","subscribe":{}}}"#]);
    assert_eq!(subscribe(&mut world, request("nosuch:a")), [""; 0]);
    assert_eq!(subscribe(&mut world, ServerSubscribe { expire_at: Some(10_000), ..request("b") }), [""; 0]);
    assert_eq!(subscribe(&mut world, request("c")), ["join c"]);
    assert_eq!(world.join_failed("c"), [""; 0]);
    assert!(world.session.subscription("c").is_none());

    let mut world = World::with(Settings { channels_per_connection: 1, ..Settings::default() }).connected();
    world.subscribe("a");
    assert_eq!(subscribe(&mut world, request("b")), [""; 0]);
}

#[test]
fn recovered_publications_follow_the_push() {
    let mut world = World::open();
    let since = ServerSubscribe { recover_since: Some(position("e", 5)), ..request("log:a") };
    assert_eq!(subscribe(&mut world, since), ["join log:a positioned history stream from 5@e"]);
    let subscribed =
        r#"{"push":{"channel":"log:a","subscribe":{"recoverable":true,"epoch":"e","offset":5,"positioned":true}}}"#;
    let publication = r#"{"push":{"channel":"log:a","pub":{"data":{"n":6},"offset":6}}}"#;
    assert_eq!(world.joined("log:a", recovered("e", 6, [6])), [subscribed, publication]);
}

#[test]
fn an_expired_server_side_subscription_closes_the_connection() {
    let settings = Settings { ping_interval: std::time::Duration::ZERO, ..Settings::default() };
    let mut world = World::with(settings).connected();
    subscribe(&mut world, ServerSubscribe { expire_at: Some(10_060), ..request("a") });
    let push = r#"{"push":{"channel":"a","subscribe":{}}}"#;
    assert_eq!(world.joined("a", Joined::default()), [push], "expiry is not the client's business");
    assert_eq!(world.pass(seconds(84)), [""; 0]);
    assert_eq!(world.pass(seconds(1)), ["close 3006 subscription expired", "leave a hub"]);
}

#[test]
fn unsubscribe_pushes_always_carry_a_code_and_a_reason() {
    for (code, reason, told) in [
        (2000, "server unsubscribe", r#""code":2000,"reason":"server unsubscribe""#),
        (2500, "insufficient state", r#""code":2500,"reason":"insufficient state""#),
        (0, "", r#""code":2000,"reason":"server unsubscribe""#),
        (3000, "odd", r#""code":2000,"reason":"odd""#),
    ] {
        let mut world = World::open();
        world.subscribe("room:a");
        let out = world.give(unsubscribe("room:a", code, reason));
        let push = format!(r#"{{"push":{{"channel":"room:a","unsubscribe":{{{told}}}}}}}"#);
        let expected = ["leave room:a hub presence".to_owned(), "announce leave room:a u()".to_owned(), push];
        assert_eq!(out, expected, "nothing of the channel follows the push");
        assert_eq!(world.give(unsubscribe("room:a", code, reason)), [""; 0]);
    }
}

#[test]
fn unsubscribing_what_is_being_made_ends_it_as_soon_as_it_is_there() {
    let push = r#"{"push":{"channel":"a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#;
    let end = || unsubscribe("a", 2000, "server unsubscribe");
    let mut world = World::open();
    world.send(r#"{"id":2,"subscribe":{"channel":"a","token":"t"}}"#);
    assert_eq!(world.give(end()), [""; 0]);
    assert_eq!(world.verified(2, "a", Ok(sub_grant("u", "a"))), ["join a"]);
    assert_eq!(world.joined("a", Joined::default()), [r#"{"id":2,"subscribe":{}}"#, "leave a hub", push]);

    let mut world = World::open();
    subscribe(&mut world, request("a"));
    world.give(end());
    let out = world.joined("a", Joined::default());
    assert_eq!(out, [r#"{"push":{"channel":"a","subscribe":{}}}"#, "leave a hub", push]);
    assert_eq!(world.session.subscriptions().len(), 0);
}

#[test]
fn refresh_by_the_server() {
    let refresh = |expired, expire_at| Input::ServerRefresh { expired, expire_at, info: None };
    for (input, expected) in [
        (refresh(true, None), vec!["close 3005 connection expired"]),
        (refresh(true, Some(20_000)), vec!["close 3005 connection expired"]),
        (refresh(false, Some(10_000)), vec!["close 3005 connection expired"]),
        (refresh(false, Some(10_060)), vec![r#"{"push":{"refresh":{"expires":true,"ttl":60}}}"#]),
        (refresh(false, None), vec![]),
    ] {
        assert_eq!(World::open().give(input), expected);
    }
    let mut world = World::with(Settings { ping_interval: std::time::Duration::ZERO, ..Settings::default() });
    world = world.connected();
    world.give(refresh(false, Some(10_060)));
    assert!(world.session.next_deadline().is_some());
    let info = Some(Bytes::from_static(b"{\"n\":1}"));
    world.give(Input::ServerRefresh { expired: false, expire_at: None, info: info.clone() });
    assert_eq!(world.session.next_deadline(), None, "it does not expire any more");
    assert_eq!(world.session.info().map(|info| info.conn_info.clone()), info);
}

#[test]
fn the_server_api_waits_for_the_connect_reply() {
    let mut world = World::new();
    assert_eq!(subscribe(&mut world, request("early")), [""; 0], "nobody is known yet");
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["a"]))));
    assert_eq!(subscribe(&mut world, request("b")), [""; 0]);
    assert_eq!(world.give(unsubscribe("a", 2000, "server unsubscribe")), [""; 0]);
    let refresh = Input::ServerRefresh { expired: false, expire_at: Some(10_060), info: None };
    assert_eq!(world.give(refresh), [""; 0]);
    let out = world.joined("a", Joined::default());
    assert!(out[0].contains(r#""subs":{"a":{}}"#));
    assert_eq!(
        out[1..],
        [
            "join b",
            "leave a hub",
            r#"{"push":{"channel":"a","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}"#,
            r#"{"push":{"refresh":{"expires":true,"ttl":60}}}"#,
        ]
    );
}

#[test]
fn a_flood_of_calls_before_the_connect_reply_ends_the_connection() {
    let mut world = World::new();
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["a"]))));
    for _ in 0..256 {
        assert_eq!(subscribe(&mut world, request("b")), [""; 0]);
    }
    assert_eq!(subscribe(&mut world, request("b")), ["close 3010 insufficient state"]);
}

#[test]
fn every_close_code_can_be_asked_for_and_comes_once() {
    for code in CloseCode::BUILT_IN {
        let mut world = World::open();
        assert_eq!(world.give(Input::Close(code.clone())), [format!("close {} {}", code.code(), code.reason())]);
        assert_eq!(world.give(Input::Close(code)), [""; 0]);
        assert!(!world.session.wants_commands() && world.session.is_finished());
    }
}
