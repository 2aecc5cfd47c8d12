//! Encrypted connections to a real server: whom a node trusts, and how it says who it is.

mod redis_server;

use std::path::PathBuf;

use backplane::redis::{RedisBackplane, RedisConfig, RedisTls, Topology};
use backplane::{Backplane, BackplaneError};
use redis_server::node::{Node, channel};
use redis_server::servers::authority::Authority;
use redis_server::{Server, VOLATILE, run};

/// A server that speaks TLS only, with a certificate for `name`.
fn encrypted_server(authority: &Authority, name: &str, asks_for_certificates: bool) -> Server {
    let (certificate, key) = authority.sign(name);
    let asks = if asks_for_certificates { "yes" } else { "no" };
    Server::with_arguments(VOLATILE, "", |port| {
        let text = |path: &PathBuf| path.display().to_string();
        let port = port.to_string();
        // The plain port is given before, and this takes it back.
        let arguments = [
            ("--port", "0".to_owned()),
            ("--tls-port", port),
            ("--tls-cert-file", text(&certificate)),
            ("--tls-key-file", text(&key)),
            ("--tls-ca-cert-file", text(&authority.ca_file())),
            ("--tls-auth-clients", asks.to_owned()),
        ];
        arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    })
}

fn config(server: &Server, tls: RedisTls) -> RedisConfig {
    RedisConfig { tls: Some(tls), ..server.config() }
}

async fn works(config: &RedisConfig) {
    let mut node = Node::connect(config).await;
    let names = channel("encrypted");
    node.backplane.subscribe(&names).await.expect("subscribe");
    node.publish(&names[0], "secret").await;
    assert_eq!(node.publication().await, "secret");
}

fn refused(config: &RedisConfig) -> String {
    match run(RedisBackplane::connect(config)).expect_err("the connection must not be made") {
        BackplaneError::Protocol(why) => why,
        error @ BackplaneError::Unavailable(_) => panic!("taken for temporary: {error}"),
    }
}

#[test]
fn the_authority_decides() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = encrypted_server(&authority, "127.0.0.1", false);
    let trusting = |authority: &Authority| RedisTls { ca_file: Some(authority.ca_file()), identity: None };
    run(works(&config(&server, trusting(&authority))));
    let why = refused(&config(&server, trusting(&stranger)));
    assert!(why.contains("InvalidCertificate"), "{why}");
    // Those of the operating system do not know it either; there may be none.
    let why = refused(&config(&server, RedisTls::default()));
    assert!(why.contains("InvalidCertificate"), "{why}");
    // Without encryption it is no Redis server to speak of.
    run(RedisBackplane::connect(&server.config())).expect_err("the server speaks TLS only");
}

#[test]
fn the_name_must_be_right() {
    let authority = Authority::new();
    let server = encrypted_server(&authority, "redis.example", false);
    let tls = RedisTls { ca_file: Some(authority.ca_file()), identity: None };
    let why = refused(&config(&server, tls));
    assert!(why.contains("InvalidCertificate"), "{why}");
}

#[test]
fn a_server_may_ask_for_a_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = encrypted_server(&authority, "127.0.0.1", true);
    let known_as = |identity| RedisTls { ca_file: Some(authority.ca_file()), identity };
    run(works(&config(&server, known_as(Some(authority.sign("node"))))));
    for identity in [None, Some(stranger.sign("node"))] {
        run(RedisBackplane::connect(&config(&server, known_as(identity)))).expect_err("the server does not know us");
    }
}

/// The connections to the servers of a cluster, which are found by themselves, are encrypted too.
#[test]
fn a_cluster_is_spoken_to_in_tls() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("127.0.0.1");
    let text = |path: &PathBuf| path.display().to_string();
    let arguments = |port: u16| {
        let arguments = [
            ("--cluster-enabled", "yes".to_owned()),
            ("--cluster-port", redis_server::free_port().to_string()),
            ("--port", "0".to_owned()),
            ("--tls-port", port.to_string()),
            ("--tls-cluster", "yes".to_owned()),
            ("--tls-cert-file", text(&certificate)),
            ("--tls-key-file", text(&key)),
            ("--tls-ca-cert-file", text(&authority.ca_file())),
            ("--tls-auth-clients", "no".to_owned()),
        ];
        arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    };
    let server = Server::with_arguments(VOLATILE, "", arguments);
    let ca_file = text(&authority.ca_file());
    let ask = |words: &[&str]| server.ask(&[&["--tls", "--cacert", &ca_file], words].concat());
    assert_eq!(ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    redis_server::eventually("the cluster works", || ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let tls = RedisTls { ca_file: Some(authority.ca_file()), identity: None };
    let topology = Topology::Cluster(vec![server.address()]);
    run(works(&RedisConfig { topology, ..config(&server, tls) }));
}
