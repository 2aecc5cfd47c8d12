//! Protocol sections 2.5 and 8.3: publish, presence, history, rpc.

use std::sync::Arc;

use backplane::{ClientId, ClientInfo, HistoryQuery, PresenceStats};
use bytes::Bytes;

use super::harness::*;
use crate::Settings;
use crate::channels::{ChannelOptions, DataFormat};
use crate::io::{ConnectionGrant, Input, Joined, OperationError};

/// Everything is allowed in `all`, to subscribers in `subs`, and nothing in `none`, though the features are on; `off` has
/// the permissions and not the features.
fn world() -> World {
    let features = ChannelOptions { presence: true, history: history(), ..ChannelOptions::default() };
    let all = ChannelOptions {
        allow_publish_for_client: true,
        allow_presence_for_client: true,
        allow_history_for_client: true,
        ..features.clone()
    };
    let subs = ChannelOptions {
        allow_subscribe_for_client: true,
        allow_publish_for_subscriber: true,
        allow_presence_for_subscriber: true,
        allow_history_for_subscriber: true,
        ..features.clone()
    };
    let off = ChannelOptions { presence: false, history: None, ..all.clone() };
    let json = ChannelOptions { publication_data_format: DataFormat::JsonObject, ..all.clone() };
    let binary = ChannelOptions { publication_data_format: DataFormat::Binary, ..all.clone() };
    let mut world = World::open();
    world.channels = channels_of(
        [("all", all), ("subs", subs), ("none", features), ("off", off), ("json", json), ("binary", binary)],
        None,
    );
    world
}

#[test]
fn permissions_of_operations() {
    for (channel, publish, presence, history) in [
        ("all:a", None, None, None),
        ("subs:a", Some(103), Some(103), Some(103)),
        ("none:a", Some(103), Some(103), Some(103)),
        ("off:a", None, Some(108), Some(108)),
        ("nosuch:a", Some(102), Some(102), Some(102)),
        ("plain", Some(102), Some(102), Some(102)),
        (r"all:caf\u00e9", Some(107), Some(107), Some(107)),
    ] {
        let mut world = world();
        for (request, code) in [
            (format!(r#""publish":{{"channel":"{channel}","data":{{}}}}"#), publish),
            (format!(r#""presence":{{"channel":"{channel}"}}"#), presence),
            (format!(r#""presence_stats":{{"channel":"{channel}"}}"#), presence),
            (format!(r#""history":{{"channel":"{channel}"}}"#), history),
        ] {
            let out = world.send(&format!(r#"{{"id":2,{request}}}"#));
            match code {
                Some(code) => assert_eq!(out, [error(2, code)], "{request}"),
                None => assert!(out.len() == 1 && !out[0].contains("error"), "{request}: {out:?}"),
            }
        }
    }
}

#[test]
fn subscribers_gain_permissions_when_the_subscribe_is_done() {
    let mut world = world();
    let frame =
        "{\"id\":2,\"subscribe\":{\"channel\":\"subs:a\"}}\n{\"id\":3,\"publish\":{\"channel\":\"subs:a\",\"data\":1}}";
    assert_eq!(world.send(frame), ["join subs:a presence() history"]);
    let out = world.joined("subs:a", Joined::default());
    assert_eq!(out, [r#"{"id":2,"subscribe":{}}"#, "publish 3 subs:a 1 by u(,)"]);
    assert_eq!(world.send(r#"{"id":4,"presence":{"channel":"subs:a"}}"#), ["presence 4 subs:a"]);
    assert_eq!(world.send(r#"{"id":5,"history":{"channel":"subs:a"}}"#), ["history 5 subs:a Some(0)"]);
    assert_eq!(world.send(r#"{"id":6,"presence_stats":{"channel":"subs:b"}}"#), [error(6, 103)]);
}

#[test]
fn insecure_mode_allows_operations_but_invents_no_features() {
    let mut world = World::with(Settings { insecure: true, ..Settings::default() });
    world.send(r#"{"id":1,"connect":{}}"#);
    assert_eq!(world.send(r#"{"id":2,"publish":{"channel":"closed:a","data":1}}"#), ["publish 2 closed:a 1 by (,)"]);
    assert_eq!(world.send(r#"{"id":3,"presence":{"channel":"closed:a"}}"#), [error(3, 108)]);
    assert_eq!(world.send(r#"{"id":4,"presence":{"channel":"room:a"}}"#), ["presence 4 room:a"]);
    assert_eq!(world.send(r#"{"id":5,"history":{"channel":"log:a"}}"#), ["history 5 log:a Some(0)"]);
}

#[test]
fn payloads_must_have_the_format_of_the_namespace() {
    for (channel, data, accepted) in [
        ("all:a", r#","data":"x""#, true),
        ("all:a", "", false),
        ("json:a", r#","data":{}"#, true),
        ("json:a", r#","data":[]"#, false),
        ("binary:a", "", true),
    ] {
        let out = world().send(&format!(r#"{{"id":2,"publish":{{"channel":"{channel}"{data}}}}}"#));
        assert_eq!(out != [error(2, 107)], accepted, "{channel} {data}: {out:?}");
    }
    assert_eq!(world().send(r#"{"id":2,"publish":{"channel":"all:a","data":1,"type":1}}"#), [error(2, 108)]);
}

#[test]
fn the_publisher_is_attached_with_its_info_in_the_channel() {
    let mut world = World::new();
    world.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    let token = ConnectionGrant { info: Bytes::from_static(b"{\"n\":1}"), ..grant("u") };
    world.give(Input::ConnectionVerified(Ok(token)));
    let open = ChannelOptions { allow_publish_for_client: true, ..ChannelOptions::default() };
    world.channels = channels_of([], Some(open));
    let publish = r#"{"id":3,"publish":{"channel":"a","data":1}}"#;
    assert_eq!(world.send(publish), [r#"publish 3 a 1 by u({"n":1},)"#]);
    world.send(r#"{"id":4,"subscribe":{"channel":"a","token":"t"}}"#);
    let mut token = sub_grant("u", "a");
    token.options.info = Bytes::from_static(b"{\"c\":2}");
    world.verified(4, "a", Ok(token));
    world.joined("a", Joined::default());
    assert_eq!(world.send(publish), [r#"publish 3 a 1 by u({"n":1},{"c":2})"#]);
}

#[test]
fn results_and_failures_of_operations() {
    let mut world = world();
    let member = |client: &str, user: &str| {
        let client = ClientId::parse(client).expect("a UUID");
        Arc::new(ClientInfo { client, user: user.into(), conn_info: Bytes::new(), chan_info: Bytes::new() })
    };
    let send = |world: &mut World, request: &str| world.send(&format!(r#"{{"id":7,{request}}}"#));
    let publish = r#""publish":{"channel":"all:a","data":1}"#;

    send(&mut world, publish);
    assert_eq!(world.give(Input::Published { id: 7, result: Ok(()) }), [r#"{"id":7,"publish":{}}"#]);
    send(&mut world, publish);
    assert_eq!(world.give(Input::Published { id: 7, result: Err(unavailable()) }), [error(7, 100)]);
    send(&mut world, publish);
    assert_eq!(world.give(Input::Published { id: 7, result: Err(OperationError::BadRequest) }), [error(7, 107)]);

    send(&mut world, r#""presence":{"channel":"all:a"}"#);
    let out = world.give(Input::Presence { id: 7, result: Ok(vec![member(CLIENT, "")]) });
    let expected = format!(r#"{{"id":7,"presence":{{"presence":{{"{CLIENT}":{{"user":"","client":"{CLIENT}"}}}}}}}}"#);
    assert_eq!(out, [expected]);
    send(&mut world, r#""presence":{"channel":"all:a"}"#);
    let out = world.give(Input::Presence { id: 7, result: Ok(Vec::new()) });
    assert_eq!(out, [r#"{"id":7,"presence":{"presence":{}}}"#]);
    send(&mut world, r#""presence":{"channel":"all:a"}"#);
    assert_eq!(world.give(Input::Presence { id: 7, result: Err(unavailable()) }), [error(7, 100)]);

    send(&mut world, r#""presence_stats":{"channel":"all:a"}"#);
    let out = world.give(Input::PresenceStats { id: 7, result: Ok(PresenceStats::default()) });
    assert_eq!(out, [r#"{"id":7,"presence_stats":{"num_clients":0,"num_users":0}}"#]);
    assert_eq!(send(&mut world, r#""rpc":{"method":"m","data":{}}"#), [error(7, 108)]);
    assert_eq!(world.give(Input::Published { id: 7, result: Ok(()) }), [""; 0], "nothing is in flight any more");
}

#[test]
fn history_requests_become_queries() {
    for (fields, expected) in [
        ("", Ok("Some(0)")),
        (r#","limit":5"#, Ok("Some(5)")),
        (r#","limit":300"#, Ok("Some(300)")),
        (r#","limit":301"#, Ok("Some(300)")),
        (r#","limit":-1"#, Ok("Some(300)")),
        (r#","limit":1,"reverse":true"#, Ok("Some(1) reverse")),
        (r#","limit":1,"since":{"offset":3,"epoch":"e"}"#, Ok("Some(1) since 3@e")),
        (r#","limit":1,"since":{}"#, Ok("Some(1) since 0@")),
        (r#","limit":1,"since":{"offset":3,"epoch":"e"},"reverse":true"#, Ok("Some(1) since 3@e reverse")),
        (r#","limit":1,"since":{"epoch":"e"},"reverse":true"#, Err(107)),
    ] {
        let out = world().send(&format!(r#"{{"id":2,"history":{{"channel":"all:a"{fields}}}}}"#));
        let expected = expected.map_or_else(|code| error(2, code), |query| format!("history 2 all:a {query}"));
        assert_eq!(out, [expected], "{fields}");
    }
}

#[test]
fn history_of_another_epoch_is_an_unrecoverable_position() {
    let ask = |since: Option<(&str, u64)>, page| {
        let mut world = world();
        world.send(r#"{"id":2,"history":{"channel":"all:a"}}"#);
        let since = since.map(|(epoch, offset)| position(epoch, offset));
        let query = HistoryQuery { since, limit: Some(9), reverse: false };
        world.give(Input::History { id: 2, query, result: Ok(page) })
    };
    let all = r#"{"id":2,"history":{"publications":[{"data":{"n":4},"offset":4}],"epoch":"e","offset":4}}"#;
    assert_eq!(ask(None, page("e", 4, [4])), [all]);
    assert_eq!(ask(Some(("e", 3)), page("e", 4, [4])), [all]);
    assert_eq!(ask(Some(("", 3)), page("e", 4, [4])), [all]);
    assert_eq!(ask(Some(("x", 3)), page("e", 4, [4])), [error(2, 112)]);
    let empty = r#"{"id":2,"history":{"publications":[],"epoch":"e","offset":0}}"#;
    assert_eq!(ask(None, page("e", 0, [])), [empty]);
}

#[test]
fn a_history_page_is_cut_at_the_bytes_of_a_reply_and_never_empty_for_it() {
    // A payload is 7 bytes: {"n":1}
    for (reply_bytes, offsets) in [(21, vec![1, 2, 3]), (20, vec![1, 2]), (14, vec![1, 2]), (3, vec![1])] {
        let mut world = world();
        world.settings.reply_bytes = reply_bytes;
        world.send(r#"{"id":2,"history":{"channel":"all:a","limit":10}}"#);
        let result = Ok(page("e", 3, [1, 2, 3]));
        let query = HistoryQuery { since: None, limit: Some(10), reverse: false };
        let out = world.give(Input::History { id: 2, query, result });
        let entries: Vec<_> = offsets.iter().map(|n| format!(r#"{{"data":{{"n":{n}}},"offset":{n}}}"#)).collect();
        let publications = entries.join(",");
        assert_eq!(
            out,
            [format!(r#"{{"id":2,"history":{{"publications":[{publications}],"epoch":"e","offset":3}}}}"#)]
        );
    }
}
