//! The key of the server API and the ways to present it (protocol section 7.1).

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::Query;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use subtle::{Choice, ConstantTimeEq};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const SCHEME: &[u8] = b"apikey ";

/// The accepted keys. Only their hashes are kept: no dump of memory gives a key away, and all are of one length, so
/// that the time of a comparison tells nothing about a key.
#[derive(Clone, Default)]
pub struct ApiKeys {
    hashes: Vec<[u8; 32]>,
    insecure_query: bool,
}

impl ApiKeys {
    /// Accepts any of these keys; without keys nobody gets in. An empty key is no key and is left out.
    ///
    /// `insecure_query` also accepts a key in the URL (`?api_key=`), where proxies and browsers write it down.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>, insecure_query: bool) -> Self {
        let keys = keys.into_iter();
        let hashes = keys.filter(|key| !key.as_ref().is_empty()).map(|key| hash(key.as_ref().as_bytes())).collect();
        Self { hashes, insecure_query }
    }

    /// Whether a request may use the API: by `X-API-Key`; if that header is absent, by `Authorization: apikey <key>`;
    /// if neither matched, by the URL where that is allowed.
    ///
    /// # Errors
    /// No configured key was presented.
    pub fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Unauthorized> {
        let presented = match headers.get(X_API_KEY) {
            Some(key) => Some(key.as_bytes()),
            None => headers.get(AUTHORIZATION).and_then(key_of_scheme),
        };
        if presented.is_some_and(|key| self.accepts(key)) {
            return Ok(());
        }
        if self.insecure_query && key_of_query(uri).is_some_and(|key| self.accepts(key.as_bytes())) {
            return Ok(());
        }
        Err(Unauthorized)
    }

    /// Looks at every key, so that the time does not tell which one matched.
    fn accepts(&self, key: &[u8]) -> bool {
        let key = hash(key);
        let matched = self.hashes.iter().fold(Choice::from(0), |matched, accepted| matched | accepted.ct_eq(&key));
        matched.into()
    }
}

impl fmt::Debug for ApiKeys {
    /// Hashes of weak keys could be searched for, so not even they reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("keys", &self.hashes.len())
            .field("insecure_query", &self.insecure_query)
            .finish()
    }
}

/// The request has no accepted key: status 401, without a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no accepted API key")]
pub struct Unauthorized;

fn hash(key: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, key).as_ref());
    bytes
}

fn key_of_scheme(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| key.trim_ascii())
}

fn key_of_query(uri: &Uri) -> Option<String> {
    #[derive(Deserialize)]
    struct Parameters {
        api_key: String,
    }
    Query::<Parameters>::try_from_uri(uri).ok().map(|Query(parameters)| parameters.api_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &ApiKeys, headers: &[(HeaderName, &str)], uri: &str) -> bool {
        let value = |text: &str| HeaderValue::from_str(text).expect("a header value");
        let headers = headers.iter().map(|(name, text)| (name.clone(), value(text))).collect();
        keys.check(&headers, &uri.parse().expect("a URI")).is_ok()
    }

    #[test]
    fn either_header_may_carry_the_key() {
        let keys = ApiKeys::new(["first", "second"], false);
        for (headers, accepted) in [
            (vec![(X_API_KEY, "first")], true),
            (vec![(X_API_KEY, "second")], true),
            (vec![(X_API_KEY, "firs")], false),
            (vec![(X_API_KEY, "first1")], false),
            (vec![(X_API_KEY, "")], false),
            (vec![(AUTHORIZATION, "apikey first")], true),
            (vec![(AUTHORIZATION, "ApiKey  second")], true),
            (vec![(AUTHORIZATION, "apikey")], false),
            (vec![(AUTHORIZATION, "apikey ")], false),
            (vec![(AUTHORIZATION, "Bearer first")], false),
            (vec![(AUTHORIZATION, "first")], false),
            (vec![(X_API_KEY, "wrong"), (AUTHORIZATION, "apikey first")], false),
            (vec![(X_API_KEY, "first"), (AUTHORIZATION, "apikey wrong")], true),
            (vec![], false),
        ] {
            assert_eq!(check(&keys, &headers, "/api/info?api_key=first"), accepted, "{headers:?}");
        }
    }

    #[test]
    fn the_url_counts_only_where_it_is_allowed() {
        let keys = ApiKeys::new(["a key&", "b"], true);
        for (headers, uri, accepted) in [
            (vec![], "/api?api_key=b", true),
            (vec![], "/api?x=1&api_key=a%20key%26", true),
            (vec![], "/api?api_key=a+key%26", true),
            (vec![], "/api?api_key=c", false),
            (vec![], "/api?api_key=", false),
            (vec![], "/api?api_key=b&api_key=c", false),
            (vec![], "/api?API_KEY=b", false),
            (vec![], "/api", false),
            (vec![(X_API_KEY, "wrong")], "/api?api_key=b", true),
        ] {
            assert_eq!(check(&keys, &headers, uri), accepted, "{headers:?} {uri}");
        }
    }

    #[test]
    fn without_a_key_nobody_gets_in() {
        for keys in [ApiKeys::default(), ApiKeys::new(Vec::<String>::new(), true), ApiKeys::new([""], true)] {
            assert!(!check(&keys, &[], "/api"));
            assert!(!check(&keys, &[(X_API_KEY, "")], "/api?api_key="));
            assert!(!check(&keys, &[(AUTHORIZATION, "apikey ")], "/api"));
        }
    }

    #[test]
    fn neither_keys_nor_hashes_are_printed() {
        let keys = ApiKeys::new(["secret"], false);
        assert_eq!(format!("{keys:?}"), "ApiKeys { keys: 1, insecure_query: false }");
    }
}
