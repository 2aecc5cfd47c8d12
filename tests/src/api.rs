//! The server API of a gateway, over HTTP.

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::within;

/// Where the API is, and the key for it.
pub struct Api {
    client: Client,
    url: String,
    key: String,
}

/// The status, content type and body of an answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The `Content-Type`, empty when there is none.
    pub content_type: String,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

/// Sends a request.
pub async fn send(request: RequestBuilder) -> Answer {
    let response = within("an HTTP response", request.send()).await.expect("the gateway answers");
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let text = within("an HTTP body", response.text()).await.expect("the body is complete");
    Answer { status, content_type, text }
}

impl Api {
    /// The API at this URL (without the method).
    pub fn new(url: String, key: &str) -> Self {
        Self { client: Client::new(), url, key: key.to_owned() }
    }

    /// The same API with another key.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        key.clone_into(&mut self.key);
        self
    }

    /// The URL of a method.
    pub fn url(&self, method: &str) -> String {
        format!("{}/{method}", self.url)
    }

    /// A POST to a method, with the key.
    pub fn post(&self, method: &str) -> RequestBuilder {
        self.client.post(self.url(method)).header("X-API-Key", &self.key)
    }

    /// A POST to any URL, without a key.
    pub fn post_without_key(&self, url: &str) -> RequestBuilder {
        self.client.post(url)
    }

    /// A GET of any URL, without a key.
    pub fn get(&self, url: &str) -> RequestBuilder {
        self.client.get(url)
    }

    /// Calls a method; returns the whole body of a 200.
    pub async fn call(&self, method: &str, body: Value) -> Value {
        let answer = send(self.post(method).body(body.to_string())).await;
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
        answer.json()
    }

    /// Calls a method that must succeed; returns its result.
    pub async fn ok(&self, method: &str, body: Value) -> Value {
        let answer = self.call(method, body).await;
        assert!(answer["result"].is_object() && answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Calls a method that must fail; returns the error code.
    pub async fn error(&self, method: &str, body: Value) -> u64 {
        let answer = self.call(method, body).await;
        assert!(answer.get("result").is_none(), "{method}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{method}: {answer}");
        answer["error"]["code"].as_u64().unwrap_or_else(|| panic!("{method}: {answer}"))
    }

    /// Publishes; returns the result.
    pub async fn publish(&self, channel: &str, data: Value) -> Value {
        self.ok("publish", json!({ "channel": channel, "data": data })).await
    }
}
