//! What only reads, and `history_remove`: `presence`, `presence_stats`, `history`, `channels`.

use backplane::{ChannelName, HistoryQuery};

use crate::node::Node;

use super::error::{ApiError, ErrorCode};
use super::execute::resolve;
use super::glob::Glob;
use super::outcome::Outcome;
use super::request::{ChannelRequest, ChannelsRequest, HistoryRequest};

pub(super) async fn presence(node: &Node, request: ChannelRequest<'_>) -> Result<Outcome, ApiError> {
    let channel = with_presence(node, &request.channel)?;
    node.backplane.presence(&channel).await.map(Outcome::Presence).map_err(ApiError::internal)
}

pub(super) async fn presence_stats(node: &Node, request: ChannelRequest<'_>) -> Result<Outcome, ApiError> {
    let channel = with_presence(node, &request.channel)?;
    node.backplane.presence_stats(&channel).await.map(Outcome::PresenceStats).map_err(ApiError::internal)
}

/// The client's limit of publications does not hold here: who has the key may read all there is.
pub(super) async fn history(node: &Node, request: HistoryRequest<'_>) -> Result<Outcome, ApiError> {
    let channel = with_history(node, &request.channel)?;
    let query = query(request)?;
    let page = node.history(&channel, query.clone()).await.map_err(ApiError::internal)?;
    if query.since.is_some_and(|since| !since.epoch.is_unknown() && since.epoch != page.top.epoch) {
        return Err(ErrorCode::UnrecoverablePosition.into());
    }
    Ok(Outcome::History(page))
}

pub(super) async fn history_remove(node: &Node, request: ChannelRequest<'_>) -> Result<Outcome, ApiError> {
    let channel = with_history(node, &request.channel)?;
    node.backplane.remove_history(&channel).await.map_err(ApiError::internal)?;
    Ok(Outcome::Done)
}

/// Without a pattern all channels that have subscribers.
pub(super) async fn channels(node: &Node, request: ChannelsRequest<'_>) -> Result<Outcome, ApiError> {
    let glob = Glob::of(&request.pattern).map_err(ApiError::bad_request)?;
    node.channels(glob.as_ref()).await.map(Outcome::Channels).map_err(ApiError::internal)
}

fn with_presence(node: &Node, name: &str) -> Result<ChannelName, ApiError> {
    available(resolve(node, name, |options| options.presence)?)
}

fn with_history(node: &Node, name: &str) -> Result<ChannelName, ApiError> {
    available(resolve(node, name, |options| options.history.is_some())?)
}

fn available((channel, available): (ChannelName, bool)) -> Result<ChannelName, ApiError> {
    if available { Ok(channel) } else { Err(ErrorCode::NotAvailable.into()) }
}

/// A limit of 0 reads only the position, a negative one everything.
fn query(request: HistoryRequest<'_>) -> Result<HistoryQuery, ApiError> {
    let HistoryRequest { limit, since, reverse, channel: _ } = request;
    if reverse && since.as_ref().is_some_and(|since| since.offset == 0) {
        return Err(ApiError::bad_request("nothing is before offset 0"));
    }
    let limit = if limit < 0 { None } else { Some(usize::try_from(limit).unwrap_or(usize::MAX)) };
    Ok(HistoryQuery { since: since.map(Into::into), limit, reverse })
}
