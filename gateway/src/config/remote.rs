//! Servers elsewhere: their addresses, and how connections to them are encrypted.

use std::path::PathBuf;

use backplane::redis::{Address, RedisTls as TlsFiles};

use super::reader::Section;
use super::server::{check_certificates, check_private_key};

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
pub(super) fn parse_address(text: &str, default_port: u16) -> Option<Address> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(legal) {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => default_port,
    };
    Some(Address::new(host, port))
}

/// The files, and whether encryption was asked for here: a URL may do so too.
pub(super) fn tls(section: &mut Section<'_>) -> (TlsFiles, bool) {
    let mut own = section.section("tls");
    let is_enabled = own.flag("enabled", false);
    let mut file = |name: &str| own.text_opt(name).map(PathBuf::from);
    let (ca_file, cert_file, key_file) = (file("ca_file"), file("cert_file"), file("key_file"));
    for (name, path) in [("ca_file", &ca_file), ("cert_file", &cert_file)] {
        if let Some(path) = path
            && let Err(reason) = check_certificates(path)
        {
            own.problem(name, reason);
        }
    }
    if let Some(path) = &key_file
        && let Err(reason) = check_private_key(path)
    {
        own.problem("key_file", reason);
    }
    let identity = match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some((cert_file, key_file)),
        (None, None) => None,
        (Some(_), None) => {
            own.problem("cert_file", "needs key_file too");
            None
        }
        (None, Some(_)) => {
            own.problem("key_file", "needs cert_file too");
            None
        }
    };
    (TlsFiles { ca_file, identity }, is_enabled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_perhaps_a_port() {
        let parse = |text| parse_address(text, 1).map(|address| address.to_string());
        assert_eq!(parse("redis.db.svc:6380").as_deref(), Some("redis.db.svc:6380"));
        assert_eq!(parse("redis").as_deref(), Some("redis:1"));
        assert_eq!(parse("[::1]:7").as_deref(), Some("[::1]:7"));
        assert_eq!(parse("[fe80::1]").as_deref(), Some("[fe80::1]:1"));
        for text in ["", ":6379", "a:", "a:0", "a:70000", "a b", "::1", "[::1", "[x]:1", "redis://a:1", "a:1:2"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
