//! The server under load: its address, and whether we may aim at it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail};

/// Connections from one source address before the next one is used. The default range of ephemeral ports holds 28,232, but
/// Linux looks through one half of it first, port by port, so connecting becomes slow long before that half is full.
const CONNECTIONS_PER_SOURCE: usize = 4_000;

/// A plain-text HTTP or WebSocket endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// Value of the Host field.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Parses and resolves a URL of the given scheme (`ws` or `http`). Addresses outside this machine are refused unless
    /// asked for: pointing a load generator elsewhere by a typo is not funny.
    pub fn parse(url: &str, scheme: &str, allow_remote: bool) -> Result<Self> {
        let Some((given, rest)) = url.split_once("://") else {
            bail!("`{url}` is not a URL; expected {scheme}://HOST:PORT/PATH")
        };
        if given == format!("{scheme}s") {
            bail!("`{url}` asks for TLS, which loadgen does not speak; point it at a plain {scheme}:// listener");
        }
        if given != scheme {
            bail!("`{url}` has the scheme `{given}`; expected {scheme}://");
        }
        let (host, path) = match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
            Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
            None => (rest, "/".to_owned()),
        };
        if host.is_empty() || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("`{url}` has no host, or characters that do not belong in a URL");
        }
        let with_port = if host.ends_with(']') || !host.contains(':') { format!("{host}:80") } else { host.to_owned() };
        let addresses: Vec<SocketAddr> =
            with_port.to_socket_addrs().with_context(|| format!("cannot resolve `{host}`"))?.collect();
        // `localhost` may have an IPv6 address too, while most test servers listen on IPv4.
        let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        let address = *address.with_context(|| format!("`{host}` has no address"))?;
        if !allow_remote && !address.ip().is_loopback() {
            bail!("{address} is not on this machine; add --allow-remote if you may load it");
        }
        Ok(Self { address, host: host.to_owned(), path })
    }

    /// The same server with another path and no query.
    pub fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }
}

/// Source addresses of connections to a loopback server.
#[derive(Clone, Copy, Debug)]
pub struct Sources {
    base: Option<u16>,
}

impl Sources {
    /// Sources for one run. `seed` moves them, so that a run does not meet the ports the run before still holds.
    pub fn new(target: &Target, seed: u32) -> Self {
        let loopback = matches!(target.address.ip(), IpAddr::V4(address) if address.is_loopback());
        // The middle two bytes; the first and the last 1024 are left out, which spares 127.0.0.0 and wrapping.
        Self { base: loopback.then_some((seed % (65_536 - 2048)) as u16 + 1024) }
    }

    /// The address to bind connection `index` to; None leaves it to the kernel, which is right for any other network.
    pub fn of(&self, index: usize) -> Option<Ipv4Addr> {
        let [high, low] = (self.base? + (index / CONNECTIONS_PER_SOURCE).min(1023) as u16).to_be_bytes();
        Some(Ipv4Addr::new(127, high, low, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("ws://127.0.0.1:8000/connection/websocket?x=1", "ws", false).expect("valid");
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:8000", "/connection/websocket?x=1"));
        assert_eq!(target.address, "127.0.0.1:8000".parse().expect("an address"));
        let bare = Target::parse("http://[::1]", "http", false).expect("valid");
        assert_eq!((bare.address.port(), bare.path.as_str()), (80, "/"));
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_with_a_reason() {
        let reason = |url| Target::parse(url, "ws", false).expect_err("refused").to_string();
        assert!(reason("ws://192.0.2.1:80/").contains("--allow-remote"));
        assert!(reason("wss://127.0.0.1/").contains("TLS"));
        assert!(reason("http://127.0.0.1/").contains("expected ws://"));
        assert!(reason("127.0.0.1:80").contains("not a URL"));
        assert!(reason("ws://").contains("no host"));
        assert!(reason("ws://127.0.0.1/a\r\nb").contains("characters"));
        assert!(Target::parse("ws://192.0.2.1:80/", "ws", true).is_ok());
    }

    #[test]
    fn sources_change_before_ports_run_out_and_stay_on_loopback() {
        let target = Target::parse("ws://127.0.0.1:1/", "ws", false).expect("valid");
        for seed in [0, 1, u32::MAX] {
            let sources = Sources::new(&target, seed);
            assert_eq!(sources.of(0), sources.of(CONNECTIONS_PER_SOURCE - 1));
            assert_ne!(sources.of(0), sources.of(CONNECTIONS_PER_SOURCE));
            assert!(sources.of(usize::MAX).is_some_and(|address| address.is_loopback()));
        }
        let remote = Target::parse("ws://192.0.2.1:1/", "ws", true).expect("valid");
        assert_eq!(Sources::new(&remote, 5).of(0), None);
    }
}
