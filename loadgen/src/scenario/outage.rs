//! `loadgen outage`: the backplane is paused, or killed and started again, under load.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::control::Control;
use super::course::{Check, Course, CourseFigures, check_rows};
use super::fanout::PublishingOptions;
use super::fleet::FleetOptions;
use super::options::{ClientOptions, seconds};
use super::population::PopulationOptions;
use crate::html::Plot;
use crate::report::{Figures, Report};
use crate::sys::{self, Signal};

/// How long the backplane may take to die.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Pause the backplane, or kill and restart it, under load
#[derive(Args, Clone, Debug)]
pub struct OutageOptions {
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
    /// Command line that starts the backplane, split at spaces, before the nodes
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["backplane_pid", "backplane_pid_file"])]
    pub backplane_cmd: Option<String>,
    /// Process of a backplane that is running already
    #[arg(long, value_name = "PID", conflicts_with = "backplane_pid_file")]
    pub backplane_pid: Option<u32>,
    /// File with the process id of a backplane that is running already
    #[arg(long, value_name = "FILE")]
    pub backplane_pid_file: Option<PathBuf>,
    /// Command that starts it again, for a shell; it writes the file
    #[arg(long, value_name = "COMMAND", requires = "backplane_pid_file")]
    pub backplane_start: Option<String>,
    /// Kill it (SIGKILL) and start it again, instead of stopping it (SIGSTOP) and letting it go on
    #[arg(long)]
    pub kill: bool,
    /// Seconds of load before that
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub steady: f64,
    /// Seconds the backplane is away
    #[arg(long, value_name = "SECS", default_value_t = 5.0, value_parser = seconds)]
    pub outage: f64,
    /// Seconds of load after it is back; all must be repaired by their end
    #[arg(long, value_name = "SECS", default_value_t = 30.0, value_parser = seconds)]
    pub recovery: f64,
}

/// What `loadgen outage` found.
#[derive(Clone, Debug, Serialize)]
pub struct OutageResult {
    /// Seconds the backplane was away.
    pub outage_seconds: f64,
    /// Seconds from its end to the last trace of it: a publish that failed or was answered late, a late delivery, a
    /// subscription taken away, a connection cut or not yet back.
    pub repaired_after_seconds: f64,
    /// What was demanded.
    pub checks: Vec<Check>,
    /// What all such scenarios report.
    #[serde(flatten)]
    pub course: CourseFigures,
}

impl OutageOptions {
    fn backplane(&self) -> Result<Control> {
        if let Some(command) = &self.backplane_cmd {
            return Control::command(command, Vec::new(), Vec::new());
        }
        match (&self.backplane_pid_file, self.backplane_pid) {
            (Some(pid_file), _) => {
                Ok(Control::External { pid_file: pid_file.clone(), start: self.backplane_start.clone(), shell: None })
            }
            (None, Some(_)) if self.kill => bail!("--kill needs --backplane-cmd, or --backplane-pid-file and -start"),
            (None, Some(pid)) => Ok(Control::Pid(pid)),
            (None, None) => bail!("--backplane-cmd, --backplane-pid or --backplane-pid-file is needed"),
        }
    }
}

/// Runs the scenario.
pub fn run(options: &OutageOptions) -> Result<Report<OutageResult>> {
    let OutageOptions { client, population, publishing, .. } = options;
    let mut backplane = options.backplane()?;
    if let Control::Spawned { .. } = backplane {
        backplane.start()?;
    }
    let fleet = options.fleet.open(client, publishing.api_key.as_deref())?;
    let plan = population.plan(client, publishing, fleet.targets())?;
    let course = Course::begin(plan, fleet.health())?;
    course.run_for(Duration::from_secs_f64(options.steady));
    course.watch_presence();
    let began_ns = sys::monotonic_ns();
    let away = Duration::from_secs_f64(options.outage);
    if options.kill {
        backplane.end(Signal::Kill, END_PATIENCE)?;
        course.run_for(away);
        backplane.start()?;
    } else {
        backplane.signal(Signal::Stop)?;
        course.run_for(away);
        backplane.signal(Signal::Continue)?;
    }
    let ended_ns = sys::monotonic_ns();
    course.run_for(Duration::from_secs_f64(options.recovery));
    let load_ended_ns = sys::monotonic_ns();
    let whole = course.is_whole(&course.totals());
    let finished = course.finish()?;
    let last_trouble_ns = finished.results.tally.last_trouble_ns;
    let repaired_after_seconds = last_trouble_ns.saturating_sub(ended_ns) as f64 / 1e9;
    let checks = vec![
        Check {
            name: "all clients connected",
            depends_on_time: true,
            holds: whole,
            detail: format!("{} not back", finished.figures.not_back),
        },
        Check {
            name: "repaired in time",
            depends_on_time: true,
            // A second without a trace of it tells that it is over.
            holds: last_trouble_ns + 1_000_000_000 < load_ended_ns,
            detail: format!("after {repaired_after_seconds:.2} s, {:.0} s were given", options.recovery),
        },
    ];
    let result = OutageResult {
        outage_seconds: ended_ns.saturating_sub(began_ns) as f64 / 1e9,
        repaired_after_seconds,
        checks,
        course: finished.figures,
    };
    Ok(Report::new("outage", result.course.verdict(&result.checks), result))
}

impl Figures for OutageResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("backplane away".to_owned(), format!("{:.2} s", self.outage_seconds)),
            ("repaired after".to_owned(), format!("{:.2} s", self.repaired_after_seconds)),
        ];
        rows.extend(check_rows(&self.checks));
        rows.extend(self.course.rows());
        rows
    }

    fn plots(&self) -> Vec<Plot> {
        self.course.plots()
    }
}
