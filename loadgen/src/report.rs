//! What a run reports: a table for people, JSON for programs, an exit code for scripts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use comfy_table::presets::ASCII_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::html::{self, Plot};
use crate::procfs::Machine;

/// Columns of a table, so that it fits a page wherever it was printed.
const TABLE_WIDTH: u16 = 120;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The figures count.
    Clean,
    /// The audit found a broken promise.
    Violated,
    /// Connections were refused or lost, publishes failed, or what the scenario demands was not met in time.
    Failed,
    /// The client was too busy for its figures to say something about the server.
    Void,
}

impl Verdict {
    /// The verdict on a run: a violation is one however busy the client was, while refusals and losses of an overloaded
    /// client are its own fault.
    pub fn new(violations: u64, void: bool, failures: u64) -> Self {
        match (violations, void, failures) {
            (1.., ..) => Self::Violated,
            (0, true, _) => Self::Void,
            (0, false, 1..) => Self::Failed,
            (0, false, 0) => Self::Clean,
        }
    }

    /// Exit code: 0 clean, 1 violated or failed, 2 void. A run that could not be carried out ends with 3.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Violated | Self::Failed => 1,
            Self::Void => 2,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Violated => "VIOLATED: the audit found a broken promise",
            Self::Failed => "FAILED: connections or publishes were refused or lost, or a demand was not met",
            Self::Void => "VOID: the client ran or waited for its core over 90 % of the time, its figures do not count",
        }
    }
}

/// A report and everything it must be quoted with. The field names are stable.
#[derive(Serialize)]
pub struct Report<T> {
    /// Version of loadgen.
    pub loadgen: &'static str,
    /// The command line, with secrets left out.
    pub command: String,
    /// When the run ended, in seconds since 1970.
    pub unix_time: u64,
    /// Where it ran.
    pub machine: Machine,
    /// Name of the scenario.
    pub scenario: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// Its figures.
    pub result: T,
}

/// Figures that can be shown in a table.
pub trait Figures: Serialize {
    /// Name and value of each row.
    fn rows(&self) -> Vec<(String, String)>;

    /// What is worth drawing over time.
    fn plots(&self) -> Vec<Plot> {
        Vec::new()
    }
}

impl<T: Figures> Report<T> {
    /// The report of a run that has just ended.
    pub fn new(scenario: &'static str, verdict: Verdict, result: T) -> Self {
        Self {
            loadgen: env!("CARGO_PKG_VERSION"),
            command: without_secrets(std::env::args()),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            machine: Machine::read(),
            scenario,
            verdict,
            result,
        }
    }

    /// Prints it to standard output, writes a page if a file is named, and returns the exit code.
    pub fn show(&self, json: bool, html: Option<&Path>) -> Result<u8> {
        if let Some(file) = html {
            let title = format!("loadgen {} {}", self.loadgen, self.scenario);
            let page = html::page(&title, &self.rows(), &self.result.plots());
            fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
        }
        if json {
            let text = serde_json::to_string_pretty(self).expect("a report has no keys or numbers JSON cannot write");
            println!("{text}");
        } else {
            println!("{}", self.table());
        }
        Ok(self.verdict.exit_code())
    }

    fn rows(&self) -> Vec<(String, String)> {
        let Machine { kernel, cpu, cores, memory_bytes } = &self.machine;
        let gib = *memory_bytes as f64 / (1u64 << 30) as f64;
        let mut rows = vec![
            ("command".to_owned(), self.command.clone()),
            ("machine".to_owned(), format!("{cores} x {cpu}, {gib:.0} GiB, Linux {kernel}")),
        ];
        rows.extend(self.result.rows());
        rows.push(("verdict".to_owned(), self.verdict.describe().to_owned()));
        rows
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(TABLE_WIDTH);
        table.set_header(["loadgen".to_owned(), format!("{} {}", self.loadgen, self.scenario)]);
        for (name, value) in self.rows() {
            table.add_row([name, value]);
        }
        table.to_string()
    }
}

/// The command line with the values of secret options replaced.
fn without_secrets(arguments: impl Iterator<Item = String>) -> String {
    const SECRET: [&str; 3] = ["--token-secret", "--token", "--api-key"];
    let mut hide_next = false;
    let words = arguments.map(|word| {
        if std::mem::take(&mut hide_next) {
            return "***".to_owned();
        }
        hide_next = SECRET.contains(&word.as_str());
        match word.split_once('=') {
            Some((name, _)) if SECRET.contains(&name) => format!("{name}=***"),
            _ => word,
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Quantiles of a duration, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Durations measured.
    pub count: u64,
    /// Half of them were at most this.
    pub p50_ms: f64,
    /// Nine tenths.
    pub p90_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1000.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Quantiles {
    /// Reads them off a histogram of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            count: histogram.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
        }
    }

    /// One line of a table.
    pub fn line(&self) -> String {
        if self.count == 0 {
            return "none".to_owned();
        }
        let Self { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = self;
        format!("p50 {p50_ms:.2}  p90 {p90_ms:.2}  p99 {p99_ms:.2}  p99.9 {p999_ms:.2}  max {max_ms:.2} ms")
    }
}

/// Reasons and counts on one line each.
pub fn reasons(reasons: &BTreeMap<String, u64>) -> String {
    reasons.iter().map(|(reason, count)| format!("{count} x {reason}")).collect::<Vec<_>>().join("\n")
}

/// A curve over time, in characters: values from `floor` to the highest, over as many columns and rows.
pub fn text_plot(values: &[f64], floor: f64, (columns, rows): (usize, usize)) -> String {
    let top = values.iter().copied().fold(floor, f64::max);
    let (Some(last), true) = (values.len().checked_sub(1), top > floor && rows > 1 && columns > 1) else {
        return format!("{floor:.2} all the time");
    };
    // Where there are more values than columns, each shows the highest of its share.
    let columns = columns.min(values.len());
    let row_of = |column: usize| {
        let share = &values[column * values.len() / columns..((column + 1) * values.len()).div_ceil(columns)];
        let highest = share.iter().copied().fold(floor, f64::max);
        ((highest - floor) / (top - floor) * (rows - 1) as f64).round() as usize
    };
    let heights: Vec<usize> = (0..columns).map(row_of).collect();
    let line = |row: usize| {
        let value = floor + (top - floor) * row as f64 / (rows - 1) as f64;
        let marks: String = heights.iter().map(|height| if *height == row { '*' } else { ' ' }).collect();
        format!("{value:5.2} |{}", marks).trim_end().to_owned()
    };
    let mut lines: Vec<String> = (0..rows).rev().map(line).collect();
    lines.push(format!("      0 s{:>width$}", format!("{last} s"), width = columns.saturating_sub(2)));
    lines.join("\n")
}

/// A number with thousands separated, as counts in a table are read by people.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_outweighs_a_void_run_which_outweighs_failures() {
        assert_eq!(Verdict::new(1, true, 1).exit_code(), 1);
        assert_eq!(Verdict::new(0, true, 1), Verdict::Void);
        assert_eq!(Verdict::Void.exit_code(), 2);
        assert_eq!(Verdict::new(0, false, 3), Verdict::Failed);
        assert_eq!(Verdict::new(0, false, 0).exit_code(), 0);
    }

    #[test]
    fn secrets_do_not_get_into_reports() {
        let words = ["loadgen", "--api-key", "k1", "--token=k2", "--token-secret", "k3", "--rate", "5"];
        let shown = without_secrets(words.into_iter().map(str::to_owned));
        assert_eq!(shown, "loadgen --api-key *** --token=*** --token-secret *** --rate 5");
    }

    #[test]
    fn a_curve_is_drawn_with_its_highest_points() {
        let plot = text_plot(&[1.0, 1.0, 2.0, 1.5, 1.5, 1.0, 1.0, 1.0], 1.0, (8, 3));
        assert_eq!(plot, " 2.00 |  *\n 1.50 |   **\n 1.00 |**   ***\n      0 s   7 s");
        let narrow = text_plot(&[1.0, 1.0, 2.0, 1.5, 1.5, 1.0, 1.0, 1.0], 1.0, (4, 3));
        assert_eq!(narrow, " 2.00 | *\n 1.50 |  *\n 1.00 |*  *\n      0 s7 s");
        assert_eq!(text_plot(&[1.0, 1.0], 1.0, (8, 3)), "1.00 all the time");
        assert_eq!(text_plot(&[], 1.0, (8, 3)), "1.00 all the time");
    }

    #[test]
    fn numbers_are_grouped_and_quantiles_are_in_milliseconds() {
        assert_eq!(
            (thousands(7), thousands(1234), thousands(1_234_567)),
            ("7".into(), "1,234".into(), "1,234,567".into())
        );
        let mut histogram = crate::client::shared::microseconds();
        (1..=100u64).for_each(|ms| histogram.record(ms * 1000).expect("in range"));
        let quantiles = Quantiles::of(&histogram);
        assert!((quantiles.p50_ms - 50.0).abs() < 0.1 && (quantiles.p99_ms - 99.0).abs() < 0.1, "{quantiles:?}");
    }
}
