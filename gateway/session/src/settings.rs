//! What an operator can set about sessions, and what a session is given on every call.

use std::time::Duration;

use crate::channels::{ChannelOptions, Channels};
use crate::proxy::ProxySettings;

/// Limits and times of one session. The defaults are those of protocol section 8.4 unless a reason is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Time between pings, whole seconds; zero sends none. 25 s keeps common proxies, which cut idle connections after
    /// 30 to 60 s, from doing so.
    pub ping_interval: Duration,
    /// How long a client may take to answer a ping; below the interval. Zero asks for no answers.
    pub pong_timeout: Duration,
    /// How long a client may take to authenticate.
    pub stale_delay: Duration,
    /// How long an expired connection may live on, so that a slow refresh is not punished.
    pub expired_close_delay: Duration,
    /// The same for an expired subscription.
    pub expired_subscription_close_delay: Duration,
    /// Subscriptions of one connection, those being made included. 32 bytes each, more with an expiry or info.
    pub channels_per_connection: usize,
    /// Bytes of a channel name that a client may use.
    pub channel_name_bytes: usize,
    /// Publications in one history reply.
    pub client_history_limit: usize,
    /// Publications that one subscription may recover. The hub reads at most this many; the session refuses more.
    pub recovery_limit: usize,
    /// Payload bytes in one reply. A longer history page is cut there, the client asks on from its last offset; a longer
    /// recovery counts as not recovered. 1 MiB, the outgoing queue: what cannot be queued cannot be sent to a slow client.
    pub reply_bytes: usize,
    /// Commands of one connection that wait for the driver at a time; later ones queue. 64 covers a first frame with
    /// connect and some tens of subscribes in one go, and bounds what one client can ask of the backplane at once.
    pub commands_in_flight: usize,
    /// Commands that may queue behind those. While any does, nothing more is read, so only the rest of one frame can
    /// get here: a 64 KiB frame holds some 1,000 commands of real size. Overflow closes with 3013.
    pub commands_queued: usize,
    /// Commands of one connection per second; 0 is no bound, the default: reading is fair between connections as it is, and
    /// what one of them can have under way is bounded. Above it error 111, far above it 3013.
    pub commands_per_second: u32,
    /// Bytes that one connection may publish per second; 0 is no bound. As above.
    pub publish_bytes_per_second: usize,
    /// How long a close that is nobody's fault waits for the answers to commands accepted before it. 2 s, the time after
    /// which a call to the backplane fails: by then nearly every command has its answer.
    pub close_patience: Duration,
    /// Everyone may do everything; connections do not expire. Tokens that are given are still verified.
    pub insecure: bool,
    /// A client without a token, or with one that names nobody, becomes the anonymous user.
    pub allow_anonymous: bool,
    /// What is asked of the application.
    pub proxy: ProxySettings,
    /// `version` of the connect result.
    pub server_version: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_subscription_close_delay: Duration::from_secs(25),
            channels_per_connection: 128,
            channel_name_bytes: 255,
            client_history_limit: 300,
            recovery_limit: 300,
            reply_bytes: 1 << 20,
            commands_in_flight: 64,
            commands_queued: 1024,
            commands_per_second: 0,
            publish_bytes_per_second: 0,
            close_patience: Duration::from_secs(2),
            insecure: false,
            allow_anonymous: false,
            proxy: ProxySettings::default(),
            server_version: concat!(env!("CARGO_PKG_VERSION"), " Evenkeel").to_owned(),
        }
    }
}

impl Settings {
    /// Checks what a session relies on.
    ///
    /// # Errors
    /// Every problem found.
    pub fn validate(&self) -> Result<(), Vec<SettingsError>> {
        let mut errors = Vec::new();
        if self.ping_interval.subsec_nanos() != 0 || u32::try_from(self.ping_interval.as_secs()).is_err() {
            errors.push(SettingsError::PingInterval(self.ping_interval));
        }
        if !self.ping_interval.is_zero() && self.pong_timeout >= self.ping_interval {
            errors.push(SettingsError::PongTimeout { timeout: self.pong_timeout, interval: self.ping_interval });
        }
        for (name, value) in [
            ("channels_per_connection", self.channels_per_connection),
            ("channel_name_bytes", self.channel_name_bytes),
            ("commands_in_flight", self.commands_in_flight),
            ("commands_queued", self.commands_queued),
        ] {
            if value == 0 {
                errors.push(SettingsError::Zero(name));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// How long an expired connection lives on: as long as its client may take to refresh it. Where the application is
    /// asked instead, it is asked at once.
    pub(crate) fn connection_grace(&self) -> Duration {
        if self.proxy.refresh { Duration::ZERO } else { self.expired_close_delay }
    }

    /// The same for a subscription of a channel with these options.
    pub(crate) fn subscription_grace(&self, options: Option<&ChannelOptions>) -> Duration {
        let asks = options.is_some_and(|options| options.sub_refresh_proxy.is_some());
        if asks { Duration::ZERO } else { self.expired_subscription_close_delay }
    }

    /// Whether a client has to answer pings.
    pub(crate) fn wants_pongs(&self) -> bool {
        !self.ping_interval.is_zero() && !self.pong_timeout.is_zero()
    }
}

/// Why settings cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SettingsError {
    /// The connect result carries whole seconds in 32 bits.
    #[error("ping_interval is {0:?}; it must be whole seconds below 2^32")]
    PingInterval(Duration),
    /// Two pings could be unanswered at once.
    #[error("pong_timeout is {timeout:?}; it must be below ping_interval, which is {interval:?}")]
    PongTimeout {
        /// The timeout.
        timeout: Duration,
        /// The interval.
        interval: Duration,
    },
    /// No session could do anything with this.
    #[error("{0} must be above zero")]
    Zero(&'static str),
}

/// What every session on a node shares, passed in so that a session stores none of it. After a reload the next call
/// simply gets the new values.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Limits and times.
    pub settings: &'a Settings,
    /// Namespaces.
    pub channels: &'a Channels,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_mistake_is_named() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let off = Settings { ping_interval: Duration::ZERO, ..Settings::default() };
        assert_eq!(off.validate(), Ok(()));
        let settings = Settings {
            ping_interval: Duration::from_millis(1500),
            pong_timeout: Duration::from_secs(2),
            channels_per_connection: 0,
            channel_name_bytes: 0,
            commands_in_flight: 0,
            commands_queued: 0,
            ..Settings::default()
        };
        assert_eq!(
            settings.validate().unwrap_err(),
            [
                SettingsError::PingInterval(Duration::from_millis(1500)),
                SettingsError::PongTimeout { timeout: Duration::from_secs(2), interval: Duration::from_millis(1500) },
                SettingsError::Zero("channels_per_connection"),
                SettingsError::Zero("channel_name_bytes"),
                SettingsError::Zero("commands_in_flight"),
                SettingsError::Zero("commands_queued"),
            ]
        );
    }
}
