//! Chance, from one seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The source of chance of one simulation.
pub struct Chance(StdRng);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Even in 0..1.
    pub fn unit(&mut self) -> f64 {
        self.0.random()
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    pub fn id(&mut self) -> u128 {
        self.0.random()
    }

    /// How many events there are in a second of this many on average: counts the exponential gaps.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        let mut events = 0;
        let mut at = -(1.0 - self.unit()).ln();
        while at < mean {
            events += 1;
            at -= (1.0 - self.unit()).ln();
        }
        events
    }

    /// How many trials fail before one succeeds, each with probability `p`: the distance to the next connection that
    /// ends, when each does with this probability.
    pub fn gap(&mut self, p: f64) -> u64 {
        if p >= 1.0 {
            return 0;
        }
        ((1.0 - self.unit()).ln() / (1.0 - p).ln()) as u64
    }
}
