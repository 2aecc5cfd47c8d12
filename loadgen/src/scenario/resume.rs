//! `loadgen resume`: connections drop all the time, by chance, and their clients come back on whichever node is next.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::course::{Check, Course, CourseFigures, check_rows};
use super::fanout::PublishingOptions;
use super::fleet::FleetOptions;
use super::options::{ClientOptions, rate, seconds};
use super::population::PopulationOptions;
use super::storm::By;
use crate::client::plan::Drops;
use crate::html::Plot;
use crate::report::{Figures, Report, thousands};

/// Drop connections at a steady rate, and audit every resume
#[derive(Args, Clone, Debug)]
pub struct ResumeOptions {
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
    /// Connections dropped per second
    #[arg(long, value_name = "N/S", default_value_t = 10.0, value_parser = rate)]
    pub drops_per_second: f64,
    /// How they are dropped
    #[arg(long, value_enum, default_value_t = By::Either)]
    pub by: By,
    /// Seconds of that
    #[arg(long, value_name = "SECS", default_value_t = 20.0, value_parser = seconds)]
    pub duration: f64,
    /// Seconds after which clients that are not back count as missing
    #[arg(long, value_name = "SECS", default_value_t = 60.0, value_parser = seconds)]
    pub patience: f64,
}

/// What `loadgen resume` found.
#[derive(Clone, Debug, Serialize)]
pub struct ResumeResult {
    /// Connections dropped.
    pub dropped: u64,
    /// What was demanded.
    pub checks: Vec<Check>,
    /// What all such scenarios report.
    #[serde(flatten)]
    pub course: CourseFigures,
}

/// Runs the scenario.
pub fn run(options: &ResumeOptions) -> Result<Report<ResumeResult>> {
    let ResumeOptions { client, population, publishing, .. } = options;
    let fleet = options.fleet.open(client, publishing.api_key.as_deref())?;
    let mut plan = population.plan(client, publishing, fleet.targets())?;
    plan.drops = Drops { how: options.by.into(), share_at_once: 0.0, per_second: options.drops_per_second };
    let course = Course::begin(plan, fleet.health())?;
    course.watch_presence();
    course.drop_steadily(true);
    course.run_for(Duration::from_secs_f64(options.duration));
    course.drop_steadily(false);
    let patience = Duration::from_secs_f64(options.patience);
    let all_back = course.wait(patience, |totals| course.is_whole(totals));
    let dropped = course.totals().cut;
    let course = course.finish()?.figures;
    let checks = vec![Check {
        name: "all clients back",
        depends_on_time: true,
        holds: all_back && dropped > 0,
        detail: format!("{} not back of {dropped} dropped", course.not_back),
    }];
    Ok(Report::new("resume", course.verdict(&checks), ResumeResult { dropped, checks, course }))
}

impl Figures for ResumeResult {
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![("dropped".to_owned(), thousands(self.dropped))];
        rows.extend(check_rows(&self.checks));
        rows.extend(self.course.rows());
        rows
    }

    fn plots(&self) -> Vec<Plot> {
        self.course.plots()
    }
}
