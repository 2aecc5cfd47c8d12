//! The course of a scenario that breaks things: all clients connect, the load runs, something is broken, all come back,
//! the load ends, the books are closed. And the figures that all such scenarios report.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::follow;
use super::health::{Health, HealthWatch};
use crate::audit::Findings;
use crate::client::plan::Plan;
use crate::client::shared::{Phase, Totals};
use crate::client::{Client, Results};
use crate::html::Plot;
use crate::procfs::CoreTimes;
use crate::progress::{Progress, pause};
use crate::report::{Quantiles, Verdict, reasons, thousands};
use crate::sys;
use crate::timeline::{Bucket, Timeline, per_second};
use crate::usage::ClientUsage;

/// From the decision to start to the first message, so that every worker notices first.
const START_LEAD: Duration = Duration::from_millis(200);
/// How long answers to the last publishes may take, and deliveries after them.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// A run on its way.
pub struct Course {
    client: Client,
    cores: CoreTimes,
    progress: Progress,
    _watch: HealthWatch,
}

impl Course {
    /// Connects all clients and starts the load. `health` is where each node is asked whether it takes connections.
    pub fn begin(plan: Plan, health: Vec<Health>) -> Result<Self> {
        let watch = HealthWatch::start(plan.nodes.clone(), health)?;
        let client = Client::start(plan)?;
        let totals = follow::connected(&client)?;
        if totals.refused > 0 || client.shared.broken.load(Ordering::Acquire) {
            client.shared.enter(Phase::Stop);
            let results = client.finish()?;
            let reason = results.tally.refused.first().unwrap_or("no reason given").to_owned();
            bail!("{} of the connections were refused, most often: {reason}", totals.refused);
        }
        let cores = CoreTimes::now();
        client.shared.set_start_ns(sys::monotonic_ns() + START_LEAD.as_nanos() as u64);
        client.shared.enter(Phase::Load);
        let progress = Progress::new("clients", client.plan.layout.connections() as u64);
        Ok(Self { client, cores, progress, _watch: watch })
    }

    /// What is done.
    pub fn plan(&self) -> &Plan {
        &self.client.plan
    }

    /// How far it is.
    pub fn totals(&self) -> Totals {
        self.client.shared.totals()
    }

    /// Something is about to be broken: from now on join and leave events count.
    pub fn watch_presence(&self) {
        self.client.shared.watching_presence.store(true, Ordering::Release);
    }

    /// Has the plan's share of the connections dropped now; returns the moment.
    pub fn drop_now(&self) -> u64 {
        let now = sys::monotonic_ns();
        self.client.shared.drop_at(now);
        now
    }

    /// Starts or ends steady drops.
    pub fn drop_steadily(&self, drop: bool) {
        self.client.shared.dropping.store(drop, Ordering::Release);
    }

    /// Looks until `done` says so. Says whether it did before patience ended or the run broke off.
    pub fn wait(&self, patience: Duration, mut done: impl FnMut(&Totals) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let totals = self.totals();
            self.progress.show(totals.live, || {
                format!("{} published, {} delivered", thousands(totals.published), thousands(totals.delivered))
            });
            if done(&totals) {
                return true;
            }
            if Instant::now() > deadline || self.client.shared.broken.load(Ordering::Acquire) {
                return false;
            }
            pause();
        }
    }

    /// Lets the load run for a while.
    pub fn run_for(&self, time: Duration) {
        self.wait(time, |_| false);
    }

    /// Everybody is connected who is to be.
    pub fn is_whole(&self, totals: &Totals) -> bool {
        totals.live + totals.away + totals.lost >= self.client.plan.layout.connections() as u64
    }

    /// Ends the load, waits for what is under way, and closes the books.
    pub fn finish(self) -> Result<Finished> {
        let shared = self.client.shared.clone();
        let stopped_ns = sys::monotonic_ns();
        shared.stop_publishing();
        self.wait(END_PATIENCE, |_| shared.published.load(Ordering::Acquire));
        let settle = self.client.plan.settle;
        let (mut last, mut moved) = (self.totals(), Instant::now());
        self.wait(END_PATIENCE, |totals| {
            if totals.delivered != last.delivered || !self.is_whole(totals) {
                (last, moved) = (*totals, Instant::now());
            }
            moved.elapsed() > settle
        });
        let cores = (self.cores, CoreTimes::now());
        shared.enter(Phase::Stop);
        let plan = self.client.plan.clone();
        let start_ns = shared.start_ns().unwrap_or(stopped_ns);
        let totals = self.client.shared.totals();
        let results = self.client.finish()?;
        let clients = plan.layout.connections() as u64;
        let not_back = clients.saturating_sub(totals.live + totals.away + totals.lost);
        let figures = CourseFigures::new(&plan, &results, not_back, (start_ns, stopped_ns), &cores);
        Ok(Finished { figures, results, start_ns })
    }
}

/// What came out of a course.
pub struct Finished {
    /// For the report.
    pub figures: CourseFigures,
    /// In full.
    pub results: Results,
    /// When the load began.
    pub start_ns: u64,
}

impl Finished {
    /// What happened when.
    pub fn timeline(&self) -> &Timeline {
        &self.results.tally.timeline
    }
}

/// Something a scenario demands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// It is so.
    pub holds: bool,
    /// It is a matter of time, so a client that was too busy cannot judge it.
    pub depends_on_time: bool,
    /// The figures it was judged by.
    pub detail: String,
}

/// What every scenario that breaks things reports.
#[derive(Clone, Debug, Serialize)]
pub struct CourseFigures {
    /// Clients.
    pub clients: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Channels.
    pub channels: u64,
    /// Seconds of load.
    pub seconds: f64,
    /// Messages per second by the schedule.
    pub offered_per_second: f64,
    /// Messages due.
    pub messages: u64,
    /// Those whose publish was acknowledged.
    pub acknowledged: u64,
    /// Those whose publish was refused or not answered.
    pub failed: u64,
    /// Those that were not sent, because the server did not keep up.
    pub unsent: u64,
    /// Why publishes failed.
    pub failures: BTreeMap<String, u64>,
    /// From the intended send time to the delivery, recovered ones included.
    pub latency: Quantiles,
    /// From the intended send time to the answer to the publish.
    pub acknowledgement: Quantiles,
    /// The audit.
    pub audit: Findings,
    /// Broken promises in all.
    pub violations: u64,
    /// Why connections that were up ended, and subscriptions were taken away.
    pub cuts: BTreeMap<String, u64>,
    /// Why attempts to connect or subscribe failed; they were repeated.
    pub failed_attempts: BTreeMap<String, u64>,
    /// Clients and subscriptions that were ended for good, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Clients that were not connected at the end although they were to be.
    pub not_back: u64,
    /// Times a client came back.
    pub resumed: u64,
    /// Subscriptions that recovered.
    pub recovered: u64,
    /// Subscriptions that wanted to recover and were told that they could not.
    pub not_recovered: u64,
    /// Client ids kept across a cut.
    pub client_ids_kept: u64,
    /// Client ids that changed.
    pub client_ids_changed: u64,
    /// From the first attempt after a cut to the connect reply.
    pub attempt_to_connect: Quantiles,
    /// From the cut to the connect reply.
    pub cut_to_connect: Quantiles,
    /// From the cut to the last subscribe reply.
    pub cut_to_live: Quantiles,
    /// Join pushes seen.
    pub joins: u64,
    /// Leave pushes seen.
    pub leaves: u64,
    /// Join and leave pushes per channel that had any.
    pub presence: BTreeMap<String, (u64, u64)>,
    /// Join or leave pushes that said the same of a client as the one before.
    pub presence_repeated: u64,
    /// The client while the load ran.
    pub client: ClientUsage,
    /// The client was too busy.
    pub void: bool,
    /// What happened in each second of the run.
    pub seconds_of_the_run: Vec<Bucket>,
}

impl CourseFigures {
    fn new(
        plan: &Plan,
        results: &Results,
        not_back: u64,
        (start_ns, stopped_ns): (u64, u64),
        cores: &(CoreTimes, CoreTimes),
    ) -> Self {
        let tally = &results.tally;
        let ran_ns = stopped_ns.saturating_sub(start_ns);
        let due = ((ran_ns as f64 * plan.schedule.rate / 1e9) as u64).min(plan.schedule.total);
        // The last one may have been sent at the very moment.
        let due = due.max(results.acknowledged + results.failed);
        let (joins, leaves) = results.presence.totals();
        let client = ClientUsage::new(&results.busy, &cores.0, &cores.1);
        let named = |(channel, counts): (&u32, &(u64, u64))| (plan.channels[*channel as usize].clone(), *counts);
        Self {
            clients: plan.layout.connections() as u64,
            subscriptions: plan.layout.subscriptions() as u64,
            channels: plan.channels.len() as u64,
            seconds: ran_ns as f64 / 1e9,
            offered_per_second: plan.schedule.rate,
            messages: due,
            acknowledged: results.acknowledged,
            failed: results.failed,
            unsent: due - results.acknowledged - results.failed,
            failures: results.failures.clone().into_map(),
            latency: Quantiles::of(&tally.latency_us),
            acknowledgement: Quantiles::of(&results.ack_us),
            audit: results.findings,
            violations: results.findings.violations(),
            cuts: tally.cuts.clone().into_map(),
            failed_attempts: tally.failed_attempts.clone().into_map(),
            lost: tally.lost.clone().into_map(),
            not_back,
            resumed: tally.resumed,
            recovered: tally.recovered,
            not_recovered: tally.not_recovered,
            client_ids_kept: tally.client_kept,
            client_ids_changed: tally.client_changed,
            attempt_to_connect: Quantiles::of(&tally.reconnect_us),
            cut_to_connect: Quantiles::of(&tally.cut_to_connect_us),
            cut_to_live: Quantiles::of(&tally.cut_to_live_us),
            joins,
            leaves,
            presence: results.presence.counts.iter().map(named).collect(),
            presence_repeated: results.presence.repeated,
            void: client.is_void(),
            client,
            seconds_of_the_run: per_second(tally.timeline.since(start_ns)),
        }
    }

    /// The verdict on the run: a demand that is not met counts like a broken promise, or like a failure if it is a matter of
    /// time, of which a void run says nothing.
    pub fn verdict(&self, checks: &[Check]) -> Verdict {
        let unmet =
            |timely: bool| checks.iter().filter(|check| !check.holds && check.depends_on_time == timely).count() as u64;
        let failures = self.not_back + self.lost.values().sum::<u64>() + unmet(true);
        Verdict::new(self.violations + unmet(false), self.void, failures)
    }

    /// The rows of the table.
    pub fn rows(&self) -> Vec<(String, String)> {
        let audit = &self.audit;
        let mut rows = vec![
            ("clients", {
                let (clients, subscriptions) = (thousands(self.clients), thousands(self.subscriptions));
                format!("{clients} with {subscriptions} subscriptions to {} channels", thousands(self.channels))
            }),
            ("messages", {
                let (messages, rate) = (thousands(self.messages), self.offered_per_second);
                let (acknowledged, failed) = (thousands(self.acknowledged), self.failed);
                let (seconds, unsent) = (self.seconds, self.unsent);
                format!(
                    "{messages} at {rate}/s in {seconds:.0} s: {acknowledged} acknowledged, {failed} failed, {unsent} unsent"
                )
            }),
            ("deliveries", {
                let (delivered, expected) = (thousands(audit.delivered), thousands(audit.expected));
                format!("{delivered} of {expected}, {} late", thousands(audit.late))
            }),
            ("latency", self.latency.line()),
            ("acknowledgement", self.acknowledgement.line()),
            ("came back", {
                let (resumed, recovered, not) = (self.resumed, self.recovered, self.not_recovered);
                let (resumed, recovered) = (thousands(resumed), thousands(recovered));
                format!("{resumed} times; {recovered} subscriptions recovered, {not} told that they could not")
            }),
            ("attempt to connect reply", self.attempt_to_connect.line()),
            ("cut to connect reply", self.cut_to_connect.line()),
            ("cut to all subscriptions", self.cut_to_live.line()),
            ("client ids", {
                let (kept, changed) = (thousands(self.client_ids_kept), thousands(self.client_ids_changed));
                format!("{kept} kept, {changed} changed")
            }),
            ("join and leave events", {
                let (joins, leaves) = (thousands(self.joins), thousands(self.leaves));
                format!("{joins} joins, {leaves} leaves, {} said twice", self.presence_repeated)
            }),
            ("client", self.client.line()),
            ("audit", {
                let Findings { lost, falsely_recovered, repeated, repeated_across_resumes, reordered, .. } = audit;
                let Findings { corrupt, misrouted, forged, contradictory, told, unpromised, .. } = audit;
                format!(
                    "{lost} lost ({falsely_recovered} of them falsely recovered), {repeated} repeated \
                     ({repeated_across_resumes} of them across a resume), {reordered} reordered\n\
                     {corrupt} corrupt, {misrouted} misrouted, {forged} forged, {contradictory} contradictory answers\n\
                     {told} missed and told, {unpromised} missed where nothing is promised"
                )
            }),
        ];
        for (name, map) in [
            ("cuts", &self.cuts),
            ("failed attempts", &self.failed_attempts),
            ("publish failures", &self.failures),
            ("lost for good", &self.lost),
        ] {
            if !map.is_empty() {
                rows.push((name, reasons(map)));
            }
        }
        if self.not_back > 0 {
            rows.push(("not back", thousands(self.not_back)));
        }
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl CourseFigures {
    /// What happened in the seconds of the run.
    pub fn plots(&self) -> Vec<Plot> {
        let line =
            |of: fn(&Bucket) -> u32| self.seconds_of_the_run.iter().map(|second| f64::from(of(second))).collect();
        vec![
            Plot {
                title: "Connections per second",
                series: vec![
                    ("cut", line(|second| second.cut)),
                    ("accepted", line(|second| second.accepted)),
                    ("back", line(|second| second.ready)),
                    ("failed attempts", line(|second| second.failed)),
                ],
            },
            Plot {
                title: "Attempts in flight, the fewest of each second",
                series: vec![("in flight", line(|second| second.in_flight_least))],
            },
            Plot {
                title: "Publishes per second",
                series: vec![
                    ("acknowledged", line(|second| second.acknowledged)),
                    ("failed", line(|second| second.publish_failed)),
                ],
            },
        ]
    }
}

/// Rows that show the checks.
pub fn check_rows(checks: &[Check]) -> Vec<(String, String)> {
    let row = |check: &Check| {
        let verdict = if check.holds { "yes" } else { "NO" };
        (check.name.to_owned(), format!("{verdict}: {}", check.detail))
    };
    checks.iter().map(row).collect()
}

/// Closes of connections whose reason does not begin with `expected`; subscriptions that were taken away are none.
pub fn other_closes(cuts: &BTreeMap<String, u64>, expected: &str) -> u64 {
    let other = |reason: &&String| !reason.starts_with(expected) && !reason.starts_with("unsubscribed");
    cuts.keys().filter(other).filter_map(|reason| cuts.get(reason)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_with_another_code_are_counted() {
        let cuts =
            [("closed by the server: 1001 going away", 7), ("cut by the server", 2), ("unsubscribed: 2500 x", 9)];
        let cuts = cuts.map(|(reason, count)| (reason.to_owned(), count)).into_iter().collect();
        assert_eq!(other_closes(&cuts, "closed by the server: 1001"), 2);
    }
}
