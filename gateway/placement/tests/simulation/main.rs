//! Hours of a fleet in seconds: the decisions of this crate, driven by reports that are late, through churn, faults and
//! rollouts. Everything follows from a seed that is printed; `PLACEMENT_SEED` sets another one.
//!
//! Reading order: [`scenario`], [`world`], [`route`]. The large comparison runs with `tests/run heavy placement`.

mod chart;
mod faults;
mod level;
mod properties;
mod random;
mod route;
mod scenario;
mod world;

use chart::{Run, show};
use scenario::Scenario;

fn seed() -> u64 {
    match std::env::var("PLACEMENT_SEED") {
        Ok(seed) => seed.parse().expect("PLACEMENT_SEED is a number"),
        Err(_) => 1,
    }
}

fn run(mut scenario: Scenario) -> Run {
    scenario.seed = seed();
    let started = std::time::Instant::now();
    let outcome = world::simulate(&scenario);
    let took = started.elapsed().as_secs_f64();
    show(&format!(
        "simulated {} s of {:?}, seed {}, in {took:.1} s\n",
        scenario.duration, scenario.name, scenario.seed
    ));
    (scenario, outcome)
}
