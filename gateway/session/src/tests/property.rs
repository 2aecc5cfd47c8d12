//! Any sequence of inputs, with a driver that answers in any order: the invariants of the crate page hold.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use protocol::{
    Command, ConnectRequest, HistoryRequest, PresenceRequest, PresenceStatsRequest, PublishRequest, PushBody,
    RefreshRequest, Reply, ReplyBody, Request, RpcRequest, SendRequest, SubRefreshRequest, SubscribeRequest,
    UnsubscribeRequest,
};

use super::harness::*;
use crate::channels::ChannelOptions;
use crate::io::{
    Back, ConnectionGrant, Input, Joined, Output, Overrides, Resumption, ServerSubscribe, SubscriptionGrant,
    TokenError, TokenPurpose,
};
use crate::proxy::{
    ConnectVerdict, ProxyAnswer, ProxyEvent, ProxyName, ProxyRefusal, ProxyResult, ProxySettings, PublishVerdict,
    RefreshVerdict, RpcRoutes, SubRefreshVerdict, SubscribeVerdict,
};
use crate::session::Phase;
use crate::{ClientError, CloseCode, Settings};

const CHANNELS: [&str; 8] = ["a", "b", "log:a", "room:a", "room:b", "$secret", "nosuch:a", "asked:a"];

/// What happens next. Numbers choose among what is possible at that moment.
#[derive(Clone, Debug)]
enum Step {
    Command(Kind, usize),
    Pong,
    Undecodable,
    /// The driver answers one of the requests it was given: which, and how well.
    Answer(usize, u8),
    /// The hub delivers to one of the channels it has.
    Deliver(usize),
    LosePosition(usize),
    ServerSubscribe(usize),
    ServerUnsubscribe(usize),
    ServerRefresh(u8),
    Pass(u8),
    Close,
    CloseWhenAnswered,
    Gone,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Connect,
    Subscribe,
    SubscribeWithToken,
    Unsubscribe,
    Publish,
    Presence,
    PresenceStats,
    History,
    Rpc,
    Send,
    Refresh,
    SubRefresh,
    Unknown,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        4 => Just(Kind::Subscribe),
        3 => Just(Kind::SubscribeWithToken),
        4 => Just(Kind::Unsubscribe),
        3 => Just(Kind::Publish),
        1 => Just(Kind::Presence),
        1 => Just(Kind::PresenceStats),
        1 => Just(Kind::History),
        1 => Just(Kind::Rpc),
        1 => Just(Kind::Refresh),
        2 => Just(Kind::SubRefresh),
    ];
    let violation = prop_oneof![Just(Kind::Connect), Just(Kind::Send), Just(Kind::Unknown)];
    let step = prop_oneof![
        300 => (kind, any::<usize>()).prop_map(|(kind, channel)| Step::Command(kind, channel)),
        300 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Step::Answer(which, how)),
        100 => any::<usize>().prop_map(Step::Deliver),
        20 => any::<usize>().prop_map(Step::LosePosition),
        60 => any::<usize>().prop_map(Step::ServerSubscribe),
        60 => any::<usize>().prop_map(Step::ServerUnsubscribe),
        10 => any::<u8>().prop_map(Step::ServerRefresh),
        60 => any::<u8>().prop_map(Step::Pass),
        20 => Just(Step::Pong),
        2 => violation.prop_map(|kind| Step::Command(kind, 0)),
        2 => Just(Step::Undecodable),
        2 => Just(Step::Close),
        4 => Just(Step::CloseWhenAnswered),
        2 => Just(Step::Gone),
    ];
    // Most runs connect at once, for otherwise there is little to see.
    let start = prop_oneof![
        9 => any::<usize>().prop_map(|seed| vec![Step::Command(Kind::Connect, seed)]),
        1 => Just(Vec::new()),
    ];
    (start, prop::collection::vec(step, 0..80)).prop_map(|(start, rest)| start.into_iter().chain(rest).collect())
}

/// The driver, the hub, the backplane and the client of one session, as far as the invariants need them.
struct Model {
    world: World,
    next_id: u32,
    /// Requests of the session that are not answered yet.
    requests: Vec<Output>,
    hub: BTreeSet<String>,
    presence: BTreeSet<String>,
    announced: BTreeSet<String>,
    /// Commands that the client expects a reply to; with the channel for an unsubscribe.
    unanswered: BTreeMap<u32, Option<String>>,
    /// Channels that the client believes to be subscribed to.
    subscribed: BTreeSet<String>,
    connect_id: u32,
    established: bool,
    ended: bool,
    /// Until when a close waits for the answers to the commands before it.
    answering_until: Option<crate::Tick>,
    /// It has a session that outlives it, and has handed over what is kept.
    is_tied: bool,
    detached: bool,
}

impl Model {
    /// With `proxied`, the application is asked whatever it can be asked; with `is_resumable`, the client has a session
    /// that outlives its connection.
    fn new(proxied: bool, is_resumable: bool) -> Self {
        let proxy = || ProxyName::from("p");
        let asking = ProxySettings {
            connect: true,
            refresh: true,
            rpc: RpcRoutes { without_namespace: Some(proxy()), ..RpcRoutes::default() },
            keeps_meta: true,
            emulates_headers: true,
        };
        let settings = Settings {
            channels_per_connection: 4,
            commands_in_flight: 3,
            commands_queued: 5,
            allow_anonymous: true,
            proxy: if proxied { asking } else { ProxySettings::default() },
            ..Settings::default()
        };
        let mut world = World::with(settings);
        if is_resumable {
            world = world.resuming();
        }
        let open = ChannelOptions {
            allow_subscribe_for_client: true,
            allow_publish_for_client: true,
            allow_history_for_subscriber: true,
            allow_presence_for_subscriber: true,
            ..ChannelOptions::default()
        };
        let log = ChannelOptions { history: history(), force_recovery: true, ..open.clone() };
        let room = ChannelOptions { presence: true, join_leave: true, force_push_join_leave: true, ..open.clone() };
        let asked = ChannelOptions {
            subscribe_proxy: proxied.then(proxy),
            publish_proxy: proxied.then(proxy),
            sub_refresh_proxy: proxied.then(proxy),
            ..room.clone()
        };
        world.channels = channels_of([("log", log), ("room", room), ("asked", asked)], Some(open));
        Self {
            world,
            next_id: 0,
            requests: Vec::new(),
            hub: BTreeSet::new(),
            presence: BTreeSet::new(),
            announced: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            connect_id: 0,
            established: false,
            ended: false,
            answering_until: None,
            is_tied: false,
            detached: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Command(kind, seed) => self.command(kind, seed),
            Step::Pong => self.give(Input::Command(Command::default())),
            Step::Undecodable => self.give(Input::Undecodable),
            Step::Answer(which, how) => self.answer(which, how),
            Step::Deliver(which) => {
                if let Some(channel) = pick(&self.hub, which)
                    && self.world.session.is_established()
                {
                    assert!(self.subscribed.contains(&channel), "a push of {channel}, which has no subscription");
                }
            }
            Step::LosePosition(which) => {
                if let Some(channel) = pick(&self.hub, which) {
                    self.hub.remove(&channel);
                    self.give(Input::PositionLost { channel: name(&channel) });
                }
            }
            Step::ServerSubscribe(seed) => {
                let request = ServerSubscribe {
                    info: if seed.is_multiple_of(3) { Bytes::from_static(b"{}") } else { Bytes::new() },
                    recover_since: (seed.is_multiple_of(5)).then(|| position("e", 1)),
                    expire_at: (seed.is_multiple_of(7)).then_some(self.world.now.unix + 30),
                    overrides: Overrides {
                        join_leave: (seed.is_multiple_of(2)).then_some(true),
                        ..Overrides::default()
                    },
                    ..server_subscription(channel_of(seed))
                };
                self.give(Input::ServerSubscribe(Box::new(request)));
            }
            Step::ServerUnsubscribe(seed) => {
                let channel = name(channel_of(seed));
                self.give(Input::ServerUnsubscribe { channel, code: 2000, reason: "server unsubscribe" });
            }
            Step::ServerRefresh(how) => {
                let expire_at = (how.is_multiple_of(3)).then_some(self.world.now.unix + i64::from(how));
                let info = (how.is_multiple_of(2)).then(|| Bytes::from_static(b"1"));
                self.give(Input::ServerRefresh { expired: how == 1, expire_at, info });
            }
            Step::Pass(time) => self.pass(u64::from(time) * 100),
            Step::Close => self.give(Input::Close(CloseCode::ForceReconnect)),
            Step::CloseWhenAnswered => {
                let was_answering = self.world.session.is_answering();
                self.give(Input::CloseWhenAnswered(CloseCode::GoingAway));
                if self.world.session.is_answering() && !was_answering {
                    let patience = self.world.settings.close_patience;
                    self.answering_until = Some(self.world.now.tick.after(patience));
                }
            }
            Step::Gone => {
                self.give(Input::Gone);
                self.ended = true;
            }
        }
    }

    fn command(&mut self, kind: Kind, seed: usize) {
        self.next_id += 1;
        let id = self.next_id;
        let channel = channel_of(seed).to_owned();
        let token = "t".to_owned();
        let recover = seed.is_multiple_of(3);
        let subscribe = |token: String| SubscribeRequest {
            channel: channel.clone(),
            token,
            recover,
            flag: i64::from(recover) * 2,
            join_leave: true,
            ..SubscribeRequest::default()
        };
        let is_unsubscribe = matches!(kind, Kind::Unsubscribe);
        let request = match kind {
            Kind::Connect => {
                self.connect_id = id;
                let token = if seed.is_multiple_of(4) { String::new() } else { token };
                let subs = [("room:b".to_owned(), SubscribeRequest::default())].into();
                let headers = [("X-A".to_owned(), "1".to_owned())].into();
                Some(Request::Connect(ConnectRequest { token, subs, headers, ..ConnectRequest::default() }))
            }
            Kind::Subscribe => Some(Request::Subscribe(subscribe(String::new()))),
            Kind::SubscribeWithToken => Some(Request::Subscribe(subscribe(token))),
            Kind::Unsubscribe => Some(Request::Unsubscribe(UnsubscribeRequest { channel: channel.clone() })),
            Kind::Publish => {
                let data = Bytes::from_static(b"1");
                Some(Request::Publish(PublishRequest { channel: channel.clone(), data, r#type: 0 }))
            }
            Kind::Presence => Some(Request::Presence(PresenceRequest { channel: channel.clone() })),
            Kind::PresenceStats => Some(Request::PresenceStats(PresenceStatsRequest { channel: channel.clone() })),
            Kind::History => {
                Some(Request::History(HistoryRequest { channel: channel.clone(), ..HistoryRequest::default() }))
            }
            Kind::Rpc => Some(Request::Rpc(RpcRequest::default())),
            Kind::Send => Some(Request::Send(SendRequest::default())),
            Kind::Refresh => Some(Request::Refresh(RefreshRequest { token })),
            Kind::SubRefresh => {
                Some(Request::SubRefresh(SubRefreshRequest { channel: channel.clone(), token, r#type: 0 }))
            }
            Kind::Unknown => None,
        };
        // A session that is about to close discards what comes now.
        if !self.ended && !self.world.session.is_answering() {
            self.unanswered.insert(id, is_unsubscribe.then_some(channel));
        }
        self.give(Input::Command(Command { id, request }));
    }

    /// Answers a request: well, badly, or in one of the ways between.
    fn answer(&mut self, which: usize, how: u8) {
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.swap_remove(which % self.requests.len());
        let well = !how.is_multiple_of(8);
        let token_error = match how % 24 {
            0 => TokenError::Expired,
            8 => key_server_down(),
            _ => invalid(),
        };
        let result = |well: bool| if well { Ok(()) } else { Err(unavailable()) };
        let now = self.world.now.unix;
        let input = match request {
            Output::VerifyConnection { .. } => {
                let mut grant = grant_with_subs("u", ["log:a", "room:a"]);
                if how.is_multiple_of(2) {
                    grant.subs.clear();
                }
                grant.expire_at = (how.is_multiple_of(3)).then_some(now + 60);
                Input::ConnectionVerified(if well { Ok(grant) } else { Err(token_error) })
            }
            Output::Resume { .. } => {
                let subscriptions = vec![server_subscription("room:a"), server_subscription("log:a")];
                let client = self.world.session.client();
                self.is_tied = !how.is_multiple_of(4);
                Input::Resumed(match how % 4 {
                    0 => Resumption::Without,
                    1 => Resumption::Fresh,
                    _ => Resumption::Back(Box::new(Back { client, subscriptions })),
                })
            }
            Output::VerifyRefresh { id, .. } => {
                let grant = ConnectionGrant { info: Bytes::from_static(b"2"), ..grant("u") };
                Input::RefreshVerified { id, result: if well { Ok(grant) } else { Err(key_server_down()) } }
            }
            Output::VerifySubscription { id, purpose, channel, .. } => {
                let expire_at = (how.is_multiple_of(3)).then_some(now + 10);
                let grant = SubscriptionGrant { expire_at, ..sub_grant("u", &channel) };
                let error = if purpose == TokenPurpose::SubRefresh { TokenError::Expired } else { token_error };
                Input::SubscriptionVerified { id, purpose, channel, result: if well { Ok(grant) } else { Err(error) } }
            }
            Output::Join(join) => {
                let joined = match (&join.recover, join.has_history) {
                    (_, false) => Joined::default(),
                    (Some(_), true) if how.is_multiple_of(2) => recovered("e", 3, [2, 3]),
                    (_, true) => at("e", 3),
                };
                if well {
                    assert!(self.hub.insert(join.channel.to_string()), "{} joined twice", join.channel);
                }
                Input::Joined { channel: join.channel, result: result(well).map(|()| joined) }
            }
            Output::Publish { id, .. } => Input::Published { id, result: result(well) },
            Output::ReadPresence { id, .. } => Input::Presence { id, result: result(well).map(|()| Vec::new()) },
            Output::ReadPresenceStats { id, .. } => {
                Input::PresenceStats { id, result: result(well).map(|()| Default::default()) }
            }
            Output::ReadHistory { id, query, .. } => {
                Input::History { id, query, result: result(well).map(|()| page("e", 3, [3])) }
            }
            Output::Proxy(call) => Input::Proxied(Box::new(self.judge(call.event, how))),
            other => panic!("not a request: {other:?}"),
        };
        self.give(input);
    }

    /// The application's answer: yes, for a time, no, nothing, or a failure.
    fn judge(&self, event: ProxyEvent, how: u8) -> ProxyAnswer {
        fn result<T>(how: u8, verdict: T) -> ProxyResult<T> {
            match how % 16 {
                0 => Err(ProxyRefusal::Unavailable("down".to_owned())),
                2 => Err(ClientError::PermissionDenied.into()),
                4 => Ok(None),
                6 if how > 200 => Err(ProxyRefusal::Disconnect(CloseCode::ForceDisconnect)),
                _ => Ok(Some(verdict)),
            }
        }
        let expire_at = (how.is_multiple_of(3)).then_some(self.world.now.unix + 20);
        let expired = how.is_multiple_of(11);
        let info = (how.is_multiple_of(5)).then(|| Bytes::from_static(b"3"));
        match event {
            ProxyEvent::Connect { .. } => {
                let subs = if how.is_multiple_of(2) { vec![] } else { vec!["log:a", "asked:a", "room:b"] };
                let subs = subs.into_iter().map(|channel| (channel.to_owned(), Default::default())).collect();
                let grant = ConnectionGrant { subs, expire_at, meta: Bytes::from_static(b"{}"), ..grant("u") };
                ProxyAnswer::Connect(result(how, ConnectVerdict { grant, data: Bytes::new() }))
            }
            ProxyEvent::Refresh => {
                let verdict = RefreshVerdict { expired, expire_at, info, meta: None };
                ProxyAnswer::Refresh(result(how, verdict))
            }
            ProxyEvent::Subscribe { id, channel, .. } => {
                let verdict = SubscribeVerdict { expire_at, ..SubscribeVerdict::default() };
                ProxyAnswer::Subscribe { id, channel, result: result(how, verdict) }
            }
            ProxyEvent::SubRefresh { channel } => {
                let verdict = SubRefreshVerdict { expired, expire_at, info };
                ProxyAnswer::SubRefresh { channel, result: result(how, verdict) }
            }
            ProxyEvent::Publish { id, channel, data } => {
                let verdict = PublishVerdict { data: info, ..PublishVerdict::default() };
                ProxyAnswer::Publish { id, channel, data, result: result(how, verdict) }
            }
            ProxyEvent::Rpc { id, .. } => ProxyAnswer::Rpc { id, result: result(how, Bytes::new()) },
        }
    }

    fn pass(&mut self, millis: u64) {
        let end = self.world.now.tick.0 + millis;
        while let Some(deadline) = self.world.session.next_deadline().filter(|deadline| deadline.0 <= end) {
            self.world.advance_to(deadline.max(self.world.now.tick));
            self.give(Input::Deadline);
            let next = self.world.session.next_deadline();
            assert!(next.is_none_or(|next| next > self.world.now.tick), "a deadline that does not move");
        }
        self.world.advance_to(crate::Tick(end));
    }

    fn give(&mut self, input: Input) {
        for output in self.world.handle(input) {
            self.carry_out(output);
        }
        let session = &self.world.session;
        assert!(session.channel_count() <= self.world.settings.channels_per_connection || session.is_closed());
        assert!(session.in_flight as usize <= self.world.settings.commands_in_flight);
        if let Some(pending) = &session.pending {
            assert!(pending.queue.len() <= self.world.settings.commands_queued);
            assert!(session.is_closed() || pending.queue.is_empty() == session.wants_commands());
        }
        assert_eq!(session.is_closed(), self.ended || session.phase == Phase::Closed);
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send(reply) => self.receive(reply),
            Output::Established { .. } => {
                assert!(!self.ended && !self.established && self.hub.is_empty() && self.requests.is_empty());
                self.established = true;
            }
            Output::Join(join) => {
                assert!(!self.ended && self.established, "a join of nobody");
                assert!(!self.hub.contains(join.channel.as_str()), "{} is joined", join.channel);
                if join.presence.is_some() {
                    assert!(self.presence.insert(join.channel.to_string()), "{} has presence", join.channel);
                }
                self.requests.push(Output::Join(join));
            }
            Output::Leave { channel, hub, presence } => {
                assert!(hub || presence, "a leave of nothing");
                assert!(!hub || self.hub.remove(channel.as_str()), "{channel} is not in the hub");
                assert!(!presence || self.presence.remove(channel.as_str()), "{channel} has no presence");
            }
            Output::Linger { channel } => {
                assert!(self.is_tied && self.world.session.is_closed(), "nobody may come back");
                assert!(self.presence.remove(channel.as_str()), "{channel} has no presence");
                self.announced.remove(channel.as_str());
            }
            Output::Detach(_) => {
                assert!(self.is_tied && !std::mem::replace(&mut self.detached, true), "detached twice");
            }
            Output::Announce { channel, joined: true, .. } => {
                assert!(!self.ended && self.hub.contains(channel.as_str()));
                assert!(self.subscribed.contains(channel.as_str()), "announced before the reply");
                assert!(self.announced.insert(channel.to_string()), "{channel} announced twice");
            }
            Output::Announce { channel, joined: false, .. } => {
                assert!(self.announced.remove(channel.as_str()), "{channel} left without having joined");
            }
            Output::EmulatedHeaders(_) => assert!(!self.ended && !self.established),
            Output::Close(code) => {
                assert!(!self.ended, "closed twice, or after the socket was gone");
                if let Some(until) = self.answering_until.filter(|_| code == CloseCode::GoingAway) {
                    let in_time = self.world.now.tick < until;
                    assert!(!in_time || self.unanswered.is_empty(), "closed without answering {:?}", self.unanswered);
                    assert!(self.world.now.tick <= until, "the close came late");
                }
                self.ended = true;
                self.unanswered.clear();
            }
            request @ (Output::VerifyConnection { .. }
            | Output::Resume { .. }
            | Output::VerifyRefresh { .. }
            | Output::VerifySubscription { .. }
            | Output::Publish { .. }
            | Output::ReadPresence { .. }
            | Output::ReadPresenceStats { .. }
            | Output::ReadHistory { .. }
            | Output::Proxy(_)) => {
                assert!(!self.ended, "work for a connection that is closed");
                self.requests.push(request);
            }
        }
    }

    fn receive(&mut self, reply: Reply) {
        assert!(!self.ended, "sent after the close");
        if let Some(ReplyBody::Push(push)) = reply.body {
            let channel = push.channel;
            match push.body {
                PushBody::Subscribe(_) => assert!(self.subscribed.insert(channel)),
                PushBody::Unsubscribe(_) => {
                    assert!(!self.hub.contains(&channel), "the hub may still deliver to {channel}");
                    assert!(self.subscribed.remove(&channel), "{channel} ended twice");
                }
                PushBody::Publication(_) => assert!(self.subscribed.contains(&channel)),
                PushBody::Refresh(_) => assert!(channel.is_empty()),
                other => panic!("a session never pushes {other:?}"),
            }
            assert!(self.world.session.info().is_some(), "a push to nobody");
            return;
        }
        if reply == Reply::default() {
            return;
        }
        let unsubscribed = self.unanswered.remove(&reply.id).expect("a reply to a command that waits for one");
        match reply.body.expect("a success has its result object") {
            ReplyBody::Connect(result) => self.subscribed.extend(result.subs.into_keys()),
            ReplyBody::Subscribe(_) => {
                let new: Vec<String> = self.hub.difference(&self.subscribed).cloned().collect();
                assert_eq!(new.len(), 1, "exactly the channel of this reply is new in the hub");
                self.subscribed.extend(new);
            }
            ReplyBody::Unsubscribe(_) => {
                let channel = unsubscribed.expect("the reply to an unsubscribe");
                assert!(!self.hub.contains(&channel), "the hub may still deliver to {channel}");
                self.subscribed.remove(&channel);
            }
            // What was sent behind a refused connect is not answered.
            ReplyBody::Error(_) if reply.id == self.connect_id => self.unanswered.clear(),
            _ => {}
        }
    }

    /// Answers everything, after which no command may be without its reply; then the socket goes.
    fn finish(mut self) {
        while !self.requests.is_empty() {
            self.answer(0, 1);
        }
        if self.world.session.phase == Phase::Open {
            assert!(self.unanswered.is_empty(), "no reply to {:?}", self.unanswered);
            assert!(self.world.session.pending.is_none() && self.world.session.in_flight == 0);
            let active: BTreeSet<String> =
                self.world.session.subscriptions().map(|entry| entry.channel().to_string()).collect();
            assert_eq!((&active, &active), (&self.hub, &self.subscribed));
        }
        assert!(!self.world.session.is_answering(), "everything is answered: nothing is left to wait for");
        self.give(Input::Gone);
        assert!(self.world.session.is_finished());
        assert_eq!(self.world.session.next_deadline(), None);
        let left = [self.hub, self.presence, self.announced];
        assert!(left.iter().all(BTreeSet::is_empty), "left behind: {left:?}");
    }
}

fn server_subscription(channel: &str) -> ServerSubscribe {
    ServerSubscribe {
        channel: name(channel),
        info: Bytes::new(),
        data: Bytes::new(),
        recover_since: None,
        expire_at: None,
        overrides: Overrides::default(),
    }
}

fn channel_of(seed: usize) -> &'static str {
    CHANNELS[seed % CHANNELS.len()]
}

fn pick(set: &BTreeSet<String>, which: usize) -> Option<String> {
    set.iter().nth(which.checked_rem(set.len())?).cloned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_inputs_keeps_the_invariants(
        steps in steps(),
        proxied in any::<bool>(),
        is_resumable in any::<bool>(),
    ) {
        let mut model = Model::new(proxied, is_resumable);
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
