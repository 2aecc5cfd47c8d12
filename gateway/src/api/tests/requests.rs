//! Paths, keys, statuses, bodies, error modes, and the counters of it all.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;

#[tokio::test]
async fn path_then_method_then_key_then_body() {
    let fixture = Fixture::new();
    for (what, request, status) in [
        ("no such method", Request::post("/api/nosuch"), 404),
        ("one of the commercial edition", Request::post("/api/connections"), 404),
        ("no method", Request::post("/api/"), 404),
        ("GET", Request::get("/api/publish"), 405),
        ("GET of the legacy route", Request::get("/api"), 405),
        ("PUT with the key", Request::put("/api/batch").header("X-API-Key", KEY), 405),
        ("no key", Request::post("/api/publish"), 401),
        ("a wrong key", Request::post("/api").header("X-API-Key", "wrong"), 401),
        ("a key in the URL", Request::post(format!("/api/info?api_key={KEY}")), 401),
        ("half a JSON", Request::post("/api/publish").header("Authorization", format!("APIKEY {KEY}")), 400),
    ] {
        let answer = fixture.send(request.body(Body::from("{")).unwrap()).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(status == 400 || answer.text.is_empty(), "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn keys_can_be_replaced_at_any_time() {
    let fixture = Fixture::new();
    assert_eq!(fixture.post("/info", "{}").await.status, 200);
    fixture.node.reload(runtime(&["another"]));
    assert_eq!(fixture.post("/info", "{}").await.status, 401);
    fixture.node.reload(runtime(&[]));
    assert_eq!(fixture.post("/info", "{}").await.status, 401);
}

#[tokio::test]
async fn what_is_no_request_gets_a_400_that_says_why() {
    let fixture = Fixture::new();
    let deep = |depth: usize| format!(r#"{{"channel":"bare:a","data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let deep_body = deep(super::super::DEPTH_MAX);
    for (path, body, part) in [
        ("/publish", "", "EOF"),
        ("/publish", "hello", "expected"),
        ("/publish", "[]", "object"),
        ("/publish", "null", "object"),
        ("/publish", r#"{"channel":"#, "EOF"),
        ("/publish", r#"{"channel":17}"#, "a string"),
        ("/publish", r#"{"channel":"bare:a","data":1}{}"#, "trailing"),
        ("/publish", deep_body.as_str(), "100 levels"),
        ("/batch", r#"{"commands":17}"#, "sequence"),
        ("/batch", r#"{"commands":[17]}"#, "one method"),
        ("", "", "empty"),
        ("", " \n", "empty"),
        ("", "hello", "expected"),
        ("", r#"{"method":"info"} {"#, "EOF"),
    ] {
        let answer = fixture.post(path, body.to_owned()).await;
        assert_eq!(answer.status, 400, "{path} {body:.40}: {answer:?}");
        assert!(answer.content_type.starts_with("text/plain"), "{answer:?}");
        assert!(answer.text.contains(part), "{path} {body:.40}: {answer:?}");
    }
    let answer = fixture.post("/publish", &b"{\"channel\":\"\xff\"}"[..]).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(fixture.call("publish", deep(super::super::DEPTH_MAX - 1)).await, r#"{"result":{}}"#);
}

#[tokio::test]
async fn a_body_is_bounded_in_size_and_time() {
    let limits = ApiLimits { body_bytes: 100, ..ApiLimits::default() };
    let fixture = Fixture::with(|api| api.limits = limits);
    let fits = format!(r#"{{"channel":"bare:a","data":"{}"}}"#, "x".repeat(100 - 30));
    assert_eq!(fits.len(), 100);
    assert_eq!(fixture.post("/publish", fits.clone()).await.status, 200);
    let answer = fixture.post("/publish", fits.clone() + " ").await;
    assert_eq!((answer.status, answer.text.as_str()), (413, "the body has more than 100 bytes"));
    // Without a length in the head it shows while the body is read.
    let pieces = |last: &'static str| {
        let bytes = [Bytes::from(fits.clone()), Bytes::from_static(last.as_bytes())];
        Body::from_stream(stream::iter(bytes.map(Ok::<_, io::Error>)))
    };
    assert_eq!(fixture.post("/publish", pieces("")).await.status, 200);
    assert_eq!(fixture.post("/publish", pieces(" ")).await.status, 413);
    // The rest is read and thrown away, unless the caller has not sent it yet.
    for (expect, read) in [(None, 5), (Some("100-continue"), 2)] {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let pieces = stream::iter(0..5).map(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(Bytes::from_static(&[b' '; 60]))
        });
        let mut request = post("/info");
        request = expect.into_iter().fold(request, |request, expect| request.header("Expect", expect));
        let answer = fixture.send(request.body(Body::from_stream(pieces)).unwrap()).await;
        assert_eq!((answer.status, count.load(Ordering::Relaxed)), (413, read), "{expect:?}");
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"{}")), Err(io::Error::other("reset"))]);
    assert_eq!(fixture.post("/info", Body::from_stream(broken)).await.status, 400);

    let fixture = Fixture::with(|api| api.body_timeout = Duration::ZERO);
    let stalled = Body::from_stream(stream::pending::<io::Result<Bytes>>());
    assert_eq!(fixture.post("/info", stalled).await.status, 408);
    assert_eq!(fixture.post("/info", "{}").await.status, 200, "what is there already is in time");
}

#[tokio::test]
async fn errors_are_in_the_answer_or_in_the_status() {
    let fixture = Fixture::new();
    fixture.ok("publish", r#"{"channel":"chat:a","data":1}"#).await;
    let many = format!(r#"{{"commands":[{}{{}}]}}"#, "{},".repeat(1000));
    for (method, body, code, message, status) in [
        ("publish", r#"{"data":1}"#, 107, "bad request", 400),
        ("publish", r#"{"channel":"bare:a"}"#, 107, "bad request", 400),
        ("publish", r#"{"channel":"lobby","data":1}"#, 102, "unknown channel", 404),
        ("presence", r#"{"channel":"bare:a"}"#, 108, "not available", 400),
        ("history", r#"{"channel":"chat:a","since":{"offset":1,"epoch":"x"}}"#, 112, "unrecoverable position", 416),
        ("rpc", r#"{"method":"x","params":{}}"#, 104, "method not found", 404),
        ("batch", many.as_str(), 107, "bad request: more than 1000 commands", 400),
    ] {
        let bare = format!(r#"{{"code":{code},"message":"{message}"}}"#);
        let in_answer = format!(r#"{{"error":{bare}}}"#);
        assert_eq!(fixture.call(method, body.to_owned()).await, in_answer, "{method} {body:.40}");
        let request = || post(&format!("/{method}"));
        let transport = request().header("X-Centrifugo-Error-Mode", "transport").body(Body::from(body.to_owned()));
        let expected = Answer { status, content_type: "application/json".to_owned(), text: bare };
        assert_eq!(fixture.send(transport.unwrap()).await, expected, "{method} {body:.40}");
        let request = request().header("X-Centrifugo-Error-Mode", "other").body(Body::from(body.to_owned()));
        assert_eq!(fixture.send(request.unwrap()).await.text, in_answer);
    }
}

#[tokio::test]
async fn a_failing_dependency_is_error_100_without_its_cause() {
    let fixture = Fixture::over(MemoryLimits { idempotency_keys: 0, ..MemoryLimits::default() }, |_| {});
    let internal = (100, "internal server error".to_owned());
    let body = r#"{"channel":"chat:a","data":1,"idempotency_key":"k"}"#;
    assert_eq!(fixture.error("publish", body).await, internal);
    fixture.told.lock().silent = true;
    for (method, body) in [
        ("subscribe", r#"{"user":"ann","channel":"chat:a"}"#),
        ("disconnect", r#"{"user":"ann"}"#),
        ("channels", "{}"),
        ("info", "{}"),
    ] {
        assert_eq!(fixture.error(method, body).await, internal, "{method}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_method_and_result() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let fixture = Fixture::new();
    let good = r#"{"channel":"bare:a","data":1}"#;
    fixture.call("publish", good).await;
    fixture.call("publish", r#"{"channel":"no:a","data":1}"#).await;
    fixture.post("/publish", "{").await;
    fixture.send(Request::post("/api/publish").body(Body::empty()).unwrap()).await;
    fixture.call("batch", format!(r#"{{"commands":[{{"publish":{good}}},{{"info":{{}}}},{{"publish":[]}}]}}"#)).await;
    fixture.post("/batch", "[").await;
    fixture.post("", format!(r#"{{"method":"publish","params":{good}}}"#)).await;
    let text = recorder.handle().render();
    for (method, result, count) in [
        ("publish", "ok", 3),
        ("publish", "102", 1),
        ("publish", "malformed", 2),
        ("publish", "unauthorized", 1),
        ("info", "ok", 1),
        ("batch", "ok", 1),
        ("batch", "malformed", 1),
        ("legacy", "ok", 1),
    ] {
        let line = format!(r#"gateway_api_requests_total{{method="{method}",result="{result}"}} {count}"#);
        assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
    }
}
