//! The real JavaScript SDK, unmodified, against a gateway process: `tests/sdk/js` has the scenarios.

use tests::gateway::{API_KEY, Gateway};
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

#[test]
fn the_demo_page_in_headless_chromium() {
    let gateway = Gateway::without_config().arg("--dev").env("EVENKEEL_API_KEY", API_KEY).start();
    node(&gateway, &["run-demo.js"]);
}
