//! The server between nodes, of whichever kind: scenarios that hold for all of them are run on each.

use crate::nats;
use crate::redis;

/// A server for a fleet. It may be ended, stopped and started again.
pub enum Store {
    /// A `redis-server`.
    Redis(redis::Server),
    /// A `nats-server`.
    Nats(nats::Server),
}

/// Which kind of server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Redis 7.
    Redis,
    /// NATS 2.9, as Debian 12 has it.
    NatsDebian,
    /// A current NATS.
    Nats,
}

impl Kind {
    /// Starts a server that forgets everything when it ends.
    pub fn volatile(self) -> Store {
        match self {
            Self::Redis => Store::Redis(redis::Server::start(redis::VOLATILE)),
            // Debian's is slow with streams in memory that republish, but it forgets.
            Self::NatsDebian => Store::Nats(nats::Server::start(nats::Version::Debian, nats::Storage::Memory)),
            Self::Nats => Store::Nats(nats::Server::start(nats::Version::Current, nats::Storage::Memory)),
        }
    }

    /// Starts a server that keeps what it has acknowledged when its process ends.
    pub fn durable(self) -> Store {
        match self {
            Self::Redis => Store::Redis(redis::Server::start(redis::APPEND_ONLY)),
            Self::NatsDebian => Store::Nats(nats::Server::start(nats::Version::Debian, nats::Storage::File)),
            Self::Nats => Store::Nats(nats::Server::start(nats::Version::Current, nats::Storage::File)),
        }
    }

    /// A server that is not there yet: it starts by [`Store::start_again`].
    pub fn later(self) -> Store {
        let mut store = self.volatile();
        store.kill();
        store
    }
}

impl Store {
    /// The configuration that leads a gateway here; further lines belong to the section of the server's kind.
    pub fn config(&self, more: &str) -> String {
        match self {
            Self::Redis(server) => server.config(more),
            Self::Nats(server) => server.config(more),
        }
    }

    /// The same by way of another address, which leads here.
    pub fn config_through(&self, address: &str, more: &str) -> String {
        match self {
            Self::Redis(server) => server.config_through(address, more),
            Self::Nats(server) => server.config_through(address, more),
        }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        match self {
            Self::Redis(server) => server.address(),
            Self::Nats(server) => server.address(),
        }
    }

    /// Ends the process as a crash does.
    pub fn kill(&mut self) {
        match self {
            Self::Redis(server) => server.kill(),
            Self::Nats(server) => server.kill(),
        }
    }

    /// Starts the process again, after [`Store::kill`].
    pub fn start_again(&mut self) {
        match self {
            Self::Redis(server) => server.start_again(),
            Self::Nats(server) => server.start_again(),
        }
    }

    /// Stops the process until [`Store::resume`], as a machine does that hangs.
    pub fn freeze(&self) {
        match self {
            Self::Redis(server) => server.freeze(),
            Self::Nats(server) => server.freeze(),
        }
    }

    /// The end of [`Store::freeze`].
    pub fn resume(&self) {
        match self {
            Self::Redis(server) => server.resume(),
            Self::Nats(server) => server.resume(),
        }
    }
}

/// Makes one test of each scenario for each kind of server: `on_every_store! { scenario another }`, where a scenario is an
/// `async fn` of a [`Kind`].
#[macro_export]
macro_rules! on_every_store {
    ($($scenario:ident)*) => {
        $crate::on_every_store! { @module redis Redis; $($scenario)* }
        $crate::on_every_store! { @module nats Nats; $($scenario)* }
        $crate::on_every_store! { @module nats_of_debian NatsDebian; $($scenario)* }
    };
    (@module $module:ident $kind:ident; $($scenario:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $scenario() {
                    super::$scenario($crate::store::Kind::$kind).await;
                }
            )*
        }
    };
}
