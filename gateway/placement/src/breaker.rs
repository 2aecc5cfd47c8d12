//! The circuit breaker of the fleet: moving connections stops when the moves, or anything else, hurt.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::digest::Pause;

/// Parameters of the circuit breaker.
#[derive(Clone, PartialEq, Debug)]
pub struct BreakerSettings {
    /// The part of connects that may be refused or fail: one in ten means that nodes are at their limits.
    pub refused: f64,
    /// Fewer refusals per second than this are no sign of anything.
    pub refused_least: f64,
    /// The part of the accept capacity that may be in use.
    pub busy: f64,
    /// Connects per second, without those of connections that were moved, as a part of all connections: 1 % is what
    /// lifetimes under two minutes bring, or a proxy that restarts; either way nothing has to be moved.
    pub surge: f64,
    /// Fewer connects per second than this are no surge.
    pub surge_least: f64,
    /// The part of moved connections that may be missing.
    pub missing: f64,
    /// Fewer moved connections than this say nothing, since others come and go.
    pub missing_least: f64,
    /// The same as a part of all connections, if that is more. A fleet whose clients go home loses some 1 % in two
    /// minutes.
    pub missing_least_part: f64,
    /// How long a client may be away: the SDKs' first attempts, a report and a digest. What was moved since does not
    /// count.
    pub return_time: Duration,
    /// Over which time what was moved is compared with what is there.
    pub window: Duration,
    /// How long moving stays off after the last sign: long enough for clients with back-off to be back.
    pub hold: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            refused: 0.10,
            refused_least: 1.0,
            busy: 0.5,
            surge: 0.01,
            surge_least: 5.0,
            missing: 0.5,
            missing_least: 50.0,
            missing_least_part: 0.01,
            return_time: Duration::from_secs(8),
            window: Duration::from_secs(60),
            hold: Duration::from_secs(30),
        }
    }
}

/// The fleet at one moment, in connections and connections per second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Vitals {
    /// All connections.
    pub connections: u64,
    /// Accepted, smoothed.
    pub arrivals: f64,
    /// Refused or failed, smoothed.
    pub refused: f64,
    /// Closed to be moved, smoothed.
    pub moved: f64,
    /// The same, not smoothed.
    pub moved_now: f64,
    /// What could be accepted besides; nothing if unknown.
    pub spare: Option<f64>,
}

/// Remembers what went wrong, and for how long that counts.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    tripped: Vec<(Pause, Instant)>,
    history: VecDeque<Moment>,
    moved_total: f64,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    connections: f64,
    moved_total: f64,
}

impl Breaker {
    /// Nothing has gone wrong yet.
    pub fn new(settings: BreakerSettings) -> Self {
        Self { settings, tripped: Vec::new(), history: VecDeque::new(), moved_total: 0.0 }
    }

    /// The reasons not to move anything now, in ascending order. To be called once a second.
    pub fn tick(&mut self, now: Instant, vitals: &Vitals) -> Vec<Pause> {
        let signs = [
            (Pause::Refusals, self.is_refusing(vitals)),
            (Pause::Busy, self.is_busy(vitals)),
            (Pause::NotReturning, self.is_losing(now, vitals)),
        ];
        for (pause, _) in signs.into_iter().filter(|(_, shows)| *shows) {
            self.tripped.retain(|(tripped, _)| *tripped != pause);
            self.tripped.push((pause, now));
        }
        let hold = self.settings.hold;
        self.tripped.retain(|(_, at)| now.saturating_duration_since(*at) < hold);
        let mut pauses: Vec<_> = self.tripped.iter().map(|(pause, _)| *pause).collect();
        pauses.sort_unstable();
        pauses
    }

    fn is_refusing(&self, vitals: &Vitals) -> bool {
        vitals.refused > self.settings.refused_least
            && vitals.refused > self.settings.refused * (vitals.refused + vitals.arrivals)
    }

    fn is_busy(&self, vitals: &Vitals) -> bool {
        let own_doing = vitals.arrivals - vitals.moved;
        let limit = self.settings.surge_least.max(self.settings.surge * vitals.connections as f64);
        let is_full =
            vitals.spare.is_some_and(|spare| vitals.arrivals > self.settings.busy * (vitals.arrivals + spare));
        is_full || own_doing > limit
    }

    /// Whether half of what was moved, and should be back, is not.
    fn is_losing(&mut self, now: Instant, vitals: &Vitals) -> bool {
        let settings = &self.settings;
        if let Some(last) = self.history.back() {
            let passed = now.saturating_duration_since(last.at).min(Duration::from_secs(2));
            self.moved_total += vitals.moved_now * passed.as_secs_f64();
        }
        let connections = vitals.connections as f64;
        self.history.push_back(Moment { at: now, connections, moved_total: self.moved_total });
        while self.history.front().is_some_and(|first| now.saturating_duration_since(first.at) > settings.window) {
            self.history.pop_front();
        }
        let moved_since = |moment: &Moment| self.moved_total - moment.moved_total;
        let is_due = |moment: &&Moment| now.saturating_duration_since(moment.at) >= settings.return_time;
        let (Some(first), Some(due)) = (self.history.front(), self.history.iter().rev().find(is_due)) else {
            return false;
        };
        let under_way = moved_since(due);
        let moved = moved_since(first) - under_way;
        let missing = first.connections - connections - under_way;
        let least = settings.missing_least.max(settings.missing_least_part * connections);
        moved >= least && missing > settings.missing * moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calm() -> Vitals {
        Vitals { connections: 10_000, arrivals: 20.0, spare: Some(4000.0), ..Vitals::default() }
    }

    fn one(vitals: Vitals) -> Vec<Pause> {
        Breaker::new(BreakerSettings::default()).tick(Instant::now(), &vitals)
    }

    #[test]
    fn each_sign_has_its_threshold() {
        assert_eq!(one(calm()), []);
        assert_eq!(one(Vitals { refused: 2.1, ..calm() }), []);
        assert_eq!(one(Vitals { refused: 2.3, ..calm() }), [Pause::Refusals]);
        assert_eq!(one(Vitals { refused: 1.0, arrivals: 0.0, ..calm() }), []);
        assert_eq!(one(Vitals { spare: Some(21.0), ..calm() }), []);
        assert_eq!(one(Vitals { spare: Some(19.0), ..calm() }), [Pause::Busy]);
        assert_eq!(one(Vitals { spare: None, ..calm() }), []);
        assert_eq!(one(Vitals { arrivals: 101.0, ..calm() }), [Pause::Busy]);
        assert_eq!(one(Vitals { arrivals: 130.0, moved: 40.0, ..calm() }), []);
        assert_eq!(one(Vitals { connections: 10, arrivals: 4.0, ..calm() }), []);
    }

    #[test]
    fn it_stays_open_for_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(BreakerSettings::default());
        assert_eq!(breaker.tick(at(0), &Vitals { refused: 50.0, ..calm() }), [Pause::Refusals]);
        assert_eq!(breaker.tick(at(10), &Vitals { arrivals: 500.0, ..calm() }), [Pause::Refusals, Pause::Busy]);
        assert_eq!(breaker.tick(at(29), &calm()), [Pause::Refusals, Pause::Busy]);
        assert_eq!(breaker.tick(at(30), &calm()), [Pause::Busy]);
        assert_eq!(breaker.tick(at(40), &calm()), []);
    }

    /// Connections at 40 moved per second of which `returning` come back.
    fn moving(returning: f64) -> Option<u64> {
        let start = Instant::now();
        let mut breaker = Breaker::new(BreakerSettings::default());
        (0..120).find(|&second| {
            let away = 40.0 * (1.0 - returning) * second as f64 + 40.0 * (second as f64).min(2.5);
            let connections = 10_000 - away as u64;
            let vitals = Vitals { connections, moved: 40.0, moved_now: 40.0, ..calm() };
            breaker.tick(start + Duration::from_secs(second), &vitals).contains(&Pause::NotReturning)
        })
    }

    #[test]
    fn moving_stops_when_the_moved_do_not_come_back() {
        assert_eq!(moving(1.0), None);
        assert_eq!(moving(0.6), None);
        let noticed = moving(0.0).expect("it is noticed");
        assert!(noticed <= 12, "after {noticed} s");
    }
}
