//! The commands that act on a channel without changing the session: `publish`, `presence`, `presence_stats` and
//! `history` (protocol sections 2.5 and 8.3).

use std::sync::Arc;

use backplane::{ChannelName, ClientInfo, Epoch, HistoryPage, HistoryQuery, Offset, PresenceStats, StreamPosition};
use bytes::Bytes;
use protocol::{HistoryRequest, PresenceResult, PublishRequest, PublishResult, ReplyBody};

use crate::channels::ChannelOptions;
use crate::convert;
use crate::error::ClientError;
use crate::io::{OperationError, Output};
use crate::permissions::{Caller, Decision, may_history, may_presence, may_publish};
use crate::proxy::PublishOptions;
use crate::session::{Refusal, Session, reply};
use crate::settings::Context;

impl Session {
    /// Name, namespace and permission, in this order.
    fn permit<'a, T>(
        &self,
        ctx: &Context<'a>,
        channel: &str,
        may: impl Fn(&'a ChannelOptions, Caller<'_>) -> Result<T, ClientError>,
    ) -> Result<(&'a ChannelOptions, T), Refusal> {
        let options = ctx.channels.check_name(channel, ctx.settings.channel_name_bytes)?;
        let decision = may(options, self.caller(ctx, self.known_info(), channel))?;
        Ok((options, decision))
    }

    pub(crate) fn publish(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        request: PublishRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let (options, decision) = self.permit(ctx, &request.channel, may_publish)?;
        if request.r#type != 0 {
            return Err(ClientError::NotAvailable.into());
        }
        if !options.publication_data_format.check(&request.data) {
            return Err(ClientError::BadRequest.into());
        }
        let channel = self.channel_name(request.channel);
        self.in_flight += 1;
        match decision {
            Decision::Allowed => self.publish_now(id, channel, request.data, None, out),
            Decision::Ask(proxy) => self.ask_publish(proxy, id, channel, request.data, out),
        }
        Ok(())
    }

    /// Publishes what is allowed; the command is in flight already.
    pub(crate) fn publish_now(
        &self,
        id: u32,
        channel: ChannelName,
        data: Bytes,
        options: Option<Box<PublishOptions>>,
        out: &mut Vec<Output>,
    ) {
        let subscribed = self.subs.get(&channel).and_then(|entry| entry.info());
        let info = subscribed.unwrap_or_else(|| self.known_info()).clone();
        out.push(Output::Publish { id, channel, data, info, options });
    }

    pub(crate) fn published(&mut self, id: u32, result: Result<(), OperationError>, out: &mut Vec<Output>) {
        self.reply_to_operation(id, result.map(|()| ReplyBody::Publish(PublishResult {})), out);
    }

    pub(crate) fn presence(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        channel: &str,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.permit(ctx, channel, may_presence)?;
        let channel = self.channel_name(channel.to_owned());
        self.in_flight += 1;
        out.push(Output::ReadPresence { id, channel });
        Ok(())
    }

    pub(crate) fn presence_read(
        &mut self,
        id: u32,
        result: Result<Vec<Arc<ClientInfo>>, OperationError>,
        out: &mut Vec<Output>,
    ) {
        let members = |clients: Vec<Arc<ClientInfo>>| {
            let presence = clients.iter().map(|info| (info.client.to_string(), convert::client_info(info))).collect();
            ReplyBody::Presence(PresenceResult { presence })
        };
        self.reply_to_operation(id, result.map(members), out);
    }

    pub(crate) fn presence_stats(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        channel: &str,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.permit(ctx, channel, may_presence)?;
        let channel = self.channel_name(channel.to_owned());
        self.in_flight += 1;
        out.push(Output::ReadPresenceStats { id, channel });
        Ok(())
    }

    pub(crate) fn presence_stats_read(
        &mut self,
        id: u32,
        result: Result<PresenceStats, OperationError>,
        out: &mut Vec<Output>,
    ) {
        let counts = |stats| ReplyBody::PresenceStats(convert::presence_stats_result(stats));
        self.reply_to_operation(id, result.map(counts), out);
    }

    pub(crate) fn history(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        request: HistoryRequest,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        self.permit(ctx, &request.channel, may_history)?;
        if request.reverse && request.since.as_ref().is_some_and(|since| since.offset == 0) {
            return Err(ClientError::BadRequest.into());
        }
        let limit_max = ctx.settings.client_history_limit;
        // A negative limit asks for everything, of which a client gets as much as of any other.
        let limit = usize::try_from(request.limit).map_or(limit_max, |limit| limit.min(limit_max));
        let since =
            request.since.map(|since| StreamPosition { epoch: Epoch::from(since.epoch), offset: Offset(since.offset) });
        let query = HistoryQuery { since, limit: Some(limit), reverse: request.reverse };
        let channel = self.channel_name(request.channel);
        self.in_flight += 1;
        out.push(Output::ReadHistory { id, channel, query });
        Ok(())
    }

    pub(crate) fn history_read(
        &mut self,
        ctx: &Context<'_>,
        id: u32,
        query: &HistoryQuery,
        result: Result<HistoryPage, OperationError>,
        out: &mut Vec<Output>,
    ) {
        let stale = |page: &HistoryPage| {
            query.since.as_ref().is_some_and(|since| !since.epoch.is_unknown() && since.epoch != page.top.epoch)
        };
        let body = result.map(|mut page| {
            truncate(&mut page, ctx.settings.reply_bytes);
            if stale(&page) {
                ClientError::UnrecoverablePosition.into()
            } else {
                ReplyBody::History(convert::history_result(&page))
            }
        });
        self.reply_to_operation(id, body, out);
    }

    fn reply_to_operation(&mut self, id: u32, result: Result<ReplyBody, OperationError>, out: &mut Vec<Output>) {
        if self.answered() {
            reply(id, result.unwrap_or_else(|error| ClientError::from(&error).into()), out);
        }
    }
}

/// Cuts a page before the publication that would take it over the bound; the first one is always kept.
fn truncate(page: &mut HistoryPage, bytes_max: usize) {
    let mut bytes = 0;
    let within = page.publications.iter().take_while(|stored| {
        bytes += stored.publication.data.len();
        bytes <= bytes_max
    });
    let keep = within.count().max(1);
    page.publications.truncate(keep);
}
