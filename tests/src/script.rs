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

/// Runs a script of `tests/sdk/js` in Node against this gateway.
///
/// # Panics
///
/// With the script's report, when a scenario failed.
pub fn node(gateway: &Gateway, arguments: &[&str]) {
    run(gateway, &mut node_command(arguments));
}

/// Runs a script of `tests/sdk/python` against this gateway.
///
/// # Panics
///
/// With the script's report, when a scenario failed.
pub fn python(gateway: &Gateway, arguments: &[&str]) {
    run(gateway, &mut python_command(arguments));
}

/// Runs a script of `tests/sdk/python` that asks all these nodes.
///
/// # Panics
///
/// With the script's report, when a scenario failed.
pub fn python_for_all(nodes: &[Gateway], arguments: &[&str]) {
    let all = |url: fn(&Gateway) -> String| nodes.iter().map(url).collect::<Vec<String>>().join(",");
    let mut command = python_command(arguments);
    command
        .env("EVENKEEL_TEST_ALL_WS", all(|node| node.url().to_owned()))
        .env("EVENKEEL_TEST_ALL_API", all(|node| format!("{}/api", node.public_http())));
    run(&nodes[0], &mut command);
}

fn run(gateway: &Gateway, command: &mut Command) {
    let output = command
        .env("EVENKEEL_TEST_WS", gateway.url())
        .env("EVENKEEL_TEST_API", format!("{}/api", gateway.public_http()))
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
