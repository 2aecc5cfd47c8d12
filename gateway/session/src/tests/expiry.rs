//! Protocol sections 4.6 and 6.3: expiry and refresh of connections and subscriptions.

use bytes::Bytes;

use super::harness::*;
use crate::Settings;
use crate::channels::ChannelOptions;
use crate::io::{ConnectionGrant, Input, Joined, SubscriptionGrant, TokenError};

const REFRESH: &str = r#"{"id":2,"refresh":{"token":"new"}}"#;

fn expiring(user: &str, expire_at: i64) -> ConnectionGrant {
    ConnectionGrant { expire_at: Some(expire_at), ..grant(user) }
}

/// A connection without pings, so that only expiry moves it.
fn world(token: ConnectionGrant) -> World {
    let mut world = World::with(Settings { ping_interval: std::time::Duration::ZERO, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    let channels: Vec<String> = token.subs.keys().cloned().collect();
    world.give(Input::ConnectionVerified(Ok(token)));
    for channel in channels {
        world.joined(&channel, Joined::default());
    }
    assert!(world.session.is_established());
    world
}

#[test]
fn an_expired_connection_is_closed_after_its_grace() {
    let mut world = world(expiring("u", 10_060));
    assert_eq!(world.pass(seconds(84)), [""; 0]);
    assert_eq!(world.pass(seconds(1)), ["close 3005 connection expired"]);
}

#[test]
fn outcomes_of_a_refresh() {
    let result = |rest: &str| format!(r#"{{"id":2,"refresh":{{"client":"{CLIENT}","version":"v"{rest}}}}}"#);
    let closed = |reason: &str| format!("close {reason}");
    for (token, expected) in [
        (Ok(expiring("u", 10_600)), result(r#","expires":true,"ttl":600"#)),
        (Ok(grant("u")), result("")),
        (Err(TokenError::Expired), closed("3005 connection expired")),
        (Ok(expiring("u", 10_000)), closed("3005 connection expired")),
        (Err(invalid()), CLOSE_3500.to_owned()),
        (Ok(grant("v")), CLOSE_3500.to_owned()),
        (Ok(grant("")), CLOSE_3500.to_owned()),
        (Ok(grant_with_subs("u", ["a"])), closed("3010 insufficient state")),
        (Err(key_server_down()), error(2, 100)),
    ] {
        let mut world = world(expiring("u", 10_060));
        assert_eq!(world.send(REFRESH), ["verify refresh 2 new"]);
        let out = world.give(Input::RefreshVerified { id: 2, result: token.clone() });
        assert_eq!(out[0], expected, "{token:?}");
        assert_eq!(out.len(), 1);
    }
}

#[test]
fn a_refresh_moves_the_expiry() {
    let mut world = world(expiring("u", 10_060));
    world.pass(seconds(70));
    world.send(REFRESH);
    world.give(Input::RefreshVerified { id: 2, result: Ok(expiring("u", 10_200)) });
    assert_eq!(world.pass(seconds(154)), [""; 0]);
    assert_eq!(world.pass(seconds(1)), ["close 3005 connection expired"]);
}

#[test]
fn a_refresh_without_expiry_lasts_for_ever() {
    let mut world = world(expiring("u", 10_060));
    world.send(REFRESH);
    world.give(Input::RefreshVerified { id: 2, result: Ok(grant("u")) });
    assert_eq!(world.session.next_deadline(), None);
}

#[test]
fn a_refresh_keeps_the_channels_of_the_token() {
    let refresh = |first: ConnectionGrant, second: ConnectionGrant| {
        let mut world = world(first);
        world.send(REFRESH);
        world.give(Input::RefreshVerified { id: 2, result: Ok(second) })[0].clone()
    };
    let both = || grant_with_subs("u", ["a", "b"]);
    assert!(refresh(both(), both()).contains("refresh"));
    assert_eq!(refresh(both(), grant_with_subs("u", ["a"])), "close 3010 insufficient state");
    assert_eq!(refresh(both(), grant("u")), "close 3010 insufficient state");
    assert_eq!(refresh(grant_with_subs("u", ["ab"]), both()), "close 3010 insufficient state");
}

#[test]
fn insecure_mode_ignores_the_expiry_of_a_refresh() {
    let mut world = World::with(Settings { insecure: true, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    world.give(Input::ConnectionVerified(Ok(grant("u"))));
    world.send(REFRESH);
    let out = world.give(Input::RefreshVerified { id: 2, result: Ok(expiring("u", 10_000)) });
    assert_eq!(out, [format!(r#"{{"id":2,"refresh":{{"client":"{CLIENT}","version":"v"}}}}"#)]);
}

#[test]
fn a_refresh_renews_the_info_others_see() {
    let mut world = world(grant("u"));
    world.channels =
        channels_of([], Some(ChannelOptions { allow_publish_for_client: true, ..ChannelOptions::default() }));
    world.send(r#"{"id":3,"subscribe":{"channel":"a","token":"t"}}"#);
    let mut token = sub_grant("u", "a");
    token.options.info = Bytes::from_static(b"{\"c\":1}");
    world.verified(3, "a", Ok(token.clone()));
    world.joined("a", Joined::default());
    world.send(r#"{"id":4,"subscribe":{"channel":"late","token":"t"}}"#);
    world.verified(4, "late", Ok(SubscriptionGrant { channel: "late".to_owned(), ..token }));
    world.send(REFRESH);
    let token = ConnectionGrant { info: Bytes::from_static(b"{\"n\":2}"), ..grant("u") };
    world.give(Input::RefreshVerified { id: 2, result: Ok(token) });
    assert_eq!(world.send(r#"{"id":4,"publish":{"channel":"b","data":1}}"#), [r#"publish 4 b 1 by u({"n":2},)"#]);
    let out = world.send(r#"{"id":5,"publish":{"channel":"a","data":1}}"#);
    assert_eq!(out, [r#"publish 5 a 1 by u({"n":2},{"c":1})"#]);
    world.joined("late", Joined::default());
    let out = world.send(r#"{"id":6,"publish":{"channel":"late","data":1}}"#);
    assert_eq!(out, [r#"publish 6 late 1 by u({"n":2},{"c":1})"#]);
    assert_eq!(world.session.info().map(|info| info.conn_info.clone()), Some(Bytes::from_static(b"{\"n\":2}")));
}

fn with_subscription(expire_at: i64) -> World {
    let mut world = world(grant("u"));
    world.send(r#"{"id":3,"subscribe":{"channel":"$a","token":"t"}}"#);
    world.verified(3, "$a", Ok(SubscriptionGrant { expire_at: Some(expire_at), ..sub_grant("u", "$a") }));
    assert!(world.joined("$a", Joined::default())[0].contains("expires"));
    world
}

const EXPIRED_PUSH: &str = r#"{"push":{"channel":"$a","unsubscribe":{"code":2501,"reason":"subscription expired"}}}"#;

#[test]
fn an_expired_subscription_is_ended_after_its_grace() {
    let mut world = with_subscription(10_060);
    assert_eq!(world.pass(seconds(84)), [""; 0]);
    assert_eq!(world.pass(seconds(1)), ["leave $a hub", EXPIRED_PUSH]);
    assert_eq!(world.session.next_deadline(), None);
}

#[test]
fn the_earliest_of_several_expiries_is_the_deadline() {
    let mut world = with_subscription(10_060);
    world.send(r#"{"id":4,"subscribe":{"channel":"$b","token":"t"}}"#);
    world.verified(4, "$b", Ok(SubscriptionGrant { expire_at: Some(10_030), ..sub_grant("u", "$b") }));
    world.joined("$b", Joined::default());
    assert_eq!(world.pass(seconds(55)).len(), 2, "$b");
    assert!(world.session.subscription("$b").is_none() && world.session.subscription("$a").is_some());
    assert_eq!(world.pass(seconds(30)), ["leave $a hub", EXPIRED_PUSH]);
}

#[test]
fn outcomes_of_a_sub_refresh() {
    let good = || sub_grant("u", "$a");
    let expires = |at| SubscriptionGrant { expire_at: Some(at), ..good() };
    let one = |text: &str| vec![text.to_owned()];
    let ended = vec!["leave $a hub".to_owned(), EXPIRED_PUSH.to_owned(), r#"{"id":2,"sub_refresh":{}}"#.to_owned()];
    let closed = vec![CLOSE_3500.to_owned(), "leave $a hub".to_owned()];
    let elsewhere = SubscriptionGrant { client: Some("other".to_owned()), ..good() };
    for (token, expected) in [
        (Ok(expires(10_120)), one(r#"{"id":2,"sub_refresh":{"expires":true,"ttl":120}}"#)),
        (Ok(good()), one(r#"{"id":2,"sub_refresh":{}}"#)),
        (Ok(expires(10_000)), ended.clone()),
        (Err(TokenError::Expired), ended),
        (Err(invalid()), closed.clone()),
        (Ok(sub_grant("u", "$b")), closed.clone()),
        (Ok(sub_grant("v", "$a")), closed.clone()),
        (Ok(elsewhere), closed),
        (Err(key_server_down()), vec![error(2, 100)]),
    ] {
        let mut world = with_subscription(10_060);
        let out = world.send(r#"{"id":2,"sub_refresh":{"channel":"$a","token":"new"}}"#);
        assert_eq!(out, ["verify SubRefresh 2 $a new"]);
        assert_eq!(world.sub_refreshed(2, "$a", token.clone()), expected, "{token:?}");
    }
}

#[test]
fn a_sub_refresh_moves_the_expiry() {
    let mut world = with_subscription(10_060);
    world.send(r#"{"id":2,"sub_refresh":{"channel":"$a","token":"new"}}"#);
    world.sub_refreshed(2, "$a", Ok(SubscriptionGrant { expire_at: Some(10_100), ..sub_grant("u", "$a") }));
    assert_eq!(world.pass(seconds(124)), [""; 0]);
    assert_eq!(world.pass(seconds(1)), ["leave $a hub", EXPIRED_PUSH]);
}

#[test]
fn sub_refresh_refusals() {
    let mut token = grant_with_subs("u", ["server"]);
    token.expire_at = None;
    for (fields, expected) in [
        (r#""channel":"nowhere","token":"t""#, error(2, 103)),
        (r#""channel":"plain""#, error(2, 107)),
        (r#""channel":"plain","token":"t","type":1"#, error(2, 108)),
        (r#""channel":"plain","token":"t","type":2"#, error(2, 108)),
        (r#""channel":"server","token":"t""#, CLOSE_3501.to_owned()),
    ] {
        let mut world = world(token.clone());
        world.subscribe("plain");
        let out = world.send(&format!(r#"{{"id":2,"sub_refresh":{{{fields}}}}}"#));
        assert_eq!(out[0], expected, "{fields}");
    }
}

#[test]
fn a_subscription_that_ended_while_its_token_was_verified_is_not_revived() {
    let mut world = with_subscription(10_060);
    world.send("{\"id\":2,\"sub_refresh\":{\"channel\":\"$a\",\"token\":\"new\"}}\n{\"id\":3,\"unsubscribe\":{\"channel\":\"$a\"}}");
    assert!(world.session.subscription("$a").is_none());
    assert_eq!(world.sub_refreshed(2, "$a", Ok(sub_grant("u", "$a"))), [error(2, 103)]);
}
