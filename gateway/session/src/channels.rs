//! Channel namespaces, their options, and the rules for names (protocol section 8).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use backplane::{HistoryOptions, INTERNAL_PREFIX, UserId};
use regex::Regex;
use serde_json::value::RawValue;

use crate::proxy::ProxyName;

/// The options of one namespace, or of channels without one (protocol section 8.2). Every default is the closed one.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "each field is the option of the same name in protocol section 8.2")]
pub struct ChannelOptions {
    pub presence: bool,
    pub join_leave: bool,
    pub force_push_join_leave: bool,
    /// `history_size`, `history_ttl` and `history_meta_ttl`; `None` when size or TTL is zero.
    pub history: Option<HistoryOptions>,
    pub force_positioning: bool,
    pub allow_positioning: bool,
    pub force_recovery: bool,
    pub allow_recovery: bool,
    pub force_recovery_mode: RecoveryMode,
    pub auto_cache_recover: bool,
    pub allow_subscribe_for_client: bool,
    pub allow_subscribe_for_anonymous: bool,
    pub allow_publish_for_client: bool,
    pub allow_publish_for_subscriber: bool,
    pub allow_publish_for_anonymous: bool,
    pub allow_presence_for_client: bool,
    pub allow_presence_for_subscriber: bool,
    pub allow_presence_for_anonymous: bool,
    pub allow_history_for_client: bool,
    pub allow_history_for_subscriber: bool,
    pub allow_history_for_anonymous: bool,
    pub allow_user_limited_channels: bool,
    pub channel_regex: Option<Regex>,
    pub publication_data_format: DataFormat,
    /// `subscribe_proxy_enabled` and `subscribe_proxy_name`
    pub subscribe_proxy: Option<ProxyName>,
    /// `publish_proxy_enabled` and `publish_proxy_name`
    pub publish_proxy: Option<ProxyName>,
    /// `sub_refresh_proxy_enabled` and `sub_refresh_proxy_name`
    pub sub_refresh_proxy: Option<ProxyName>,
}

impl ChannelOptions {
    /// What is contradictory in these options; empty when nothing is.
    fn problems(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        match &self.history {
            Some(history) => {
                if history.size == 0 || history.ttl.is_zero() {
                    problems.push(OptionProblem::EmptyHistory);
                }
                if history.meta_ttl < history.ttl {
                    problems.push(OptionProblem::ShortMetaTtl);
                }
            }
            None => {
                if self.force_recovery {
                    problems.push(OptionProblem::NeedsHistory("force_recovery"));
                }
                if self.force_positioning {
                    problems.push(OptionProblem::NeedsHistory("force_positioning"));
                }
            }
        }
        if self.auto_cache_recover && !(self.force_recovery && self.force_recovery_mode == RecoveryMode::Cache) {
            problems.push(OptionProblem::AutoCacheRecover);
        }
        problems
    }
}

/// `force_recovery_mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RecoveryMode {
    /// Every missed publication.
    #[default]
    Stream,
    /// Only the latest publication.
    Cache,
}

/// `publication_data_format`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DataFormat {
    /// Anything that is not empty.
    #[default]
    NotEmpty,
    /// A JSON value.
    Json,
    /// A JSON object.
    JsonObject,
    /// Any bytes, empty allowed.
    Binary,
}

impl DataFormat {
    /// Whether a payload has this format. A client or API caller whose payload has not gets error 107. Costs a scan of
    /// the payload for the JSON formats.
    pub fn check(self, data: &[u8]) -> bool {
        match self {
            Self::NotEmpty => !data.is_empty(),
            Self::Json => is_json(data),
            Self::JsonObject => data.iter().find(|byte| !b" \t\r\n".contains(byte)) == Some(&b'{') && is_json(data),
            Self::Binary => true,
        }
    }
}

/// Checks without building the value, and without recursion whose depth a client could choose.
fn is_json(data: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(data).is_ok()
}

/// The texts that structure channel names (protocol section 8.1). An empty one switches its meaning off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChannelSyntax {
    /// Ends the namespace.
    pub namespace_boundary: String,
    /// Starts the name of a channel that always needs a token.
    pub private_prefix: String,
    /// Starts the list of users of a user-limited channel.
    pub user_boundary: String,
    /// Separates those users.
    pub user_separator: String,
}

impl Default for ChannelSyntax {
    fn default() -> Self {
        let [namespace_boundary, private_prefix, user_boundary, user_separator] =
            [":", "$", "#", ","].map(String::from);
        Self { namespace_boundary, private_prefix, user_boundary, user_separator }
    }
}

/// Every configured namespace. Immutable: a reload builds a new one.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    without_namespace: Option<ChannelOptions>,
    namespaces: HashMap<String, ChannelOptions>,
    syntax: ChannelSyntax,
}

impl Channels {
    /// Builds the table from the options of channels without a namespace (`None`: there are no such channels) and the
    /// named namespaces.
    ///
    /// # Errors
    /// Every problem found, not only the first.
    pub fn new(
        without_namespace: Option<ChannelOptions>,
        namespaces: impl IntoIterator<Item = (String, ChannelOptions)>,
        syntax: ChannelSyntax,
    ) -> Result<Self, Vec<ChannelsError>> {
        let mut errors = Vec::new();
        let mut collect = |namespace: &str, options: &ChannelOptions| {
            for problem in options.problems() {
                errors.push(ChannelsError::Options { namespace: namespace.to_owned(), problem });
            }
        };
        if let Some(options) = &without_namespace {
            collect("", options);
        }
        let mut table = HashMap::new();
        let mut bad_names = Vec::new();
        for (name, options) in namespaces {
            collect(&name, &options);
            if !is_namespace_name(&name, &syntax) {
                bad_names.push(ChannelsError::Name(name));
                continue;
            }
            match table.entry(name) {
                Entry::Occupied(entry) => bad_names.push(ChannelsError::Repeated(entry.key().clone())),
                Entry::Vacant(entry) => {
                    entry.insert(options);
                }
            }
        }
        errors.extend(bad_names);
        errors.extend(clashing_syntax(&syntax));
        if errors.is_empty() { Ok(Self { without_namespace, namespaces: table, syntax }) } else { Err(errors) }
    }

    /// The options of a channel, whoever asks: used for the server API, tokens and clients alike.
    ///
    /// # Errors
    /// [`ChannelError::Empty`] and [`ChannelError::UnknownNamespace`].
    pub fn resolve(&self, channel: &str) -> Result<&ChannelOptions, ChannelError> {
        if channel.is_empty() {
            return Err(ChannelError::Empty);
        }
        if channel.starts_with(INTERNAL_PREFIX) {
            return Err(ChannelError::BadName);
        }
        match self.split(channel).0 {
            Some(namespace) => self.namespaces.get(namespace),
            None => self.without_namespace.as_ref(),
        }
        .ok_or(ChannelError::UnknownNamespace)
    }

    /// [`Channels::resolve`] for a name that comes from a client, which must also be at most `bytes_max` long and match
    /// the namespace's regex, or be ASCII where there is none.
    ///
    /// # Errors
    /// The first rule that the name breaks, in the order length, namespace, alphabet.
    pub fn check_name(&self, channel: &str, bytes_max: usize) -> Result<&ChannelOptions, ChannelError> {
        if channel.len() > bytes_max {
            return Err(ChannelError::TooLong);
        }
        let options = self.resolve(channel)?;
        let allowed = match &options.channel_regex {
            Some(regex) => regex.is_match(self.split(channel).1),
            None => channel.is_ascii(),
        };
        if allowed { Ok(options) } else { Err(ChannelError::BadName) }
    }

    /// Whether the channel always needs a subscription token.
    pub fn is_private(&self, channel: &str) -> bool {
        let prefix = &self.syntax.private_prefix;
        !prefix.is_empty() && channel.starts_with(prefix.as_str())
    }

    /// Whether the channel admits only the users in its name.
    pub fn is_user_limited(&self, options: &ChannelOptions, channel: &str) -> bool {
        options.allow_user_limited_channels && self.users(channel).is_some()
    }

    /// Whether the name lists the user. The anonymous user is never listed: an empty list would otherwise admit it.
    pub fn lists_user(&self, channel: &str, user: &UserId) -> bool {
        if user.is_anonymous() {
            return false;
        }
        let separator = self.syntax.user_separator.as_str();
        match self.users(channel) {
            None => false,
            Some(users) if separator.is_empty() => users == user.as_str(),
            Some(users) => users.split(separator).any(|listed| listed == user.as_str()),
        }
    }

    /// What follows the last user boundary.
    fn users<'a>(&self, channel: &'a str) -> Option<&'a str> {
        let boundary = self.syntax.user_boundary.as_str();
        if boundary.is_empty() { None } else { channel.rsplit_once(boundary).map(|(_, users)| users) }
    }

    /// The namespace, if any, and the rest; the private prefix belongs to neither.
    fn split<'a>(&self, channel: &'a str) -> (Option<&'a str>, &'a str) {
        let name = channel.strip_prefix(self.syntax.private_prefix.as_str()).unwrap_or(channel);
        let boundary = self.syntax.namespace_boundary.as_str();
        match name.split_once(boundary) {
            Some((namespace, rest)) if !boundary.is_empty() => (Some(namespace), rest),
            Some(_) | None => (None, name),
        }
    }
}

/// `^[-a-zA-Z0-9_.]{2,}$`, and not swallowed by the boundary itself.
fn is_namespace_name(name: &str, syntax: &ChannelSyntax) -> bool {
    let boundary = syntax.namespace_boundary.as_str();
    name.len() >= 2
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && (boundary.is_empty() || !name.contains(boundary))
}

/// Two roles with one text would make names ambiguous.
fn clashing_syntax(syntax: &ChannelSyntax) -> Vec<ChannelsError> {
    let roles = [
        ("namespace_boundary", &syntax.namespace_boundary),
        ("private_prefix", &syntax.private_prefix),
        ("user_boundary", &syntax.user_boundary),
        ("user_separator", &syntax.user_separator),
    ];
    let mut errors = Vec::new();
    for (index, (first, text)) in roles.iter().enumerate() {
        for (second, other) in &roles[index + 1..] {
            if !text.is_empty() && text == other {
                errors.push(ChannelsError::Syntax { first, second, text: (*text).clone() });
            }
        }
    }
    errors
}

/// Why a channel name leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChannelError {
    /// There is no name. A client that omits it breaks the protocol.
    #[error("channel is empty")]
    Empty,
    /// More bytes than the setting allows.
    #[error("channel name is too long")]
    TooLong,
    /// The namespace is not configured, or channels without one are not.
    #[error("unknown namespace")]
    UnknownNamespace,
    /// Not ASCII, or not what the namespace's regex asks for.
    #[error("channel name has characters that are not allowed")]
    BadName,
}

/// Why a set of namespaces cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChannelsError {
    /// The name of a namespace does not match `^[-a-zA-Z0-9_.]{2,}$`, or contains the namespace boundary.
    #[error("namespace {0:?}: the name must match ^[-a-zA-Z0-9_.]{{2,}}$ and not contain the namespace boundary")]
    Name(String),
    /// Two namespaces have the same name.
    #[error("namespace {0:?} is configured twice")]
    Repeated(String),
    /// Options that contradict each other.
    #[error("namespace {namespace:?}: {problem}")]
    Options {
        /// Empty for channels without a namespace.
        namespace: String,
        /// What is wrong.
        problem: OptionProblem,
    },
    /// Two parts of the name syntax are the same text.
    #[error("{first} and {second} are both {text:?}")]
    Syntax {
        /// One setting.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// Their common value.
        text: String,
    },
}

/// Options of one namespace that contradict each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionProblem {
    /// A position exists only where publications are stored.
    #[error("{0} needs history_size and history_ttl")]
    NeedsHistory(&'static str),
    /// History that keeps nothing.
    #[error("history_size and history_ttl must be above zero")]
    EmptyHistory,
    /// The epoch would be forgotten before the publications.
    #[error("history_meta_ttl must not be below history_ttl")]
    ShortMetaTtl,
    /// The option acts on forced cache recovery only.
    #[error("auto_cache_recover needs force_recovery and force_recovery_mode \"cache\"")]
    AutoCacheRecover,
}

#[cfg(test)]
mod tests;
