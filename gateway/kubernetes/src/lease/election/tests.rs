//! The rules one by one, then many candidates on one lease with slow, lost and late calls.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn record(version: u64, holder: Option<&str>, term: u32) -> Record {
    Record { version: version.to_string(), holder: holder.map(str::to_owned), duration: 15 * SECOND, term }
}

fn candidate() -> (Election, Instant) {
    (Election::new("me".into(), Timing::default()), Instant::now())
}

#[test]
fn a_lease_that_is_not_there_is_created_and_gives_a_tenure_from_when_it_was_asked_for() {
    let (mut election, start) = candidate();
    election.observe(start, None);
    assert_eq!(election.step(start), Step::Create(1));
    election.written(start, start + 3 * SECOND, record(7, Some("me"), 1));
    assert_eq!(election.tenure(start + 9 * SECOND), Some(Tenure { term: 1, until: start + 10 * SECOND }));
    assert_eq!(election.tenure(start + 10 * SECOND), None);
}

#[test]
fn another_holder_is_waited_for_as_long_as_it_moves_by_the_local_clock() {
    let (mut election, start) = candidate();
    election.observe(start, Some(record(1, Some("other"), 4)));
    assert_eq!(election.step(start + 14 * SECOND), Step::Wait);
    election.observe(start + 14 * SECOND, Some(record(2, Some("other"), 4)));
    assert_eq!(election.step(start + 28 * SECOND), Step::Wait);
    election.observe(start + 28 * SECOND, Some(record(2, Some("other"), 4)));
    let take = Step::Replace { version: "2".into(), term: 5, is_renewal: false };
    assert_eq!(election.step(start + 29 * SECOND), take, "seeing the same again does not count");
}

#[test]
fn a_longer_duration_of_the_holder_counts_but_not_an_absurd_one() {
    let (mut election, start) = candidate();
    election.observe(start, Some(Record { duration: 60 * SECOND, ..record(1, Some("other"), 4) }));
    assert_eq!(election.step(start + 59 * SECOND), Step::Wait);
    election.observe(start, Some(Record { duration: SECOND * 1_000_000, ..record(2, Some("other"), 4) }));
    assert_ne!(election.step(start + 600 * SECOND), Step::Wait);
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let (mut election, start) = candidate();
    election.observe(start, Some(record(9, None, 4)));
    assert_eq!(election.step(start), Step::Replace { version: "9".into(), term: 5, is_renewal: false });
}

#[test]
fn a_renewal_keeps_the_term_and_a_late_one_does_not() {
    let (mut election, start) = candidate();
    election.observe(start, None);
    election.written(start, start, record(1, Some("me"), 1));
    let renew = Step::Replace { version: "1".into(), term: 1, is_renewal: true };
    assert_eq!(election.step(start + 9 * SECOND), renew);
    let retake = Step::Replace { version: "1".into(), term: 2, is_renewal: false };
    assert_eq!(election.step(start + 10 * SECOND), retake, "others may have acted");
}

#[test]
fn whoever_is_refused_or_sees_another_holder_acts_no_more() {
    let (mut election, start) = candidate();
    election.written(start, start, record(1, Some("me"), 1));
    election.refused();
    assert_eq!(election.tenure(start), None);
    election.written(start, start, record(1, Some("me"), 1));
    election.observe(start, Some(record(2, Some("other"), 2)));
    assert_eq!(election.tenure(start), None);
    election.written(start, start, record(3, Some("me"), 3));
    election.observe(start, None);
    assert_eq!(election.tenure(start), None, "a Lease that was deleted is nobody's");
}

#[test]
fn a_term_that_was_forgotten_with_the_lease_is_passed() {
    let (mut election, start) = candidate();
    election.written(start, start, record(1, Some("me"), 1));
    election.found_term(41);
    assert_eq!(election.step(start), Step::Replace { version: "1".into(), term: 42, is_renewal: true });
    election.found_term(u32::MAX);
    assert_eq!(election.step(start), Step::Replace { version: "1".into(), term: 42, is_renewal: true });
}

#[test]
fn resigning_gives_the_version_once() {
    let (mut election, start) = candidate();
    assert_eq!(election.resign(), None);
    election.written(start, start, record(5, Some("me"), 3));
    assert_eq!(election.resign(), Some(("5".into(), 3)));
    assert_eq!((election.resign(), election.tenure(start)), (None, None));
}

#[test]
fn a_renewal_that_hangs_is_tried_again_before_the_deadline() {
    let timing = Timing::default();
    let first = pause(&timing, true, 0, 0.5);
    let second = first + timing.call_timeout + pause(&timing, true, 1, 0.5);
    assert!(second < timing.deadline, "{first:?} {second:?}");
    assert!(pause(&timing, false, 30, 1.0) <= 45 * SECOND, "candidates look again also after a long outage");
    assert!(timing.deadline + timing.call_timeout < timing.duration, "the last call ends before anybody takes over");
}

/// One lease on a server, and candidates whose calls take time.
struct World {
    now: Instant,
    lease: Option<Record>,
    versions: u64,
    candidates: Vec<Candidate>,
    /// Terms by the one who had them.
    terms: Vec<(u32, usize)>,
    /// Calls that were given up before the server acted on them, by who made them.
    late: Vec<(usize, Call)>,
}

struct Candidate {
    election: Election,
    /// A call under way: when it was asked, when the server acts, when the answer comes (never, if lost).
    call: Option<Call>,
}

struct Call {
    asked_at: Instant,
    acts_at: Instant,
    ends_at: Instant,
    is_lost: bool,
    step: Option<Step>,
    outcome: Option<Result<Option<Record>, ()>>,
}

impl World {
    fn new(candidates: usize) -> Self {
        let now = Instant::now();
        let candidates = (0..candidates)
            .map(|index| Candidate { election: Election::new(format!("c{index}"), Timing::default()), call: None });
        let candidates = candidates.collect();
        Self { now, lease: None, versions: 0, candidates, terms: Vec::new(), late: Vec::new() }
    }

    /// The server does what a call asks for, when it is time.
    fn act(&mut self, index: usize, call: &mut Call) {
        if call.outcome.is_some() || self.now < call.acts_at {
            return;
        }
        let term = match &call.step {
            None | Some(Step::Wait) => None,
            Some(Step::Create(term)) => Some((self.lease.is_none(), *term)),
            Some(Step::Replace { version, term, .. }) => {
                Some((self.lease.as_ref().is_some_and(|lease| lease.version == *version), *term))
            }
        };
        call.outcome = Some(match term {
            None => Ok(self.lease.clone()),
            Some((false, _)) => Err(()),
            Some((true, term)) => {
                self.versions += 1;
                self.terms.push((term, index));
                self.lease = Some(record(self.versions, Some(&format!("c{index}")), term));
                Ok(self.lease.clone())
            }
        });
    }

    fn finish(&mut self, index: usize) {
        let Some(mut call) = self.candidates[index].call.take() else { return };
        self.act(index, &mut call);
        let now = self.now;
        let candidate = &mut self.candidates[index];
        if now < call.ends_at {
            candidate.call = Some(call);
            return;
        }
        match (call.is_lost, &call.outcome, &call.step) {
            (_, None, _) => self.late.push((index, call)),
            (true, ..) => {}
            (_, Some(Ok(record)), None | Some(Step::Wait)) => candidate.election.observe(now, record.clone()),
            (_, Some(Ok(record)), Some(_)) => {
                let record = record.clone().expect("a write answers with a record");
                candidate.election.written(call.asked_at, now, record);
            }
            (_, Some(Err(())), _) => candidate.election.refused(),
        }
    }

    /// A quarter of a second passes.
    fn advance(&mut self) {
        self.now += Duration::from_millis(250);
        let mut late = std::mem::take(&mut self.late);
        for (index, call) in &mut late {
            self.act(*index, call);
        }
        late.retain(|(_, call)| call.outcome.is_none());
        self.late.extend(late);
        for index in 0..self.candidates.len() {
            self.finish(index);
        }
    }

    fn ask(&mut self, index: usize, (delay, rest, is_lost, reads): (u64, u64, bool, bool)) {
        let now = self.now;
        let candidate = &mut self.candidates[index];
        if candidate.call.is_some() {
            return;
        }
        let step = Some(candidate.election.step(now)).filter(|step| !reads && *step != Step::Wait);
        let acts_at = now + Duration::from_millis(delay);
        // A call is given up after a while, and may still be carried out later.
        let ends_at = (acts_at + Duration::from_millis(rest)).min(now + Timing::default().call_timeout);
        candidate.call = Some(Call { asked_at: now, acts_at, ends_at, is_lost, step, outcome: None });
    }
}

proptest! {
    #[test]
    fn never_two_at_a_time_and_terms_only_rise(
        events in proptest::collection::vec(
            (0..4_usize, (0_u64..9_000, 0_u64..3_000, prop::bool::weighted(0.2), any::<bool>()), 0_u64..2_500),
            1..300,
        ),
    ) {
        let mut world = World::new(4);
        for (index, call, pause) in events {
            world.ask(index, call);
            for _ in 0..pause.div_ceil(250) {
                world.advance();
                let holders = world.candidates.iter().filter(|each| each.election.tenure(world.now).is_some()).count();
                prop_assert!(holders <= 1, "{holders} holders");
            }
        }
        for pair in world.terms.windows(2) {
            let ((earlier, by), (later, to)) = (pair[0], pair[1]);
            prop_assert!(later >= earlier);
            prop_assert!(by == to || later > earlier, "a term has one holder");
        }
    }
}
