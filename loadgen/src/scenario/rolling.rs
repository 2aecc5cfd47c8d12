//! `loadgen rolling`: every node is restarted in turn under load, in good order or by kill -9; perhaps as another version,
//! and back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::census::{Census, Counted};
use super::course::{Check, Course, CourseFigures, Finished, check_rows, other_closes};
use super::fanout::PublishingOptions;
use super::fleet::{Fleet, FleetOptions};
use super::options::{ClientOptions, rate, seconds};
use super::population::PopulationOptions;
use crate::html::Plot;
use crate::report::{Figures, Report, thousands};
use crate::sys::{self, Signal};
use crate::timeline::{BUCKET_NS, Bucket, peak_within};

/// How a connection that a draining node ends is closed (protocol section 5.3: below 3000 SDKs reconnect).
const GOING_AWAY: &str = "closed by the server: 1001";
/// Over how many seconds reconnects are compared with the even pace.
const PACE_SECONDS: usize = 5;

/// Restart every node in turn under load
#[derive(Args, Clone, Debug)]
pub struct RollingOptions {
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
    /// Command line that nodes are started with when they are restarted, in place of --gateway-cmd: another version of it
    #[arg(long, value_name = "COMMAND", requires = "gateway_cmd")]
    pub next_gateway_cmd: Option<String>,
    /// Then restart every node once more, with --gateway-cmd again: a rollback
    #[arg(long, requires = "next_gateway_cmd")]
    pub back: bool,
    /// End nodes with SIGKILL instead of SIGTERM
    #[arg(long)]
    pub kill: bool,
    /// Seconds of load before the first restart
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub steady: f64,
    /// Seconds of load after each restart, once the node is ready and all clients are back
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub pause: f64,
    /// Seconds of load after the last one; with --kill longer than leases live, so that all leaves are seen
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub linger: f64,
    /// Seconds a node may take to end
    #[arg(long, value_name = "SECS", default_value_t = 120.0, value_parser = seconds)]
    pub ends_within: f64,
    /// Seconds after which clients that are not back count as missing
    #[arg(long, value_name = "SECS", default_value_t = 60.0, value_parser = seconds)]
    pub patience: f64,
    /// Seconds over which the nodes are configured to spread their closes; reconnects are held against that pace
    #[arg(long, value_name = "SECS", value_parser = seconds, conflicts_with = "kill")]
    pub drain_window: Option<f64>,
    /// How many percent of the even pace reconnects may reach within any five seconds
    #[arg(long, value_name = "PERCENT", default_value_t = 150.0, value_parser = rate)]
    pub pace_within: f64,
}

/// What a node is restarted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What it was.
    Same,
    /// What `--next-gateway-cmd` starts.
    Next,
    /// What it was at first.
    Back,
}

/// The restart of one node.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Restart {
    /// Index of the node.
    pub node: usize,
    /// What it is restarted as.
    pub step: Step,
    /// Connections that ended meanwhile.
    pub cut: u64,
    /// Seconds from the signal to the end of the process.
    pub end_seconds: f64,
    /// Exit code; absent after a kill, or where it is not known.
    pub exit_code: Option<i32>,
    /// Seconds from the start of the process until it was ready.
    pub ready_seconds: f64,
    /// Seconds from the signal until all clients were connected.
    pub whole_seconds: Option<f64>,
    /// Seconds from the first cut to the last.
    pub cuts_seconds: f64,
    /// The most reconnects within five seconds.
    pub reconnects_in_5s: u64,
    /// The same at an even pace over the drain window, or over the time from the first cut to the last.
    pub even_in_5s: f64,
}

/// What became of the presence of clients that stayed away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Departures {
    /// Clients that stayed away, once per presence channel.
    pub expected: u64,
    /// Those of which the channel heard one leave.
    pub left_once: u64,
    /// Those of which it heard none.
    pub never_left: u64,
    /// Those of which some subscriber heard several.
    pub left_again: u64,
}

/// What `loadgen rolling` found.
#[derive(Clone, Debug, Serialize)]
pub struct RollingResult {
    /// Each restart.
    pub restarts: Vec<Restart>,
    /// Connections that were closed otherwise than with 1001.
    pub other_closes: u64,
    /// Presence of the clients that stayed away.
    pub departures: Departures,
    /// What all nodes said of nodes, presence and subscribers, where they could be asked.
    pub census: Option<Counted>,
    /// What was demanded.
    pub checks: Vec<Check>,
    /// What all such scenarios report.
    #[serde(flatten)]
    pub course: CourseFigures,
}

/// A restart, before the books are closed.
struct Episode {
    restart: Restart,
    from_ns: u64,
    to_ns: u64,
}

/// Runs the scenario.
pub fn run(options: &RollingOptions) -> Result<Report<RollingResult>> {
    let RollingOptions { client, population, publishing, .. } = options;
    let mut fleet = options.fleet.open(client, publishing.api_key.as_deref())?;
    if fleet.nodes.len() < 2 {
        bail!("at least two nodes are needed: give --gateway-cmd and --nodes, or several --node");
    }
    if fleet.nodes.iter().any(|node| node.control.is_none()) {
        bail!("no node can be restarted by its URL alone: give --node with pid-file= and start=, or --gateway-cmd");
    }
    let plan = population.plan(client, publishing, fleet.targets())?;
    let course = Course::begin(plan, fleet.health())?;
    course.run_for(Duration::from_secs_f64(options.steady));
    course.watch_presence();
    // Where nodes are killed or clients stay away, presence has those who are gone until leases run out.
    let census = Census::of(course.plan()).filter(|_| !options.kill && options.population.stay_away == 0.0);
    let mut counted = census.as_ref().map(|_| Counted::default());
    let mut episodes = Vec::new();
    for step in options.steps() {
        for node in 0..fleet.nodes.len() {
            let episode = restart(options, &course, &mut fleet, node, step);
            episodes.push(episode.with_context(|| format!("the restart of node {node}"))?);
            if let (Some(census), Some(counted)) = (&census, &mut counted) {
                census.take(Duration::from_secs_f64(options.patience), counted);
            }
            course.run_for(Duration::from_secs_f64(options.pause));
        }
    }
    course.run_for(Duration::from_secs_f64(options.linger));
    let finished = course.finish()?;
    let result = RollingResult::new(options, finished, episodes, counted);
    Ok(Report::new("rolling", result.course.verdict(&result.checks), result))
}

impl RollingOptions {
    /// As what all nodes are restarted, one round after the other.
    fn steps(&self) -> Vec<Step> {
        match (&self.next_gateway_cmd, self.back) {
            (None, _) => vec![Step::Same],
            (Some(_), false) => vec![Step::Next],
            (Some(_), true) => vec![Step::Next, Step::Back],
        }
    }

    /// The command line that this needs, if it is another one than before.
    fn command_of(&self, step: Step) -> Option<&str> {
        match step {
            Step::Same => None,
            Step::Next => self.next_gateway_cmd.as_deref(),
            Step::Back => self.fleet.gateway_cmd.as_deref(),
        }
    }
}

fn restart(options: &RollingOptions, course: &Course, fleet: &mut Fleet, node: usize, step: Step) -> Result<Episode> {
    let (began, from_ns, cut_before) = (Instant::now(), sys::monotonic_ns(), course.totals().cut);
    let signal = if options.kill { Signal::Kill } else { Signal::Terminate };
    let target = &mut fleet.nodes[node];
    let control = target.control.as_mut().context("the node has no process")?;
    let exit_code = control.end(signal, Duration::from_secs_f64(options.ends_within))?;
    let end_seconds = began.elapsed().as_secs_f64();
    if let Some(command) = options.command_of(step) {
        control.change_command(command)?;
    }
    let started = Instant::now();
    control.start()?;
    target.wait_until_ready()?;
    let ready_seconds = started.elapsed().as_secs_f64();
    let patience = Duration::from_secs_f64(options.patience);
    let whole = course.wait(patience, |totals| course.is_whole(totals));
    let restart = Restart {
        node,
        step,
        cut: course.totals().cut - cut_before,
        end_seconds,
        exit_code,
        ready_seconds,
        whole_seconds: whole.then(|| began.elapsed().as_secs_f64()),
        cuts_seconds: 0.0,
        reconnects_in_5s: 0,
        even_in_5s: 0.0,
    };
    Ok(Episode { restart, from_ns, to_ns: sys::monotonic_ns() })
}

impl Restart {
    /// Fills in what the timeline says.
    fn judge(mut self, buckets: &[Bucket], drain_window: Option<f64>) -> Self {
        let first = buckets.iter().position(|bucket| bucket.cut > 0);
        let last = buckets.iter().rposition(|bucket| bucket.cut > 0);
        let len = first.zip(last).map_or(0, |(first, last)| last + 1 - first);
        self.cuts_seconds = len as f64 * BUCKET_NS as f64 / 1e9;
        self.reconnects_in_5s = peak_within(buckets, PACE_SECONDS, |bucket| bucket.ready);
        let window = drain_window.unwrap_or(self.cuts_seconds).max(PACE_SECONDS as f64);
        self.even_in_5s = self.cut as f64 * PACE_SECONDS as f64 / window;
        self
    }

    fn row(&self) -> (String, String) {
        let Self { cut, end_seconds, ready_seconds, cuts_seconds, reconnects_in_5s, even_in_5s, .. } = self;
        let whole = self.whole_seconds.map_or("never".to_owned(), |seconds| format!("{seconds:.1} s"));
        let text = format!(
            "{} cut over {cuts_seconds:.1} s; ended after {end_seconds:.1} s, ready {ready_seconds:.1} s later, whole {whole}\n\
             {reconnects_in_5s} reconnects in 5 s, {even_in_5s:.0} at an even pace",
            thousands(*cut)
        );
        let name = match self.step {
            Step::Same => format!("restart of node {}", self.node),
            Step::Next => format!("node {} to the next", self.node),
            Step::Back => format!("node {} back", self.node),
        };
        (name, text)
    }
}

impl RollingResult {
    fn new(options: &RollingOptions, finished: Finished, episodes: Vec<Episode>, census: Option<Counted>) -> Self {
        let judged = |episode: Episode| {
            let buckets = finished.timeline().between(episode.from_ns, episode.to_ns);
            episode.restart.judge(buckets, options.drain_window)
        };
        let restarts: Vec<Restart> = episodes.into_iter().map(judged).collect();
        let mut departures = Departures::default();
        for (channel, client) in &finished.results.tally.away {
            departures.expected += 1;
            match finished.results.presence.leaves_of(*channel, *client) {
                0 => departures.never_left += 1,
                1 => departures.left_once += 1,
                _ => departures.left_again += 1,
            }
        }
        let course = finished.figures;
        let other_closes = other_closes(&course.cuts, GOING_AWAY);
        let mut checks = checks(options, &restarts, other_closes, departures, &course);
        checks.extend(census.as_ref().map(|counted| Check {
            name: "all nodes see everybody",
            depends_on_time: false,
            holds: counted.wrong == 0,
            detail: counted.detail(),
        }));
        Self { restarts, other_closes, departures, census, checks, course }
    }
}

fn checks(
    options: &RollingOptions,
    restarts: &[Restart],
    other_closes: u64,
    departures: Departures,
    course: &CourseFigures,
) -> Vec<Check> {
    let mut checks = vec![Check {
        name: "all clients back",
        depends_on_time: true,
        holds: restarts.iter().all(|restart| restart.whole_seconds.is_some()) && course.not_back == 0,
        detail: format!("{} not back", course.not_back),
    }];
    if !options.kill {
        checks.push(Check {
            name: "every close was 1001",
            depends_on_time: false,
            holds: other_closes == 0,
            detail: format!("{other_closes} were not"),
        });
        checks.push(Check {
            name: "nodes ended with exit code 0",
            depends_on_time: false,
            holds: restarts.iter().all(|restart| matches!(restart.exit_code, None | Some(0))),
            detail: format!("{:?}", restarts.iter().map(|restart| restart.exit_code).collect::<Vec<_>>()),
        });
    }
    if options.drain_window.is_some() {
        let ratio = |restart: &Restart| restart.reconnects_in_5s as f64 / restart.even_in_5s.max(1.0);
        let worst = restarts.iter().map(ratio).fold(0.0, f64::max);
        checks.push(Check {
            name: "reconnects keep the even pace",
            depends_on_time: true,
            holds: worst * 100.0 <= options.pace_within,
            detail: format!("{worst:.2} times it at most"),
        });
    }
    if options.population.sessions && options.population.stay_away == 0.0 && options.population.presence_channels > 0 {
        checks.push(Check {
            name: "presence did not flap",
            depends_on_time: true,
            holds: course.joins + course.leaves == 0,
            detail: format!("{} joins and {} leaves", course.joins, course.leaves),
        });
    }
    if departures.expected > 0 {
        let Departures { expected, left_once, never_left, left_again } = departures;
        checks.push(Check {
            name: "those who stay away leave once",
            depends_on_time: false,
            holds: left_once == expected,
            detail: format!("{left_once} of {expected} once, {never_left} never, {left_again} several times"),
        });
    }
    checks
}

impl Figures for RollingResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows: Vec<_> = self.restarts.iter().map(Restart::row).collect();
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
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        options: RollingOptions,
    }

    fn parse(options: &[&str]) -> Option<RollingOptions> {
        let parsed = Program::try_parse_from([&["loadgen"][..], options].concat());
        parsed.ok().map(|program| program.options)
    }

    #[test]
    fn nodes_become_another_version_and_again_the_first() {
        let commands = |options: &[&str]| {
            let options = parse(options).expect("valid");
            let command = |step: Step| options.command_of(step).map(str::to_owned);
            options.steps().into_iter().map(command).collect::<Vec<_>>()
        };
        let (first, next) = (["--gateway-cmd", "old"], ["--next-gateway-cmd", "new"]);
        assert_eq!(commands(&first), [None]);
        let [old, new] = ["old", "new"].map(|name| Some(name.to_owned()));
        assert_eq!(commands(&[first, next].concat()), std::slice::from_ref(&new));
        assert_eq!(commands(&[&first[..], &next, &["--back"]].concat()), [new, old]);
        assert!(parse(&next).is_none() && parse(&[&first[..], &["--back"]].concat()).is_none());
    }

    #[test]
    fn reconnects_are_held_against_the_even_pace() {
        let restart = Restart {
            node: 0,
            step: Step::Same,
            cut: 600,
            end_seconds: 30.0,
            exit_code: Some(0),
            ready_seconds: 1.0,
            whole_seconds: Some(32.0),
            cuts_seconds: 0.0,
            reconnects_in_5s: 0,
            even_in_5s: 0.0,
        };
        let mut buckets = vec![Bucket { cut: 2, ready: 2, ..Bucket::default() }; 300];
        buckets.extend([Bucket::default(); 20]);
        let even = restart.judge(&buckets, None);
        assert_eq!((even.cuts_seconds, even.reconnects_in_5s, even.even_in_5s), (30.0, 100, 100.0));
        buckets[310].ready = 90;
        assert_eq!(restart.judge(&buckets, Some(60.0)).even_in_5s, 50.0);
        assert_eq!(restart.judge(&buckets, None).reconnects_in_5s, 168);
    }
}
