//! A token bucket with a start-up ramp, as a pure function of the time since the start.

use std::time::Duration;

/// What a shard takes at the very beginning of its ramp, in parts of its rate.
const RAMP_FROM: f64 = 0.1;

/// How much of a second's rate may come at once. A quarter: a burst that is over before others wait noticeably.
const BURST_SECONDS: f64 = 0.25;

/// The least burst, so that low rates can be used at all.
const BURST_MIN: f64 = 10.0;

/// A token bucket whose rate grows from a tenth to the whole during its first seconds.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: f64,
    ramp: Duration,
    tokens: f64,
    /// When the tokens were last counted, since the start.
    at: Duration,
}

impl Bucket {
    /// A full one of so many a second; 0 lets everything through.
    pub fn new(rate: u32, ramp: Duration) -> Self {
        let rate = f64::from(rate);
        Self { rate, ramp, tokens: burst(rate), at: Duration::ZERO }
    }

    /// Whether one more may pass, so long after the start.
    pub fn take(&mut self, since_start: Duration) -> bool {
        if self.rate == 0.0 {
            return true;
        }
        let earned = self.earned(since_start) - self.earned(self.at);
        self.at = self.at.max(since_start);
        self.tokens = (self.tokens + earned.max(0.0)).min(burst(self.rate));
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }

    /// What would have been earned from the start until then: the area below the ramp, then below the whole rate.
    fn earned(&self, until: Duration) -> f64 {
        let (ramp, until) = (self.ramp.as_secs_f64(), until.as_secs_f64());
        let within = until.min(ramp);
        let slope = if ramp > 0.0 { (1.0 - RAMP_FROM) / ramp } else { 0.0 };
        self.rate * (within * (RAMP_FROM + slope * within / 2.0) + (until - within))
    }
}

fn burst(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(BURST_MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// How many of the requests at these moments pass.
    fn passed(bucket: &mut Bucket, moments: impl IntoIterator<Item = u64>) -> usize {
        moments.into_iter().filter(|at| bucket.take(millis(*at))).count()
    }

    #[test]
    fn the_rate_grows_to_its_whole() {
        let mut bucket = Bucket::new(1_000, Duration::from_secs(5));
        let second = |n: u64| (n * 1_000..(n + 1) * 1_000).flat_map(|at| [at; 4]);
        // A full bucket of 250, then 10 to 28 % of the rate, and so on.
        assert_eq!(passed(&mut bucket, second(0)), 250 + 190 - 1);
        let later: Vec<usize> = (1..7).map(|n| passed(&mut bucket, second(n))).collect();
        for (passed, expected) in later.iter().zip([370, 550, 730, 910, 1_000, 1_000]) {
            assert!(passed.abs_diff(expected) <= 1, "{later:?}");
        }
    }

    #[test]
    fn without_a_rate_everything_passes() {
        assert_eq!(passed(&mut Bucket::new(0, Duration::ZERO), [0; 10_000]), 10_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whenever requests come, no more pass than a burst and what the rate earns, also when the clock stands still.
        #[test]
        fn the_rate_is_never_exceeded(
            rate in 1..3_000_u32,
            ramp in 0..6_000_u64,
            mut moments in prop::collection::vec(0..20_000_u64, 1..2_000),
        ) {
            moments.sort_unstable();
            let end = moments.last().copied().unwrap_or_default();
            let mut bucket = Bucket::new(rate, millis(ramp));
            let most = burst(f64::from(rate)) + f64::from(rate) * end as f64 / 1e3;
            prop_assert!(passed(&mut bucket, moments) as f64 <= most + 1e-6);
        }
    }
}
