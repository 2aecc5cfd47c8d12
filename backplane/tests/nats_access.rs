//! How a node proves who it is to a NATS server, and encrypts what it says.

mod nats_server;

use backplane::nats::{Address, NatsAuth, NatsBackplane, NatsConfig, NatsTls};
use backplane::{Backplane, BackplaneError, HistoryQuery};
use nats_server::access::{Access, PASSWORD, TOKEN, USER};
use nats_server::servers::authority::Authority;
use nats_server::servers::node::{KEEP, channel};
use nats_server::servers::run;
use nats_server::{Server, Version};
use nkeys::KeyPair;

fn config(server: &Server, host: &str, auth: NatsAuth) -> NatsConfig {
    let servers = vec![Address::new(host, server.port)];
    // A machine that stands still for some seconds is no silent server.
    let limit = std::time::Duration::from_secs(10);
    NatsConfig { servers, auth, command_timeout: limit, connect_timeout: limit, ..NatsConfig::default() }
}

async fn works(config: &NatsConfig) {
    let backplane = NatsBackplane::connect(config).await.expect("it is let in");
    let top = backplane.history(&channel("a")[0], HistoryQuery::position(), KEEP).await;
    top.expect("it may use streams");
}

async fn refused(config: &NatsConfig) -> String {
    match NatsBackplane::connect(config).await {
        Err(BackplaneError::Protocol(why)) => why,
        other => panic!("{:?} is let in or told to try again: {other:?}", config.auth),
    }
}

#[test]
fn every_proof_is_accepted_and_a_wrong_one_refused() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let file = directory.path().join("user.creds");
    let seed = || KeyPair::new_user().seed().expect("a new key has its seed");
    let cases = [
        (
            Access::Password,
            NatsAuth::User { name: USER.to_owned(), password: PASSWORD.to_owned() },
            NatsAuth::User { name: USER.to_owned(), password: "wrong".to_owned() },
        ),
        (Access::Token, NatsAuth::Token(TOKEN.to_owned()), NatsAuth::Token("wrong".to_owned())),
        match Access::nkey() {
            Access::Nkey { seed: right } => {
                (Access::Nkey { seed: right.clone() }, NatsAuth::Nkey(right), NatsAuth::Nkey(seed()))
            }
            _ => unreachable!("it is a key"),
        },
        (Access::credentials(), NatsAuth::Credentials(file.clone()), NatsAuth::Nkey(seed())),
    ];
    for version in Version::ALL {
        for (access, right, wrong) in &cases {
            if let Access::Credentials { credentials, .. } = access {
                std::fs::write(&file, credentials).expect("the directory is writable");
            }
            let server = Server::with_access(version, access.clone());
            run(async {
                works(&config(&server, "127.0.0.1", right.clone())).await;
                for auth in [wrong.clone(), NatsAuth::None] {
                    let why = refused(&config(&server, "127.0.0.1", auth)).await;
                    assert!(why.contains("authorization"), "{version:?}: {why}");
                }
            });
        }
    }
}

/// The server proves who it is by a certificate, and asks for one.
#[test]
fn connections_are_encrypted() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("localhost");
    let identity = Some(authority.sign("node"));
    let ca_file = Some(authority.ca_file());
    for version in Version::ALL {
        for client_authority in [None, ca_file.clone()] {
            let asks = client_authority.is_some();
            let tls = Access::Tls { certificate: certificate.clone(), key: key.clone(), client_authority };
            let server = Server::with_access(version, tls);
            let with = |ca_file: &Option<std::path::PathBuf>, identity: &Option<_>| {
                let tls = Some(NatsTls { ca_file: ca_file.clone(), identity: identity.clone() });
                NatsConfig { tls, ..config(&server, "localhost", NatsAuth::None) }
            };
            run(async {
                works(&with(&ca_file, &identity)).await;
                let stranger = Authority::new();
                let why = refused(&with(&Some(stranger.ca_file()), &identity)).await;
                assert!(why.contains("certificate"), "{version:?}: {why}");
                let anonymous = NatsBackplane::connect(&with(&ca_file, &None)).await;
                assert_eq!(anonymous.is_ok(), !asks, "{version:?}: {anonymous:?}");
            });
        }
    }
}
