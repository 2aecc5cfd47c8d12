//! Commands of the server API and of operators, carried out on this shard's connections.

use std::rc::Rc;

use backplane::ClientId;
use session::UnsubscribeCode;
use session::io::Input;

use super::Shard;
use super::command::{Action, Applied, Command, ShardCounts, Survey, Target};
use super::connection::Connection;

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
            Command::StopAccepting { done } => {
                let _ = done.send(self.stop_accepting());
            }
            Command::CloseSome { count } => self.close_some(count),
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
}
