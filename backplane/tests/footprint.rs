//! What the in-memory backplane costs in bytes, counted at the allocator: the figures that its limits are documented
//! with, and that everything is given back. One test, because the count is of the whole process.

// A global allocator cannot be written without `unsafe`; this one only counts and passes on.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane::memory::{ManualClock, MemoryBackplane, MemoryLimits};
use backplane::{
    Backplane, BackplaneFuture, ChannelName, ClientId, ClientInfo, HistoryOptions, HistoryQuery, NewPublication,
    PresenceStore, PublishOptions, SessionStore, UserId,
};
use bytes::Bytes;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HISTORY: HistoryOptions =
    HistoryOptions { size: 1_000, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(600) };

fn done<T>(call: BackplaneFuture<'_, T>) -> T {
    let mut call = pin!(call);
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result.expect("nothing is refused"),
        Poll::Pending => panic!("every call is ready at once"),
    }
}

/// Bytes that `fill` leaves allocated.
fn held_by(fill: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    fill();
    HELD.load(Ordering::Relaxed).saturating_sub(before)
}

fn member(n: usize) -> Arc<ClientInfo> {
    let user = format!("user-{n:06}").into();
    Arc::new(ClientInfo { client: ClientId::random(), user, conn_info: Bytes::new(), chan_info: Bytes::new() })
}

#[test]
fn every_entry_costs_what_is_documented_and_is_given_back() {
    let clock = Arc::new(ManualClock::new());
    let on = Arc::clone(&clock);
    let backplane = MemoryBackplane::with_clock(MemoryLimits::default(), on);
    let empty = HELD.load(Ordering::Relaxed);

    let room = ChannelName::from("room");
    let mut clients = Vec::with_capacity(10_000);
    let bytes = held_by(|| {
        for n in 0..10_000 {
            let info = member(n);
            clients.push(info.client);
            done(backplane.add_presence(&room, info));
        }
    });
    assert!(bytes < 250 * 10_000, "{} bytes per member", bytes / 10_000);
    for client in clients {
        done(backplane.remove_presence(&room, client));
    }
    assert_eq!(backplane.stats().channels, 0);

    let bytes = held_by(|| {
        for n in 0..100_000 {
            let channel = ChannelName::from(format!("quiet:{n:010}"));
            done(backplane.history(&channel, HistoryQuery::position(), HISTORY));
        }
    });
    assert!(bytes < 400 * 100_000, "{} bytes per quiet channel", bytes / 100_000);

    let hot = ChannelName::from("hot");
    let bytes = held_by(|| {
        for _ in 0..5_000 {
            let publication = NewPublication { data: Bytes::from(vec![b'x'; 128]), ..NewPublication::default() };
            let options = PublishOptions { history: Some(HISTORY), ..PublishOptions::default() };
            done(backplane.publish(&hot, publication, options));
        }
    });
    let counted = backplane.stats().history_bytes;
    assert_eq!(backplane.stats().publications, 1_000);
    assert!(bytes <= counted, "{bytes} bytes held, only {counted} counted");
    assert!(bytes * 3 > counted * 2, "{bytes} bytes held, as many as {counted} counted");

    let plain = ChannelName::from("plain");
    let keys = 10_000;
    let bytes = held_by(|| {
        for n in 0..keys {
            let key = format!("{n:036}");
            let options = PublishOptions { idempotency_key: Some(key), ..PublishOptions::default() };
            done(backplane.publish(&plain, NewPublication::default(), options));
        }
    });
    assert!(bytes < 250 * keys, "{} bytes per idempotency key", bytes / keys);

    let bytes = held_by(|| {
        for n in 0..10_000 {
            let (user, session) = (UserId::from(format!("user-{n:06}")), format!("{n:022}"));
            let data = Bytes::from(vec![b'x'; 1_000]);
            done(backplane.compare_and_set(&user, &session, None, data, true, HISTORY.ttl));
        }
    });
    let counted = backplane.stats().session_bytes;
    assert!(bytes <= counted, "{bytes} bytes held for sessions, only {counted} counted");
    assert!(bytes * 4 > counted * 3, "{bytes} bytes held for sessions, as many as {counted} counted");

    clock.advance(HISTORY.meta_ttl);
    while backplane.sweep(10_000) {}
    assert_eq!((backplane.stats().channels, backplane.stats().sessions), (0, 0));
    // Each of the 64 maps of channels and 64 of users may keep its smallest size.
    let left = HELD.load(Ordering::Relaxed) - empty;
    assert!(left < 2 * 64 * 4_096, "{left} bytes are kept by an empty backplane");
}
