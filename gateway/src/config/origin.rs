//! Which web pages may open a connection (protocol section 1.2). A browser names the page in the `Origin` header; other
//! clients send none.

use std::fmt;

/// The rule for the `Origin` header of a WebSocket handshake.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum OriginRule {
    /// Nothing is configured: pages of the same host as the gateway itself.
    #[default]
    SameHost,
    /// `--dev`: pages served by this machine.
    Localhost,
    /// Pages whose origin matches one of the patterns.
    Listed(Vec<OriginPattern>),
}

impl OriginRule {
    /// Whether a handshake with these headers may go on. A request without `Origin` does not come from a page, so
    /// there is nothing to protect its user from: it always may.
    ///
    /// `host` is the `Host` header (HTTP/1) or authority (HTTP/2).
    pub fn allows(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin else { return true };
        match self {
            Self::SameHost => match (authority(origin), host) {
                (Some(page), Some(host)) => same_authority(page, host, default_port(origin)),
                _ => false,
            },
            Self::Localhost => authority(origin).is_some_and(|page| is_local(host_of(page))),
            Self::Listed(patterns) => patterns.iter().any(|pattern| pattern.matches(origin)),
        }
    }
}

/// A glob over a whole origin in which `*` stands for any text: `https://*.example.com`, or `*` for every page.
/// Case does not matter.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginPattern {
    text: String,
}

impl OriginPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When no origin could ever match: an origin is scheme, host and perhaps port, without a path.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().to_ascii_lowercase();
        if text != "*" && text != "null" {
            let Some((_, rest)) = text.split_once("://") else {
                return Err("must be an origin such as https://app.example.com, or *".to_owned());
            };
            if rest.is_empty() || rest.contains(['/', '?', '#', ' ']) {
                return Err("must end with the host or port: an origin has no path".to_owned());
            }
        }
        Ok(Self { text })
    }

    /// Whether an `Origin` header matches.
    pub fn matches(&self, origin: &str) -> bool {
        glob(self.text.as_bytes(), origin.to_ascii_lowercase().as_bytes())
    }
}

impl fmt::Debug for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Matches `*` as any text. On a mismatch only the last `*` is extended, so the cost is the product of the lengths at
/// most.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Host and port of an origin; `None` for `null` and what is no origin.
fn authority(origin: &str) -> Option<&str> {
    let (scheme, rest) = origin.split_once("://")?;
    (!scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '?', '#', '@'])).then_some(rest)
}

fn default_port(origin: &str) -> &'static str {
    if origin.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:")) { ":443" } else { ":80" }
}

/// Equal hosts and ports, where a missing port is the default one of the page's scheme. A proxy that ends TLS keeps
/// the `Host` header, so the scheme of the gateway's own socket says nothing.
fn same_authority(page: &str, host: &str, default_port: &str) -> bool {
    let bare = |authority: &str| authority.strip_suffix(default_port).unwrap_or(authority).to_ascii_lowercase();
    bare(page) == bare(host)
}

/// The host without its port; the brackets of an IPv6 address stay.
fn host_of(authority: &str) -> &str {
    if let Some(end) = authority.find(']') {
        return &authority[..=end];
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

fn is_local(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host == "127.0.0.1" || host == "[::1]"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(patterns: &[&str]) -> OriginRule {
        OriginRule::Listed(patterns.iter().map(|pattern| OriginPattern::parse(pattern).expect("a pattern")).collect())
    }

    #[track_caller]
    fn check(rule: &OriginRule, origin: Option<&str>, host: Option<&str>, expected: bool) {
        assert_eq!(rule.allows(origin, host), expected, "{rule:?} origin {origin:?} host {host:?}");
    }

    #[test]
    fn without_a_list_only_pages_of_the_same_host_may_connect() {
        for (origin, host, expected) in [
            (None, Some("chat.test"), true),
            (None, None, true),
            (Some("https://chat.test"), Some("chat.test"), true),
            (Some("https://CHAT.test"), Some("chat.TEST"), true),
            (Some("http://chat.test:8000"), Some("chat.test:8000"), true),
            (Some("https://chat.test"), Some("chat.test:443"), true),
            (Some("https://chat.test:443"), Some("chat.test"), true),
            (Some("http://chat.test"), Some("chat.test:80"), true),
            (Some("http://[::1]:8000"), Some("[::1]:8000"), true),
            (Some("http://chat.test:443"), Some("chat.test"), false),
            (Some("https://chat.test:8000"), Some("chat.test"), false),
            (Some("https://chat.test"), Some("chat.test:8000"), false),
            (Some("https://evil.test"), Some("chat.test"), false),
            (Some("https://chat.test.evil.test"), Some("chat.test"), false),
            (Some("https://chat.test"), None, false),
            (Some("null"), Some("chat.test"), false),
            (Some("null"), Some("null"), false),
            (Some(""), Some(""), false),
            (Some("https://"), Some(""), false),
            (Some("https://x@chat.test"), Some("x@chat.test"), false),
            (Some("https://chat.test/path"), Some("chat.test/path"), false),
        ] {
            check(&OriginRule::SameHost, origin, host, expected);
        }
    }

    #[test]
    fn dev_admits_pages_of_this_machine_only() {
        for (origin, expected) in [
            (None, true),
            (Some("http://localhost:3000"), true),
            (Some("https://LOCALHOST"), true),
            (Some("http://127.0.0.1:8000"), true),
            (Some("http://[::1]:8000"), true),
            (Some("http://[::1]"), true),
            (Some("http://localhost.evil.test"), false),
            (Some("http://evil.test:8000"), false),
            (Some("http://127.0.0.1.evil.test"), false),
            (Some("http://localhost@evil.test"), false),
            (Some("http://[::2]:8000"), false),
            (Some("null"), false),
        ] {
            // The host does not matter: a page of elsewhere that was made to resolve to this machine is not local.
            check(&OriginRule::Localhost, origin, Some("evil.test:8000"), expected);
        }
    }

    #[test]
    fn patterns_match_whole_origins_without_case() {
        for (pattern, origin, expected) in [
            ("*", "https://anything.test", true),
            ("*", "null", true),
            ("https://app.test", "https://app.test", true),
            ("https://App.Test", "HTTPS://APP.TEST", true),
            ("https://app.test", "http://app.test", false),
            ("https://app.test", "https://app.test:8443", false),
            ("https://app.test", "https://app.test.evil.test", false),
            ("https://*.app.test", "https://a.app.test", true),
            ("https://*.app.test", "https://a.b.app.test", true),
            ("https://*.app.test", "https://app.test", false),
            ("https://*.app.test", "https://evilapp.test", false),
            ("http://localhost:*", "http://localhost:3000", true),
            ("*://app.test", "http://app.test", true),
            ("https://a*a*b.test", "https://aXaaXab.test", true),
            ("https://a*a*b.test", "https://ab.test", false),
        ] {
            check(&listed(&[pattern]), Some(origin), Some("gateway.test"), expected);
        }
        let two = listed(&["https://a.test", "https://b.test"]);
        check(&two, Some("https://b.test"), None, true);
        check(&two, None, None, true);
        // A list replaces the rule of the same host.
        check(&two, Some("https://c.test"), Some("c.test"), false);
    }

    #[test]
    fn a_long_pattern_costs_no_exponential_time() {
        let pattern = format!("https://{}b", "*a".repeat(200));
        let origin = format!("https://{}", "a".repeat(5000));
        check(&listed(&[&pattern]), Some(&origin), None, false);
    }

    #[test]
    fn a_pattern_that_no_origin_matches_is_refused() {
        for (text, part) in [
            ("", "must be an origin"),
            ("app.test", "must be an origin"),
            ("https://", "no path"),
            ("https://app.test/", "no path"),
            ("https://app.test/chat", "no path"),
        ] {
            let reason = OriginPattern::parse(text).expect_err(text);
            assert!(reason.contains(part), "{text}: {reason}");
        }
    }
}
