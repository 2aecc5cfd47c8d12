//! Real NATS servers on free loopback ports: alone, or three in a cluster. They end with the test.
//!
//! Of two generations: the one of Debian 12, and a current one from PyPI ([`Version`]).

mod cluster;
mod server;

use std::path::{Path, PathBuf};

pub use cluster::Cluster;
pub use server::{Copy, Server, Storage};

/// The user that gateways log in as.
const USER: &str = "evenkeel";

const PASSWORD: &str = "not-a-secret";

/// What gateways' streams and subjects begin with.
const PREFIX: &str = "test-ek";

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// 2.9, as Debian 12 has it: no batched reads, and republished messages may be out of order.
    Debian,
    /// A current one, which `tests/run` installs from PyPI.
    Current,
}

impl Version {
    /// The program.
    ///
    /// # Panics
    ///
    /// When it is not installed.
    fn program(self) -> PathBuf {
        match self {
            Self::Debian => PathBuf::from("nats-server"),
            Self::Current => std::env::var_os("EVENKEEL_NATS_SERVER_CURRENT").map_or_else(
                || {
                    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/nats-server");
                    assert!(path.is_file(), "{} is missing: tests/run installs it", path.display());
                    path
                },
                PathBuf::from,
            ),
        }
    }
}

/// The sections of a gateway's configuration that lead to these servers; further lines belong to the last, `nats`.
///
/// Waits between attempts are short, because every scenario waits for them.
fn section(addresses: &[String], storage: Storage, replicas: usize, more: &str) -> String {
    let servers: Vec<String> = addresses.iter().map(|address| format!("{address:?}")).collect();
    let storage = match storage {
        Storage::File => "file",
        Storage::Memory => "memory",
    };
    format!(
        r#"
[backplane]
kind = "nats"

[nats]
servers = [{}]
username = "{USER}"
password = "{PASSWORD}"
prefix = "{PREFIX}"
storage = "{storage}"
replicas = {replicas}
reconnect_delay_max = "200ms"
liveness_interval = "500ms"
{more}
"#,
        servers.join(", ")
    )
}
