//! What the other tests rely on: real servers of both versions start, keep their data, and can be cut off.

mod nats_server;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use nats_server::access::Access;
use nats_server::cluster::Cluster;
use nats_server::servers::link::Link;
use nats_server::{Server, Version};

const CREATE: &str = r#"{"name":"S","subjects":["s.*"],"storage":"file","num_replicas":1,"retention":"limits",
    "discard":"old","max_consumers":-1,"max_msgs":-1,"max_bytes":-1,"max_age":0}"#;

/// How many messages the stream has.
fn messages(server: &Server) -> u64 {
    let about = server.ask("$JS.API.STREAM.INFO.S", "");
    let (_, after) = about.split_once(r#""messages":"#).unwrap_or_else(|| panic!("no stream: {about}"));
    after.split([',', '}']).next().and_then(|count| count.parse().ok()).expect("a number")
}

fn store(server: &Server, subject: &str) {
    let answer = server.ask(subject, "x");
    assert!(answer.contains(r#""seq":"#), "{answer}");
}

#[test]
fn data_outlives_a_crash_and_can_be_rolled_back() {
    for version in Version::ALL {
        let mut server = Server::start(version);
        let created = server.ask("$JS.API.STREAM.CREATE.S", CREATE);
        assert!(created.contains(r#""created""#), "{version:?}: {created}");
        store(&server, "s.1");
        let snapshot = server.snapshot();
        store(&server, "s.2");
        server.restart();
        assert_eq!(messages(&server), 2, "{version:?} after a crash");
        server.roll_back(&snapshot);
        assert_eq!(messages(&server), 1, "{version:?} after going back");
        server.end_without_data();
        server.start_again();
        assert!(server.ask("$JS.API.STREAM.INFO.S", "").contains("404"), "{version:?} without its data");
    }
}

#[test]
fn clients_have_to_prove_who_they_are() {
    for version in Version::ALL {
        for access in [Access::Password, Access::Token, Access::nkey(), Access::credentials()] {
            let server = Server::with_access(version, access);
            let account = server.ask("$JS.API.INFO", "");
            assert!(account.contains(r#""streams":0"#), "{version:?}: {account}");
            let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).expect("the server is running");
            stranger.write_all(b"CONNECT {}\r\nPING\r\n").expect("the server listens");
            let mut said = String::new();
            stranger.read_to_string(&mut said).expect("the server closes the connection");
            assert!(said.contains("Authorization Violation"), "{version:?}: {said}");
        }
    }
}

#[test]
fn three_servers_are_a_cluster_and_one_may_end() {
    for version in Version::ALL {
        let mut cluster = Cluster::start(version);
        let replicated = CREATE.replace(r#""num_replicas":1"#, r#""num_replicas":3"#);
        let created = cluster.servers[0].ask("$JS.API.STREAM.CREATE.S", &replicated);
        assert!(created.contains(r#""created""#), "{version:?}: {created}");
        let leader = cluster.leader("S", 0);
        store(&cluster.servers[leader], "s.1");
        cluster.servers[leader].end();
        let next = cluster.leader("S", (leader + 1) % 3);
        assert_ne!(next, leader, "{version:?}");
        cluster.servers[leader].start_again();
        cluster.settled();
        assert_eq!(messages(&cluster.servers[leader]), 1, "{version:?}");
    }
}

#[test]
fn a_link_is_cut_and_mended() {
    let server = Server::start(Version::Current);
    let link = Link::to(server.port);
    let greeting = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port)).expect("the link is there");
        let mut begin = [0; 5];
        stream.read_exact(&mut begin).map(|()| (stream, begin))
    };
    let (mut stream, begin) = greeting().expect("the server greets");
    assert_eq!(&begin, b"INFO ");
    link.cut();
    let mut rest = Vec::new();
    // The end, or a reset.
    let _ = stream.read_to_end(&mut rest);
    assert!(greeting().is_err(), "a connection over a link that is cut");
    link.mend();
    assert!(greeting().is_ok(), "a connection over a mended link");
}
