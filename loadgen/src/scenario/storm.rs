//! `loadgen storm`: many clients lose their connection at the same moment and come back as SDKs do.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::course::{Check, Course, CourseFigures, check_rows};
use super::fanout::PublishingOptions;
use super::fleet::FleetOptions;
use super::options::{ClientOptions, percent, seconds};
use super::population::PopulationOptions;
use crate::client::plan::{DropHow, Drops};
use crate::html::Plot;
use crate::procfs;
use crate::report::{Figures, Report};
use crate::sys;
use crate::timeline::{Bucket, Pace, pace, peak_within};

/// Drop many connections at once, and measure how all come back
#[derive(Args, Clone, Debug)]
pub struct StormOptions {
    #[command(flatten)]
    /// The nodes.
    pub fleet: FleetOptions,
    #[command(flatten)]
    /// How the client behaves.
    pub client: ClientOptions,
    #[command(flatten)]
    /// Who is connected.
    pub population: PopulationOptions,
    #[command(flatten)]
    /// Who publishes.
    pub publishing: PublishingOptions,
    /// Share of the connections dropped at once, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, value_parser = percent)]
    pub drop: f64,
    /// How they are dropped
    #[arg(long, value_enum, default_value_t)]
    pub by: By,
    /// Seconds of load before that
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub steady: f64,
    /// Seconds after which clients that are not back count as missing
    #[arg(long, value_name = "SECS", default_value_t = 120.0, value_parser = seconds)]
    pub patience: f64,
    /// Seconds after the last client was back until memory is read again
    #[arg(long, value_name = "SECS", default_value_t = 60.0, value_parser = seconds)]
    pub after: f64,
    /// So many attempts in flight are many: meanwhile the server must accept at half of its peak
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub in_flight: u32,
    /// How far memory may be from before, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 15.0, value_parser = percent)]
    pub memory_within: f64,
    /// Process whose memory is read; that of --gateway-cmd when absent
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

/// How a client drops its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum By {
    /// TCP reset, as when a network is gone
    #[default]
    Reset,
    /// Close frame
    Close,
    /// One or the other, by chance
    Either,
}

impl From<By> for DropHow {
    fn from(by: By) -> Self {
        match by {
            By::Reset => Self::Reset,
            By::Close => Self::CloseFrame,
            By::Either => Self::Either,
        }
    }
}

/// Resident memory of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StormMemory {
    /// Before the drop, with all clients connected.
    pub before_bytes: u64,
    /// The most seen from the drop until all were back.
    pub peak_bytes: u64,
    /// After the wait.
    pub after_bytes: u64,
}

/// What `loadgen storm` found.
#[derive(Clone, Debug, Serialize)]
pub struct StormResult {
    /// Connections dropped.
    pub dropped: u64,
    /// Seconds from the drop until all clients had all their subscriptions; absent when they did not.
    pub all_back_seconds: Option<f64>,
    /// How the server accepted.
    pub accepts: Pace,
    /// The most attempts that were in flight for a tenth of a second.
    pub in_flight_most: u32,
    /// The most accepts within one second.
    pub accepts_in_a_second: u64,
    /// Every tenth of a second from the drop until all were back.
    pub tenths_of_the_storm: Vec<Bucket>,
    /// Memory of the server, where its process is known.
    pub memory: Option<StormMemory>,
    /// What was demanded.
    pub checks: Vec<Check>,
    /// What all such scenarios report.
    #[serde(flatten)]
    pub course: CourseFigures,
}

/// Runs the scenario.
pub fn run(options: &StormOptions) -> Result<Report<StormResult>> {
    let StormOptions { client, population, publishing, .. } = options;
    let fleet = options.fleet.open(client, publishing.api_key.as_deref())?;
    let pid = match (options.server_pid, &fleet.nodes[..]) {
        (Some(pid), _) => Some(pid),
        (None, [node]) => node.control.as_ref().map(|control| control.pid()).transpose()?,
        (None, _) => None,
    };
    let mut plan = population.plan(client, publishing, fleet.targets())?;
    plan.drops = Drops { how: options.by.into(), share_at_once: options.drop / 100.0, per_second: 0.0 };
    let threads = plan.threads as u64;
    let course = Course::begin(plan, fleet.health())?;
    course.run_for(Duration::from_secs_f64(options.steady));
    let resident = || -> Result<u64> {
        pid.map_or(Ok(0), |pid| procfs::resident_bytes(pid).with_context(|| format!("the server {pid} is gone")))
    };
    let mut memory = StormMemory { before_bytes: resident()?, ..StormMemory::default() };
    memory.peak_bytes = memory.before_bytes;
    course.watch_presence();
    let dropped_at_ns = course.drop_now();
    // Each worker rounds its share for itself.
    let wanted = (f64::from(population.clients) * options.drop / 100.0) as u64;
    let mut back_at_ns = None;
    course.wait(Duration::from_secs_f64(options.patience), |totals| {
        memory.peak_bytes = memory.peak_bytes.max(resident().unwrap_or(0));
        let is_back = totals.cut + threads >= wanted && totals.cut > 0 && course.is_whole(totals);
        back_at_ns = is_back.then(sys::monotonic_ns);
        is_back
    });
    course.run_for(Duration::from_secs_f64(options.after));
    memory.after_bytes = resident()?;
    let dropped = course.totals().cut;
    let finished = course.finish()?;
    if dropped == 0 {
        bail!("no connection was dropped: --drop {} of {} clients", options.drop, population.clients);
    }
    let buckets = finished.timeline().between(dropped_at_ns, back_at_ns.unwrap_or(u64::MAX));
    let accepts = pace(buckets, options.in_flight);
    let all_back_seconds = back_at_ns.map(|back| back.saturating_sub(dropped_at_ns) as f64 / 1e9);
    let memory = pid.map(|_| memory);
    let checks = [
        Some(Check {
            name: "all clients back",
            depends_on_time: true,
            holds: back_at_ns.is_some(),
            detail: all_back_seconds.map_or("no".to_owned(), |seconds| format!("after {seconds:.2} s")),
        }),
        accepts.least_under_load_per_second.map(|least| Check {
            name: "accepts under load",
            depends_on_time: true,
            holds: least * 2.0 >= accepts.peak_per_second,
            detail: format!("at least {least:.0} of {:.0} a second", accepts.peak_per_second),
        }),
        memory.map(|memory| check_memory(memory, options.memory_within)),
    ];
    let checks: Vec<Check> = checks.into_iter().flatten().collect();
    let result = StormResult {
        dropped,
        all_back_seconds,
        accepts,
        in_flight_most: buckets.iter().map(|bucket| bucket.in_flight_least).max().unwrap_or(0),
        accepts_in_a_second: peak_within(buckets, 1, |bucket| bucket.accepted),
        tenths_of_the_storm: buckets.to_vec(),
        memory,
        checks,
        course: finished.figures,
    };
    Ok(Report::new("storm", result.course.verdict(&result.checks), result))
}

fn check_memory(memory: StormMemory, within_percent: f64) -> Check {
    let StormMemory { before_bytes, after_bytes, .. } = memory;
    let growth = (after_bytes as f64 / before_bytes.max(1) as f64 - 1.0) * 100.0;
    Check {
        name: "memory returns",
        depends_on_time: false,
        holds: growth <= within_percent,
        detail: format!("{growth:+.1} %, at most {within_percent} are allowed"),
    }
}

impl Figures for StormResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut rows = vec![
            ("dropped at once".to_owned(), crate::report::thousands(self.dropped)),
            ("all back after".to_owned(), self.all_back_seconds.map_or("never".to_owned(), |s| format!("{s:.2} s"))),
            ("accepts".to_owned(), {
                let (peak, most) = (self.accepts.peak_per_second, self.in_flight_most);
                let windows = self.accepts.windows_under_load;
                format!("peak {peak:.0} a second; {most} attempts in flight; {windows} half seconds under load")
            }),
        ];
        if let Some(StormMemory { before_bytes, peak_bytes, after_bytes }) = self.memory {
            let (before, peak, after) = (mib(before_bytes), mib(peak_bytes), mib(after_bytes));
            rows.push(("server memory".to_owned(), format!("{before:.1} MiB, peak {peak:.1}, then {after:.1}")));
        }
        rows.extend(check_rows(&self.checks));
        rows.extend(self.course.rows());
        rows
    }

    fn plots(&self) -> Vec<Plot> {
        self.course.plots()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_shrink_but_not_grow_beyond_the_limit() {
        let memory = |after_bytes| StormMemory { before_bytes: 1000, peak_bytes: 5000, after_bytes };
        assert!(check_memory(memory(1150), 15.0).holds && check_memory(memory(400), 15.0).holds);
        assert!(!check_memory(memory(1151), 15.0).holds);
    }
}
