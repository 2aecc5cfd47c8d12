//! When two questions are alike, so that the answer to one is the answer to the other.

use http::HeaderMap;
use protocol::Encoding;
use session::proxy::{ProxyCall, ProxyEvent};

use super::headers::{self, Forwarded};
use crate::config::Endpoint;
use crate::sessions::verdict::Likeness;

/// What the application may decide by; `None` when the answer to this question is for this once. What is left out is what
/// differs between two connections of one client: its id, and the channels that it remembers.
pub(super) fn of(
    call: &ProxyCall,
    encoding: Encoding,
    endpoint: &Endpoint,
    forwarded: Option<&Forwarded>,
) -> Option<Likeness> {
    let mut parts: Vec<&[u8]> = vec![call.proxy.as_bytes(), endpoint.url.as_str().as_bytes(), name_of(encoding)];
    match &call.event {
        ProxyEvent::Connect { data, name, version, channels: _ } => {
            if is_nothing(data) && !headers::has_any(endpoint, forwarded) {
                // Only the id of the session would be left to tell one client from another.
                return None;
            }
            parts.extend([b"connect", &data[..], name.as_bytes(), version.as_bytes()]);
        }
        ProxyEvent::Subscribe { channel, data, .. } => {
            let user = &call.info.as_ref()?.user;
            let meta = if endpoint.include_connection_meta { &call.meta[..] } else { &[] };
            parts.extend([b"subscribe", user.as_str().as_bytes(), meta, channel.as_bytes(), &data[..]]);
        }
        ProxyEvent::Refresh | ProxyEvent::SubRefresh { .. } | ProxyEvent::Publish { .. } | ProxyEvent::Rpc { .. } => {
            return None;
        }
    }
    let headers = headers::headers(endpoint, forwarded);
    parts.extend(sorted(&headers));
    Some(Likeness::of(parts))
}

fn name_of(encoding: Encoding) -> &'static [u8] {
    match encoding {
        Encoding::Json => b"json",
        Encoding::Protobuf => b"protobuf",
    }
}

/// Data by which nobody can be told from anybody else.
fn is_nothing(data: &[u8]) -> bool {
    matches!(data.trim_ascii(), b"" | b"null" | b"{}" | b"[]" | b"\"\"")
}

/// Names and values. Those of one name stay in their order.
fn sorted(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let mut all: Vec<_> = headers.iter().map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]).collect();
    all.sort_by_key(|[name, _]| *name);
    all.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backplane::{ClientId, ClientInfo};
    use bytes::Bytes;
    use http::header::{HeaderName, HeaderValue};
    use url::Url;

    use super::*;
    use crate::config;
    use crate::proxy::endpoint::tests::config;
    use crate::proxy::headers::Kept;

    fn endpoint() -> Endpoint {
        Endpoint {
            http_headers: vec![HeaderName::from_static("cookie")],
            static_headers: vec![(HeaderName::from_static("x-key"), HeaderValue::from_static("secret"))],
            ..config("http://127.0.0.1/")
        }
    }

    fn forwarded(headers: &[(&'static str, &'static str)]) -> Option<Box<Forwarded>> {
        let kept = Kept::new(&config::Proxies { endpoints: [("a".into(), endpoint())].into() });
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        kept.of_request(&headers.iter().map(pair).collect())
    }

    fn call(event: ProxyEvent) -> ProxyCall {
        let (client, user) = (ClientId::random(), backplane::UserId::from("ann"));
        let info = ClientInfo { client, user, conn_info: Bytes::new(), chan_info: Bytes::new() };
        ProxyCall { proxy: "connect".into(), info: Some(Arc::new(info)), meta: Bytes::from_static(b"{}"), event }
    }

    fn connect(data: &'static str, channels: &[&str]) -> ProxyCall {
        let data = Bytes::from_static(data.as_bytes());
        let channels = channels.iter().map(|&channel| channel.to_owned()).collect();
        call(ProxyEvent::Connect { data, name: "js".to_owned(), version: String::new(), channels })
    }

    fn subscribe(id: u32, channel: &str, data: &'static str) -> ProxyCall {
        let data = Bytes::from_static(data.as_bytes());
        call(ProxyEvent::Subscribe { id, channel: channel.into(), data })
    }

    fn likeness(call: &ProxyCall, cookie: &'static str) -> Option<Likeness> {
        of(call, Encoding::Json, &endpoint(), forwarded(&[("cookie", cookie)]).as_deref())
    }

    #[test]
    fn what_the_application_may_decide_by_makes_a_difference_and_nothing_else() {
        let first = likeness(&connect("[1]", &[]), "a=1");
        assert!(first.is_some());
        // Another client id, and channels that it remembers by now.
        assert_eq!(likeness(&connect("[1]", &["news:a"]), "a=1"), first);
        assert_ne!(likeness(&connect("[1]", &[]), "a=2"), first);
        assert_ne!(likeness(&connect("[2]", &[]), "a=1"), first);
        assert_ne!(likeness(&connect("", &[]), "a=1"), first);
        let other = Endpoint { url: Url::parse("http://127.0.0.1/new").expect("a URL"), ..endpoint() };
        let cookie = forwarded(&[("cookie", "a=1")]);
        assert_ne!(of(&connect("[1]", &[]), Encoding::Json, &other, cookie.as_deref()), first);
        assert_ne!(of(&connect("[1]", &[]), Encoding::Protobuf, &endpoint(), cookie.as_deref()), first);
        let unlisted = forwarded(&[("cookie", "a=1"), ("x-other", "b")]);
        assert_eq!(of(&connect("[1]", &[]), Encoding::Json, &endpoint(), unlisted.as_deref()), first);
        let reordered = forwarded(&[("cookie", "b=1"), ("cookie", "a=1")]);
        let ordered = forwarded(&[("cookie", "a=1"), ("cookie", "b=1")]);
        let of_both = [reordered, ordered]
            .map(|headers| of(&connect("[1]", &[]), Encoding::Json, &endpoint(), headers.as_deref()));
        assert_ne!(of_both[0], of_both[1]);
    }

    #[test]
    fn subscribes_differ_by_user_channel_data_and_headers() {
        let first = likeness(&subscribe(2, "chat:a", "[1]"), "a=1");
        assert!(first.is_some());
        assert_eq!(likeness(&subscribe(3, "chat:a", "[1]"), "a=1"), first);
        assert_ne!(likeness(&subscribe(2, "chat:b", "[1]"), "a=1"), first);
        assert_ne!(likeness(&subscribe(2, "chat:a", "[2]"), "a=1"), first);
        assert_ne!(likeness(&subscribe(2, "chat:a", "[1]"), "a=2"), first);
        let mut bob = subscribe(2, "chat:a", "[1]");
        let info = bob.info.as_deref().cloned().expect("she is known");
        bob.info = Some(Arc::new(ClientInfo { user: "bob".into(), ..info }));
        assert_ne!(likeness(&bob, "a=1"), first);
    }

    #[test]
    fn a_connect_with_nothing_of_the_client_in_it_is_like_no_other() {
        for nothing in ["", "null", " {} ", "[]", "\"\""] {
            assert_eq!(of(&connect(nothing, &[]), Encoding::Json, &endpoint(), None), None, "{nothing}");
        }
        assert!(of(&connect("{\"token\":1}", &[]), Encoding::Json, &endpoint(), None).is_some());
        assert!(likeness(&connect("", &[]), "a=1").is_some());
        // What this proxy is not told does not count.
        let bare = Endpoint { http_headers: Vec::new(), ..endpoint() };
        let cookie = forwarded(&[("cookie", "a=1")]);
        assert_eq!(of(&connect("", &[]), Encoding::Json, &bare, cookie.as_deref()), None);
    }

    #[test]
    fn other_questions_are_always_asked() {
        for event in [
            ProxyEvent::Refresh,
            ProxyEvent::SubRefresh { channel: "chat:a".into() },
            ProxyEvent::Publish { id: 2, channel: "chat:a".into(), data: Bytes::new() },
            ProxyEvent::Rpc { id: 2, method: "m".to_owned(), data: Bytes::new() },
        ] {
            assert_eq!(likeness(&call(event), "a=1"), None);
        }
    }
}
