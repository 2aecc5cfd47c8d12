//! The demo page: a live chat that shows presence, recovery and the frames on the wire. Served only with `--dev`.
//!
//! Four files and no build step: `index.html`, `page.css`, `page.js` (what one sees) over `client.js` (the protocol
//! written out by hand) and `names.js`. They load nothing from elsewhere, and the policy sent with them forbids it.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderName, header};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type and content of everything served.
const FILES: [(&str, &str, &str); 5] = [
    ("/", HTML, include_str!("index.html")),
    ("/demo/page.css", CSS, include_str!("page.css")),
    ("/demo/page.js", JAVASCRIPT, include_str!("page.js")),
    ("/demo/client.js", JAVASCRIPT, include_str!("client.js")),
    ("/demo/names.js", JAVASCRIPT, include_str!("names.js")),
];

/// Own files and own WebSocket only. `ws:` and `wss:` are named because older browsers do not count them as `'self'`.
/// The icon is a `data:` URL, and the channel form sends itself to the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
     connect-src 'self' ws: wss:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Sent with every file. Nothing is stored, so that a newer binary is never seen with an older page.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// `/` and the files the page is made of.
pub fn router() -> Router {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, content)| {
        router.route(path, get(move || async move { file(content_type, content) }))
    })
}

fn file(content_type: &'static str, content: &'static str) -> Response {
    (HEADERS, [(header::CONTENT_TYPE, content_type)], content).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(path: &str) -> (StatusCode, http::HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).expect("the path is valid");
        let response = router().oneshot(request).await.expect("a router does not fail");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("the body is in memory").to_bytes();
        (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).expect("the files are UTF-8"))
    }

    /// Every quoted value of an attribute or import that names a file, in the order of the text.
    fn references(text: &str) -> Vec<&str> {
        ["src=\"", "href=\"", "from '", "action=\""]
            .into_iter()
            .flat_map(|start| text.match_indices(start).map(move |(at, _)| &text[at + start.len()..]))
            .map(|rest| &rest[..rest.find(['"', '\'']).expect("a quoted value ends")])
            .collect()
    }

    #[tokio::test]
    async fn every_file_comes_with_its_type_and_the_policy() {
        for (path, content_type, content) in FILES {
            let (status, headers, body) = fetch(path).await;
            assert_eq!(status, StatusCode::OK, "{path}");
            assert_eq!(headers["content-type"], content_type, "{path}");
            assert_eq!(headers["cache-control"], "no-store", "{path}");
            assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
            let policy = headers["content-security-policy"].to_str().expect("the policy is ASCII");
            assert!(policy.starts_with("default-src 'none';"), "{policy}");
            assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
            assert_eq!(body, content, "{path}");
        }
        assert_eq!(fetch("/demo/other.js").await.0, StatusCode::NOT_FOUND);
    }

    #[test]
    fn the_page_asks_for_nothing_that_is_not_served() {
        let mut seen = 0;
        for (path, _, content) in FILES {
            for reference in references(content) {
                let resolved = reference.replace("./", "/demo/");
                let served = FILES.iter().any(|(path, ..)| *path == resolved);
                assert!(served || reference.starts_with("data:") || reference.starts_with('#'), "{path}: {reference}");
                seen += usize::from(served);
            }
        }
        assert!(seen >= 5, "the style sheet, three scripts and the form were found: {seen}");
    }

    #[test]
    fn what_comes_over_the_wire_is_never_markup() {
        for (path, _, content) in FILES {
            for way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "srcdoc", " onclick="]
            {
                assert!(!content.contains(way), "{path} uses {way}");
            }
        }
    }
}
