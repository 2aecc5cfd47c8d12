//! `gateway top`: the fleet in a terminal, as any node tells it on its internal listener.
//!
//! Reading order: [`cluster`] (what a node tells), [`render`] (that as lines of text), [`screen`] (the terminal), and here
//! what ties them together.

pub mod cluster;
pub mod render;
pub mod screen;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::ask::Place;
use crate::cli::TopArgs;

use cluster::Cluster;
use render::Size;
use screen::{Screen, Woken};

/// Where a node tells the state of the fleet.
const PATH: &str = "/v1/cluster";

/// What is printed without a terminal: all nodes, on lines that fit most windows and pages.
const PLAIN: Size = Size { columns: 140, rows: usize::MAX };

/// The command.
pub fn run(arguments: &TopArgs) -> ExitCode {
    let shown = if arguments.once || !io::stdout().is_terminal() { print(&arguments.url) } else { watch(arguments) };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn ask(place: &Place) -> Result<Cluster, String> {
    let answer = place.get(PATH).map_err(|error| format!("{place} cannot be asked: {error}"))?;
    Cluster::read(answer.status, &answer.body).map_err(|reason| render::clean(&format!("{place}: {reason}")))
}

fn print(place: &Place) -> Result<(), String> {
    let cluster = ask(place)?;
    let mut out = io::stdout().lock();
    for line in render::lines(&cluster, None, PLAIN) {
        writeln!(out, "{line}").map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Until the user has seen enough. What cannot be read from the beginning is a mistake and is told at once; later it may
/// come back, and the last state is better than none.
fn watch(arguments: &TopArgs) -> Result<(), String> {
    let mut cluster = ask(&arguments.url)?;
    let mut asked = Instant::now();
    let mut trouble = None;
    let mut drawing = || -> io::Result<()> {
        let mut screen = Screen::enter()?;
        loop {
            screen.draw(&render::lines(&cluster, trouble.as_deref(), screen.size()?))?;
            match screen.wait(asked + arguments.interval)? {
                Woken::Quit => return Ok(()),
                Woken::Resized => continue,
                Woken::Due => {}
            }
            asked = Instant::now();
            match ask(&arguments.url) {
                Ok(newer) => (cluster, trouble) = (newer, None),
                Err(reason) => trouble = Some(reason),
            }
        }
    };
    drawing().map_err(|error| format!("the terminal cannot be used: {error}"))
}

/// The shortest time between two questions: a person sees no more, and a node has other things to do.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
