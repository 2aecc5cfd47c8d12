//! The real JavaScript SDK, unmodified, against a gateway process: `tests/sdk/js` has the scenarios.

use tests::gateway::Gateway;
use tests::script::node;

#[test]
fn json_in_node() {
    node(&Gateway::start(), &["run-node.js", "json"]);
}

#[test]
fn protobuf_in_node() {
    node(&Gateway::start(), &["run-node.js", "protobuf"]);
}

#[test]
fn json_in_headless_chromium() {
    node(&Gateway::start(), &["run-browser.js"]);
}
