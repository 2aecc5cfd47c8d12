//! Reports and leases in memory: exact ages, and nothing left of those who are gone.

use uuid::Uuid;

use super::*;
use crate::{Lease, Members, NodeId, REPORT_BYTES, REPORT_TTL};

const TTL: Duration = Duration::from_secs(3);

fn node(number: u128) -> NodeId {
    NodeId(Uuid::from_u128(number))
}

fn hold(bench: &Bench, holder: u128) -> Lease {
    done(bench.backplane.hold_lease("role", node(holder), TTL)).expect("a legal name")
}

#[test]
fn ages_are_exact_and_reports_end_with_them() {
    let bench = Bench::new(MemoryLimits::default());
    let ages = || done(bench.backplane.member_ages()).expect("member_ages");
    done(bench.backplane.report(node(1), Bytes::from_static(b"one"))).expect("report");
    bench.clock.advance(REPORT_TTL - Duration::from_nanos(1));
    assert_eq!(ages(), [(node(1), REPORT_TTL - Duration::from_nanos(1))]);
    bench.clock.advance(Duration::from_nanos(1));
    assert_eq!(ages(), []);
    done(bench.backplane.report(node(1), Bytes::from_static(b"again"))).expect("report");
    assert_eq!(ages(), [(node(1), Duration::ZERO)]);
}

#[test]
fn what_ended_is_freed_by_sweeps_within_their_budget() {
    let bench = Bench::new(MemoryLimits::default());
    for number in 0..100 {
        done(bench.backplane.report(node(number), Bytes::new())).expect("report");
    }
    hold(&bench, 1);
    assert_eq!((bench.stats().reports, bench.stats().leases), (100, 1));
    assert!(!bench.backplane.sweep(10), "nothing is due");
    bench.clock.advance(REPORT_TTL);
    assert!(bench.backplane.sweep(30));
    assert_eq!((bench.stats().reports, bench.stats().leases), (70, 1));
    while bench.backplane.sweep(30) {}
    assert_eq!(bench.stats(), MemoryStats::default());
}

#[test]
fn refused_reports_and_names_change_nothing() {
    let bench = Bench::new(MemoryLimits::default());
    let long = Bytes::from(vec![b'x'; REPORT_BYTES + 1]);
    assert!(matches!(done(bench.backplane.report(node(1), long)), Err(BackplaneError::Protocol(_))));
    for name in ["", "a.b", "\u{e4}", "a{", &"a".repeat(65)] {
        let refused = done(bench.backplane.hold_lease(name, node(1), TTL));
        assert!(matches!(refused, Err(BackplaneError::Protocol(_))), "{name:?}: {refused:?}");
        assert!(done(bench.backplane.release_lease(name, node(1))).is_err(), "{name:?}");
    }
    assert_eq!(bench.stats(), MemoryStats::default());
}

#[test]
fn tokens_grow_also_over_a_loss() {
    let bench = Bench::new(MemoryLimits::default());
    let Lease::Held { token: first } = hold(&bench, 1) else { panic!("it is free") };
    assert_eq!(hold(&bench, 1), Lease::Held { token: first }, "a renewal keeps the token");
    bench.clock.advance(TTL - Duration::from_nanos(1));
    assert_eq!(hold(&bench, 2), Lease::HeldBy(node(1)));
    bench.clock.advance(Duration::from_nanos(1));
    let Lease::Held { token: second } = hold(&bench, 2) else { panic!("it has ended") };
    assert!(second > first, "{second} after {first}");
    bench.backplane.forget();
    let Lease::Held { token: third } = hold(&bench, 1) else { panic!("it is forgotten") };
    assert!(third > second, "{third} after {second}");
}
