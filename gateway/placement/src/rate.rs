//! Rates over time: a smoothed one, and whole events out of a fractional one.

use std::time::{Duration, Instant};

/// An exponentially weighted mean whose samples may come at any distance in time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Smoothed {
    value: f64,
    at: Option<Instant>,
}

impl Smoothed {
    /// Takes a sample; `per_second` is the weight of a sample that comes one second after the last one. The first
    /// sample is the mean.
    pub(crate) fn sample(&mut self, now: Instant, sample: f64, per_second: f64) -> f64 {
        match self.at {
            None => self.value = sample,
            Some(at) => {
                let kept = (1.0 - per_second).powf(now.saturating_duration_since(at).as_secs_f64());
                self.value = kept * self.value + (1.0 - kept) * sample;
            }
        }
        self.at = Some(now);
        self.value
    }
}

/// Turns a rate into whole events. What is left of one is kept for the next call; more than one event is never saved
/// up, so that nothing bursts after a pause.
#[derive(Clone, Debug)]
pub(crate) struct Paced {
    owed: f64,
    at: Option<Instant>,
}

/// A gap between two calls counts as no more than this: what was not done while nobody called is not caught up.
const GAP_MAX: Duration = Duration::from_secs(2);

impl Paced {
    /// `phase` in 0..1 is how much of the first event is owed at once; different phases keep nodes with equal rates from
    /// acting in the same moment.
    pub(crate) fn new(phase: f64) -> Self {
        Self { owed: phase.clamp(0.0, 1.0 - f64::EPSILON), at: None }
    }

    /// The events due since the last call at `rate` per second, at most `most`.
    pub(crate) fn due(&mut self, now: Instant, rate: f64, most: u64) -> u64 {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)).min(GAP_MAX);
        self.at = Some(now);
        self.owed += rate.max(0.0) * passed.as_secs_f64();
        let whole = self.owed.floor();
        self.owed -= whole;
        (whole as u64).min(most)
    }

    /// Time passes without events.
    pub(crate) fn idle(&mut self, now: Instant) {
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_depends_on_time_and_not_on_the_number_of_samples() {
        let start = Instant::now();
        let mut one = Smoothed::default();
        let mut many = Smoothed::default();
        one.sample(start, 0.0, 0.2);
        many.sample(start, 0.0, 0.2);
        for tenth in 1..=20 {
            many.sample(start + Duration::from_millis(100 * tenth), 10.0, 0.2);
        }
        let once = one.sample(start + Duration::from_secs(2), 10.0, 0.2);
        assert!((once - 3.6).abs() < 1e-9);
        assert!((many.value - once).abs() < 1e-9);
    }

    #[test]
    fn events_add_up_to_the_rate_and_a_pause_is_not_caught_up() {
        let start = Instant::now();
        let mut paced = Paced::new(0.0);
        let due: u64 = (0..=40).map(|quarter| paced.due(start + Duration::from_millis(250 * quarter), 0.7, 9)).sum();
        assert_eq!(due, 7);
        let late = start + Duration::from_secs(1000);
        assert!(paced.due(late, 0.7, 9) <= 2);
        assert_eq!(paced.due(late + Duration::from_secs(1), 1e9, 3), 3);
    }
}
