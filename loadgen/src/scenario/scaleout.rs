//! `loadgen scaleout`: the fleet changes under load, and how long it takes until it is level again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::cluster::ClusterState;
use super::course::{Check, Course, CourseFigures, Finished, check_rows};
use super::fanout::PublishingOptions;
use super::fleet::FleetOptions;
use super::health::Health;
use super::options::{ClientOptions, rate, seconds};
use super::population::PopulationOptions;
use crate::html::Plot;
use crate::report::{Figures, Report, text_plot, thousands};
use crate::sys::{self, Signal};
use crate::target::Target;
use crate::timeline::peak_within;

/// How a connection that is moved is closed, and one of a node that drains.
const MOVED: &str = "closed by the server: 3011";
const GOING_AWAY: &str = "closed by the server: 1001";
/// How often the fleet is asked: it knows something new once a second.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Width and height of the curve in the table.
const PLOT_SIZE: (usize, usize) = (64, 9);

/// Change the fleet under load, and measure how it becomes level
#[derive(Args, Clone, Debug)]
pub struct ScaleoutOptions {
    #[command(flatten)]
    /// Where clients connect: a proxy, or nodes in turn.
    pub fleet: FleetOptions,
    /// WebSocket URL of a node that is yet to come: used in turn once it takes connections; may be given several times
    #[arg(long, value_name = "URL")]
    pub later: Vec<String>,
    #[command(flatten)]
    /// How the client behaves.
    pub client: ClientOptions,
    #[command(flatten)]
    /// Who is connected.
    pub population: PopulationOptions,
    #[command(flatten)]
    /// Who publishes.
    pub publishing: PublishingOptions,
    /// URL of /v1/cluster on the internal listener of a node; of several the next is asked when one does not answer
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000/v1/cluster")]
    pub cluster: Vec<String>,
    /// Command that adds nodes, or ends some, for a shell; if it is still running, it is ended with the scenario
    #[arg(long, value_name = "COMMAND")]
    pub then: String,
    /// Ready nodes there are afterwards; any other number than before when absent
    #[arg(long, value_name = "N")]
    pub expect: Option<u64>,
    /// Seconds of load before that, for connections to become old enough to be moved
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub steady: f64,
    /// How many times the mean the fullest node may have where the fleet is level
    #[arg(long, value_name = "TIMES", default_value_t = 1.1, value_parser = rate)]
    pub level: f64,
    /// Seconds from the command until the fleet is level, and stays so
    #[arg(long, value_name = "SECS", default_value_t = 120.0, value_parser = seconds)]
    pub within: f64,
    /// Seconds for which it must stay so
    #[arg(long, value_name = "SECS", default_value_t = 10.0, value_parser = seconds)]
    pub stay: f64,
    /// How often each connection that had to move may be moved, on average
    #[arg(long, value_name = "TIMES", value_parser = rate)]
    pub moves_within: Option<f64>,
    /// Seconds after which clients that are not back count as missing
    #[arg(long, value_name = "SECS", default_value_t = 60.0, value_parser = seconds)]
    pub patience: f64,
}

/// The fleet at one moment.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// Seconds since the load began.
    pub seconds: f64,
    /// The highest load by the mean.
    pub imbalance: f64,
    /// The highest load.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// Connections of all nodes.
    pub connections: u64,
    /// Nodes that are ready.
    pub ready: u64,
}

/// What `loadgen scaleout` found.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleoutResult {
    /// Ready nodes before.
    pub ready_before: u64,
    /// Ready nodes at the end.
    pub ready_after: u64,
    /// Seconds from the command until the fleet was level and stayed so; absent when it was not.
    pub level_seconds: Option<f64>,
    /// Seconds until it was level for the first time.
    pub first_level_seconds: Option<f64>,
    /// The highest load by the mean at the end.
    pub imbalance: f64,
    /// What the fleet said of that.
    pub explanation: Option<String>,
    /// Connections closed in order to move them (3011).
    pub moves: u64,
    /// Connections that were on another node than they were to be in the end; absent where nodes were not told.
    pub had_to_move: Option<u64>,
    /// The former by the latter.
    pub moves_per_connection: Option<f64>,
    /// Connections closed by nodes that drain (1001).
    pub drained: u64,
    /// Connections that ended in another way.
    pub other_closes: u64,
    /// The most clients that came back within one second, and within five.
    pub reconnects_in_a_second: u64,
    /// See there.
    pub reconnects_in_5s: u64,
    /// Times nobody could say how the fleet is.
    pub unread: u64,
    /// How it was over time.
    pub curve: Vec<Point>,
    /// What was demanded.
    pub checks: Vec<Check>,
    /// What all such scenarios report.
    #[serde(flatten)]
    pub course: CourseFigures,
}

/// Runs the scenario.
pub fn run(options: &ScaleoutOptions) -> Result<Report<ScaleoutResult>> {
    let ScaleoutOptions { client, population, publishing, .. } = options;
    let fleet = options.fleet.open(client, publishing.api_key.as_deref())?;
    let later = parse_all(&options.later, "ws", client)?;
    let mut watch = Watch::new(parse_all(&options.cluster, "http", client)?);
    let plan = population.plan(client, publishing, [fleet.targets(), later.clone()].concat())?;
    (0..later.len()).for_each(|node| plan.nodes.set_ready(fleet.nodes.len() + node, false));
    let health = fleet.health().into_iter().chain(later.into_iter().map(Health::Connect)).collect();
    let course = Course::begin(plan, health)?;
    course.wait(Duration::from_secs_f64(options.steady), |_| {
        watch.look();
        false
    });
    let before = watch.known().cloned().with_context(|| format!("nobody tells how the fleet is: {}", watch.trouble))?;
    course.watch_presence();
    let mut change = Change::begin(&options.then)?;
    let mut levelling = Levelling::new(options, before.ready);
    let failure = levelling.follow(&course, &mut watch, &mut change);
    course.wait(Duration::from_secs_f64(options.patience), |totals| course.is_whole(totals));
    let finished = course.finish()?;
    failure?;
    let after = watch.known().cloned().unwrap_or_else(|| before.clone());
    let result = ScaleoutResult::new(options, finished, &watch, &levelling, (&before, &after));
    Ok(Report::new("scaleout", result.course.verdict(&result.checks), result))
}

fn parse_all(urls: &[String], scheme: &str, client: &ClientOptions) -> Result<Vec<Target>> {
    urls.iter().map(|url| Target::parse(url, scheme, client.allow_remote)).collect()
}

/// What was seen of the fleet.
struct Watch {
    places: Vec<Target>,
    /// The place that is asked.
    turn: usize,
    next: Instant,
    /// When, and what.
    seen: Vec<(u64, ClusterState)>,
    unread: u64,
    /// Why it could not be read the last time it could not.
    trouble: String,
}

impl Watch {
    fn new(places: Vec<Target>) -> Self {
        Self { places, turn: 0, next: Instant::now(), seen: Vec::new(), unread: 0, trouble: "nothing yet".to_owned() }
    }

    /// Asks if it is time. Says what is new.
    fn look(&mut self) -> Option<&ClusterState> {
        if Instant::now() < self.next {
            return None;
        }
        self.next = Instant::now() + ASK_EVERY;
        match ClusterState::ask(&self.places[self.turn % self.places.len()]) {
            Ok(state) => {
                self.seen.push((sys::monotonic_ns(), state));
                self.known()
            }
            Err(trouble) => {
                self.trouble = trouble;
                self.unread += 1;
                self.turn += 1;
                None
            }
        }
    }

    fn known(&self) -> Option<&ClusterState> {
        self.seen.last().map(|(_, state)| state)
    }

    fn curve(&self, from_ns: u64) -> Vec<Point> {
        let point = |(at_ns, state): &(u64, ClusterState)| Point {
            seconds: at_ns.saturating_sub(from_ns) as f64 / 1e9,
            imbalance: state.imbalance,
            max: state.max,
            mean: state.mean,
            connections: state.connections,
            ready: state.ready,
        };
        self.seen.iter().filter(|(at_ns, _)| *at_ns >= from_ns).map(point).collect()
    }
}

/// The command that changes the fleet.
struct Change(Child);

impl Change {
    fn begin(command: &str) -> Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(shell.spawn().with_context(|| format!("cannot run `{command}`"))?))
    }

    /// A command that has ended without success has not changed anything.
    fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) if !status.success() => bail!("the command of --then ended with {status}"),
            Some(_) | None => Ok(()),
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // It is gone, then.
            let _ = sys::signal(self.0.id(), Signal::Terminate);
            let _ = self.0.wait();
        }
    }
}

/// Whether, and since when, the fleet is level.
#[derive(Clone, PartialEq, Debug)]
struct Levelling {
    limit: f64,
    ready_before: u64,
    expect: Option<u64>,
    within: Duration,
    stay: Duration,
    began: Instant,
    first: Option<Duration>,
    since: Option<Duration>,
}

impl Levelling {
    fn new(options: &ScaleoutOptions, ready_before: u64) -> Self {
        Self {
            limit: options.level,
            ready_before,
            expect: options.expect,
            within: Duration::from_secs_f64(options.within),
            stay: Duration::from_secs_f64(options.stay),
            began: Instant::now(),
            first: None,
            since: None,
        }
    }

    /// Looks until the fleet has been level for long enough, or is not in time.
    fn follow(&mut self, course: &Course, watch: &mut Watch, change: &mut Change) -> Result<()> {
        let mut failure = Ok(());
        course.wait(self.within + self.stay + ASK_EVERY, |_| {
            failure = change.check();
            let passed = self.began.elapsed();
            if let Some(state) = watch.look() {
                self.note(passed, state);
            }
            failure.is_err() || self.is_over(passed)
        });
        failure
    }

    fn note(&mut self, passed: Duration, state: &ClusterState) {
        if !self.is_level(state) {
            self.since = None;
            return;
        }
        self.first.get_or_insert(passed);
        self.since.get_or_insert(passed);
    }

    /// A fleet that has not changed yet is as level as it was, which says nothing.
    fn is_level(&self, state: &ClusterState) -> bool {
        let changed = self.expect.map_or(state.ready != self.ready_before, |expected| state.ready == expected);
        changed && state.draining == 0 && state.starting == 0 && state.imbalance <= self.limit
    }

    fn is_over(&self, passed: Duration) -> bool {
        match self.since {
            Some(since) => passed >= since + self.stay,
            None => passed >= self.within,
        }
    }

    /// When it became level, if that was in time and for good.
    fn level_after(&self) -> Option<Duration> {
        self.since.filter(|since| *since <= self.within)
    }
}

impl ScaleoutResult {
    fn new(
        options: &ScaleoutOptions,
        finished: Finished,
        watch: &Watch,
        levelling: &Levelling,
        (before, after): (&ClusterState, &ClusterState),
    ) -> Self {
        let curve = watch.curve(finished.start_ns);
        let buckets = finished.timeline().since(finished.start_ns);
        let reconnects = |seconds| peak_within(buckets, seconds, |bucket| bucket.ready);
        let (reconnects_in_a_second, reconnects_in_5s) = (reconnects(1), reconnects(5));
        let course = finished.figures;
        let closes = |wanted: fn(&str) -> bool| {
            let counted = course.cuts.iter().filter(|(reason, _)| wanted(reason));
            counted.map(|(_, count)| count).sum::<u64>()
        };
        let moves = closes(|reason| reason.starts_with(MOVED));
        let had_to_move = after.to_be_moved(before);
        let mut result = Self {
            ready_before: before.ready,
            ready_after: after.ready,
            level_seconds: levelling.level_after().map(|after| after.as_secs_f64()),
            first_level_seconds: levelling.first.map(|first| first.as_secs_f64()),
            imbalance: after.imbalance,
            explanation: after.explanation.clone(),
            moves,
            had_to_move,
            moves_per_connection: had_to_move.filter(|had| *had > 0).map(|had| moves as f64 / had as f64),
            drained: closes(|reason| reason.starts_with(GOING_AWAY)),
            other_closes: closes(|reason| {
                ![MOVED, GOING_AWAY, "unsubscribed"].iter().any(|known| reason.starts_with(known))
            }),
            reconnects_in_a_second,
            reconnects_in_5s,
            unread: watch.unread,
            curve,
            checks: Vec::new(),
            course,
        };
        result.checks = result.checks(options);
        result
    }

    fn checks(&self, options: &ScaleoutOptions) -> Vec<Check> {
        let level = match self.level_seconds {
            Some(seconds) => format!("after {seconds:.1} s, and for {} s", options.stay),
            None if self.ready_after == self.ready_before && options.expect.is_none() => {
                format!("there are as many ready nodes as before, {}", self.ready_after)
            }
            None => format!("{:.2} times the mean after {} s", self.imbalance, options.within),
        };
        let mut checks = vec![
            Check { name: "level in time", depends_on_time: true, holds: self.level_seconds.is_some(), detail: level },
            Check {
                name: "all clients back",
                depends_on_time: true,
                holds: self.course.not_back == 0,
                detail: format!("{} not back", self.course.not_back),
            },
            Check {
                name: "every close was 3011 or 1001",
                depends_on_time: false,
                holds: self.other_closes == 0,
                detail: format!("{} were not", self.other_closes),
            },
        ];
        checks.extend(options.moves_within.map(|most| Check {
            name: "few moves",
            depends_on_time: true,
            holds: self.moves_per_connection.is_none_or(|moves| moves <= most),
            detail: self.moves_line(),
        }));
        checks
    }

    fn moves_line(&self) -> String {
        let (moves, drained) = (thousands(self.moves), thousands(self.drained));
        let needed = match (self.had_to_move, self.moves_per_connection) {
            (Some(had), Some(each)) => format!("{} had to move, {each:.2} for each", thousands(had)),
            (Some(_), None) => "none had to move".to_owned(),
            (None, _) => "how many had to move is not known".to_owned(),
        };
        format!("{moves} moved (3011), {drained} drained (1001); {needed}")
    }

    fn series(&self, of: fn(&Point) -> f64) -> Vec<f64> {
        let end = self.curve.last().map_or(0.0, |point| point.seconds);
        let at = |second: usize| {
            let known = self.curve.iter().take_while(|point| point.seconds <= second as f64 + 1.0).last();
            known.or(self.curve.first()).map_or(0.0, of)
        };
        (0..=end as usize).map(at).collect()
    }
}

impl Figures for ScaleoutResult {
    fn rows(&self) -> Vec<(String, String)> {
        let after = |seconds: Option<f64>| seconds.map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
        let mut rows = vec![
            ("ready nodes".to_owned(), format!("{} before, {} after", self.ready_before, self.ready_after)),
            ("level after".to_owned(), {
                let (stays, first) = (after(self.level_seconds), after(self.first_level_seconds));
                format!("{stays} and from then on, {first} for the first time; {:.3} at the end", self.imbalance)
            }),
            ("moves".to_owned(), self.moves_line()),
            ("reconnects".to_owned(), {
                format!("{} in the busiest second, {} in five", self.reconnects_in_a_second, self.reconnects_in_5s)
            }),
            ("max/mean".to_owned(), text_plot(&self.series(|point| point.imbalance), 1.0, PLOT_SIZE)),
        ];
        rows.extend(self.explanation.iter().map(|said| ("the fleet says".to_owned(), said.clone())));
        if self.unread > 0 {
            rows.push(("not told".to_owned(), format!("{} times how the fleet is", self.unread)));
        }
        rows.extend(check_rows(&self.checks));
        rows.extend(self.course.rows());
        rows
    }

    fn plots(&self) -> Vec<Plot> {
        let mut plots = vec![
            Plot { title: "Max/mean", series: vec![("max/mean", self.series(|point| point.imbalance))] },
            Plot {
                title: "Connections by weight",
                series: vec![
                    ("fullest node", self.series(|point| point.max)),
                    ("mean", self.series(|point| point.mean)),
                ],
            },
        ];
        plots.extend(self.course.plots());
        plots
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::of;
    use super::*;

    fn two_nodes() -> Levelling {
        Levelling {
            limit: 1.1,
            ready_before: 2,
            expect: None,
            within: Duration::from_secs(20),
            stay: Duration::from_secs(5),
            began: Instant::now(),
            first: None,
            since: None,
        }
    }

    fn after(levelling: &mut Levelling, states: &[(u64, &[u64])]) -> (Option<u64>, Option<u64>, bool) {
        let mut over = false;
        for (second, connections) in states {
            levelling.note(Duration::from_secs(*second), &of(connections));
            over = levelling.is_over(Duration::from_secs(*second));
        }
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
        (seconds(levelling.first), seconds(levelling.level_after()), over)
    }

    #[test]
    fn a_fleet_that_has_not_changed_is_not_level_whatever_it_has() {
        let (old, new): (&[u64], &[u64]) = (&[100, 100], &[50, 50, 51, 49]);
        assert_eq!(after(&mut two_nodes(), &[(1, old), (19, old)]), (None, None, false));
        assert_eq!(after(&mut two_nodes(), &[(1, old), (20, old)]), (None, None, true));
        assert_eq!(after(&mut two_nodes(), &[(1, old), (3, new), (7, new)]), (Some(3), Some(3), false));
        assert_eq!(after(&mut two_nodes(), &[(1, old), (3, new), (8, new)]), (Some(3), Some(3), true));
        let mut expecting = Levelling { expect: Some(3), ..two_nodes() };
        assert_eq!(after(&mut expecting, &[(1, new), (2, new)]), (None, None, false));
    }

    #[test]
    fn level_counts_from_when_it_stays_so() {
        let (level, uneven): (&[u64], &[u64]) = (&[50; 4], &[80, 40, 40, 40]);
        let states = [(1, uneven), (2, level), (3, uneven), (9, level), (14, level)];
        assert_eq!(after(&mut two_nodes(), &states), (Some(2), Some(9), true));
        // Too late, even if it stays so.
        assert_eq!(after(&mut two_nodes(), &[(19, uneven), (21, level), (26, level)]), (Some(21), None, true));
        let mut draining = of(level);
        draining.draining = 1;
        assert!(two_nodes().is_level(&of(level)) && !two_nodes().is_level(&draining));
    }

    #[test]
    fn a_command_that_fails_is_a_mistake_and_one_that_goes_on_is_none() {
        let mut failing = Change::begin("exit 7").expect("a shell");
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            match failing.check() {
                Err(error) => break error,
                Ok(()) => assert!(Instant::now() < deadline, "it goes on"),
            }
            crate::progress::pause();
        };
        assert!(error.to_string().contains("exit status: 7"), "{error}");
        let mut going_on = Change::begin("exec sleep 600").expect("a shell");
        going_on.check().expect("it has not ended");
    }
}
