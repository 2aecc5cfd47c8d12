//! What an idle session costs (goals: 200 bytes, and 48 for a subscription beside the name it shares with the hub).

use super::harness::*;
use crate::{Input, Output, Session};

#[test]
fn sessions_stay_small() {
    assert_eq!(size_of::<Session>(), 120);
    // These move through a vector and a call; a variant that grows should be boxed.
    assert!(size_of::<Output>() <= 256, "{}", size_of::<Output>());
    assert!(size_of::<Input>() <= 256, "{}", size_of::<Input>());
}

#[test]
fn an_idle_session_keeps_nothing_of_what_it_went_through() {
    let mut world = World::open();
    world.subscribe("a");
    world.send("{\"id\":2,\"subscribe\":{\"channel\":\"b\"}}\n{\"id\":3,\"unsubscribe\":{\"channel\":\"b\"}}");
    assert!(world.session.pending.is_some());
    world.joined("b", crate::io::Joined::default());
    assert!(world.session.pending.is_none(), "the box is freed when nothing is under way");
}
