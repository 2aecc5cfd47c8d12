//! Who may do what in a channel, first match decides (protocol sections 6.4 and 8.3). Pure functions of the options,
//! the name and the caller.

use backplane::UserId;

use crate::channels::{ChannelOptions, Channels};
use crate::error::ClientError;
use crate::proxy::ProxyName;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The user; empty for the anonymous one.
    pub user: &'a UserId,
    /// Whether the connection is subscribed to the channel in question.
    pub subscribed: bool,
    /// Whether the server runs without permissions.
    pub insecure: bool,
}

impl Caller<'_> {
    /// `allow_..._for_client` and `allow_..._for_subscriber`; `for_anonymous` never grants alone, it extends either of
    /// them to the anonymous user.
    fn has(&self, for_client: bool, for_subscriber: bool, for_anonymous: bool) -> bool {
        let granted = for_client || (for_subscriber && self.subscribed);
        (granted && (for_anonymous || !self.user.is_anonymous())) || self.insecure
    }
}

/// Who has the last word about something that is not forbidden.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision<'a> {
    /// It is allowed.
    Allowed,
    /// This proxy decides.
    Ask(&'a ProxyName),
}

/// Whether a client may subscribe without a subscription token. With one, the token alone decides.
///
/// # Errors
/// [`ClientError::PermissionDenied`]
pub fn may_subscribe<'a>(
    channels: &Channels,
    options: &'a ChannelOptions,
    channel: &str,
    caller: Caller<'_>,
) -> Result<Decision<'a>, ClientError> {
    if channels.is_private(channel) {
        return Err(ClientError::PermissionDenied);
    }
    let allowed = if channels.is_user_limited(options, channel) {
        channels.lists_user(channel, caller.user) || caller.insecure
    } else if let Some(proxy) = &options.subscribe_proxy {
        return Ok(Decision::Ask(proxy));
    } else {
        caller.has(options.allow_subscribe_for_client, false, options.allow_subscribe_for_anonymous)
    };
    allowed.then_some(Decision::Allowed).ok_or(ClientError::PermissionDenied)
}

/// Whether a client may publish. Where there is a proxy, no other option counts.
///
/// # Errors
/// [`ClientError::PermissionDenied`]
pub fn may_publish<'a>(options: &'a ChannelOptions, caller: Caller<'_>) -> Result<Decision<'a>, ClientError> {
    if let Some(proxy) = &options.publish_proxy {
        return Ok(Decision::Ask(proxy));
    }
    let allowed = caller.has(
        options.allow_publish_for_client,
        options.allow_publish_for_subscriber,
        options.allow_publish_for_anonymous,
    );
    allowed.then_some(Decision::Allowed).ok_or(ClientError::PermissionDenied)
}

/// Whether a client may read presence or its counts.
///
/// # Errors
/// [`ClientError::NotAvailable`] where presence is off, else [`ClientError::PermissionDenied`].
pub fn may_presence(options: &ChannelOptions, caller: Caller<'_>) -> Result<(), ClientError> {
    if !options.presence {
        return Err(ClientError::NotAvailable);
    }
    has_presence_access(options, caller).then_some(()).ok_or(ClientError::PermissionDenied)
}

/// The permission alone, which also decides about join and leave pushes on request: those need no presence entries.
pub fn has_presence_access(options: &ChannelOptions, caller: Caller<'_>) -> bool {
    caller.has(
        options.allow_presence_for_client,
        options.allow_presence_for_subscriber,
        options.allow_presence_for_anonymous,
    )
}

/// Whether a client may read history.
///
/// # Errors
/// [`ClientError::NotAvailable`] where history is off, else [`ClientError::PermissionDenied`].
pub fn may_history(options: &ChannelOptions, caller: Caller<'_>) -> Result<(), ClientError> {
    if options.history.is_none() {
        return Err(ClientError::NotAvailable);
    }
    let allowed = caller.has(
        options.allow_history_for_client,
        options.allow_history_for_subscriber,
        options.allow_history_for_anonymous,
    );
    allowed.then_some(()).ok_or(ClientError::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane::HistoryOptions;

    use super::*;
    use crate::channels::ChannelSyntax;

    const DENIED: Result<(), ClientError> = Err(ClientError::PermissionDenied);
    const OFF: Result<(), ClientError> = Err(ClientError::NotAvailable);

    #[test]
    fn subscribing_without_a_token() {
        let open = ChannelOptions { allow_subscribe_for_client: true, ..ChannelOptions::default() };
        let anonymous = ChannelOptions { allow_subscribe_for_anonymous: true, ..open.clone() };
        let anonymous_alone = ChannelOptions { allow_subscribe_for_anonymous: true, ..ChannelOptions::default() };
        let limited = ChannelOptions { allow_user_limited_channels: true, ..anonymous.clone() };
        let closed = ChannelOptions::default();
        let channels = Channels::new(None, [], ChannelSyntax::default()).unwrap();
        for (row, (options, channel, user, insecure, expected)) in [
            (&closed, "a", "u", false, DENIED),
            (&closed, "a", "u", true, Ok(())),
            (&open, "a", "u", false, Ok(())),
            (&open, "a", "", false, DENIED),
            (&open, "a", "", true, Ok(())),
            (&anonymous, "a", "", false, Ok(())),
            (&anonymous_alone, "a", "", false, DENIED),
            (&anonymous_alone, "a", "u", false, DENIED),
            (&open, "$a", "u", false, DENIED),
            (&open, "$a", "u", true, DENIED),
            (&limited, "a#u", "u", false, Ok(())),
            (&limited, "a#u,v", "v", false, Ok(())),
            (&limited, "a#u", "v", false, DENIED),
            (&limited, "a#u", "v", true, Ok(())),
            (&limited, "a#", "", false, DENIED),
            (&limited, "$a#u", "u", false, DENIED),
            (&limited, "a", "v", false, Ok(())),
            (&open, "a#u", "v", false, Ok(())),
        ]
        .into_iter()
        .enumerate()
        {
            let user = UserId::from(user);
            let caller = Caller { user: &user, subscribed: false, insecure };
            let decision = may_subscribe(&channels, options, channel, caller);
            assert_eq!(decision, expected.map(|()| Decision::Allowed), "row {row}");
            // A proxy has the last word, except about what is private or limited to users.
            let proxy = ProxyName::from("p");
            let asking = ChannelOptions { subscribe_proxy: Some(proxy.clone()), ..options.clone() };
            let expected = match channels.is_private(channel) || channels.is_user_limited(options, channel) {
                true => decision,
                false => Ok(Decision::Ask(&proxy)),
            };
            assert_eq!(may_subscribe(&channels, &asking, channel, caller), expected, "row {row} with a proxy");
        }
    }

    #[test]
    fn publish_presence_and_history_follow_one_order() {
        // for_client, for_subscriber, for_anonymous; anonymous user, subscribed, insecure; allowed
        for (row, (client, subscriber, anonymous, is_anonymous, subscribed, insecure, allowed)) in [
            (false, false, false, false, true, false, false),
            (true, false, false, false, false, false, true),
            (true, false, false, true, false, false, false),
            (true, false, true, true, false, false, true),
            (false, true, false, false, false, false, false),
            (false, true, false, false, true, false, true),
            (false, true, false, true, true, false, false),
            (false, true, true, true, true, false, true),
            (false, true, true, true, false, false, false),
            (false, false, true, true, true, false, false),
            (false, false, true, false, true, false, false),
            (false, false, false, true, false, true, true),
        ]
        .into_iter()
        .enumerate()
        {
            let mut options = ChannelOptions {
                allow_publish_for_client: client,
                allow_presence_for_client: client,
                allow_history_for_client: client,
                allow_publish_for_subscriber: subscriber,
                allow_presence_for_subscriber: subscriber,
                allow_history_for_subscriber: subscriber,
                allow_publish_for_anonymous: anonymous,
                allow_presence_for_anonymous: anonymous,
                allow_history_for_anonymous: anonymous,
                ..ChannelOptions::default()
            };
            let user = UserId::from(if is_anonymous { "" } else { "u" });
            let caller = Caller { user: &user, subscribed, insecure };
            let expected = if allowed { Ok(()) } else { DENIED };
            let published = expected.map(|()| Decision::Allowed);
            assert_eq!(may_publish(&options, caller), published, "publish, row {row}");
            let proxy = ProxyName::from("p");
            let asking = ChannelOptions { publish_proxy: Some(proxy.clone()), ..options.clone() };
            assert_eq!(may_publish(&asking, caller), Ok(Decision::Ask(&proxy)), "publish with a proxy, row {row}");
            assert_eq!(has_presence_access(&options, caller), allowed, "presence access, row {row}");
            assert_eq!(may_presence(&options, caller), OFF, "presence off, row {row}");
            assert_eq!(may_history(&options, caller), OFF, "history off, row {row}");
            options.presence = true;
            let ttl = Duration::from_secs(60);
            options.history = Some(HistoryOptions { size: 10, ttl, meta_ttl: ttl });
            assert_eq!(may_presence(&options, caller), expected, "presence, row {row}");
            assert_eq!(may_history(&options, caller), expected, "history, row {row}");
        }
    }
}
