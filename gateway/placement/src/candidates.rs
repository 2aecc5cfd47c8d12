//! Who may ask for the roles of the fleet. If all of 1,000 nodes asked for a lease once in two seconds, it would be asked
//! for 500 times a second; so only a few do.

use std::time::{Duration, Instant};

use backplane::NodeId;

use crate::digest::{Heard, NodeKey};
use crate::report::Peer;

/// How many nodes may ask. Five survive the loss of a machine or a zone, and ask ten times in two seconds.
pub const CANDIDATES: usize = 5;

/// How often a node that is no candidate looks whether the role is free all the same, give or take half: should all
/// candidates hang, somebody notices.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Without a digest for this long there may be no coordinator, so everybody may ask; the lease of the coordinator is as
/// long.
pub const NOBODY_AFTER: Duration = Duration::from_secs(5);

/// The candidates: the nodes that stay with the lowest ids, which are random; of all nodes if none stays. So they change
/// only when one of them leaves, or a new node happens to have a lower id.
pub fn candidates(peers: &[Peer]) -> Vec<NodeKey> {
    let mut ids: Vec<NodeId> = peers.iter().filter(|peer| peer.report.stays()).map(|peer| peer.id).collect();
    if ids.is_empty() {
        ids = peers.iter().map(|peer| peer.id).collect();
    }
    ids.sort_unstable();
    ids.into_iter().take(CANDIDATES).map(NodeKey::of).collect()
}

/// When a node asks for a role next, at the earliest, after it asked at `asked`; `random` in 0..1 is drawn for each
/// question. `every` is the pace of a candidate, or of a node that holds the role.
pub fn ask_again_at(
    asked: Instant,
    now: Instant,
    own: NodeKey,
    heard: Option<Heard<'_>>,
    every: Duration,
    random: f64,
) -> Instant {
    let random = random.clamp(0.0, 1.0);
    match heard.filter(|heard| heard.age(now) < NOBODY_AFTER) {
        Some(heard) if heard.digest.candidates.contains(&own) => asked + every,
        Some(_) => asked + LOOK_EVERY.mul_f64(0.5 + random),
        // Nobody knows how many are in the same position, so they do not all ask at once.
        None => asked + every.max(NOBODY_AFTER.mul_f64(random)),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::digest::Digest;
    use crate::report::Report;

    fn id(number: u128) -> NodeId {
        NodeId(Uuid::from_u128(number << 80))
    }

    fn peer(number: u128, ready: bool) -> Peer {
        Peer { id: id(number), age: Duration::ZERO, report: Report { ready, ..Report::new("n", "1") } }
    }

    #[test]
    fn the_lowest_ids_that_stay_are_candidates() {
        let mut peers: Vec<_> = (1..10).rev().map(|number| peer(number, true)).collect();
        peers[8].report.draining = true;
        peers[7].report.ready = false;
        let expected: Vec<_> = (3..8).map(|number| NodeKey::of(id(number))).collect();
        assert_eq!(candidates(&peers), expected);
        assert_eq!(candidates(&[peer(2, false), peer(1, false)]), [NodeKey::of(id(1)), NodeKey::of(id(2))]);
        assert_eq!(candidates(&[]), []);
    }

    #[test]
    fn candidates_ask_often_and_others_when_nobody_coordinates() {
        let now = Instant::now() + Duration::from_secs(100);
        let every = Duration::from_secs(2);
        let digest = Digest { candidates: vec![NodeKey::of(id(1))], ..Digest::empty(1, 1) };
        let wait = |number, age: u64, random| {
            let heard = Some(Heard { digest: &digest, at: now - Duration::from_secs(age) });
            (ask_again_at(now, now, NodeKey::of(id(number)), heard, every, random) - now).as_secs_f64()
        };
        assert_eq!(wait(1, 0, 0.5), 2.0);
        assert_eq!((wait(2, 0, 0.0), wait(2, 0, 1.0)), (30.0, 90.0));
        assert_eq!((wait(2, 5, 0.0), wait(2, 5, 1.0)), (2.0, 5.0));
        assert_eq!(ask_again_at(now, now, NodeKey::of(id(1)), None, every, 0.9) - now, Duration::from_millis(4500));
    }
}
