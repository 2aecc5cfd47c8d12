//! Channel namespaces and their options (protocol section 8).

use backplane::HistoryOptions;
use regex::Regex;

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
