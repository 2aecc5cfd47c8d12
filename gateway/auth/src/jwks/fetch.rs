//! One bounded HTTP GET of a JWKS document.

use std::error::Error;

use reqwest::header::ACCEPT;
use reqwest::{Client, StatusCode, Url};

use super::JwksOptions;
use super::document::{self, FetchedKey};
use crate::keys::KeyError;

/// The longest document that is read. A key with its certificate chain has about 4 KiB, without it 0.5 KiB.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Redirects followed per request; an https address never leads to http.
const MAX_REDIRECTS: usize = 3;

/// The HTTP client for one address.
pub(super) struct Fetcher {
    client: Client,
    url: Url,
    attempts: u32,
}

impl Fetcher {
    pub(super) fn new(text: &str, options: &JwksOptions) -> Result<Self, KeyError> {
        let refused = |reason: &str| KeyError::Url { url: text.to_owned(), reason: reason.to_owned() };
        if text.contains("{{") {
            return Err(refused("has a placeholder, which is not supported"));
        }
        let url = Url::parse(text).map_err(|error| refused(&format!("is not a URL: {error}")))?;
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(refused("is neither http nor https")),
        };
        let builder = Client::builder()
            .timeout(options.timeout)
            .https_only(secure)
            .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
            .referer(false)
            .user_agent(concat!("evenkeel/", env!("CARGO_PKG_VERSION")))
            // A fetch an hour is not worth an open connection, and each may run on another shard's runtime.
            .pool_max_idle_per_host(0);
        // Plain http needs no roots, and must work in an image that carries none.
        let builder = if secure { builder } else { builder.tls_certs_only([]) };
        let client = builder.build().map_err(|error| KeyError::Client(chain(&error)))?;
        Ok(Self { client, url, attempts: options.attempts.max(1) })
    }

    /// The usable keys of the document, or why every attempt failed.
    pub(super) async fn fetch(&self) -> Result<Vec<FetchedKey>, String> {
        let mut failure = String::new();
        for _ in 0..self.attempts {
            match self.body().await.and_then(|body| document::parse(&body)) {
                Ok(keys) => return Ok(keys),
                Err(reason) => failure = reason,
            }
        }
        Err(failure)
    }

    async fn body(&self) -> Result<Vec<u8>, String> {
        let request = self.client.get(self.url.clone()).header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(|error| chain(&error))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the endpoint answered HTTP {}", response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(format!("the answer has more than {MAX_BODY_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// An error with its causes: the outermost of an HTTP client alone says little.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
