//! A close that is nobody's fault waits for the answers to what was accepted before it.

use super::harness::*;
use crate::io::{Input, Joined};
use crate::{CloseCode, Settings};

const GOING_AWAY: &str = "close 1001 going away";

fn retire(world: &mut World) -> Vec<String> {
    world.give(Input::CloseWhenAnswered(CloseCode::GoingAway))
}

/// A connected user who may do everything.
fn open() -> World {
    World::with(Settings { insecure: true, commands_in_flight: 2, ..Settings::default() }).connected()
}

fn publish(world: &mut World, id: u32) -> Vec<String> {
    world.send(&format!(r#"{{"id":{id},"publish":{{"channel":"a","data":1}}}}"#))
}

#[test]
fn with_nothing_under_way_it_closes_at_once() {
    let mut world = open();
    world.subscribe("a");
    assert_eq!(retire(&mut world), [GOING_AWAY, "leave a hub"]);
    assert!(world.session.is_finished());
    assert_eq!(retire(&mut world), [""; 0]);
}

#[test]
fn accepted_commands_are_answered_first_and_later_ones_discarded() {
    let mut world = open();
    world.subscribe("a");
    for id in 2..=4 {
        publish(&mut world, id);
    }
    assert!(!world.session.wants_commands(), "two are in flight, one waits");
    assert_eq!(retire(&mut world), [""; 0]);
    assert!(world.session.is_answering() && world.session.is_established());
    assert_eq!(publish(&mut world, 5), [""; 0]);
    assert_eq!(world.send("nonsense"), [""; 0]);
    assert_eq!(world.send("{}"), [""; 0], "a pong");
    let queued = "publish 4 a 1 by u(,)";
    assert_eq!(world.give(Input::Published { id: 2, result: Ok(()) }), [r#"{"id":2,"publish":{}}"#, queued]);
    assert_eq!(world.give(Input::Published { id: 4, result: Err(unavailable()) }), [error(4, 100)]);
    let last = world.give(Input::Published { id: 3, result: Ok(()) });
    assert_eq!(last, [r#"{"id":3,"publish":{}}"#, GOING_AWAY, "leave a hub"]);
    assert!(world.session.is_finished());
    assert_eq!(world.session.next_deadline(), None);
}

#[test]
fn a_subscribe_that_was_accepted_is_answered_and_undone() {
    let mut world = open();
    world.send(r#"{"id":2,"subscribe":{"channel":"room:a"}}"#);
    assert_eq!(retire(&mut world), [""; 0]);
    let out = world.joined("room:a", Joined::default());
    assert_eq!(out[0], r#"{"id":2,"subscribe":{}}"#);
    assert_eq!(out[1], "announce join room:a u()");
    assert_eq!(out[2..], [GOING_AWAY, "leave room:a hub presence", "announce leave room:a u()"]);
}

#[test]
fn it_waits_no_longer_than_its_patience() {
    let mut world = open();
    publish(&mut world, 2);
    retire(&mut world);
    assert_eq!(world.pass(Settings::default().close_patience - std::time::Duration::from_millis(1)), [""; 0]);
    // A second reason neither replaces the first one nor prolongs its time.
    assert_eq!(world.give(Input::CloseWhenAnswered(CloseCode::ForceReconnect)), [""; 0]);
    assert_eq!(world.pass(std::time::Duration::from_millis(1)), [GOING_AWAY]);
    assert_eq!(world.give(Input::Published { id: 2, result: Ok(()) }), [""; 0]);
}

#[test]
fn what_cannot_wait_does_not() {
    let mut world = open();
    publish(&mut world, 2);
    retire(&mut world);
    assert_eq!(world.give(Input::Close(CloseCode::Slow)), ["close 3008 slow"]);
    // Before the connect reply nothing was promised: the client connects elsewhere.
    let mut fresh = World::new();
    assert_eq!(retire(&mut fresh), [GOING_AWAY]);
    let mut verifying = World::new();
    verifying.send(r#"{"id":1,"connect":{"token":"t"}}"#);
    assert_eq!(retire(&mut verifying), [GOING_AWAY]);
    assert!(fresh.session.is_finished() && verifying.session.is_finished());
}

#[test]
fn the_server_api_can_still_take_away_but_not_give() {
    let mut world = open();
    world.subscribe("a");
    publish(&mut world, 2);
    retire(&mut world);
    let unsubscribe = Input::ServerUnsubscribe { channel: name("a"), code: 2000, reason: "server unsubscribe" };
    assert_eq!(world.give(unsubscribe)[0], "leave a hub");
    let expired = Input::ServerRefresh { expired: true, expire_at: None, info: None };
    assert_eq!(world.give(expired), ["close 3005 connection expired"]);
}
