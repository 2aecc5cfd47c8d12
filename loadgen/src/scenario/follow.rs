//! Following a run from the outside: until all are connected, until all is delivered.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::client::shared::{Phase, Totals};
use crate::client::{Client, Results};
use crate::procfs::CoreTimes;
use crate::progress::{Progress, pause};
use crate::report::thousands;
use crate::sys;
use crate::usage::{ServerMeter, ServerUsage};

/// From the decision to start to the first message, so that every worker notices first.
const START_LEAD: Duration = Duration::from_millis(200);
/// How long deliveries may go on after the end of the schedule, at most.
const BACKLOG: Duration = Duration::from_secs(120);

/// Waits until every connection is open or refused, and publishers are ready.
pub fn connected(client: &Client) -> Result<Totals> {
    let plan = &client.plan;
    let connections = plan.layout.connections() as u64;
    let pace = plan.connect_rate.map_or(0.0, |rate| connections as f64 / rate);
    // The slowest server worth waiting for connects a thousand per second.
    let patience = Duration::from_secs_f64(pace + connections as f64 / 1000.0 + 60.0) + plan.connect_timeout;
    let deadline = Instant::now() + patience;
    let progress = Progress::new("connect", connections);
    loop {
        let totals = client.shared.totals();
        progress.show(totals.connected, || format!("{} refused", totals.refused));
        let publishers =
            !publishes(client) || client.shared.publishers_ready.load(std::sync::atomic::Ordering::Acquire);
        if totals.connected + totals.refused >= connections && publishers {
            return Ok(totals);
        }
        if is_broken(client) {
            return Ok(totals);
        }
        if Instant::now() > deadline {
            bail!("only {} of {connections} connections were open after {patience:?}", totals.connected);
        }
        pause();
    }
}

/// What a measured run cost and found.
pub struct Measured {
    /// What the client found.
    pub results: Results,
    /// What the server used, from before the first message until after the last delivery.
    pub server: Option<ServerUsage>,
    /// When the schedule began, if anything was delivered or published.
    pub start_ns: Option<u64>,
    /// Core times before and after.
    pub cores: (CoreTimes, CoreTimes),
}

/// Connects, runs the schedule, waits for the deliveries, and stops.
pub fn measure(client: Client, server_pid: Option<u32>) -> Result<Measured> {
    let totals = connected(&client)?;
    if totals.refused > 0 || is_broken(&client) {
        client.shared.enter(Phase::Stop);
        let results = client.finish()?;
        let reason = results.tally.refused.first().unwrap_or("no reason given").to_owned();
        bail!("{} of the connections were refused, most often: {reason}", totals.refused);
    }
    let meter = server_pid.map(ServerMeter::start).transpose()?;
    let cores = CoreTimes::now();
    if publishes(&client) {
        client.shared.set_start_ns(sys::monotonic_ns() + START_LEAD.as_nanos() as u64);
    }
    client.shared.enter(Phase::Load);
    delivered(&client);
    let server = meter.map(|meter| meter.read()).transpose()?;
    let cores = (cores, CoreTimes::now());
    client.shared.enter(Phase::Stop);
    let start_ns = client.shared.start_ns();
    Ok(Measured { results: client.finish()?, server, start_ns, cores })
}

/// Waits until everything is delivered, or nothing more comes.
fn delivered(client: &Client) {
    let expected = client.plan.deliveries();
    let schedule = Duration::from_nanos(client.plan.schedule.duration_ns());
    let deadline = Instant::now() + START_LEAD + schedule + BACKLOG;
    let progress = Progress::new("fanout", expected);
    let (mut last, mut moved) = (0, Instant::now() + START_LEAD + schedule);
    loop {
        let totals = client.shared.totals();
        progress.show(totals.delivered, || {
            format!("{} published, {} connections lost", thousands(totals.published), totals.lost)
        });
        if totals.delivered != last {
            last = totals.delivered;
            moved = moved.max(Instant::now());
        }
        let published = !publishes(client) || client.shared.published.load(std::sync::atomic::Ordering::Acquire);
        if published && totals.delivered >= expected {
            return;
        }
        let now = Instant::now();
        if is_broken(client) || now > deadline || (published && now > moved + client.plan.settle) {
            return;
        }
        pause();
    }
}

fn publishes(client: &Client) -> bool {
    use crate::client::plan::Publishing;
    matches!(client.plan.publishing, Publishing::Api { .. } | Publishing::WebSocket { .. })
}

fn is_broken(client: &Client) -> bool {
    client.shared.broken.load(std::sync::atomic::Ordering::Acquire)
}
