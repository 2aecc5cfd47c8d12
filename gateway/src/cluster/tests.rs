//! Several nodes on one backplane, with shards that only write down what they are told.

use std::sync::Arc;
use std::time::Duration;

use backplane::fault::{FaultyBackplane, Network, NodeLink, Pause};
use backplane::memory::{MemoryBackplane, MemoryLimits};
use backplane::{Backplane, ChannelName, ClientId, Disturbance, Members, NodeId, UserId};
use parking_lot::Mutex;
use placement::CoordinatorSettings;

use super::commands::{AskError, Commands};
use super::commands_channel;
use super::follow::Follower;
use super::roster::Roster;
use crate::api::glob::Glob;
use crate::node::{Node, NodeOptions};
use crate::sessions::record::HandedOver;
use crate::sessions::verdict::Verdicts;
use crate::shard::command::{Action, Applied, Command, Survey, TakenOver, Target};
use crate::shard::inbox::{Inbox, InboxLimits, Item};

/// One node of the fleet.
struct Peer {
    node: Arc<Node>,
    link: Arc<FaultyBackplane<NodeLink>>,
    roster: Arc<Roster>,
    told: Arc<Mutex<Vec<Action>>>,
}

async fn peers<const N: usize>(network: &Network) -> [Peer; N] {
    let mut peers = Vec::new();
    for index in 0..N {
        peers.push(peer(network, index).await);
    }
    for peer in &peers {
        peer.roster.report(&peer.node).await;
    }
    peers.try_into().unwrap_or_else(|_| panic!("{N} were made"))
}

async fn peer(network: &Network, index: usize) -> Peer {
    let link = Arc::new(FaultyBackplane::new(network.link()));
    let members: Arc<dyn Members> = Arc::new(network.link());
    let inbox = Arc::new(Inbox::new(InboxLimits::default()));
    let backplane: Arc<dyn Backplane> = link.clone();
    let runtime = crate::api::tests::runtime(&[]);
    let node =
        Node::new(format!("node-{index}"), backplane.clone(), vec![inbox.clone()], runtime, NodeOptions::default());
    let told = Arc::new(Mutex::new(Vec::new()));
    tokio::spawn(shard(inbox, told.clone()));
    let id = NodeId(node.uid);
    let commands = Arc::new(Commands::new(id, backplane.clone(), members.clone()));
    let roster = Arc::new(Roster::new(id, backplane, members, CoordinatorSettings::default()));
    tokio::spawn(Follower::start(node.clone(), commands.clone(), roster.clone()).await.run());
    node.join_fleet(commands);
    node.set_roster(roster.clone());
    Peer { node, link, roster, told }
}

async fn shard(inbox: Arc<Inbox>, told: Arc<Mutex<Vec<Action>>>) {
    loop {
        inbox.ready().await;
        for item in inbox.take(usize::MAX, usize::MAX).items {
            let Item::Command(command) = item else { continue };
            match *command {
                Command::Apply { action, done, .. } => {
                    told.lock().push((*action).clone());
                    // The asking side may have given up.
                    let _ = done.send(Applied { matched: 1, already_subscribed: 0 });
                }
                Command::Survey { done } => {
                    let channels = [(ChannelName::from("chat:a"), 2), (ChannelName::from("bare:b"), 1)];
                    let survey = Survey { channels: channels.into(), ..Survey::default() };
                    let _ = done.send(survey);
                }
                Command::TakeOver { generation, done, .. } => {
                    let _ = done.send((generation == 7).then(taken_over));
                }
                Command::StopAccepting { .. }
                | Command::CloseSome { .. }
                | Command::CountMovable { .. }
                | Command::Move { .. } => {
                    panic!("nobody drains or moves")
                }
            }
        }
    }
}

fn taken_over() -> TakenOver {
    let handed_over = HandedOver { subs: Vec::new(), verdicts: Some(Verdicts::default()) };
    TakenOver { was_open: true, handed_over: Some(handed_over) }
}

fn network() -> Network {
    Network::new(MemoryBackplane::new(MemoryLimits::default()))
}

fn everyone() -> Target {
    Target { user: UserId::from("u"), client: None, except: Vec::new() }
}

fn unsubscribe(channel: &str) -> Action {
    Action::Unsubscribe(ChannelName::from(channel))
}

impl Peer {
    /// Waits until the shard was told this and nothing else.
    async fn was_told(&self, expected: &[Action]) {
        let arrived = async {
            while self.told.lock().len() < expected.len() {
                // Time stands still while anything runs, so this is no wait where the clock is paused.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), arrived).await.expect("the shard is told in time");
        assert_eq!(*self.told.lock(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_reaches_every_node_once_and_all_answer() {
    let network = network();
    let [a, b, c] = peers(&network).await;
    for channel in ["1", "2", "3"] {
        let applied = b.node.apply(everyone(), unsubscribe(channel)).await.expect("all nodes answer");
        assert_eq!(applied.matched, 3);
    }
    for peer in [&a, &b, &c] {
        peer.was_told(&["1", "2", "3"].map(unsubscribe)).await;
    }
    let chats = Glob::new("chat:*").expect("a pattern");
    let channels = a.node.channels(Some(&chats)).await.expect("all nodes answer");
    assert_eq!(channels, [(ChannelName::from("chat:a"), 6)].into());
    let infos = c.node.info().await.expect("all nodes answer");
    let names: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["node-0", "node-1", "node-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_taken_over_with_what_it_had() {
    let network = network();
    let [a, b] = peers(&network).await;
    let (user, client, id) = (UserId::from("u"), ClientId::random(), NodeId(b.node.uid));
    for asking in [&a, &b] {
        let taken_over = asking.node.take_over(id, &user, client, 7).await.expect("it is there");
        assert!(taken_over.was_open && taken_over.handed_over.is_some(), "{taken_over:?}");
        let other = asking.node.take_over(id, &user, client, 8).await;
        assert!(other.is_none_or(|other| !other.was_open && other.handed_over.is_none()));
    }
    b.link.pause(Pause::Hang);
    assert_eq!(a.node.take_over(id, &user, client, 7).await, None, "it is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_lost_command_is_read_from_history_in_its_place() {
    let network = network();
    let [a, b] = peers(&network).await;
    b.link.drop_next(&commands_channel(), 1);
    // The answer that is missing is noticed, and so is the gap when the next command comes.
    assert!(a.node.apply(everyone(), unsubscribe("1")).await.is_err());
    a.node.apply(everyone(), unsubscribe("2")).await.expect("all nodes answer");
    b.was_told(&["1", "2"].map(unsubscribe)).await;
    a.was_told(&["1", "2"].map(unsubscribe)).await;

    b.link.duplicate_next(&commands_channel(), 2);
    a.node.apply(everyone(), unsubscribe("3")).await.expect("all nodes answer");
    b.was_told(&["1", "2", "3"].map(unsubscribe)).await;

    b.link.cut();
    assert!(a.node.apply(everyone(), unsubscribe("4")).await.is_err());
    b.link.heal();
    b.was_told(&["1", "2", "3", "4"].map(unsubscribe)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_command_is_noticed_although_none_follows() {
    let network = network();
    let [a, b] = peers(&network).await;
    b.link.drop_next(&commands_channel(), 1);
    assert!(a.node.apply(everyone(), unsubscribe("1")).await.is_err());
    tokio::time::sleep(Duration::from_secs(15)).await;
    b.was_told(&[unsubscribe("1")]).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_cannot_answer_are_named_and_those_gone_are_not_waited_for() {
    let network = network();
    let [a, b] = peers(&network).await;
    b.link.pause(Pause::Hang);
    let error = a.node.apply(everyone(), unsubscribe("1")).await.expect_err("one is silent").to_string();
    assert!(error.contains(&b.node.uid.to_string()), "{error}");
    b.roster.leave().await;
    a.node.apply(everyone(), unsubscribe("2")).await.expect("a node that has left need not answer");
}

#[tokio::test(start_paused = true)]
async fn a_backplane_that_refuses_is_an_error_at_once() {
    let network = network();
    let [a] = peers(&network).await;
    a.link.pause(Pause::Refuse);
    let error = a.node.apply(everyone(), unsubscribe("1")).await.expect_err("nothing can be published");
    assert!(matches!(error, crate::node::FleetError::Elsewhere(AskError::Backplane(_))), "{error}");
    a.link.resume();
    a.node.apply(everyone(), unsubscribe("2")).await.expect("it is back");
}

#[tokio::test(start_paused = true)]
async fn a_backplane_that_lost_everything_does_not_stop_later_commands() {
    let network = network();
    let [a, b] = peers(&network).await;
    a.node.apply(everyone(), unsubscribe("1")).await.expect("all nodes answer");
    network.backplane().forget();
    for peer in [&a, &b] {
        peer.link.disturb(Disturbance::All);
        peer.roster.report(&peer.node).await;
    }
    // The first one may meet nodes that have not found out yet; it is not lost.
    let _ = a.node.apply(everyone(), unsubscribe("2")).await;
    a.node.apply(everyone(), unsubscribe("3")).await.expect("all nodes answer");
    b.was_told(&["1", "2", "3"].map(unsubscribe)).await;
}

#[tokio::test(start_paused = true)]
async fn one_node_coordinates_and_all_know_the_total() {
    let network = network();
    let [a, b, c] = peers(&network).await;
    for peer in [&a, &b, &c] {
        tokio::spawn(peer.roster.clone().run(peer.node.clone()));
        peer.node.set_ready();
    }
    b.node.connection_opened();
    c.node.connection_opened();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for peer in [&a, &b, &c] {
        let digest = peer.node.digest().expect("a digest came");
        assert_eq!((digest.ready, digest.connections, digest.connections_max), (3, 2, 1));
    }
}
