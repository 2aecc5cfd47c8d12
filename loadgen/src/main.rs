//! The command line of loadgen.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use loadgen::scenario::compare::{self, CompareOptions};
use loadgen::scenario::connect::{self, ConnectOptions};
use loadgen::scenario::fanout::{self, FanoutOptions};
use loadgen::scenario::limit::{self, LimitCommand};
use loadgen::scenario::outage::{self, OutageOptions};
use loadgen::scenario::resume::{self, ResumeOptions};
use loadgen::scenario::rolling::{self, RollingOptions};
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

fn run(scenario: &Scenario) -> Result<u8> {
    match scenario {
        Scenario::Connect(options) => {
            options.connection.client.pin()?;
            Ok(connect::run(options)?.print(options.connection.client.json))
        }
        Scenario::Fanout(options) => {
            options.connection.client.pin()?;
            Ok(fanout::run(options)?.print(options.connection.client.json))
        }
        Scenario::Limit(LimitCommand::Serve(options)) => {
            limit::run_serve(options)?;
            Ok(0)
        }
        Scenario::Limit(LimitCommand::Run(options)) => {
            options.client.pin()?;
            Ok(limit::run_limit(options)?.print(options.client.json))
        }
        Scenario::Compare(options) => {
            options.client.pin()?;
            Ok(compare::run(options)?.print(options.client.json))
        }
        Scenario::Storm(options) => {
            options.client.pin()?;
            Ok(storm::run(options)?.print(options.client.json))
        }
        Scenario::Rolling(options) => {
            options.client.pin()?;
            Ok(rolling::run(options)?.print(options.client.json))
        }
        Scenario::Outage(options) => {
            options.client.pin()?;
            Ok(outage::run(options)?.print(options.client.json))
        }
        Scenario::Resume(options) => {
            options.client.pin()?;
            Ok(resume::run(options)?.print(options.client.json))
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
