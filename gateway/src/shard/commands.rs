//! Commands of the server API and of operators, carried out on this shard's connections.

use std::rc::Rc;
use std::time::{Duration, Instant};

use backplane::ClientId;
use rand::seq::SliceRandom;
use session::UnsubscribeCode;
use session::close::CloseCode;
use session::io::Input;

use super::Shard;
use super::command::{Action, Applied, Command, ShardCounts, Survey, Target};
use super::connection::{Connection, Phase};
use crate::drain::plan::Spread;

/// Closes of a drain before other tasks get their turn: each cleans up after a session.
const CLOSES_PER_TURN: usize = 100;

/// Pause between two looks at how many connections should be closed by now. Small enough that the closes are even,
/// large enough that a long drain costs nothing.
const DRAIN_STEP: Duration = Duration::from_millis(20);

impl Shard {
    pub(super) fn command(self: &Rc<Self>, command: Command) {
        match command {
            Command::Apply { target, action, done } => {
                // Nobody may be waiting for the answer any more; the action was asked for all the same.
                let _ = done.send(self.apply(&target, &action));
            }
            Command::TakeOver { user, client, generation, done } => self.take_over(&user, client, generation, done),
            Command::Survey { done } => {
                let _ = done.send(self.survey());
            }
            Command::CountMovable { rule, done } => {
                let _ = done.send(self.count_movable(rule));
            }
            Command::Move { rule, count, done } => {
                let _ = done.send(self.move_some(rule, count));
            }
            Command::Drain { window, code } => self.drain(window, code),
        }
    }

    fn apply(self: &Rc<Self>, target: &Target, action: &Action) -> Applied {
        let mut applied = Applied::default();
        if action.revokes() {
            // What they may was said anew: by this action, or by being left alone.
            let user = Target { user: target.user.clone(), client: None, except: Vec::new() };
            self.targets(&user).iter().for_each(|connection| self.reauthorise_session(connection));
        }
        for connection in self.targets(target) {
            applied.matched += 1;
            match action {
                Action::Subscribe(request) => {
                    if connection.session.borrow().subscription(&request.channel).is_some() {
                        applied.already_subscribed += 1;
                    } else {
                        self.input(&connection, Input::ServerSubscribe(Box::new(request.clone())));
                    }
                }
                Action::Unsubscribe(channel) => {
                    let code = UnsubscribeCode::ServerUnsubscribe;
                    let (channel, code, reason) = (channel.clone(), code.code(), code.reason());
                    self.input(&connection, Input::ServerUnsubscribe { channel, code, reason });
                }
                Action::Disconnect(code) => {
                    self.forget_session(&connection);
                    self.input(&connection, Input::CloseWhenAnswered(code.clone()));
                }
                Action::Refresh(refresh) => {
                    let refresh = refresh.clone();
                    let input = Input::ServerRefresh {
                        expired: refresh.expired,
                        expire_at: refresh.expire_at,
                        info: refresh.info,
                    };
                    self.input(&connection, input);
                }
            }
        }
        applied
    }

    fn targets(&self, target: &Target) -> Vec<Rc<Connection>> {
        let connections = self.connections.borrow();
        let wanted = target.client.as_deref().map(ClientId::parse);
        self.users
            .borrow()
            .connections(&target.user)
            .into_iter()
            .filter_map(|index| connections.get(index as usize))
            .filter(|connection| {
                let client = connection.session.borrow().client();
                wanted.is_none_or(|wanted| wanted == Some(client)) && !target.except.contains(&client)
            })
            .cloned()
            .collect()
    }

    fn survey(&self) -> Survey {
        let hub = self.hub.borrow();
        Survey {
            counts: self.counts(),
            users: self.users.borrow().ids().cloned().collect(),
            channels: hub
                .channels()
                .filter(|(_, subscribers)| *subscribers > 0)
                .map(|(channel, subscribers)| (channel.clone(), subscribers))
                .collect(),
        }
    }

    /// Numbers of this shard.
    pub(super) fn counts(&self) -> ShardCounts {
        ShardCounts {
            connections: self.connections.borrow().len(),
            subscriptions: self.hub.borrow().subscription_count(),
        }
    }

    /// Closes every connection in random order, evenly over the window; those that still come are closed at once.
    fn drain(self: &Rc<Self>, window: Duration, code: CloseCode) {
        if self.draining.replace(true) {
            return;
        }
        let mut keys: Vec<_> = self.connections.borrow().iter().map(|(_, connection)| connection.key).collect();
        keys.shuffle(&mut rand::rng());
        let shard = self.clone();
        tokio::task::spawn_local(async move {
            let started = Instant::now();
            let mut spread = Spread::new(keys.len(), window, &mut rand::rng());
            loop {
                for (count, key) in keys[spread.due(started.elapsed(), &mut rand::rng())].iter().enumerate() {
                    if let Some(connection) = shard.connection(*key)
                        && connection.phase.get() == Phase::Open
                    {
                        shard.tell_to_go(&connection, code.clone());
                    }
                    if count % CLOSES_PER_TURN == CLOSES_PER_TURN - 1 {
                        tokio::task::yield_now().await;
                    }
                }
                let Some(next) = spread.next_at() else { return };
                tokio::time::sleep(next.saturating_sub(started.elapsed()).max(DRAIN_STEP.min(window))).await;
            }
        });
    }
}
