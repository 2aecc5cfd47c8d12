//! Event proxies: asking the application over HTTP (protocol section 9).
//!
//! Read in this order: `question` (what is sent), `answer` (what is understood), `headers` (which headers go along),
//! `likeness` (which questions have the same answer), `breaker` and `gate` (when not to ask, and how many calls at once),
//! `endpoint` (one call). What an answer means for the client is the session's business: `session::proxy`.
//!
//! Every question is answered within the endpoint's timeout, whatever the backend does.

mod answer;
mod breaker;
mod endpoint;
mod gate;
mod headers;
mod likeness;
mod question;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Context;
use backplane::ClientId;
use http::HeaderMap;
use protocol::Encoding;
use session::proxy::{ProxyAnswer, ProxyCall, ProxyEvent, ProxyName, ProxyRefusal, ProxyResult};

use crate::config;
use crate::sessions::verdict::Likeness;

pub use endpoint::Endpoint;
pub use headers::Forwarded;
use headers::Kept;
use question::Asker;

/// Every configured proxy. Immutable: a reload builds a new one.
pub struct Proxies {
    endpoints: HashMap<ProxyName, Arc<Endpoint>>,
    kept: Kept,
}

impl Proxies {
    /// Prepares the configured proxies for use. Those of a predecessor that have not changed go on, with their
    /// connections and what is known about their health.
    ///
    /// # Errors
    /// When no HTTP client can be made, for want of certificate authorities for example.
    pub fn new(config: &config::Proxies, predecessor: Option<&Self>) -> anyhow::Result<Self> {
        let mut endpoints = HashMap::new();
        for (name, config) in &config.endpoints {
            let running = predecessor.and_then(|running| running.endpoints.get(name));
            let endpoint = match running.filter(|running| running.config() == config) {
                Some(running) => running.clone(),
                None => {
                    let new = Endpoint::new(name, config.clone());
                    Arc::new(new.with_context(|| format!("cannot prepare the proxy {name}"))?)
                }
            };
            endpoints.insert(name.clone(), endpoint);
        }
        Ok(Self { endpoints, kept: Kept::new(config) })
    }

    /// The headers of an upgrade request that calls of the connection will need; `None` when it has none of them.
    pub fn forwarded(&self, headers: &HeaderMap) -> Option<Box<Forwarded>> {
        self.kept.of_request(headers)
    }

    /// Adds headers that the client claims to have sent.
    pub fn emulate(
        &self,
        forwarded: Option<Box<Forwarded>>,
        claimed: &BTreeMap<String, String>,
    ) -> Option<Box<Forwarded>> {
        self.kept.with_emulated(forwarded, claimed)
    }

    /// What tells this question from others whose answer may be another; `None` when its answer is for this once.
    pub fn likeness(&self, call: &ProxyCall, encoding: Encoding, forwarded: Option<&Forwarded>) -> Option<Likeness> {
        likeness::of(call, encoding, self.endpoints.get(&call.proxy)?.config(), forwarded)
    }

    /// Asks. The answer comes within the timeout of the proxy.
    pub fn ask(
        &self,
        call: ProxyCall,
        client: ClientId,
        encoding: Encoding,
        forwarded: Option<&Forwarded>,
    ) -> impl Future<Output = ProxyAnswer> + use<> {
        let endpoint = self.endpoints.get(&call.proxy).cloned();
        let headers = endpoint.as_ref().map(|endpoint| endpoint.headers(forwarded)).unwrap_or_default();
        async move {
            let asker = Asker { client, encoding, info: call.info.as_deref(), meta: &call.meta };
            let ask = Ask { endpoint, headers, asker, event: &call.event };
            match &call.event {
                ProxyEvent::Connect { .. } => ProxyAnswer::Connect(ask.run(answer::connect).await),
                ProxyEvent::Refresh => ProxyAnswer::Refresh(ask.run(answer::refresh).await),
                ProxyEvent::Subscribe { id, channel, .. } => {
                    let result = ask.run(answer::subscribe).await;
                    ProxyAnswer::Subscribe { id: *id, channel: channel.clone(), result }
                }
                ProxyEvent::SubRefresh { channel } => {
                    let result = ask.run(answer::sub_refresh).await;
                    ProxyAnswer::SubRefresh { channel: channel.clone(), result }
                }
                ProxyEvent::Publish { id, channel, data } => {
                    let result = ask.run(answer::publish).await;
                    ProxyAnswer::Publish { id: *id, channel: channel.clone(), data: data.clone(), result }
                }
                ProxyEvent::Rpc { id, .. } => ProxyAnswer::Rpc { id: *id, result: ask.run(answer::rpc).await },
            }
        }
    }
}

/// A question on its way.
struct Ask<'a> {
    /// `None` when a reload took the proxy away.
    endpoint: Option<Arc<Endpoint>>,
    headers: HeaderMap,
    asker: Asker<'a>,
    event: &'a ProxyEvent,
}

impl Ask<'_> {
    async fn run<T>(self, read: answer::Read<T>) -> ProxyResult<T> {
        let Some(endpoint) = &self.endpoint else {
            return Err(ProxyRefusal::Unavailable("the proxy is no longer configured".to_owned()));
        };
        let body = question::body(&self.asker, self.event, endpoint.config())?;
        endpoint.call(body, self.headers, read).await
    }
}
