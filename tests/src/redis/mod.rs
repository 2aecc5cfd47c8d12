//! Real Redis servers on free loopback ports: alone, watched by Sentinels, or in a Cluster. They end with the test.

mod cluster;
mod resp;
mod sentinel;
mod server;

pub use cluster::Cluster;
pub use sentinel::Watched;
pub use server::{APPEND_ONLY, Server, VOLATILE};

/// The user that gateways log in as; it may do what the gateway says it needs, and nothing else.
const USER: &str = "evenkeel";

const PASSWORD: &str = "not-a-secret";

/// Where the gateways' keys are.
const PREFIX: &str = "test.ek";

/// The sections of a gateway's configuration that lead to Redis; further lines belong to the last, `redis`.
///
/// Waits between attempts are short, because every scenario waits for them.
fn section(more: &str) -> String {
    format!(
        r#"
[backplane]
kind = "redis"

[redis]
username = "{USER}"
password = "{PASSWORD}"
prefix = "{PREFIX}"
reconnect_delay_max = "200ms"
liveness_interval = "500ms"
{more}
"#
    )
}
