//! The command line of loadgen.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use loadgen::report::{Figures, Report};
use loadgen::scenario::compare::{self, CompareOptions};
use loadgen::scenario::connect::{self, ConnectOptions};
use loadgen::scenario::fanout::{self, FanoutOptions};
use loadgen::scenario::limit::{self, LimitCommand};
use loadgen::scenario::options::ClientOptions;
use loadgen::scenario::outage::{self, OutageOptions};
use loadgen::scenario::resume::{self, ResumeOptions};
use loadgen::scenario::rolling::{self, RollingOptions};
use loadgen::scenario::scaleout::{self, ScaleoutOptions};
use loadgen::scenario::storm::{self, StormOptions};

/// Exit code of a run that could not be carried out, usage errors included: 2 is taken by void runs.
const COULD_NOT_RUN: u8 = 3;

/// Load generator and auditor for servers that speak the Centrifuge client protocol.
///
/// Exit code: 0 clean; 1 the audit found a violation, or connections or publishes failed; 2 void, the client was over
/// 90 % busy; 3 the run could not be carried out.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    Connect(ConnectOptions),
    Fanout(FanoutOptions),
    #[command(subcommand)]
    Limit(LimitCommand),
    Compare(CompareOptions),
    Storm(StormOptions),
    Rolling(RollingOptions),
    Outage(OutageOptions),
    Resume(ResumeOptions),
    Scaleout(ScaleoutOptions),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let code = if error.use_stderr() { COULD_NOT_RUN } else { 0 };
            // Nothing is left to be done when even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(&cli.scenario) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

fn show<T: Figures>(report: Report<T>, client: &ClientOptions) -> Result<u8> {
    report.show(client.json, client.html.as_deref())
}

fn run(scenario: &Scenario) -> Result<u8> {
    match scenario {
        Scenario::Connect(options) => {
            options.connection.client.pin()?;
            show(connect::run(options)?, &options.connection.client)
        }
        Scenario::Fanout(options) => {
            options.connection.client.pin()?;
            show(fanout::run(options)?, &options.connection.client)
        }
        Scenario::Limit(LimitCommand::Serve(options)) => {
            limit::run_serve(options)?;
            Ok(0)
        }
        Scenario::Limit(LimitCommand::Run(options)) => {
            options.client.pin()?;
            show(limit::run_limit(options)?, &options.client)
        }
        Scenario::Compare(options) => {
            options.client.pin()?;
            show(compare::run(options)?, &options.client)
        }
        Scenario::Storm(options) => {
            options.client.pin()?;
            show(storm::run(options)?, &options.client)
        }
        Scenario::Rolling(options) => {
            options.client.pin()?;
            show(rolling::run(options)?, &options.client)
        }
        Scenario::Outage(options) => {
            options.client.pin()?;
            show(outage::run(options)?, &options.client)
        }
        Scenario::Resume(options) => {
            options.client.pin()?;
            show(resume::run(options)?, &options.client)
        }
        Scenario::Scaleout(options) => {
            options.client.pin()?;
            show(scaleout::run(options)?, &options.client)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
