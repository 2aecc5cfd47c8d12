//! Tables and plots of outcomes, as text and as SVG.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::scenario::{Outcome, Scenario};

/// A simulation and what came of it.
pub type Run = (Scenario, Outcome);

/// Writes to the terminal even where the test runner keeps what tests print for those that fail.
pub fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One line for each run.
pub fn table(runs: &[Run]) -> String {
    let mut text = format!(
        "{:44} {:>5} {:>5} {:>5} {:>5} {:>6} {:>8} {:>6} {:>5} {:>6} {:>5} {:>6}\n",
        "max/mean", "60 s", "300 s", "600 s", "end", "<=1.1", "moves", "/need", "peak", "failed", "open", "writes"
    );
    for (scenario, outcome) in runs {
        let level = outcome.level_after(1.10).map_or("never".to_owned(), |second| format!("{second} s"));
        let _ = writeln!(
            text,
            "{:44} {:5.2} {:5.2} {:5.2} {:5.2} {:>6} {:8} {:6.2} {:5} {:6} {:5.0} {:6}",
            scenario.name,
            outcome.at(60),
            outcome.at(300),
            outcome.at(600),
            outcome.at(outcome.curve.len()),
            level,
            outcome.moved(),
            outcome.moves_per_need(),
            outcome.peak_accepts,
            outcome.failed,
            outcome.open,
            outcome.writes,
        );
    }
    text
}

const WIDTH: usize = 100;
const HEIGHT: usize = 20;
const TOP: f64 = 2.1;

/// Balance over the first `seconds`, one letter for each run.
pub fn plot(runs: &[Run], seconds: usize) -> String {
    let mut grid = vec![vec![' '; WIDTH]; HEIGHT];
    for (index, (_, outcome)) in runs.iter().enumerate() {
        let points = (0..WIDTH).filter_map(|column| Some((column, outcome.curve.get(column * seconds / WIDTH)?)));
        for (column, ratio) in points {
            let height = ((ratio.min(TOP) - 1.0) / (TOP - 1.0) * (HEIGHT - 1) as f64).round() as usize;
            grid[HEIGHT - 1 - height][column] = letter(index);
        }
    }
    let mut text = String::new();
    for (row, line) in grid.iter().enumerate() {
        let value = 1.0 + (TOP - 1.0) * (HEIGHT - 1 - row) as f64 / (HEIGHT - 1) as f64;
        let _ = writeln!(text, "{value:5.2} |{}", line.iter().collect::<String>().trim_end());
    }
    let _ = writeln!(text, "      +{}\n       0 s{:>95}", "-".repeat(WIDTH), format!("{seconds} s"));
    for (index, (scenario, _)) in runs.iter().enumerate() {
        let _ = writeln!(text, "       {} {}", letter(index), scenario.name);
    }
    text
}

fn letter(index: usize) -> char {
    (b'a' + index as u8) as char
}

const COLOURS: [&str; 8] = ["#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98", "#148f77", "#5d6d7e", "#222222"];

/// The same as a picture.
pub fn svg(runs: &[Run], seconds: usize) -> String {
    let (width, height) = (900.0, 420.0);
    let x = |second: usize| 50.0 + (width - 60.0) * second as f64 / seconds as f64;
    let y = |ratio: f64| height - 40.0 - (height - 60.0) * (ratio.min(TOP) - 1.0) / (TOP - 1.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for tenth in 0..=11 {
        let ratio = 1.0 + f64::from(tenth) / 10.0;
        let at = y(ratio);
        let _ = writeln!(
            text,
            "<path d=\"M50 {at:.1}H{:.0}\" stroke=\"#ddd\"/><text x=\"14\" y=\"{:.1}\">{ratio:.1}</text>",
            width - 10.0,
            at + 4.0
        );
    }
    for (index, (scenario, outcome)) in runs.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points = outcome.curve.iter().take(seconds).enumerate();
        let points: String = points.map(|(second, ratio)| format!("{:.1},{:.1} ", x(second), y(*ratio))).collect();
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>",
            points.trim_end(),
            width - 330.0,
            30.0 + 16.0 * index as f64,
            scenario.name
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"50\" y=\"{0:.0}\">0 s</text><text x=\"{1:.0}\" y=\"{0:.0}\">{seconds} s</text>\n</svg>",
        height - 14.0,
        width - 60.0
    );
    text
}

/// Shows table and plot, and leaves the picture under the build directory.
pub fn present(title: &str, file: &str, runs: &[Run], seconds: usize) {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    let written = std::fs::write(&path, svg(runs, seconds));
    let place = match written {
        Ok(()) => format!("picture: {}", path.display()),
        Err(error) => format!("picture {}: {error}", path.display()),
    };
    show(&format!("\n{title}\n{}\n{}{place}\n\n", table(runs), plot(runs, seconds)));
}
