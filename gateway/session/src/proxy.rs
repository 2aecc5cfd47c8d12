//! Event proxies: questions about a client that the application answers (protocol section 9). A question goes out as
//! [`crate::Output::Proxy`], its answer comes back as [`crate::Input::Proxied`]. What each of them means for the
//! client is decided in `proxied`.

use std::collections::BTreeMap;
use std::sync::Arc;

use backplane::{ChannelName, ClientInfo};
use bytes::Bytes;

use crate::close::CloseCode;
use crate::error::ClientError;
use crate::io::{ConnectionGrant, SubscriptionOptions};
use crate::session::Refusal;

/// The name of a configured proxy.
pub type ProxyName = Arc<str>;

/// The name of the proxy that is asked about connections, and that of the one asked about their expiry.
pub const CONNECT: &str = "connect";
/// See [`CONNECT`].
pub const REFRESH: &str = "refresh";

/// Which events of a connection are asked of the application. Those of channels are options of the namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProxySettings {
    /// A connect without a token.
    pub connect: bool,
    /// The expiry of a connection. Clients are then not asked to refresh tokens.
    pub refresh: bool,
    /// Calls of methods.
    pub rpc: RpcRoutes,
    /// Some proxy is told the connection's `meta`, so that sessions keep it.
    pub keeps_meta: bool,
    /// Some proxy is told headers that clients emulate.
    pub emulates_headers: bool,
}

/// Which proxy answers which RPC method (protocol section 8.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RpcRoutes {
    /// Methods without a namespace; `None` when there are no such methods.
    pub without_namespace: Option<ProxyName>,
    /// Namespaces: the part of a method before the boundary. `None` is a namespace whose proxy is off.
    pub namespaces: BTreeMap<String, Option<ProxyName>>,
    /// Ends the namespace; empty when there are none.
    pub boundary: String,
}

impl Default for RpcRoutes {
    /// No methods.
    fn default() -> Self {
        Self { without_namespace: None, namespaces: BTreeMap::new(), boundary: ":".to_owned() }
    }
}

impl RpcRoutes {
    /// The proxy of a method.
    ///
    /// # Errors
    /// [`ClientError::NotAvailable`] when no proxy is configured for the method, [`ClientError::MethodNotFound`] in an
    /// unknown namespace.
    pub fn route(&self, method: &str) -> Result<&ProxyName, ClientError> {
        if self.without_namespace.is_none() && self.namespaces.is_empty() {
            return Err(ClientError::NotAvailable);
        }
        let namespace = if self.boundary.is_empty() { None } else { method.split_once(self.boundary.as_str()) };
        let proxy = match namespace {
            Some((namespace, _)) => self.namespaces.get(namespace).ok_or(ClientError::MethodNotFound)?,
            None => &self.without_namespace,
        };
        proxy.as_ref().ok_or(ClientError::NotAvailable)
    }
}

/// One question to a proxy.
#[derive(Clone, PartialEq, Debug)]
pub struct ProxyCall {
    /// Which proxy is asked.
    pub proxy: ProxyName,
    /// Who it is about; `None` before the client is authenticated.
    pub info: Option<Arc<ClientInfo>>,
    /// The connection's `meta`; empty when there is none or it is not kept.
    pub meta: Bytes,
    /// What is asked.
    pub event: ProxyEvent,
}

/// What a proxy is asked (protocol section 9.2).
#[derive(Clone, PartialEq, Debug)]
pub enum ProxyEvent {
    /// Who is this client? Answer: [`ProxyAnswer::Connect`].
    Connect {
        /// Application data.
        data: Bytes,
        /// Name of the SDK.
        name: String,
        /// Version of the application.
        version: String,
        /// Server-side channels that the client remembers.
        channels: Vec<String>,
    },
    /// May this connection, which has expired, go on? Answer: [`ProxyAnswer::Refresh`].
    Refresh,
    /// May the client subscribe? Answer: [`ProxyAnswer::Subscribe`].
    Subscribe {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
        /// Application data.
        data: Bytes,
    },
    /// May this subscription, which has expired, go on? Answer: [`ProxyAnswer::SubRefresh`].
    SubRefresh {
        /// The channel.
        channel: ChannelName,
    },
    /// May the client publish this? Answer: [`ProxyAnswer::Publish`].
    Publish {
        /// The id of the command.
        id: u32,
        /// The channel.
        channel: ChannelName,
        /// The payload; the answer brings it back.
        data: Bytes,
    },
    /// A call of a method. Answer: [`ProxyAnswer::Rpc`].
    Rpc {
        /// The id of the command.
        id: u32,
        /// The method; may be empty.
        method: String,
        /// The argument.
        data: Bytes,
    },
}

/// The answer to a [`ProxyCall`]. `Ok(None)` is an answer that says nothing: neither a result nor a refusal.
#[derive(Clone, PartialEq, Debug)]
pub enum ProxyAnswer {
    /// To [`ProxyEvent::Connect`].
    Connect(ProxyResult<ConnectVerdict>),
    /// To [`ProxyEvent::Refresh`].
    Refresh(ProxyResult<RefreshVerdict>),
    /// To [`ProxyEvent::Subscribe`].
    Subscribe {
        /// The id of the command.
        id: u32,
        /// The channel of the command.
        channel: ChannelName,
        /// The verdict.
        result: ProxyResult<SubscribeVerdict>,
    },
    /// To [`ProxyEvent::SubRefresh`].
    SubRefresh {
        /// The channel.
        channel: ChannelName,
        /// The verdict.
        result: ProxyResult<SubRefreshVerdict>,
    },
    /// To [`ProxyEvent::Publish`].
    Publish {
        /// The id of the command.
        id: u32,
        /// The channel of the command.
        channel: ChannelName,
        /// The payload of the command.
        data: Bytes,
        /// The verdict.
        result: ProxyResult<PublishVerdict>,
    },
    /// To [`ProxyEvent::Rpc`].
    Rpc {
        /// The id of the command.
        id: u32,
        /// What the method returned.
        result: ProxyResult<Bytes>,
    },
}

/// What a proxy says.
pub type ProxyResult<T> = Result<Option<T>, ProxyRefusal>;

/// Why a proxy does not say yes.
#[derive(Clone, PartialEq, Debug)]
pub enum ProxyRefusal {
    /// The application refuses, with an error for the client.
    Error(protocol::Error),
    /// The application wants the client gone.
    Disconnect(CloseCode),
    /// The application could not be asked, or said nothing that could be understood: error 100, temporary. The text is
    /// for the log, never for the client.
    Unavailable(String),
}

impl From<ClientError> for ProxyRefusal {
    fn from(error: ClientError) -> Self {
        Self::Error(error.into())
    }
}

impl From<ProxyRefusal> for Refusal {
    fn from(refusal: ProxyRefusal) -> Self {
        match refusal {
            ProxyRefusal::Error(error) => Self::Custom(error),
            ProxyRefusal::Disconnect(code) => Self::Close(code),
            ProxyRefusal::Unavailable(_) => Self::Error(ClientError::Internal),
        }
    }
}

/// Who a client is, and what it gets at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectVerdict {
    /// As a token would say it. An empty user is the anonymous one, whom the application has let in.
    pub grant: ConnectionGrant,
    /// Data for the client, in the connect reply.
    pub data: Bytes,
}

/// Whether a connection goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefreshVerdict {
    /// It does not.
    pub expired: bool,
    /// When it expires next, Unix seconds; `None` never.
    pub expire_at: Option<i64>,
    /// New connection info; `None` keeps what there is.
    pub info: Option<Bytes>,
    /// New `meta`; `None` keeps what there is.
    pub meta: Option<Bytes>,
}

/// A subscription that is allowed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubscribeVerdict {
    /// When it expires, Unix seconds; `None` never.
    pub expire_at: Option<i64>,
    /// Info, data and overrides.
    pub options: SubscriptionOptions,
}

/// Whether a subscription goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubRefreshVerdict {
    /// It does not.
    pub expired: bool,
    /// When it expires next, Unix seconds; `None` never.
    pub expire_at: Option<i64>,
    /// New channel info; `None` keeps what there is.
    pub info: Option<Bytes>,
}

/// A publication that is allowed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublishVerdict {
    /// Published instead of what the client sent.
    pub data: Option<Bytes>,
    /// How to publish.
    pub options: PublishOptions,
}

/// What a client cannot say about its publication, but the application can (protocol section 9.2).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PublishOptions {
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Fan out without storing.
    pub skip_history: bool,
    /// A repeated publish with the same key does nothing.
    pub idempotency_key: Option<String>,
    /// Drop the publication when the channel has this version or a newer one; 0 publishes in any case.
    pub version: u64,
    /// What `version` counts in.
    pub version_epoch: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_routed_by_namespace() {
        let name = |name: &str| Some(ProxyName::from(name));
        let off = RpcRoutes::default();
        let plain = RpcRoutes { without_namespace: name("main"), ..off.clone() };
        let namespaces = [("chat".to_owned(), name("chat")), ("old".to_owned(), None)].into();
        let both = RpcRoutes { namespaces, ..plain.clone() };
        let only = RpcRoutes { without_namespace: None, ..both.clone() };
        let flat = RpcRoutes { boundary: String::new(), ..both.clone() };
        for (routes, method, expected) in [
            (&off, "a", Err(ClientError::NotAvailable)),
            (&off, "chat:a", Err(ClientError::NotAvailable)),
            (&plain, "a", Ok("main")),
            (&plain, "", Ok("main")),
            (&plain, "chat:a", Err(ClientError::MethodNotFound)),
            (&both, "a", Ok("main")),
            (&both, "chat:a", Ok("chat")),
            (&both, "chat:a:b", Ok("chat")),
            (&both, "old:a", Err(ClientError::NotAvailable)),
            (&both, "new:a", Err(ClientError::MethodNotFound)),
            (&both, ":a", Err(ClientError::MethodNotFound)),
            (&only, "a", Err(ClientError::NotAvailable)),
            (&flat, "chat:a", Ok("main")),
        ] {
            assert_eq!(routes.route(method).map(|proxy| &**proxy), expected, "{method}");
        }
    }
}
