//! How nodes share connections: `placement`, `rebalance`, `scale_down` and `connection`.

use std::time::Duration;

use placement::breaker::BreakerSettings;
use placement::{CoordinatorSettings, ScaleDownSettings, ShedSettings};

use super::reader::Section;
use crate::placing::{PlacementSettings, RebalanceSettings};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Connections per second that one node may close at most: more is a storm, whatever the reason.
const RATE_MAX: f64 = 1000.0;

pub(super) fn rebalance(root: &mut Section<'_>) -> RebalanceSettings {
    let defaults = RebalanceSettings::default();
    let mut section = root.section("rebalance");
    let shed = ShedSettings {
        enabled: section.flag("enabled", defaults.shed.enabled),
        start: section.part("start", defaults.shed.start, 0.02..=10.0),
        stop: section.part("stop", defaults.shed.stop, 0.01..=10.0),
        rate: section.part("rate", defaults.shed.rate, 0.1..=RATE_MAX),
        spread: section.duration("spread", defaults.shed.spread, SECOND..=HOUR),
        budget: section.part("budget", defaults.shed.budget, 0.0001..=0.1),
        budget_of_spare: section.part("budget_of_spare", defaults.shed.budget_of_spare, 0.01..=1.0),
        min_age: section.duration("min_age", defaults.shed.min_age, Duration::ZERO..=24 * HOUR),
        ..defaults.shed
    };
    if shed.stop >= shed.start {
        section.problem("stop", "must be less than rebalance.start: a node would begin again as soon as it stops");
    }
    let recoverable_only = section.flag("recoverable_only", defaults.recoverable_only);
    let mut connection = root.section("connection");
    let max_age = connection.duration("max_age", Duration::ZERO, Duration::ZERO..=365 * 24 * HOUR);
    if !max_age.is_zero() && max_age < shed.min_age.max(MINUTE) {
        connection.problem("max_age", "must be 0s (off) or at least 1m and rebalance.min_age");
    }
    RebalanceSettings {
        // Slower towards the end: the aim lies below where it stops.
        shed: ShedSettings { aim: shed.stop.min(defaults.shed.aim), ..shed },
        recoverable_only,
        max_age: (!max_age.is_zero()).then_some(max_age),
    }
}

pub(super) fn read(root: &mut Section<'_>, rebalance: &RebalanceSettings) -> PlacementSettings {
    let mut section = root.section("placement");
    let (least, most) = placement::report::WEIGHT_RANGE.into_inner();
    let weight = section.part("weight", 1.0, least..=most);
    let revision = section.text("revision", "");
    if revision.len() > placement::report::REVISION_BYTES {
        section.problem("revision", format!("is longer than {} bytes", placement::report::REVISION_BYTES));
    }
    let agent_listen = section.text_opt("agent_listen").and_then(|text| match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            section.problem("agent_listen", "must be an IP address and a port, such as \"0.0.0.0:9001\"");
            None
        }
    });
    let breaker = BreakerSettings::default();
    let hold = section.duration("pause_hold", breaker.hold, SECOND..=HOUR);
    PlacementSettings {
        weight,
        revision,
        agent_listen,
        coordinator: CoordinatorSettings {
            breaker: BreakerSettings { hold, ..breaker },
            scale_down: scale_down(root),
            shed: rebalance.shed.clone(),
            ..CoordinatorSettings::default()
        },
    }
}

fn scale_down(root: &mut Section<'_>) -> ScaleDownSettings {
    let defaults = ScaleDownSettings::default();
    let mut section = root.section("scale_down");
    let target = section.count("target", 0, 0..=10_000_000);
    ScaleDownSettings {
        target: (target > 0).then_some(target as f64),
        tolerance: section.part("tolerance", defaults.tolerance, 0.0..=0.9),
        nodes_min: section.count("nodes_min", defaults.nodes_min, 1..=100_000),
        hold: section.duration("hold", defaults.hold, SECOND..=24 * HOUR),
        step: section.part("step", defaults.step, 0.001..=1.0),
    }
}
