//! The progress bar.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error; nothing at all when that is not a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar from 0 to `length`.
    pub fn new(what: &'static str, length: u64) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let style = ProgressStyle::with_template("{prefix:>10} {bar:40} {human_pos}/{human_len} {per_sec} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what);
        Self(bar)
    }

    /// Shows a position and a remark.
    pub fn show(&self, position: u64, remark: impl FnOnce() -> String) {
        if !self.0.is_hidden() {
            self.0.set_message(remark());
            self.0.set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Lets the scenario's thread wait between two looks at a run. Rare enough not to be noticed in a client's CPU time.
pub fn pause() {
    std::thread::park_timeout(Duration::from_millis(20));
}
