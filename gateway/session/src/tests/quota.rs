//! What a connection may send in a second.

use super::harness::*;
use crate::Settings;

fn world(commands_per_second: u32, publish_bytes_per_second: usize) -> World {
    let settings = Settings { insecure: true, commands_per_second, publish_bytes_per_second, ..Settings::default() };
    World::with(settings).connected()
}

#[test]
fn commands_beyond_the_rate_are_refused_and_a_flood_is_closed() {
    let mut world = world(5, 0);
    let mut rpc = |id: u32| world.send(&format!(r#"{{"id":{id},"rpc":{{}}}}"#));
    for id in 2..12 {
        assert_eq!(rpc(id), [error(id, 108)]);
    }
    for id in 12..22 {
        assert_eq!(rpc(id), [error(id, 111)]);
    }
    assert_eq!(rpc(22), ["close 3013 too many requests"]);
}

#[test]
fn published_bytes_are_counted_and_other_commands_go_on() {
    let mut world = world(0, 10);
    let publish = |data: &str, id: u32| format!(r#"{{"id":{id},"publish":{{"channel":"a","data":{data}}}}}"#);
    assert_eq!(world.send(&publish("\"345678901234567890\"", 2)).len(), 1, "twenty bytes at once");
    assert_eq!(world.send(&publish("1", 3)), [error(3, 111)]);
    assert_eq!(world.send(r#"{"id":4,"rpc":{}}"#), [error(4, 108)]);
    world.pass(seconds(1));
    assert_eq!(world.send(&publish("1234", 5)), ["publish 5 a 1234 by u(,)"]);
}

#[test]
fn unsubscribing_and_pongs_are_never_refused() {
    let mut world = world(1, 0);
    world.subscribe("a");
    world.send(r#"{"id":2,"rpc":{}}"#);
    assert_eq!(world.send(r#"{"id":3,"rpc":{}}"#), [error(3, 111)]);
    assert_eq!(
        world.send(r#"{"id":4,"unsubscribe":{"channel":"a"}}"#),
        ["leave a hub", r#"{"id":4,"unsubscribe":{}}"#]
    );
    assert_eq!(world.pass(seconds(25)), ["{}"]);
    assert_eq!(world.send("{}"), [""; 0]);
}
