//! Runs the scenario scripts of `tests/sdk` with the interpreters that `tests/run` installed.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::gateway::{API_KEY, Gateway, SECRET};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tool(path: &str) -> PathBuf {
    let path = directory().join(".tools").join(path);
    assert!(path.exists(), "{} is missing: tests/run installs it", path.display());
    path
}

/// A command that runs a script of `tests/sdk/js` in Node.
pub(crate) fn node_command(arguments: &[&str]) -> Command {
    let scripts = directory().join("sdk/js");
    assert!(scripts.join("node_modules/centrifuge").exists(), "the npm packages are missing: tests/run installs them");
    let mut command = Command::new(tool("bin/node"));
    command.current_dir(scripts).args(arguments);
    command
}

/// A command that runs a script of `tests/sdk/python`.
pub(crate) fn python_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(tool("venv/bin/python"));
    command.arg("-B").current_dir(directory().join("sdk/python")).args(arguments);
    command
}

/// Where the clients of a script connect, and where it calls the server API: two nodes of one fleet, or one and the same.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The node for clients.
    pub clients: &'a Gateway,
    /// The node for the server API.
    pub api: &'a Gateway,
    /// Nodes in the fleet.
    pub nodes: usize,
}

impl<'a> From<&'a Gateway> for Target<'a> {
    fn from(gateway: &'a Gateway) -> Self {
        Self { clients: gateway, api: gateway, nodes: 1 }
    }
}

/// Runs a script of `tests/sdk/js` in Node.
///
/// # Panics
///
/// With the script's report, when a scenario failed.
pub fn node<'a>(target: impl Into<Target<'a>>, arguments: &[&str]) {
    run(target.into(), &mut node_command(arguments));
}

/// Runs a script of `tests/sdk/python`.
///
/// # Panics
///
/// With the script's report, when a scenario failed.
pub fn python<'a>(target: impl Into<Target<'a>>, arguments: &[&str]) {
    run(target.into(), &mut python_command(arguments));
}

fn run(target: Target<'_>, command: &mut Command) {
    let output = command
        .env("EVENKEEL_TEST_WS", target.clients.url())
        .env("EVENKEEL_TEST_API", format!("{}/api", target.api.public_http()))
        .env("EVENKEEL_TEST_NODES", target.nodes.to_string())
        .env("EVENKEEL_API_KEY", API_KEY)
        .env("EVENKEEL_TOKEN_HMAC_SECRET", SECRET)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    print!("{report}");
    assert!(output.status.success(), "{command:?} failed\n{report}\n{errors}");
    assert!(report.lines().any(|line| line.starts_with("ok ")), "no scenario ran\n{report}\n{errors}");
}
