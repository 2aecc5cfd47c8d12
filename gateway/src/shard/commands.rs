//! Commands of the server API and of operators, carried out on this shard's connections.

use std::rc::Rc;
use std::time::Duration;

use backplane::ClientId;
use rand::seq::SliceRandom;
use session::UnsubscribeCode;
use session::close::CloseCode;
use session::io::Input;

use super::Shard;
use super::command::{Action, Applied, Command, ShardCounts, Survey, Target};
use super::connection::{Connection, Phase};

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
                    self.input(&connection, Input::Close(code.clone()));
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
            let total = keys.len();
            let started = tokio::time::Instant::now();
            let mut closed = 0;
            loop {
                let elapsed = started.elapsed();
                let due = if elapsed >= window {
                    total
                } else {
                    (total as f64 * elapsed.as_secs_f64() / window.as_secs_f64()) as usize
                };
                for key in &keys[closed..due] {
                    if let Some(connection) = shard.connection(*key)
                        && connection.phase.get() == Phase::Open
                    {
                        shard.input(&connection, Input::Close(code.clone()));
                    }
                }
                closed = due;
                if closed == total {
                    return;
                }
                tokio::time::sleep(DRAIN_STEP.min(window)).await;
            }
        });
    }
}
