//! `publish` and `broadcast`.

use std::collections::BTreeMap;

use backplane::memory::IDEMPOTENCY_KEY_BYTES_MAX;
use backplane::{NewPublication, StreamPosition};
use bytes::Bytes;
use futures_util::future::join_all;

use crate::node::{Node, Publish};

use super::error::{ApiError, ErrorCode};
use super::execute::{IN_HAND, resolve};
use super::outcome::Outcome;
use super::request::{PublishRequest, payload};

/// Tags of one publication, and their bytes, keys and values together. They are labels for filters, and go to every
/// subscriber and into history beside the payload, where the large things belong.
const TAGS_MAX: usize = 64;
const TAGS_BYTES_MAX: usize = 4096;

/// Publishes into a channel; see [`resolve`] for what is wrong with names.
pub(super) async fn publish(node: &Node, mut request: PublishRequest<'_>) -> Result<Outcome, ApiError> {
    if request.channel.is_empty() {
        return Err(ErrorCode::BadRequest.into());
    }
    let message = Message::take(&mut request)?;
    into_channel(node, &request.channel, message).await.map(Outcome::Published)
}

/// Publishes the same into several channels, each of which succeeds or fails alone.
pub(super) async fn broadcast(
    node: &Node,
    mut request: PublishRequest<'_>,
    channels_max: usize,
) -> Result<Outcome, ApiError> {
    let channels = std::mem::take(&mut request.channels);
    if channels.is_empty() {
        return Err(ErrorCode::BadRequest.into());
    }
    if channels.len() > channels_max {
        return Err(ApiError::bad_request(format_args!("{} channels, more than {channels_max}", channels.len())));
    }
    let message = Message::take(&mut request)?;
    let mut responses = Vec::with_capacity(channels.len());
    for some in channels.chunks(IN_HAND) {
        if !responses.is_empty() {
            tokio::task::yield_now().await;
        }
        responses.extend(join_all(some.iter().map(|channel| into_channel(node, channel, message.clone()))).await);
    }
    Ok(Outcome::Broadcast(responses))
}

/// Whether what the application adds to a publication is within bounds; the error says what is not.
pub(crate) fn check_labels(
    tags: &BTreeMap<String, String>,
    idempotency_key: &str,
    version_epoch: &str,
) -> Result<(), String> {
    if tags.len() > TAGS_MAX {
        return Err(format!("{} tags, more than {TAGS_MAX}", tags.len()));
    }
    let bytes: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > TAGS_BYTES_MAX {
        return Err(format!("tags of {bytes} bytes, more than {TAGS_BYTES_MAX}"));
    }
    for (field, text) in [("idempotency_key", idempotency_key), ("version_epoch", version_epoch)] {
        // Both are kept per channel, so what the backplane allows for the one is enough for the other.
        if text.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(format!("{field} has {} bytes, more than {IDEMPOTENCY_KEY_BYTES_MAX}", text.len()));
        }
    }
    Ok(())
}

/// What is published, apart from where.
#[derive(Clone, Debug)]
struct Message {
    data: Bytes,
    tags: BTreeMap<String, String>,
    options: Publish,
}

impl Message {
    fn take(request: &mut PublishRequest<'_>) -> Result<Self, ApiError> {
        let tags = std::mem::take(&mut request.tags);
        check_labels(&tags, &request.idempotency_key, &request.version_epoch).map_err(ApiError::bad_request)?;
        let options = Publish {
            skip_history: request.skip_history,
            idempotency_key: request.idempotency_key.given(),
            version: request.version,
            version_epoch: request.version_epoch.given().unwrap_or_default(),
        };
        Ok(Self { data: payload("b64data", request.data, &request.b64data)?, tags, options })
    }
}

async fn into_channel(node: &Node, name: &str, message: Message) -> Result<Option<StreamPosition>, ApiError> {
    let (channel, format) = resolve(node, name, |options| options.publication_data_format)?;
    let Message { data, tags, options } = message;
    if !format.check(&data) {
        return Err(if data.is_empty() {
            ErrorCode::BadRequest.into()
        } else {
            ApiError::bad_request("the payload does not have the format of the channel's namespace")
        });
    }
    let publication = NewPublication { data, info: None, tags };
    match node.publish(&channel, publication, options).await {
        Ok(published) => Ok(published.position),
        Err(error) => Err(ApiError::internal(error)),
    }
}
