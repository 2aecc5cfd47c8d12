//! What happened when: counts in buckets of a tenth of a second, and what can be read off them.

use serde::Serialize;

/// Length of a bucket.
pub const BUCKET_NS: u64 = 100_000_000;
/// Buckets per second.
const BUCKETS_PER_SECOND: usize = 10;
/// Most buckets kept: three hours. What happens later counts into the last one.
const BUCKETS_MAX: usize = 3 * 3600 * BUCKETS_PER_SECOND;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// An attempt to connect began.
    Attempt,
    /// The server accepted a WebSocket handshake.
    Accepted,
    /// A connection had all its subscriptions.
    Ready,
    /// An attempt failed.
    Failed,
    /// A connection that was open ended.
    Cut,
    /// A publish was acknowledged.
    Acknowledged,
    /// A publish was refused or given up.
    PublishFailed,
}

/// One tenth of a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Bucket {
    /// See [`Event::Attempt`].
    pub attempts: u32,
    /// See [`Event::Accepted`].
    pub accepted: u32,
    /// See [`Event::Ready`].
    pub ready: u32,
    /// See [`Event::Failed`].
    pub failed: u32,
    /// See [`Event::Cut`].
    pub cut: u32,
    /// See [`Event::Acknowledged`].
    pub acknowledged: u32,
    /// See [`Event::PublishFailed`].
    pub publish_failed: u32,
    /// The fewest attempts that waited for an answer at any moment of it.
    pub in_flight_least: u32,
}

/// The buckets since an origin.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin_ns: u64,
    in_flight: u32,
    buckets: Vec<Bucket>,
}

impl Timeline {
    /// Nothing yet, from this moment of the monotonic clock on.
    pub fn new(origin_ns: u64) -> Self {
        Self { origin_ns, in_flight: 0, buckets: Vec::new() }
    }

    /// Counts one.
    pub fn count(&mut self, now_ns: u64, event: Event) {
        let bucket = self.bucket(now_ns);
        let count = match event {
            Event::Attempt => &mut bucket.attempts,
            Event::Accepted => &mut bucket.accepted,
            Event::Ready => &mut bucket.ready,
            Event::Failed => &mut bucket.failed,
            Event::Cut => &mut bucket.cut,
            Event::Acknowledged => &mut bucket.acknowledged,
            Event::PublishFailed => &mut bucket.publish_failed,
        };
        *count += 1;
    }

    /// Notes how many attempts wait for an answer from now on.
    pub fn set_in_flight(&mut self, now_ns: u64, in_flight: usize) {
        let in_flight = in_flight as u32;
        let bucket = self.bucket(now_ns);
        bucket.in_flight_least = bucket.in_flight_least.min(in_flight);
        self.in_flight = in_flight;
    }

    fn bucket(&mut self, now_ns: u64) -> &mut Bucket {
        let at = (now_ns.saturating_sub(self.origin_ns) / BUCKET_NS) as usize;
        let at = at.min(BUCKETS_MAX - 1);
        if self.buckets.len() <= at {
            // Nothing has changed in the buckets in between.
            self.buckets.resize(at + 1, Bucket { in_flight_least: self.in_flight, ..Bucket::default() });
        }
        &mut self.buckets[at]
    }

    /// Adds another worker's of the same origin. The fewest in flight add up to a lower bound.
    pub fn add(&mut self, other: &Timeline) {
        let len = self.buckets.len().max(other.buckets.len());
        let (own, others) = (self.in_flight, other.in_flight);
        self.buckets.resize(len, Bucket { in_flight_least: own, ..Bucket::default() });
        for (at, bucket) in self.buckets.iter_mut().enumerate() {
            let Some(more) = other.buckets.get(at) else {
                bucket.in_flight_least += others;
                continue;
            };
            bucket.attempts += more.attempts;
            bucket.accepted += more.accepted;
            bucket.ready += more.ready;
            bucket.failed += more.failed;
            bucket.cut += more.cut;
            bucket.acknowledged += more.acknowledged;
            bucket.publish_failed += more.publish_failed;
            bucket.in_flight_least += more.in_flight_least;
        }
        self.in_flight += others;
    }

    /// The buckets, from the one of this moment on.
    pub fn since(&self, from_ns: u64) -> &[Bucket] {
        let at = (from_ns.saturating_sub(self.origin_ns) / BUCKET_NS) as usize;
        &self.buckets[at.min(self.buckets.len())..]
    }

    /// The buckets between two moments, both included.
    pub fn between(&self, from_ns: u64, to_ns: u64) -> &[Bucket] {
        let len = (to_ns.saturating_sub(self.origin_ns) / BUCKET_NS) as usize + 1;
        let len = len.saturating_sub((from_ns.saturating_sub(self.origin_ns) / BUCKET_NS) as usize);
        let all = self.since(from_ns);
        &all[..len.min(all.len())]
    }
}

/// How fast connections were accepted, over windows of half a second.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Pace {
    /// The fastest half second, per second.
    pub peak_per_second: f64,
    /// The slowest half second in which many attempts waited all the time, per second; absent when there was none.
    pub least_under_load_per_second: Option<f64>,
    /// Half seconds with many attempts waiting all the time; they overlap.
    pub windows_under_load: usize,
}

/// Judges how a server accepted: its peak, and the least while at least `many` attempts were in flight.
pub fn pace(buckets: &[Bucket], many: u32) -> Pace {
    const WINDOW: usize = BUCKETS_PER_SECOND / 2;
    let mut pace = Pace { peak_per_second: 0.0, least_under_load_per_second: None, windows_under_load: 0 };
    for window in buckets.windows(WINDOW) {
        let accepted: u32 = window.iter().map(|bucket| bucket.accepted).sum();
        let per_second = f64::from(accepted) * BUCKETS_PER_SECOND as f64 / WINDOW as f64;
        pace.peak_per_second = pace.peak_per_second.max(per_second);
        if window.iter().all(|bucket| bucket.in_flight_least >= many) {
            let least = pace.least_under_load_per_second.get_or_insert(per_second);
            *least = least.min(per_second);
            pace.windows_under_load += 1;
        }
    }
    pace
}

/// The most of something within any `seconds` on end.
pub fn peak_within(buckets: &[Bucket], seconds: usize, of: impl Fn(&Bucket) -> u32) -> u64 {
    let len = (seconds * BUCKETS_PER_SECOND).min(buckets.len()).max(1);
    buckets.windows(len).map(|window| window.iter().map(|bucket| u64::from(of(bucket))).sum()).max().unwrap_or(0)
}

/// Sums of each whole second, the last one perhaps incomplete. Of the attempts in flight it is the fewest.
pub fn per_second(buckets: &[Bucket]) -> Vec<Bucket> {
    let sum = |second: &[Bucket]| {
        let mut sum = Bucket { in_flight_least: u32::MAX, ..Bucket::default() };
        for bucket in second {
            sum.attempts += bucket.attempts;
            sum.accepted += bucket.accepted;
            sum.ready += bucket.ready;
            sum.failed += bucket.failed;
            sum.cut += bucket.cut;
            sum.acknowledged += bucket.acknowledged;
            sum.publish_failed += bucket.publish_failed;
            sum.in_flight_least = sum.in_flight_least.min(bucket.in_flight_least);
        }
        sum
    };
    buckets.chunks(BUCKETS_PER_SECOND).map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fall_into_their_tenth_and_idle_ones_keep_what_is_in_flight() {
        let mut timeline = Timeline::new(1000);
        timeline.set_in_flight(1000, 7);
        timeline.set_in_flight(1000 + BUCKET_NS / 2, 9);
        timeline.count(1000 + 3 * BUCKET_NS, Event::Accepted);
        timeline.set_in_flight(1000 + 3 * BUCKET_NS, 4);
        let least: Vec<u32> = timeline.since(0).iter().map(|bucket| bucket.in_flight_least).collect();
        assert_eq!((least, timeline.since(0)[3].accepted), (vec![0, 9, 9, 4], 1));
        assert_eq!(timeline.since(1000 + 3 * BUCKET_NS).len(), 1);
        assert_eq!(timeline.between(1000 + BUCKET_NS, 1000 + 2 * BUCKET_NS).len(), 2);
    }

    #[test]
    fn workers_add_up_also_when_one_fell_silent_early() {
        let (mut one, mut other) = (Timeline::new(0), Timeline::new(0));
        one.set_in_flight(0, 3);
        one.count(BUCKET_NS, Event::Ready);
        other.count(0, Event::Ready);
        other.count(4 * BUCKET_NS, Event::Ready);
        one.add(&other);
        let buckets = one.since(0);
        assert_eq!(buckets.iter().map(|bucket| bucket.ready).collect::<Vec<_>>(), [1, 1, 0, 0, 1]);
        assert_eq!(buckets[4].in_flight_least, 3);
    }

    #[test]
    fn a_server_that_stops_accepting_while_many_wait_is_found() {
        let busy = |accepted| Bucket { accepted, in_flight_least: 600, ..Bucket::default() };
        let idle = |accepted| Bucket { accepted, in_flight_least: 10, ..Bucket::default() };
        let steady: Vec<Bucket> = (0..10).map(|_| busy(100)).chain((0..10).map(|_| idle(1))).collect();
        let held = pace(&steady, 500);
        assert_eq!((held.peak_per_second, held.least_under_load_per_second), (1000.0, Some(1000.0)));
        let stall: Vec<Bucket> = steady.iter().copied().chain((0..10).map(|_| busy(5))).collect();
        assert_eq!(pace(&stall, 500).least_under_load_per_second, Some(50.0));
        assert_eq!(pace(&[idle(5); 20], 500).least_under_load_per_second, None);
    }

    #[test]
    fn the_peak_is_found_wherever_it_begins() {
        let mut buckets = vec![Bucket::default(); 100];
        buckets[33..43].iter_mut().for_each(|bucket| bucket.ready = 8);
        assert_eq!(peak_within(&buckets, 5, |bucket| bucket.ready), 80);
        assert_eq!(peak_within(&buckets[..4], 5, |bucket| bucket.ready), 0);
        assert_eq!(peak_within(&[], 5, |bucket| bucket.ready), 0);
        assert_eq!(per_second(&buckets).iter().map(|second| second.ready).collect::<Vec<_>>()[3..5], [56, 24]);
    }
}
