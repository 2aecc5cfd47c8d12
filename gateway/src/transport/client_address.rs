//! Who a client is: the address of the socket, or what a trusted load balancer says.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};

use super::network::Network;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Load balancers in a row that are looked at: more than any sensible chain has.
const HOPS_MAX: usize = 32;

/// The address of the client a request came from, as far as it can be trusted. An extension of every request of the
/// public listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientAddress(pub IpAddr);

/// The header in which trusted proxies say for whom they speak. Only one is looked at: a client can send the other one,
/// and the proxy would hand it on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressHeader {
    /// None of them.
    Off,
    /// `X-Forwarded-For`
    XForwardedFor,
    /// `Forwarded` (RFC 7239)
    Forwarded,
}

/// Whom to believe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressRules {
    /// Load balancers; whatever others say about addresses is ignored.
    pub trusted_proxies: Vec<Network>,
    /// The header they set.
    pub header: AddressHeader,
    /// They begin each connection with a PROXY header.
    pub proxy_protocol: bool,
}

impl AddressRules {
    /// Whether an address is that of a load balancer of ours.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// The client of a request that came from `peer`: of the addresses in the header, read from the nearest, the first
    /// one that is not a trusted proxy. What cannot be read ends the search at the proxy that wrote it.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trusts(peer) {
            return peer;
        }
        let mut nearest = peer;
        let name = match self.header {
            AddressHeader::Off => return peer,
            AddressHeader::XForwardedFor => X_FORWARDED_FOR,
            AddressHeader::Forwarded => FORWARDED,
        };
        let lines: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        for hop in hops.take(HOPS_MAX) {
            let address = match self.header {
                AddressHeader::Off => None,
                AddressHeader::XForwardedFor => parse_address(hop.trim()),
                AddressHeader::Forwarded => forwarded_for(hop).and_then(parse_address),
            };
            match address {
                Some(address) if self.trusts(address) => nearest = address,
                Some(address) => return address,
                None => return nearest,
            }
        }
        nearest
    }
}

/// The parameter `for` of one element of `Forwarded`, without quotes.
fn forwarded_for(element: &str) -> Option<&str> {
    let mut parameters = element.split(';').filter_map(|parameter| parameter.trim().split_once('='));
    let (_, value) = parameters.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    Some(value.trim_matches('"'))
}

/// An address with or without a port, IPv6 also in brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn rules(header: AddressHeader) -> AddressRules {
        let trusted_proxies = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap()).into();
        AddressRules { trusted_proxies, header, proxy_protocol: false }
    }

    fn client(header: AddressHeader, peer: &str, lines: &[(HeaderName, &str)]) -> String {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let headers = lines.iter().map(|(name, text)| (name.clone(), value(text))).collect();
        rules(header).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_nearest_address_that_is_no_proxy_of_ours_is_the_client() {
        let x = |text: &'static str| (X_FORWARDED_FOR, text);
        for (peer, lines, expected) in [
            ("10.0.0.1", vec![x("203.0.113.9")], "203.0.113.9"),
            ("10.0.0.1", vec![x("198.51.100.1, 203.0.113.9, 10.0.0.2")], "203.0.113.9"),
            ("10.0.0.1", vec![x("198.51.100.1"), x("203.0.113.9"), x("10.0.0.2")], "203.0.113.9"),
            ("10.0.0.1", vec![x("203.0.113.9:4711")], "203.0.113.9"),
            ("10.0.0.1", vec![x("[2001:db8::9]:4711")], "2001:db8::9"),
            ("fd00::1", vec![x("2001:db8::9")], "2001:db8::9"),
            ("::ffff:10.0.0.1", vec![x("::ffff:203.0.113.9")], "203.0.113.9"),
            ("10.0.0.1", vec![x("203.0.113.9, unknown, 10.0.0.2")], "10.0.0.2"),
            ("10.0.0.1", vec![x("")], "10.0.0.1"),
            ("10.0.0.1", vec![x("10.0.0.7, 10.0.0.2")], "10.0.0.7"),
            ("10.0.0.1", vec![(FORWARDED, "for=203.0.113.9")], "10.0.0.1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("192.0.2.1", vec![x("203.0.113.9")], "192.0.2.1"),
        ] {
            assert_eq!(client(AddressHeader::XForwardedFor, peer, &lines), expected, "{peer} {lines:?}");
            assert_ne!(client(AddressHeader::Off, peer, &lines), "203.0.113.9");
        }
        let f = |text: &'static str| (FORWARDED, text);
        for (lines, expected) in [
            (vec![f("for=203.0.113.9;proto=https;by=10.0.0.1")], "203.0.113.9"),
            (vec![f("for=198.51.100.1, proto=https;For=\"[2001:db8::9]:4711\"")], "2001:db8::9"),
            (vec![f("for=203.0.113.9, for=_hidden")], "10.0.0.1"),
            (vec![f("for=203.0.113.9"), f("for=10.0.0.2")], "203.0.113.9"),
            (vec![f("proto=https")], "10.0.0.1"),
            (vec![x("203.0.113.9")], "10.0.0.1"),
        ] {
            assert_eq!(client(AddressHeader::Forwarded, "10.0.0.1", &lines), expected, "{lines:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A client cannot choose who it is by what it sends: the proxy appends the address it came from.
        #[test]
        fn what_a_client_sends_does_not_matter(sent in "[ -~]{0,60}", forwarded: bool) {
            let (header, name, appended) = if forwarded {
                (AddressHeader::Forwarded, FORWARDED, "for=203.0.113.9")
            } else {
                (AddressHeader::XForwardedFor, X_FORWARDED_FOR, "203.0.113.9")
            };
            let line = format!("{sent}, {appended}");
            prop_assert_eq!(client(header, "10.0.0.1", &[(name, line.as_str())]), "203.0.113.9");
        }
    }
}
