//! The real Python SDKs of clients and of the server API, unmodified: `tests/sdk/python` has the scenarios.

use tests::gateway::Gateway;
use tests::script::python;

#[test]
fn client_json() {
    python(&Gateway::start(), &["run.py", "json"]);
}

#[test]
fn client_protobuf() {
    python(&Gateway::start(), &["run.py", "protobuf"]);
}

#[test]
fn server_api() {
    python(&Gateway::start(), &["run.py", "api"]);
}
