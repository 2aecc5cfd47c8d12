//! What is sent to the application (protocol section 9.2).

use backplane::{ClientId, ClientInfo};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use protocol::Encoding;
use serde::Serialize;
use serde_json::value::RawValue;
use session::ClientError;
use session::proxy::{ProxyEvent, ProxyRefusal};

use crate::config::Endpoint;

/// Who the question is about.
pub(super) struct Asker<'a> {
    pub client: ClientId,
    pub encoding: Encoding,
    /// `None` before the client is authenticated.
    pub info: Option<&'a ClientInfo>,
    /// Empty when there is none.
    pub meta: &'a [u8],
}

/// Every field of every question; those that a question does not have are left out.
#[derive(Serialize, Default)]
struct Body<'a> {
    client: String,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    channels: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
}

/// The body of the request.
///
/// # Errors
/// 107 when the payload of the client is not JSON, and the proxy is not asked in base64.
pub(super) fn body(asker: &Asker<'_>, event: &ProxyEvent, endpoint: &Endpoint) -> Result<Vec<u8>, ProxyRefusal> {
    let mut body = Body {
        client: asker.client.to_string(),
        transport: "websocket",
        protocol: match asker.encoding {
            Encoding::Json => "json",
            Encoding::Protobuf => "protobuf",
        },
        encoding: if endpoint.binary_encoding { "binary" } else { "json" },
        user: asker.info.map(|info| info.user.as_str()),
        ..Body::default()
    };
    if endpoint.include_connection_meta && !asker.meta.is_empty() {
        body.meta = json(asker.meta).ok();
    }
    let data: &Bytes = match event {
        ProxyEvent::Connect { data, name, version, channels } => {
            (body.name, body.version, body.channels) = (name, version, channels);
            // The client has no user yet, whatever came before.
            body.user = None;
            data
        }
        ProxyEvent::Refresh => &Bytes::new(),
        ProxyEvent::SubRefresh { channel } => {
            body.channel = Some(channel);
            &Bytes::new()
        }
        ProxyEvent::Subscribe { channel, data, .. } | ProxyEvent::Publish { channel, data, .. } => {
            body.channel = Some(channel);
            data
        }
        ProxyEvent::Rpc { method, data, .. } => {
            body.method = Some(method);
            data
        }
    };
    if endpoint.binary_encoding {
        body.b64data = (!data.is_empty()).then(|| STANDARD.encode(data));
    } else if !data.is_empty() {
        body.data = Some(json(data)?);
    }
    serde_json::to_vec(&body)
        .map_err(|error| ProxyRefusal::Unavailable(format!("the question has no JSON form: {error}")))
}

fn json(data: &[u8]) -> Result<&RawValue, ProxyRefusal> {
    serde_json::from_slice(data).map_err(|_| ClientError::BadRequest.into())
}

#[cfg(test)]
mod tests {
    use backplane::UserId;

    use super::*;
    use crate::proxy::endpoint::tests::config;

    const CLIENT: &str = "80000000-0000-4000-8000-000000000001";

    fn text(event: &ProxyEvent, encoding: Encoding, endpoint: &Endpoint) -> Result<String, ProxyRefusal> {
        let client = ClientId::parse(CLIENT).expect("a UUID");
        let user = UserId::from("u");
        let info = ClientInfo { client, user, conn_info: Bytes::new(), chan_info: Bytes::new() };
        let asker = Asker { client, encoding, info: Some(&info), meta: b"{\"m\":1}" };
        body(&asker, event, endpoint).map(|body| String::from_utf8(body).expect("JSON is UTF-8"))
    }

    #[test]
    fn every_question_has_its_fields() {
        let data = Bytes::from_static(b"{\"a\": 1}");
        let channel = backplane::ChannelName::from("chat:a");
        let connect = ProxyEvent::Connect {
            data: data.clone(),
            name: "js".to_owned(),
            version: String::new(),
            channels: vec!["news:a".to_owned()],
        };
        let with_meta = Endpoint { include_connection_meta: true, ..config("http://127.0.0.1/") };
        for (event, expected) in [
            (connect, r#","meta":{"m":1},"name":"js","channels":["news:a"],"data":{"a": 1}"#),
            (ProxyEvent::Refresh, r#","user":"u","meta":{"m":1}"#),
            (
                ProxyEvent::Subscribe { id: 2, channel: channel.clone(), data: Bytes::new() },
                r#","user":"u","meta":{"m":1},"channel":"chat:a""#,
            ),
            (ProxyEvent::SubRefresh { channel: channel.clone() }, r#","user":"u","meta":{"m":1},"channel":"chat:a""#),
            (
                ProxyEvent::Publish { id: 2, channel, data },
                r#","user":"u","meta":{"m":1},"channel":"chat:a","data":{"a": 1}"#,
            ),
            (
                ProxyEvent::Rpc { id: 2, method: String::new(), data: Bytes::from_static(b"[]") },
                r#","user":"u","meta":{"m":1},"method":"","data":[]"#,
            ),
        ] {
            let start = format!(r#"{{"client":"{CLIENT}","transport":"websocket","protocol":"json","encoding":"json""#);
            assert_eq!(text(&event, Encoding::Json, &with_meta), Ok(format!("{start}{expected}}}")));
        }
    }

    #[test]
    fn payloads_that_are_not_json_need_base64() {
        let rpc = ProxyEvent::Rpc { id: 2, method: "m".to_owned(), data: Bytes::from_static(&[0, 255]) };
        let plain = config("http://127.0.0.1/");
        assert_eq!(text(&rpc, Encoding::Protobuf, &plain), Err(ClientError::BadRequest.into()));
        let binary = Endpoint { binary_encoding: true, ..plain };
        let expected = format!(
            r#"{{"client":"{CLIENT}","transport":"websocket","protocol":"protobuf","encoding":"binary","user":"u","method":"m","b64data":"AP8="}}"#
        );
        assert_eq!(text(&rpc, Encoding::Protobuf, &binary), Ok(expected));
    }
}
