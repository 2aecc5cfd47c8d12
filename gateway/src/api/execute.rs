//! The one way a command is carried out, whichever form it came in.

use backplane::ChannelName;
use session::{ChannelError, ChannelOptions};

use crate::node::Node;

use super::ApiLimits;
use super::error::{ApiError, ErrorCode, Failure};
use super::info;
use super::outcome::Outcome;
use super::publish;
use super::reads;
use super::request::{InfoRequest, Method, RpcRequest, parse};
use super::sessions;
use super::users;

/// How many commands or channels of one request are in hand at a time, and after how many the request lets others run.
/// A backplane over the network answers 64 calls in one round trip; the one in memory needs a few microseconds for
/// each, so that deliveries of the same shard wait for less than a millisecond.
pub(super) const IN_HAND: usize = 64;

/// The longest channel name in bytes, unless clients may use longer ones (protocol section 8.1). Every node, stored
/// stream and subscription pays for it.
const CHANNEL_BYTES_MAX: usize = 255;

/// Carries out one command. `params` is its JSON object.
///
/// # Errors
/// When the object is malformed, or the command cannot be carried out; see the methods.
pub(super) async fn execute(
    node: &Node,
    limits: &ApiLimits,
    method: Method,
    params: &[u8],
) -> Result<Outcome, Failure> {
    let result = match method {
        Method::Publish => publish::publish(node, parse(params)?).await,
        Method::Broadcast => publish::broadcast(node, parse(params)?, limits.channels_per_broadcast).await,
        Method::Subscribe => users::subscribe(node, parse(params)?).await,
        Method::Unsubscribe => users::unsubscribe(node, parse(params)?).await,
        Method::Disconnect => users::disconnect(node, parse(params)?).await,
        Method::Refresh => users::refresh(node, parse(params)?).await,
        Method::Presence => reads::presence(node, parse(params)?).await,
        Method::PresenceStats => reads::presence_stats(node, parse(params)?).await,
        Method::History => reads::history(node, parse(params)?).await,
        Method::HistoryRemove => reads::history_remove(node, parse(params)?).await,
        Method::Channels => reads::channels(node, parse(params)?).await,
        Method::Info => info::info(node, parse::<InfoRequest>(params)?).await,
        Method::SessionGet => sessions::get(node, &parse(params)?).await,
        Method::SessionSet => sessions::set(node, &parse(params)?).await,
        Method::Rpc => rpc(&parse(params)?),
    };
    Ok(result?)
}

/// There are no extensions, so there is none of this name.
fn rpc(request: &RpcRequest<'_>) -> Result<Outcome, ApiError> {
    if request.method.is_empty() { Err(ErrorCode::BadRequest.into()) } else { Err(ErrorCode::MethodNotFound.into()) }
}

/// The channel, and what `read` takes from the options of its namespace. The API is not held to the alphabet of clients.
pub(super) fn resolve<T>(
    node: &Node,
    name: &str,
    read: impl FnOnce(&ChannelOptions) -> T,
) -> Result<(ChannelName, T), ApiError> {
    let runtime = node.runtime();
    let bytes_max = runtime.session.channel_name_bytes.max(CHANNEL_BYTES_MAX);
    if name.len() > bytes_max {
        let detail = format_args!("the channel name has {} bytes, more than {bytes_max}", name.len());
        return Err(ApiError::bad_request(detail));
    }
    match runtime.channels.resolve(name) {
        Ok(options) => Ok((ChannelName::from(name), read(options))),
        Err(ChannelError::Empty) => Err(ErrorCode::BadRequest.into()),
        Err(ChannelError::UnknownNamespace) => Err(ErrorCode::UnknownChannel.into()),
        Err(error @ (ChannelError::TooLong | ChannelError::BadName)) => Err(ApiError::bad_request(error)),
    }
}
