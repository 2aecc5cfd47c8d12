//! Which headers go along with a question (protocol section 9.1): static ones, overridden by those that the client may
//! emulate, overridden by those of its upgrade request. Nothing is passed on that is not listed.

use std::collections::{BTreeMap, BTreeSet};

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::config;

/// Bytes of emulated headers that are kept per connection: as much as a request may have of real ones. A client that
/// sends more is treated as one that sends none.
const EMULATED_BYTES_MAX: usize = 16 << 10;

/// The headers of one connection that some proxy is told. Copies: the request they came with is not kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Forwarded {
    real: Vec<(HeaderName, HeaderValue)>,
    emulated: Vec<(HeaderName, HeaderValue)>,
}

/// What is kept of the headers of a connection: the lists of all proxies together.
pub(super) struct Kept {
    real: BTreeSet<String>,
    emulated: BTreeSet<String>,
}

impl Kept {
    pub fn new(config: &config::Proxies) -> Self {
        let names = |list: fn(&config::Endpoint) -> &Vec<HeaderName>| {
            config.endpoints.values().flat_map(list).map(|name| name.as_str().to_owned()).collect()
        };
        Self { real: names(|endpoint| &endpoint.http_headers), emulated: names(|endpoint| &endpoint.emulated_headers) }
    }

    pub fn of_request(&self, headers: &HeaderMap) -> Option<Box<Forwarded>> {
        if self.real.is_empty() {
            return None;
        }
        let listed = headers.iter().filter(|(name, _)| self.real.contains(name.as_str()));
        let real: Vec<_> = listed.filter_map(|(name, value)| Some((name.clone(), copy(value)?))).collect();
        (!real.is_empty()).then(|| Box::new(Forwarded { real, emulated: Vec::new() }))
    }

    pub fn with_emulated(
        &self,
        forwarded: Option<Box<Forwarded>>,
        claimed: &BTreeMap<String, String>,
    ) -> Option<Box<Forwarded>> {
        let listed = claimed.iter().filter_map(|(name, value)| {
            let name = HeaderName::try_from(name.as_str()).ok()?;
            // A value that no header can have is none.
            let value = HeaderValue::from_str(value).ok()?;
            self.emulated.contains(name.as_str()).then_some((name, value))
        });
        let emulated: Vec<_> = listed.collect();
        let bytes: usize = emulated.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if emulated.is_empty() || bytes > EMULATED_BYTES_MAX {
            return forwarded;
        }
        let mut forwarded = forwarded.unwrap_or_default();
        forwarded.emulated = emulated;
        Some(forwarded)
    }
}

/// The value alone, without the buffer it was read into.
fn copy(value: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::from_bytes(value.as_bytes()).ok()
}

/// The headers of a question to this endpoint.
pub(super) fn headers(endpoint: &config::Endpoint, forwarded: Option<&Forwarded>) -> HeaderMap {
    let mut headers: HeaderMap = HeaderMap::new();
    for (name, value) in &endpoint.static_headers {
        headers.append(name, value.clone());
    }
    if let Some(forwarded) = forwarded {
        override_with(&mut headers, &forwarded.emulated, &endpoint.emulated_headers);
        override_with(&mut headers, &forwarded.real, &endpoint.http_headers);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// Headers that many clients send alike: they tell nobody from anybody.
const SHARED: [&str; 8] =
    ["accept", "accept-encoding", "accept-language", "host", "origin", "referer", "user-agent", "x-forwarded-proto"];

/// Whether anything that tells this client from others is among them.
pub(super) fn has_any(endpoint: &config::Endpoint, forwarded: Option<&Forwarded>) -> bool {
    let has = |headers: &[(HeaderName, HeaderValue)], listed: &[HeaderName]| {
        let is_own = |name: &HeaderName| listed.contains(name) && !SHARED.contains(&name.as_str());
        headers.iter().any(|(name, value)| is_own(name) && !value.is_empty())
    };
    forwarded.is_some_and(|forwarded| {
        has(&forwarded.real, &endpoint.http_headers) || has(&forwarded.emulated, &endpoint.emulated_headers)
    })
}

fn override_with(headers: &mut HeaderMap, with: &[(HeaderName, HeaderValue)], listed: &[HeaderName]) {
    for name in listed {
        let mut values = with.iter().filter(|(other, _)| other == name).map(|(_, value)| value);
        if let Some(first) = values.next() {
            headers.insert(name, first.clone());
            values.for_each(|value| {
                headers.append(name, value.clone());
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::endpoint::tests::config;

    fn name(name: &'static str) -> HeaderName {
        HeaderName::from_static(name)
    }

    fn value(value: &'static str) -> HeaderValue {
        HeaderValue::from_static(value)
    }

    fn show(headers: &HeaderMap) -> Vec<String> {
        let mut shown: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        shown.sort();
        shown
    }

    fn endpoint() -> config::Endpoint {
        config::Endpoint {
            http_headers: vec![name("cookie"), name("x-real")],
            emulated_headers: vec![name("authorization"), name("x-real")],
            static_headers: vec![(name("x-key"), value("secret")), (name("authorization"), value("none"))],
            ..config("http://127.0.0.1/")
        }
    }

    fn kept() -> Kept {
        Kept::new(&config::Proxies { endpoints: [("a".into(), endpoint())].into() })
    }

    #[test]
    fn only_listed_headers_are_kept_and_the_real_ones_win() {
        let request: HeaderMap = [
            (name("cookie"), value("a=1")),
            (name("cookie"), value("b=2")),
            (name("x-real"), value("truth")),
            (name("origin"), value("http://x")),
            (name("x-key"), value("forged")),
            (CONTENT_TYPE, value("text/plain")),
        ]
        .into_iter()
        .collect();
        let claimed = [
            ("Authorization", "Bearer t"),
            ("X-Real", "lie"),
            ("Cookie", "c=3"),
            ("X-Key", "forged"),
            ("Content-Type", "text/html"),
            ("bad name", "x"),
        ];
        let claimed = claimed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let kept = kept();
        let forwarded = kept.with_emulated(kept.of_request(&request), &claimed);
        assert_eq!(
            show(&headers(&endpoint(), forwarded.as_deref())),
            [
                "authorization: Bearer t",
                "content-type: application/json",
                "cookie: a=1",
                "cookie: b=2",
                "x-key: secret",
                "x-real: truth"
            ]
        );
    }

    #[test]
    fn what_every_browser_sends_tells_nobody_from_anybody() {
        let endpoint =
            config::Endpoint { http_headers: vec![name("cookie"), name("user-agent"), name("origin")], ..endpoint() };
        let forwarded = |headers: &[(HeaderName, HeaderValue)]| {
            let request: HeaderMap = headers.iter().cloned().collect();
            Kept::new(&config::Proxies { endpoints: [("a".into(), endpoint.clone())].into() }).of_request(&request)
        };
        let browser = [(name("user-agent"), value("M/5")), (name("origin"), value("http://x"))];
        assert!(!has_any(&endpoint, forwarded(&browser).as_deref()));
        let known = [browser[0].clone(), (name("cookie"), value("a=1"))];
        assert!(has_any(&endpoint, forwarded(&known).as_deref()));
    }

    #[test]
    fn without_anything_listed_nothing_is_kept() {
        let request: HeaderMap = [(name("cookie"), value("a=1"))].into_iter().collect();
        let kept = Kept::new(&config::Proxies::default());
        assert_eq!(kept.of_request(&request), None);
        assert_eq!(kept.with_emulated(None, &[("cookie".to_owned(), "a=1".to_owned())].into()), None);
        let bare = config("http://127.0.0.1/");
        assert_eq!(show(&headers(&bare, None)), ["content-type: application/json"]);
    }

    #[test]
    fn values_that_no_header_can_have_and_too_many_bytes_are_dropped() {
        let kept = kept();
        for bad in ["a\r\nX-Key: forged", "\u{0}", &"x".repeat(EMULATED_BYTES_MAX)] {
            let claimed = [("Authorization".to_owned(), bad.to_owned())].into();
            assert_eq!(kept.with_emulated(None, &claimed), None, "{bad:.20}");
        }
    }
}
