//! Whether connections that were moved stay away. Where something in front binds clients to nodes, as an affinity cookie
//! or a hash of addresses does, whoever is told to go comes back to the node it left, and moving would go on for ever.
//!
//! So moved connections are judged in batches. When most of a batch came back, nothing is moved for a while; then it is
//! tried again with a small part of the budget, and after each trial that fails as well the pause is twice as long.

use std::time::{Duration, Instant};

/// Parameters of the judgement.
#[derive(Clone, PartialEq, Debug)]
pub struct ReturningSettings {
    /// The part of the moved connections that may come back to the node they left, besides those that chance brings back:
    /// of two nodes one gets half of them by chance.
    pub part: f64,
    /// So many moved connections are one batch. Of fewer, chance alone brings most back now and then.
    pub batch: f64,
    /// How long nothing is moved after the first batch that came back.
    pub hold: Duration,
    /// The pause doubles up to this: an operator who has taken the reason away need not wait longer.
    pub hold_max: Duration,
    /// The part of the budget for a trial after a pause.
    pub trial_budget: f64,
    /// A batch is begun anew when no connection was moved for so long: what is in front may be another thing by now.
    pub forget: Duration,
}

impl Default for ReturningSettings {
    fn default() -> Self {
        Self {
            part: 0.5,
            batch: 50.0,
            hold: Duration::from_secs(120),
            hold_max: Duration::from_secs(3600),
            trial_budget: 0.1,
            forget: Duration::from_secs(600),
        }
    }
}

/// What became of moved connections, in connections per second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Fates {
    /// Known by now.
    pub settled: f64,
    /// Of these, back on the node that they left.
    pub returned: f64,
    /// Of these, as many as would be back if new connections went to any node, by weight.
    pub by_chance: f64,
}

/// Remembers the batch under way, and how the ones before it ended.
#[derive(Clone, Debug)]
pub struct Returning {
    settings: ReturningSettings,
    looked_at: Option<Instant>,
    /// Sums over the batch, in connections.
    batch: Fates,
    /// When a fate was last learned.
    learned_at: Option<Instant>,
    paused_until: Option<Instant>,
    /// How many batches in a row came back.
    futile: u32,
}

/// A gap between two looks counts as no more than this.
const GAP_MAX: Duration = Duration::from_secs(2);

impl Returning {
    /// Nothing was moved yet.
    pub fn new(settings: ReturningSettings) -> Self {
        Self { settings, looked_at: None, batch: Fates::default(), learned_at: None, paused_until: None, futile: 0 }
    }

    /// Whether nothing is to be moved now. To be called once a second.
    pub fn tick(&mut self, now: Instant, fates: Fates) -> bool {
        let passed = self.looked_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if self.paused_until.is_some_and(|until| now < until) {
            // What was moved just before the pause belongs to the batch that has been judged.
            return true;
        }
        self.paused_until = None;
        self.learn(now, fates, passed.min(GAP_MAX).as_secs_f64());
        if self.batch.settled < self.settings.batch {
            return false;
        }
        let is_futile = self.is_futile();
        self.batch = Fates::default();
        self.futile = if is_futile { self.futile.saturating_add(1) } else { 0 };
        if is_futile {
            self.paused_until = Some(now + self.hold());
        }
        is_futile
    }

    /// The part of the budget that may be used: all of it, unless the last batch came back.
    pub fn budget(&self) -> f64 {
        if self.futile > 0 { self.settings.trial_budget } else { 1.0 }
    }

    fn learn(&mut self, now: Instant, fates: Fates, seconds: f64) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= self.settings.forget;
        if self.learned_at.is_some_and(is_old) {
            self.batch = Fates::default();
        }
        if fates.settled > 0.0 {
            self.learned_at = Some(now);
        }
        self.batch.settled += fates.settled * seconds;
        self.batch.returned += fates.returned * seconds;
        self.batch.by_chance += fates.by_chance * seconds;
    }

    fn is_futile(&self) -> bool {
        let Fates { settled, returned, by_chance } = self.batch;
        returned - by_chance > self.settings.part * (settled - by_chance)
    }

    fn hold(&self) -> Duration {
        let doubled = 2u32.saturating_pow(self.futile.saturating_sub(1).min(16));
        self.settings.hold.saturating_mul(doubled).min(self.settings.hold_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// Ten connections a second learn their fate, unless it is paused; the seconds in which it is.
    fn pauses(returned: f64, by_chance: f64, seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut returning = Returning::new(ReturningSettings::default());
        let mut is_paused = false;
        (0..seconds)
            .filter(|number| {
                let rate = if is_paused { 0.0 } else { 10.0 };
                let fates = Fates { settled: rate, returned: returned * rate, by_chance: by_chance * rate };
                is_paused = returning.tick(start + second(*number), fates);
                is_paused
            })
            .collect()
    }

    #[test]
    fn moving_stops_when_most_of_a_batch_came_back() {
        assert!(pauses(0.0, 0.1, 100).is_empty());
        assert!(pauses(0.5, 0.1, 100).is_empty());
        assert_eq!(pauses(1.0, 0.1, 100), (5..100).collect::<Vec<_>>());
        assert_eq!(pauses(0.6, 0.1, 100), (5..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_chance_brings_back_is_no_reason() {
        // Of two nodes one gets every other connection.
        assert!(pauses(0.7, 0.5, 100).is_empty());
        assert_eq!(pauses(0.8, 0.5, 10), [5, 6, 7, 8, 9]);
        // A node alone gets all of them back.
        assert!(pauses(1.0, 1.0, 100).is_empty());
    }

    #[test]
    fn each_trial_that_fails_is_followed_by_a_longer_pause() {
        let paused = pauses(1.0, 0.1, 100_000);
        let begins: Vec<u64> = paused
            .iter()
            .enumerate()
            .filter(|(at, now)| *at == 0 || paused[at - 1] + 1 != **now)
            .map(|(_, now)| *now)
            .collect();
        let distances: Vec<u64> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // Each trial takes some seconds.
        let wanted = [120, 240, 480, 960, 1920, 3600, 3600];
        for (distance, pause) in distances.iter().zip(wanted) {
            assert!((pause..pause + 10).contains(distance), "{distances:?}");
        }
    }

    #[test]
    fn a_trial_has_a_part_of_the_budget_until_one_succeeds() {
        let start = Instant::now();
        let mut returning = Returning::new(ReturningSettings::default());
        let come_back = Fates { settled: 50.0, returned: 50.0, by_chance: 5.0 };
        let stay_away = Fates { returned: 0.0, ..come_back };
        assert!(!returning.tick(start, come_back), "no time has passed");
        assert_eq!(returning.budget(), 1.0);
        assert!(returning.tick(start + second(1), come_back));
        assert_eq!(returning.budget(), 0.1);
        assert!(returning.tick(start + second(120), stay_away), "that was moved before");
        assert!(!returning.tick(start + second(121), stay_away));
        assert_eq!(returning.budget(), 1.0);
    }

    #[test]
    fn an_unfinished_batch_is_forgotten() {
        let start = Instant::now();
        let mut returning = Returning::new(ReturningSettings::default());
        let most = Fates { settled: 40.0, returned: 40.0, by_chance: 0.0 };
        returning.tick(start, Fates::default());
        assert!(!returning.tick(start + second(1), most));
        assert!(!returning.tick(start + second(600), Fates::default()));
        assert!(!returning.tick(start + second(601), most), "a batch of its own");
        assert!(returning.tick(start + second(602), most));
    }
}
