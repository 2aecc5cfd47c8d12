//! Protocol sections 2.2, 4.2 and 6.2: connecting, and server-side subscriptions that come with it.

use bytes::Bytes;

use super::harness::*;
use crate::Settings;
use crate::channels::{ChannelOptions, RecoveryMode};
use crate::io::{ConnectionGrant, Input, Joined, Overrides, TokenError};

const CONNECT: &str = r#"{"id":1,"connect":{"token":"t"}}"#;
const ESTABLISHED: &str = r#"established "u""#;

fn result(rest: &str) -> String {
    format!(r#"{{"id":1,"connect":{{"client":"{CLIENT}","version":"v",{rest}}}}}"#)
}

fn connect(world: &mut World, result: Result<ConnectionGrant, TokenError>) -> Vec<String> {
    assert_eq!(world.send(CONNECT), ["verify connection t"]);
    world.give(Input::ConnectionVerified(result))
}

#[test]
fn outcomes_of_a_connection_token() {
    let expired = ConnectionGrant { expire_at: Some(10_000), ..grant("u") };
    for (token, expected) in [
        (Err(invalid()), CLOSE_3500.to_owned()),
        (Err(TokenError::Expired), error(1, 109)),
        (Err(key_server_down()), error(1, 100)),
        (Ok(expired), error(1, 109)),
        (Ok(grant_with_subs("u", ["nosuch:a"])), error(1, 102)),
        (Ok(grant_with_subs("u", [""])), error(1, 107)),
        (Ok(grant("")), "close 3507 permission denied".to_owned()),
    ] {
        assert_eq!(connect(&mut World::new(), token.clone()), [expected], "{token:?}");
    }
    let out = connect(&mut World::new(), Ok(grant("u")));
    assert_eq!(out, [ESTABLISHED.to_owned(), result(r#""ping":25,"pong":true"#)]);
    assert_eq!(connect(&mut World::anonymous(), Ok(grant("")))[0], r#"established """#);
}

#[test]
fn a_refused_connect_leaves_nothing_but_leaving() {
    let mut world = World::new();
    assert_eq!(world.send(CONNECT), ["verify connection t"]);
    assert_eq!(world.send(r#"{"id":2,"subscribe":{"channel":"a"}}"#), [""; 0]);
    let out = world.give(Input::ConnectionVerified(Err(TokenError::Expired)));
    assert_eq!(out, [error(1, 109)], "what was sent before the refusal is not held against the client");
    assert!(!world.session.is_established());
    assert_eq!(world.give(Input::ServerRefresh { expired: true, expire_at: None, info: None }), [""; 0]);
    for command in [CONNECT, "{}", r#"{"id":2,"subscribe":{"channel":"a"}}"#] {
        let mut world = World::new();
        connect(&mut world, Err(key_server_down()));
        assert_eq!(world.send(command), [CLOSE_3501], "{command}");
    }
}

#[test]
fn expiry_is_told_as_time_to_live() {
    for (expire_at, insecure, rest) in [
        (Some(10_600), false, r#""expires":true,"ttl":600,"ping":25,"pong":true"#),
        (Some(i64::MAX), false, r#""expires":true,"ttl":31536000,"ping":25,"pong":true"#),
        (Some(10_600), true, r#""ping":25,"pong":true"#),
        (Some(1), true, r#""ping":25,"pong":true"#),
    ] {
        let mut world = World::with(Settings { insecure, ..Settings::default() });
        let out = connect(&mut world, Ok(ConnectionGrant { expire_at, ..grant("u") }));
        assert_eq!(out, [ESTABLISHED.to_owned(), result(rest)]);
    }
}

#[test]
fn the_reply_waits_for_every_server_side_subscription_and_lists_them_all() {
    let mut world = World::new();
    let mut token = grant_with_subs("u", ["log:a", "plain", "room:b"]);
    if let Some(options) = token.subs.get_mut("room:b") {
        options.info = Bytes::from_static(b"{}");
        options.data = Bytes::from_static(b"[1]");
    }
    let out = connect(&mut world, Ok(token));
    let joins = [ESTABLISHED, "join log:a positioned history", "join plain", "join room:b presence({}) push"];
    assert_eq!(out, joins);
    assert_eq!(world.joined("plain", Joined::default()), [""; 0]);
    assert_eq!(world.joined("room:b", Joined::default()), [""; 0]);
    assert!(!world.session.is_established());
    let subs =
        r#""subs":{"log:a":{"recoverable":true,"epoch":"e","positioned":true},"plain":{},"room:b":{"data":[1]}}"#;
    let out = world.joined("log:a", at("e", 0));
    assert_eq!(
        out,
        [result(&format!(r#""ping":25,"pong":true,{subs}"#)), "announce join room:b u({})".to_owned()],
        "a zero offset is absent, a plain channel is an empty object"
    );
    assert!(world.session.is_established());
    assert!(world.session.subscriptions().all(|subscription| subscription.is_server_side()));
}

#[test]
fn a_failed_subscription_fails_the_connect_for_now_and_undoes_the_others() {
    let mut world = World::new();
    connect(&mut world, Ok(grant_with_subs("u", ["a", "room:b", "room:c", "room:d"])));
    assert_eq!(world.joined("a", Joined::default()), [""; 0]);
    assert_eq!(world.joined("room:b", Joined::default()), [""; 0]);
    let out = world.join_failed("room:c");
    let undone = ["leave room:c presence", "leave a hub", "leave room:b hub presence"].map(String::from);
    assert_eq!(out[..3], undone, "no leave was announced, as no join was");
    assert_eq!(out[3..], [error(1, 100)], "temporary: the SDK tries again");
    assert_eq!(world.joined("room:d", Joined::default()), ["leave room:d hub presence"]);
    assert_eq!(world.session.subscriptions().len(), 0);
}

#[test]
fn closing_while_joining_announces_nothing() {
    let mut world = World::new();
    connect(&mut world, Ok(grant_with_subs("u", ["room:a", "room:b"])));
    world.joined("room:a", Joined::default());
    assert_eq!(world.give(Input::Gone), ["leave room:a hub presence"]);
    assert_eq!(world.joined("room:b", Joined::default()), ["leave room:b hub presence"]);
    assert!(world.session.is_finished());
}

#[test]
fn positions_of_the_client_recover_server_side_subscriptions() {
    let mut world = World::new();
    let subs =
        r#""subs":{"log:a":{"recover":true,"epoch":"e","offset":5},"log:b":{"recover":true,"epoch":"x","offset":9}}"#;
    world.send(&format!(r#"{{"id":1,"connect":{{"token":"t",{subs}}}}}"#));
    let out = world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["log:a", "log:b"]))));
    let joins = ["join log:a positioned history stream from 5@e", "join log:b positioned history stream from 9@x"];
    assert_eq!(out[1..], joins);
    world.joined("log:a", recovered("e", 7, [6, 7]));
    let out = world.joined("log:b", at("y", 3));
    let a = concat!(
        r#""log:a":{"recoverable":true,"epoch":"e","publications":[{"data":{"n":6},"offset":6},"#,
        r#"{"data":{"n":7},"offset":7}],"recovered":true,"offset":5,"positioned":true,"was_recovering":true}"#
    );
    let b = r#""log:b":{"recoverable":true,"epoch":"y","offset":3,"positioned":true,"was_recovering":true}"#;
    assert_eq!(out, [result(&format!(r#""ping":25,"pong":true,"subs":{{{a},{b}}}"#))]);
}

#[test]
fn channels_the_client_remembers_are_subscribed_where_it_may() {
    let mut world = World::new();
    let subs = r#""subs":{"log:a":{"recover":true,"offset":1},"closed:x":{},"$private":{},"caf\u00e9":{},"room:#u":{},"room:#v":{}}"#;
    world.send(&format!(r#"{{"id":1,"connect":{{"token":"t",{subs}}}}}"#));
    let out = world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["own"]))));
    let joins = ["join own", "join log:a positioned history stream from 1@", "join room:#u presence() push"];
    assert_eq!(out[1..], joins, "what is not permitted is skipped silently");

    for (subs, why) in [(r#"{"nosuch:a":{}}"#, "an unknown namespace"), (r#"{"":{}}"#, "no channel")] {
        let mut world = World::new();
        world.send(&format!(r#"{{"id":1,"connect":{{"token":"t","subs":{subs}}}}}"#));
        assert_eq!(world.give(Input::ConnectionVerified(Ok(grant("u")))), [CLOSE_3501], "{why}");
    }
}

#[test]
fn anonymous_clients_get_the_channels_they_remember_too() {
    let mut world = World::anonymous();
    let out = world.send(r#"{"id":1,"connect":{"subs":{"a":{"recover":true}}}}"#);
    assert_eq!(out, [r#"established """#, "join a"]);
    let subs = r#""ping":25,"pong":true,"subs":{"a":{"was_recovering":true}}"#;
    assert_eq!(world.joined("a", Joined::default()), [result(subs)]);
}

#[test]
fn too_many_server_side_channels_close_with_3505() {
    let mut world = World::with(Settings { channels_per_connection: 2, ..Settings::default() });
    assert_eq!(connect(&mut world, Ok(grant_with_subs("u", ["a", "b", "c"]))), ["close 3505 channel limit"]);
}

#[test]
fn overrides_and_cache_mode_apply_to_server_side_subscriptions() {
    let mut world = World::new();
    let cache = ChannelOptions {
        history: history(),
        force_recovery: true,
        force_recovery_mode: RecoveryMode::Cache,
        auto_cache_recover: true,
        ..ChannelOptions::default()
    };
    world.channels = channels_of([("cache", cache)], Some(ChannelOptions::default()));
    let mut token = grant_with_subs("u", ["cache:a", "b"]);
    if let Some(options) = token.subs.get_mut("b") {
        options.overrides = Overrides { presence: Some(true), join_leave: Some(true), ..Overrides::default() };
    }
    let out = connect(&mut world, Ok(token));
    assert_eq!(out[1..], ["join b presence()", "join cache:a positioned history cache from 0@"]);
    world.joined("cache:a", recovered("e", 4, [4]));
    let out = world.joined("b", Joined::default());
    let subs = concat!(
        r#""ping":25,"pong":true,"subs":{"b":{},"cache:a":{"recoverable":true,"epoch":"e","publications":[{"data":{"n":4},"offset":4}],"#,
        r#""recovered":true,"positioned":true,"was_recovering":true}}"#
    );
    assert_eq!(out, [result(subs), "announce join b u()".to_owned()]);
}

#[test]
fn a_position_lost_before_the_reply_closes_like_after_it() {
    let mut world = World::new();
    connect(&mut world, Ok(grant_with_subs("u", ["log:a", "b"])));
    world.joined("log:a", at("e", 1));
    let out = world.give(Input::PositionLost { channel: name("log:a") });
    assert_eq!(out, ["close 3010 insufficient state"]);
    assert_eq!(world.joined("b", Joined::default()), ["leave b hub"]);
}
