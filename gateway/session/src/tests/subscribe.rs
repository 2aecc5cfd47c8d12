//! Protocol sections 2.3, 4.1 to 4.5 and 6.4: client-side subscriptions.

use bytes::Bytes;

use super::harness::*;
use crate::channels::{ChannelOptions, RecoveryMode};
use crate::io::{Input, Joined, Overrides, SubscriptionGrant, TokenError};
use crate::{ClientError, Settings};

fn subscribe(world: &mut World, fields: &str) -> Vec<String> {
    world.send(&format!(r#"{{"id":2,"subscribe":{{{fields}}}}}"#))
}

fn reply(fields: &str) -> String {
    format!(r#"{{"id":2,"subscribe":{{{fields}}}}}"#)
}

#[test]
fn a_plain_subscribe_has_an_empty_result_object() {
    let mut world = World::open();
    assert_eq!(subscribe(&mut world, r#""channel":"a","flag":1"#), ["join a"]);
    assert_eq!(world.joined("a", Joined::default()), [reply("")]);
    let subscription = world.session.subscription("a").expect("subscribed");
    assert!(!subscription.is_server_side() && !subscription.is_positioned());
}

#[test]
fn refusals_before_any_work() {
    let long = format!(r#""channel":"{}""#, "x".repeat(256));
    for (fields, code) in [
        (r#""channel":"taken""#, 105),
        (long.as_str(), 107),
        (r#""channel":"nosuch:a""#, 102),
        (r#""channel":"caf\u00e9""#, 107),
        (r#""channel":"a","type":1"#, 108),
        (r#""channel":"a","type":4"#, 108),
        (r#""channel":"closed:a""#, 103),
        (r#""channel":"$a""#, 103),
        (r#""channel":"room:#v""#, 103),
        (r#""channel":"room:#""#, 103),
        (r#""channel":"nosuch:a","token":"t""#, 102),
    ] {
        let mut world = World::open();
        world.subscribe("taken");
        assert_eq!(subscribe(&mut world, fields), [error(2, code)], "{fields}");
        assert!(world.session.wants_commands(), "{fields}");
    }
}

#[test]
fn the_channel_limit_counts_what_is_being_made() {
    let mut world = World::with(Settings { channels_per_connection: 2, ..Settings::default() }).connected();
    world.subscribe("a");
    assert_eq!(subscribe(&mut world, r#""channel":"b""#), ["join b"]);
    assert_eq!(subscribe(&mut world, r#""channel":"c""#), [error(2, 106)]);
    assert_eq!(subscribe(&mut world, r#""channel":"a""#), [error(2, 105)], "before the limit");
    world.join_failed("b");
    assert_eq!(subscribe(&mut world, r#""channel":"c""#), ["join c"]);
}

#[test]
fn features_without_effect_are_ignored() {
    let mut world = World::open();
    let fields = r#""channel":"a","flag":1,"delta":"fossil","tf":{"key":"k","cmp":"eq","val":"v"},"phase":2,"data":{}"#;
    assert_eq!(subscribe(&mut world, fields), ["join a"]);
    assert_eq!(world.joined("a", Joined::default()), [reply("")]);
}

#[test]
fn outcomes_of_a_subscription_token() {
    let good = || sub_grant("u", "closed:a");
    let bound = |client: &str| SubscriptionGrant { client: Some(client.to_owned()), ..good() };
    for (token, expected) in [
        (Err(invalid()), error(2, 103)),
        (Err(TokenError::Expired), error(2, 109)),
        (Err(key_server_down()), error(2, 100)),
        (Ok(SubscriptionGrant { expire_at: Some(10_000), ..good() }), error(2, 109)),
        (Ok(sub_grant("u", "closed:b")), CLOSE_3500.to_owned()),
        (Ok(sub_grant("v", "closed:a")), CLOSE_3500.to_owned()),
        (Ok(sub_grant("", "closed:a")), CLOSE_3500.to_owned()),
        (Ok(bound("80000000-0000-4000-8000-000000000002")), CLOSE_3500.to_owned()),
        (Ok(bound("someone")), CLOSE_3500.to_owned()),
        (Ok(bound("")), "join closed:a".to_owned()),
        (Ok(bound(CLIENT)), "join closed:a".to_owned()),
        (Ok(good()), "join closed:a".to_owned()),
    ] {
        let mut world = World::open();
        let out = subscribe(&mut world, r#""channel":"closed:a","token":"t""#);
        assert_eq!(out, ["verify Subscribe 2 closed:a t"]);
        assert_eq!(subscribe(&mut world, r#""channel":"closed:a""#), [error(2, 105)], "the channel is reserved");
        assert_eq!(world.verified(2, "closed:a", token.clone()), [expected], "{token:?}");
    }
}

#[test]
fn a_token_brings_info_data_expiry_and_overrides() {
    let mut world = World::open();
    subscribe(&mut world, r#""channel":"$a","token":"t""#);
    let mut token = SubscriptionGrant { expire_at: Some(10_120), ..sub_grant("u", "$a") };
    token.options.info = Bytes::from_static(b"{\"role\":1}");
    token.options.data = Bytes::from_static(b"{\"topic\":2}");
    let overrides = Overrides { presence: Some(true), join_leave: Some(true), ..Overrides::default() };
    let token = with_overrides(token, overrides);
    assert_eq!(world.verified(2, "$a", Ok(token)), [r#"join $a presence({"role":1})"#]);
    let out = world.joined("$a", Joined::default());
    let expected =
        [reply(r#""expires":true,"ttl":120,"data":{"topic":2}"#), r#"announce join $a u({"role":1})"#.to_owned()];
    assert_eq!(out, expected);
    let out = world.send(r#"{"id":3,"unsubscribe":{"channel":"$a"}}"#);
    assert_eq!(out, ["leave $a hub presence", r#"announce leave $a u({"role":1})"#, r#"{"id":3,"unsubscribe":{}}"#]);
    assert_eq!(world.pass(seconds(18)), [""; 0], "its expiry went with it");
}

#[test]
fn a_reload_between_request_and_verdict_counts() {
    let mut world = World::open();
    subscribe(&mut world, r#""channel":"closed:a","token":"t""#);
    world.channels = channels_of([], None);
    assert_eq!(world.verified(2, "closed:a", Ok(sub_grant("u", "closed:a"))), [error(2, 102)]);

    let mut world = World::open();
    subscribe(&mut world, r#""channel":"log:a""#);
    assert_eq!(world.joined("log:a", Joined::default()), [reply("")], "no position is promised without history");
}

#[test]
fn positions_in_the_reply() {
    let positioned = ChannelOptions {
        allow_subscribe_for_client: true,
        history: history(),
        allow_positioning: true,
        ..ChannelOptions::default()
    };
    for (fields, joined, expected) in [
        (r#""channel":"log:a""#, at("e", 41), r#""recoverable":true,"epoch":"e","offset":41,"positioned":true"#),
        (r#""channel":"log:a""#, at("e", 0), r#""recoverable":true,"epoch":"e","positioned":true"#),
        (
            r#""channel":"log:a","recover":true,"epoch":"e","offset":41"#,
            recovered("e", 43, [42, 43]),
            concat!(
                r#""recoverable":true,"epoch":"e","publications":[{"data":{"n":42},"offset":42},"#,
                r#"{"data":{"n":43},"offset":43}],"recovered":true,"offset":41,"positioned":true,"was_recovering":true"#
            ),
        ),
        (
            r#""channel":"log:a","recover":true,"epoch":"e","offset":43"#,
            recovered("e", 43, []),
            r#""recoverable":true,"epoch":"e","recovered":true,"offset":43,"positioned":true,"was_recovering":true"#,
        ),
        (
            r#""channel":"log:a","recover":true,"epoch":"old","offset":41"#,
            at("new", 3),
            r#""recoverable":true,"epoch":"new","offset":3,"positioned":true,"was_recovering":true"#,
        ),
        (r#""channel":"plain","recover":true,"offset":41"#, Joined::default(), r#""was_recovering":true"#),
        (r#""channel":"pos:a","positioned":true"#, at("e", 5), r#""epoch":"e","offset":5,"positioned":true"#),
        (r#""channel":"pos:a""#, at("e", 5), ""),
        (r#""channel":"pos:a","recoverable":true,"recover":true"#, at("e", 5), r#""was_recovering":true"#),
    ] {
        let mut world = World::open();
        let log = ChannelOptions { force_recovery: true, ..positioned.clone() };
        let plain = ChannelOptions { allow_subscribe_for_client: true, ..ChannelOptions::default() };
        world.channels = channels_of([("pos", positioned.clone()), ("log", log)], Some(plain));
        let channel = fields.split('"').nth(3).expect("a channel");
        assert!(subscribe(&mut world, fields)[0].starts_with("join "), "{fields}");
        assert_eq!(world.joined(channel, joined), [reply(expected)], "{fields}");
    }
}

#[test]
fn strict_recovery_turns_a_failed_recovery_into_error_112() {
    let fields = r#""channel":"log:a","recover":true,"epoch":"e","offset":1,"flag":3"#;
    let mut world = World::open();
    subscribe(&mut world, fields);
    assert_eq!(world.joined("log:a", at("x", 9)), ["leave log:a hub".to_owned(), error(2, 112)]);
    assert!(world.session.subscription("log:a").is_none());
    subscribe(&mut world, fields);
    assert!(world.joined("log:a", recovered("e", 1, []))[0].contains(r#""recovered":true"#));
}

#[test]
fn more_than_the_recovery_limit_is_not_recovered() {
    let mut world = World::with(Settings { recovery_limit: 2, ..Settings::default() }).connected();
    subscribe(&mut world, r#""channel":"log:a","recover":true,"epoch":"e","offset":1"#);
    let expected = reply(r#""recoverable":true,"epoch":"e","offset":4,"positioned":true,"was_recovering":true"#);
    assert_eq!(world.joined("log:a", recovered("e", 4, [2, 3, 4])), std::slice::from_ref(&expected));
    // Nor is more than one reply may carry: 7 bytes a payload.
    let mut world = World::with(Settings { reply_bytes: 20, ..Settings::default() }).connected();
    subscribe(&mut world, r#""channel":"log:a","recover":true,"epoch":"e","offset":1"#);
    assert_eq!(world.joined("log:a", recovered("e", 4, [2, 3, 4])), [expected]);
}

#[test]
fn cache_mode_delivers_the_latest_publication() {
    let cache = |auto_cache_recover| ChannelOptions {
        allow_subscribe_for_client: true,
        history: history(),
        force_recovery: true,
        force_recovery_mode: RecoveryMode::Cache,
        auto_cache_recover,
        ..ChannelOptions::default()
    };
    let channels = channels_of([("ask", cache(false)), ("auto", cache(true))], None);
    let latest = concat!(
        r#""recoverable":true,"epoch":"e","publications":[{"data":{"n":7},"offset":7}],"#,
        r#""recovered":true,"positioned":true,"was_recovering":true"#
    );
    let live = r#""recoverable":true,"epoch":"e","offset":7,"positioned":true"#;
    let forced_in_vain = r#""recoverable":true,"epoch":"e","positioned":true,"was_recovering":true"#;
    for (fields, join, joined, expected) in [
        (r#""channel":"ask:a""#, "", at("e", 7), live),
        (r#""channel":"ask:a","recover":true"#, " cache from 0@", recovered("e", 7, [7]), latest),
        (r#""channel":"auto:a""#, " cache from 0@", recovered("e", 7, [7]), latest),
        (r#""channel":"auto:a","flag":2"#, " cache from 0@", at("e", 0), forced_in_vain),
    ] {
        let mut world = World::open();
        world.channels = channels.clone();
        let channel = fields.split('"').nth(3).expect("a channel");
        let out = subscribe(&mut world, fields);
        assert_eq!(out, [format!("join {channel} positioned history{join}")], "{fields}");
        assert_eq!(world.joined(channel, joined), [reply(expected)], "{fields}");
    }
}

#[test]
fn a_failed_join_is_temporary_and_takes_its_presence_back() {
    let mut world = World::open();
    assert_eq!(subscribe(&mut world, r#""channel":"room:a""#), ["join room:a presence() push"]);
    assert_eq!(world.join_failed("room:a"), ["leave room:a presence".to_owned(), error(2, 100)]);
    let temporary = protocol::Error::from(ClientError::Internal).temporary;
    assert!(temporary && error(2, 100).contains(r#""temporary":true"#));
    assert_eq!(subscribe(&mut world, r#""channel":"room:a""#), ["join room:a presence() push"]);
}

#[test]
fn join_is_announced_after_the_reply_and_leave_before_the_unsubscribe_reply() {
    let mut world = World::open();
    subscribe(&mut world, r#""channel":"room:a""#);
    let out = world.joined("room:a", Joined::default());
    assert_eq!(out, [reply(""), "announce join room:a u()".to_owned()]);
    let out = world.send(r#"{"id":3,"unsubscribe":{"channel":"room:a"}}"#);
    assert_eq!(out, ["leave room:a hub presence", "announce leave room:a u()", r#"{"id":3,"unsubscribe":{}}"#]);
    let again = world.send(r#"{"id":4,"unsubscribe":{"channel":"room:a"}}"#);
    assert_eq!(again, [r#"{"id":4,"unsubscribe":{}}"#], "not subscribed is no error");
    assert_eq!(world.send(r#"{"id":5,"unsubscribe":{"channel":"nosuch:x"}}"#), [r#"{"id":5,"unsubscribe":{}}"#]);
}

#[test]
fn join_and_leave_are_pushed_on_request_only_with_presence_access() {
    let asked = |allow_presence_for_client| ChannelOptions {
        allow_subscribe_for_client: true,
        join_leave: true,
        allow_presence_for_client,
        ..ChannelOptions::default()
    };
    for (allowed, expected) in [(true, "join rm:a push"), (false, "join rm:a")] {
        let mut world = World::open();
        world.channels = channels_of([("rm", asked(allowed))], None);
        assert_eq!(subscribe(&mut world, r#""channel":"rm:a","join_leave":true"#), [expected]);
        world.joined("rm:a", Joined::default());
        assert_eq!(world.session.subscription("rm:a").map(|view| view.pushes_join_leave()), Some(allowed));
    }
}

#[test]
fn a_lost_position_makes_the_client_subscribe_again() {
    let mut world = World::open();
    subscribe(&mut world, r#""channel":"log:a""#);
    world.joined("log:a", at("e", 1));
    let push = r#"{"push":{"channel":"log:a","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#;
    assert_eq!(world.give(Input::PositionLost { channel: name("log:a") }), [push]);
    assert_eq!(world.give(Input::PositionLost { channel: name("log:a") }), [""; 0]);
    world.subscribe("room:b");
    let out = world.give(Input::PositionLost { channel: name("room:b") });
    assert_eq!(out[..2], ["leave room:b presence", "announce leave room:b u()"]);
}

#[test]
fn insecure_mode_allows_every_channel_but_private_ones() {
    let mut world = World::with(Settings { insecure: true, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{}}"#);
    assert_eq!(subscribe(&mut world, r#""channel":"closed:a""#), ["join closed:a"]);
    assert_eq!(subscribe(&mut world, r#""channel":"room:#someone""#), ["join room:#someone presence() push"]);
    assert_eq!(subscribe(&mut world, r#""channel":"$a""#), [error(2, 103)]);
    assert_eq!(subscribe(&mut world, r#""channel":"nosuch:a""#), [error(2, 102)]);
}
