//! Asking who the primaries are.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fred::types::Value;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use super::config::{Address, Topology};
use super::connection::{Access, Connection, send, text, unavailable_or_refused};
use super::layout::{Layout, of_cluster, of_other_sentinels, of_sentinel};
use crate::BackplaneError;

/// How long slower answers are waited for once there is one. A silent server must not hold up the news of its end.
const GRACE: Duration = Duration::from_millis(200);

/// Knows whom to ask.
pub(super) enum Discovery {
    /// Nobody: it never changes.
    Fixed(Address),
    /// Sentinels, about the primary of this name.
    Sentinels { informants: Informants, primary: String },
    /// Nodes of a cluster.
    Cluster { informants: Informants, prefers_host_names: bool },
}

impl Discovery {
    /// Connects to those who know.
    pub(super) async fn start(access: &Access) -> Result<Self, BackplaneError> {
        match &access.config.topology {
            Topology::Standalone(address) => Ok(Self::Fixed(address.clone())),
            Topology::Sentinel { sentinels, primary, .. } => {
                let informants = Informants::connect(access.for_sentinels(), sentinels.clone()).await?;
                Ok(Self::Sentinels { informants, primary: primary.clone() })
            }
            Topology::Cluster(nodes) => {
                let informants = Informants::connect(access.clone(), nodes.clone()).await?;
                Ok(Self::Cluster { informants, prefers_host_names: access.config.tls.is_some() })
            }
        }
    }

    /// The layout as it is now.
    pub(super) async fn look(&mut self) -> Result<Layout, BackplaneError> {
        match self {
            Self::Fixed(address) => Ok(Layout::single(address.clone(), 0)),
            Self::Sentinels { informants, primary } => {
                let answers = informants.ask("SENTINEL", &["MASTER", primary]).await?;
                let found = answers.into_iter().filter_map(|(asked, answer)| understood(&asked, of_sentinel(answer)));
                // A Sentinel that was cut off knows an old primary. The epoch of the latest failover tells.
                let latest = found.max_by_key(|primary| primary.term);
                if let Ok(answers) = informants.ask("SENTINEL", &["SENTINELS", primary]).await {
                    for (asked, answer) in answers {
                        informants.learn(understood(&asked, of_other_sentinels(answer)).unwrap_or_default());
                    }
                    informants.settle();
                }
                let unknown = || BackplaneError::Unavailable("no Sentinel says where the primary is".to_owned());
                latest.map(|primary| Layout::single(primary.address, primary.term)).ok_or_else(unknown)
            }
            Self::Cluster { informants, prefers_host_names } => {
                let answers = informants.ask("CLUSTER", &["NODES"]).await?;
                let texts = answers.into_iter().filter_map(|(asked, answer)| {
                    let text = understood(&asked, text(answer))?;
                    Some((asked, text))
                });
                let layout = of_cluster(&texts.collect::<Vec<_>>(), *prefers_host_names);
                if layout.primaries.is_empty() {
                    return Err(BackplaneError::Unavailable("no node of the cluster has slots".to_owned()));
                }
                informants.learn(layout.primaries.iter().map(|primary| primary.address.clone()));
                informants.settle();
                Ok(layout)
            }
        }
    }
}

/// One answer that makes no sense does not spoil the others.
fn understood<T>(asked: &Address, answer: Result<T, BackplaneError>) -> Option<T> {
    answer.inspect_err(|error| tracing::warn!(%asked, %error, "it cannot be told who is the redis primary")).ok()
}

/// Connections to servers that are asked: those of the settings, and those that were learnt of since.
pub(super) struct Informants {
    access: Access,
    configured: HashSet<Address>,
    learnt: HashSet<Address>,
    connections: HashMap<Address, Connection>,
}

impl Informants {
    /// Fails when no attempt to connect succeeds.
    async fn connect(access: Access, configured: Vec<Address>) -> Result<Self, BackplaneError> {
        let attempts = configured.iter().map(|address| async { (address.clone(), access.connect(address).await) });
        let mut connections = HashMap::new();
        let mut problem = None;
        for (address, attempt) in join_all(attempts).await {
            match attempt {
                Ok(connection) => {
                    connections.insert(address, connection);
                }
                // Wrong settings tell more than an absent server.
                Err(error @ BackplaneError::Protocol(_)) => problem = Some(error),
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        match problem {
            Some(problem) if connections.is_empty() => return Err(problem),
            Some(problem) => tracing::warn!(%problem, "not every configured address can be used"),
            None => {}
        }
        let configured = configured.into_iter().collect();
        let mut informants = Self { access, configured, learnt: HashSet::new(), connections };
        informants.settle();
        Ok(informants)
    }

    /// The answers of all that give one soon.
    async fn ask(&self, command: &'static str, words: &[&str]) -> Result<Vec<(Address, Value)>, BackplaneError> {
        let mut asked: FuturesUnordered<_> = self
            .connections
            .iter()
            .map(|(address, connection)| async {
                let words = words.iter().map(|word| Value::from(*word)).collect();
                (address.clone(), send(&connection.commands, command, words).await)
            })
            .collect();
        let mut answers = Vec::new();
        let mut problem = BackplaneError::Unavailable("nobody can be asked".to_owned());
        let mut deadline = tokio::time::Instant::now() + self.access.config.command_timeout;
        while let Ok(Some((address, answer))) = tokio::time::timeout_at(deadline, asked.next()).await {
            match answer.map_err(unavailable_or_refused) {
                Ok(answer) => {
                    if answers.is_empty() {
                        deadline = deadline.min(tokio::time::Instant::now() + GRACE);
                    }
                    answers.push((address, answer));
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "no answer to who is primary");
                    if matches!(problem, BackplaneError::Unavailable(_)) {
                        problem = error;
                    }
                }
            }
        }
        if answers.is_empty() { Err(problem) } else { Ok(answers) }
    }

    fn learn(&mut self, addresses: impl IntoIterator<Item = Address>) {
        self.learnt.extend(addresses);
    }

    /// Connects to all that were learnt of since the last time, in the background, and parts from those that were not.
    fn settle(&mut self) {
        let learnt = std::mem::take(&mut self.learnt);
        self.connections.retain(|address, _| self.configured.contains(address) || learnt.contains(address));
        for address in self.configured.iter().chain(&learnt) {
            if !self.connections.contains_key(address) {
                self.connections.insert(address.clone(), self.access.connect_later(address));
            }
        }
    }
}
