//! Session records in memory: exact ends, limits, and nothing left of what is gone.

use super::*;
use crate::{SESSIONS_PER_USER, SessionStore, SessionWrite};

const TTL: Duration = Duration::from_secs(120);

fn write(bench: &Bench, user: &str, session: &str, expected: Option<u64>, data: Bytes) -> SessionWrite {
    try_write(bench, user, session, expected, data).expect("there is room")
}

fn try_write(
    bench: &Bench,
    user: &str,
    session: &str,
    expected: Option<u64>,
    data: Bytes,
) -> Result<SessionWrite, BackplaneError> {
    done(bench.backplane.compare_and_set(&user.into(), session, expected, data, true, TTL))
}

fn has(bench: &Bench, user: &str, session: &str) -> bool {
    done(bench.backplane.load(&user.into(), session)).expect("load").is_some()
}

#[test]
fn records_end_exactly_and_sweeps_free_them() {
    let bench = Bench::new(MemoryLimits::default());
    for n in 0..100 {
        write(&bench, &format!("user{}", n % 50), &format!("s{n}"), None, Bytes::from_static(b"data"));
    }
    assert_eq!(bench.stats().sessions, 100);
    bench.clock.advance(TTL - Duration::from_nanos(1));
    assert!(has(&bench, "user1", "s1"));
    assert!(done(bench.backplane.touch(&"user1".into(), "s1", 2 * TTL)).expect("touch"));
    assert!(!bench.backplane.sweep(10), "nothing is due");
    bench.clock.advance(Duration::from_nanos(1));
    assert!(!has(&bench, "user1", "s51") && has(&bench, "user1", "s1"));
    assert!(!done(bench.backplane.touch(&"user1".into(), "s51", TTL)).expect("touch"));
    let mut before = bench.stats().sessions;
    let mut sweeps = 0;
    while bench.backplane.sweep(10) {
        let left = bench.stats().sessions;
        assert!(before - left <= 11, "{} records freed with a budget of 10", before - left);
        (before, sweeps) = (left, sweeps + 1);
    }
    assert!(sweeps >= 9, "{sweeps} sweeps for 99 records");
    assert_eq!(bench.stats().sessions, 1);
    bench.clock.advance(2 * TTL);
    while bench.backplane.sweep(10) {}
    assert_eq!(bench.stats(), MemoryStats::default());
}

#[test]
fn bytes_are_bounded_and_replacing_needs_only_the_difference() {
    let bench = Bench::new(MemoryLimits { session_bytes: 10_000, ..MemoryLimits::default() });
    let data = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
    let SessionWrite::Stored(first) = write(&bench, "ann", "a", None, data(6_000)) else { panic!("it is free") };
    let refused = try_write(&bench, "bob", "b", None, data(6_000)).expect_err("there is no room");
    assert!(matches!(&refused, BackplaneError::Unavailable(why) if why.contains("session_bytes")), "{refused}");
    assert!(matches!(write(&bench, "ann", "a", Some(first), data(9_000)), SessionWrite::Stored(_)));
    assert_eq!((bench.stats().sessions, bench.stats().refusals), (1, 1));
    bench.clock.advance(TTL);
    while bench.backplane.sweep(10) {}
    write(&bench, "bob", "b", None, data(6_000));
    done(bench.backplane.delete(&"bob".into(), "b")).expect("delete");
    assert_eq!(bench.stats(), MemoryStats { refusals: 1, ..MemoryStats::default() });
}

#[test]
fn the_cap_is_counted_and_expired_records_leave_first() {
    let bench = Bench::new(MemoryLimits::default());
    for n in 0..SESSIONS_PER_USER {
        write(&bench, "ann", &n.to_string(), None, Bytes::new());
    }
    bench.clock.advance(TTL);
    write(&bench, "ann", "new", None, Bytes::new());
    assert_eq!((bench.stats().sessions, bench.stats().sessions_evicted), (1, 0));
    for n in 0..SESSIONS_PER_USER {
        write(&bench, "ann", &n.to_string(), None, Bytes::new());
    }
    assert_eq!((bench.stats().sessions, bench.stats().sessions_evicted), (SESSIONS_PER_USER, 1));
    assert!(!has(&bench, "ann", "new") && has(&bench, "ann", "0"));
}

#[test]
fn revisions_go_on_after_a_loss() {
    let bench = Bench::new(MemoryLimits::default());
    let SessionWrite::Stored(first) = write(&bench, "ann", "a", None, Bytes::new()) else { panic!("it is free") };
    bench.backplane.forget();
    assert_eq!(bench.stats(), MemoryStats::default());
    assert_eq!(write(&bench, "ann", "a", Some(first), Bytes::new()), SessionWrite::Conflict(None));
    let SessionWrite::Stored(second) = write(&bench, "ann", "a", None, Bytes::new()) else { panic!("it is free") };
    assert!(second > first, "{second} after {first}");
}
