//! Protocol sections 1.4 and 3: the order of commands, stale connections, ping and pong, closing.

use std::time::Duration;

use super::harness::*;
use crate::io::{Input, Joined};
use crate::{CloseCode, Settings};

const CONNECT: &str = r#"{"id":1,"connect":{}}"#;
const CONNECTED: &str =
    r#"{"id":1,"connect":{"client":"80000000-0000-4000-8000-000000000001","version":"v","ping":25,"pong":true}}"#;

#[test]
fn the_first_command_must_be_connect() {
    for first in [
        "{}",
        r#"{"id":1,"subscribe":{"channel":"news"}}"#,
        r#"{"id":1,"unsubscribe":{"channel":"news"}}"#,
        r#"{"id":1,"publish":{"channel":"news","data":{}}}"#,
        r#"{"id":1,"ping":{}}"#,
        r#"{"id":1}"#,
        r#"{"send":{"data":{}}}"#,
        r#"{"connect":{}}"#,
        "nonsense",
        r#"{"id":1,"unheard_of":{}}"#,
    ] {
        let mut world = World::anonymous();
        assert_eq!(world.send(first), [CLOSE_3501], "{first}");
        assert!(world.session.is_finished());
        assert_eq!(world.send(CONNECT), [""; 0], "nothing follows a close");
    }
}

#[test]
fn connect_without_token_is_refused_unless_anonymous_clients_are_allowed() {
    assert_eq!(World::new().send(CONNECT), [CLOSE_3501]);
    let established = r#"established """#;
    assert_eq!(World::anonymous().send(CONNECT), [established, CONNECTED]);
    let insecure = Settings { insecure: true, ..Settings::default() };
    assert_eq!(World::with(insecure).send(CONNECT), [established, CONNECTED]);
}

#[test]
fn one_frame_with_connect_and_subscribes_is_answered_in_order() {
    let mut world = World::new();
    let frame = [
        r#"{"id":1,"connect":{"token":"t"}}"#,
        r#"{"id":2,"subscribe":{"channel":"a"}}"#,
        r#"{"id":3,"subscribe":{"channel":"b"}}"#,
    ];
    assert_eq!(world.send(&frame.join("\n")), ["verify connection t"]);
    assert!(!world.session.wants_commands(), "subscribes wait for connect");
    assert!(!world.session.is_established());
    let out = world.give(Input::ConnectionVerified(Ok(grant("u"))));
    assert_eq!(out, [r#"established "u""#, CONNECTED, "join a", "join b"]);
    assert!(world.session.is_established() && world.session.wants_commands());
    assert_eq!(world.joined("b", Joined::default()), [r#"{"id":3,"subscribe":{}}"#]);
    assert_eq!(world.joined("a", Joined::default()), [r#"{"id":2,"subscribe":{}}"#]);
}

#[test]
fn protocol_violations_of_a_connected_client_close_with_3501() {
    for command in [
        r#"{"id":2,"connect":{"token":"t"}}"#,
        r#"{"id":2}"#,
        r#"{"id":2,"ping":{}}"#,
        r#"{"id":2,"unheard_of":{}}"#,
        r#"{"id":2,"subscribe":{}}"#,
        r#"{"id":2,"unsubscribe":{}}"#,
        r#"{"id":2,"publish":{"data":{}}}"#,
        r#"{"id":2,"presence":{}}"#,
        r#"{"id":2,"presence_stats":{}}"#,
        r#"{"id":2,"history":{}}"#,
        r#"{"id":2,"sub_refresh":{}}"#,
        r#"{"id":2,"refresh":{}}"#,
        r#"{"id":2,"subscribe":{"channel":"a","delta":"xdelta"}}"#,
        "{}",
        r#"{"publish":{"channel":"a","data":{}}}"#,
        "{",
        "",
    ] {
        assert_eq!(World::open().send(command), [CLOSE_3501], "{command}");
    }
    assert_eq!(World::open().send(r#"{"send":{"data":{}}}"#), ["close 3508 not available"]);
    assert_eq!(World::open().send(r#"{"id":2,"send":{"data":{}}}"#), ["close 3508 not available"]);
    let delta = r#"{"id":1,"connect":{"token":"t","subs":{"a":{"delta":"xdelta"}}}}"#;
    assert_eq!(World::new().send(delta), [CLOSE_3501]);
}

#[test]
fn a_violation_drops_the_rest_of_the_frame() {
    let mut world = World::open();
    let frame = "{\"id\":2,\"rpc\":{}}\n{\"id\":3}\n{\"id\":4,\"rpc\":{}}";
    assert_eq!(world.send(frame), [error(2, 108), CLOSE_3501.to_owned()]);
}

#[test]
fn commands_before_an_undecodable_one_count() {
    let mut world = World::open();
    assert_eq!(world.send("{\"id\":2,\"rpc\":{}}\nnonsense"), [error(2, 108), CLOSE_3501.to_owned()]);
}

#[test]
fn a_client_that_does_not_connect_in_time_is_stale() {
    let mut world = World::new();
    assert_eq!(world.pass(Duration::from_millis(9_999)), [""; 0]);
    assert_eq!(world.pass(Duration::from_millis(1)), ["close 3502 stale"]);
    assert_eq!(world.session.next_deadline(), None);

    let mut refused = World::new();
    refused.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    refused.give(Input::ConnectionVerified(Err(crate::io::TokenError::Expired)));
    assert_eq!(refused.pass(seconds(10)), ["close 3502 stale"]);
}

#[test]
fn a_client_kept_waiting_by_us_may_come_again() {
    let mut world = World::new();
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    assert_eq!(world.pass(seconds(10)), ["close 3004 internal server error"]);

    let mut world = World::new();
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    world.give(Input::ConnectionVerified(Ok(grant_with_subs("u", ["a"]))));
    assert_eq!(world.pass(seconds(10)), ["close 3004 internal server error"]);
    assert_eq!(world.joined("a", Joined::default()), ["leave a hub"]);
}

#[test]
fn pings_keep_their_schedule_under_traffic_and_only_a_pong_satisfies_them() {
    let mut world = World::open();
    // The id's first bytes put the first ping at three quarters of the interval.
    assert_eq!(world.pass(Duration::from_millis(18_749)), [""; 0]);
    assert_eq!(world.pass(Duration::from_millis(2)), ["{}"]);
    assert_eq!(world.send("{}"), [""; 0]);
    for round in 1..4 {
        assert_eq!(world.send(r#"{"id":5,"rpc":{}}"#), [error(5, 108)]);
        assert_eq!(world.pass(seconds(25)), ["{}"], "round {round}");
        assert_eq!(world.send("{}"), [""; 0]);
    }
    assert_eq!(world.pass(seconds(25)), ["{}"]);
    assert_eq!(world.pass(seconds(7)), [""; 0]);
    assert_eq!(world.send(r#"{"id":5,"rpc":{}}"#), [error(5, 108)], "another command is no pong");
    assert_eq!(world.pass(seconds(1)), ["close 3012 no pong"]);
}

#[test]
fn an_excess_pong_closes() {
    let mut world = World::open();
    assert_eq!(world.pass(seconds(19)), ["{}"]);
    assert_eq!(world.send("{}"), [""; 0]);
    assert_eq!(world.send("{}"), [CLOSE_3501]);
    // A command without an id is a pong, whatever it carries, unless it is `send`.
    let mut world = World::open();
    assert_eq!(world.pass(seconds(19)), ["{}"]);
    assert_eq!(world.send(r#"{"connect":{}}"#), [""; 0]);
}

#[test]
fn a_pong_does_not_wait_in_the_queue() {
    let mut world = World::open();
    world.send(r#"{"id":2,"subscribe":{"channel":"a"}}"#);
    assert_eq!(world.pass(seconds(19)), ["{}"]);
    assert_eq!(world.send("{\"id\":3,\"unsubscribe\":{\"channel\":\"a\"}}\n{}"), [""; 0]);
    assert!(!world.session.wants_commands());
    assert_eq!(world.pass(seconds(24)), [""; 0], "the ping was answered");
}

#[test]
fn a_pong_is_not_missed_while_we_do_not_read() {
    let mut world = World::open();
    world.send("{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}\n{\"id\":3,\"unsubscribe\":{\"channel\":\"a\"}}");
    assert_eq!(world.pass(seconds(50)), ["{}", "{}"]);
    world.joined("a", Joined::default());
    assert!(world.session.wants_commands());
    assert_eq!(world.send("{}\n{}"), [""; 0], "both were in the socket");
    assert_eq!(world.send("{}"), [CLOSE_3501]);
}

#[test]
fn pings_and_pongs_can_be_switched_off() {
    let mut world = World::with(Settings { ping_interval: Duration::ZERO, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    let out = world.give(Input::ConnectionVerified(Ok(grant("u"))));
    assert_eq!(out[1], format!(r#"{{"id":1,"connect":{{"client":"{CLIENT}","version":"v"}}}}"#));
    assert_eq!(world.session.next_deadline(), None);

    let mut world = World::with(Settings { pong_timeout: Duration::ZERO, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    let out = world.give(Input::ConnectionVerified(Ok(grant("u"))));
    assert_eq!(out[1], format!(r#"{{"id":1,"connect":{{"client":"{CLIENT}","version":"v","ping":25}}}}"#));
    assert_eq!(world.pass(seconds(44)), ["{}", "{}"]);
}

#[test]
fn a_command_waits_for_the_subscribe_of_its_channel() {
    let mut world = World::open();
    let frame = [
        r#"{"id":2,"subscribe":{"channel":"a"}}"#,
        r#"{"id":3,"subscribe":{"channel":"a"}}"#,
        r#"{"id":4,"unsubscribe":{"channel":"a"}}"#,
        r#"{"id":5,"subscribe":{"channel":"a"}}"#,
        r#"{"id":6,"rpc":{}}"#,
    ];
    assert_eq!(world.send(&frame.join("\n")), ["join a".to_owned(), error(3, 105)]);
    let out = world.joined("a", Joined::default());
    let expected = [r#"{"id":2,"subscribe":{}}"#, "leave a hub", r#"{"id":4,"unsubscribe":{}}"#, "join a"];
    assert_eq!(out[..4], expected);
    assert_eq!(out[4..], [error(6, 108)]);
}

#[test]
fn commands_in_flight_and_queued_are_bounded() {
    let settings = Settings { commands_in_flight: 2, commands_queued: 2, ..Settings::default() };
    let mut world = World::with(settings).connected();
    let subscribe = |id: u32, channel: &str| format!(r#"{{"id":{id},"subscribe":{{"channel":"{channel}"}}}}"#);
    assert_eq!(world.send(&subscribe(2, "a")), ["join a"]);
    assert_eq!(world.send(&subscribe(3, "b")), ["join b"]);
    assert!(world.session.wants_commands());
    assert_eq!(world.send(&subscribe(4, "c")), [""; 0]);
    assert!(!world.session.wants_commands());
    assert_eq!(world.send(&subscribe(5, "d")), [""; 0]);
    assert_eq!(world.joined("b", Joined::default()), [r#"{"id":3,"subscribe":{}}"#, "join c"]);
    assert_eq!(world.send(&subscribe(6, "e")), [""; 0]);
    assert_eq!(world.send(&subscribe(7, "f")), ["close 3013 too many requests", "leave b hub"]);
    assert!(!world.session.is_finished(), "two joins are in flight");
    assert_eq!(world.joined("a", Joined::default()), ["leave a hub"]);
    assert_eq!(world.joined("c", Joined::default()), ["leave c hub"]);
    assert!(world.session.is_finished());
}

#[test]
fn a_frame_full_of_commands_is_answered_one_by_one() {
    let mut world = World::open();
    let frame: Vec<String> = (2..1_000).map(|id| format!(r#"{{"id":{id},"rpc":{{}}}}"#)).collect();
    let expected: Vec<String> = (2..1_000).map(|id| error(id, 108)).collect();
    assert_eq!(world.send(&frame.join("\n")), expected);
}

#[test]
fn closing_and_going_leave_every_channel_once() {
    let world = || {
        let mut world = World::open();
        world.subscribe("room:a");
        world.subscribe("b");
        world.send(r#"{"id":4,"subscribe":{"channel":"room:c"}}"#);
        world
    };
    let cleanup = ["leave b hub", "leave room:a hub presence", "announce leave room:a u()"];
    let mut closed = world();
    let out = closed.give(Input::Close(CloseCode::Shutdown));
    assert_eq!(out[0], "close 3001 shutdown");
    assert_eq!(out[1..], cleanup);
    assert!(closed.session.is_closed() && !closed.session.is_finished());
    assert_eq!(closed.give(Input::Close(CloseCode::Slow)), [""; 0]);
    assert_eq!(closed.give(Input::Gone), [""; 0]);
    assert_eq!(closed.joined("room:c", Joined::default()), ["leave room:c hub presence"]);
    assert_eq!(closed.joined("room:c", Joined::default()), [""; 0]);
    assert!(closed.session.is_finished());

    let mut gone = world();
    assert_eq!(gone.give(Input::Gone), cleanup);
    assert_eq!(gone.join_failed("room:c"), ["leave room:c presence"]);
    assert!(gone.session.is_finished());
}

#[test]
fn answers_nobody_asked_for_are_ignored() {
    let mut world = World::open();
    let stray = |world: &mut World| {
        let mut out = world.joined("a", Joined::default());
        out.extend(world.verified(9, "a", Ok(sub_grant("u", "a"))));
        out.extend(world.sub_refreshed(9, "a", Ok(sub_grant("u", "a"))));
        out.extend(world.give(Input::ConnectionVerified(Ok(grant("u")))));
        out.extend(world.give(Input::RefreshVerified { id: 9, result: Ok(grant("u")) }));
        out.extend(world.give(Input::Published { id: 9, result: Ok(()) }));
        out.extend(world.give(Input::PositionLost { channel: name("a") }));
        out.extend(world.give(Input::Deadline));
        out
    };
    assert_eq!(stray(&mut world), [""; 0]);
    assert_eq!(stray(&mut World::new()), [""; 0]);
}
