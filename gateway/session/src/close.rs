//! Close codes and the only mapping from a reason to a code (protocol section 5.3).
//!
//! The number decides what an SDK does next, but only if the reason text is right: with an empty reason the reference
//! SDK reconnects even on terminal codes, and a reason that parses as JSON is misread as advice not to reconnect. So
//! both come from here and nowhere else.

/// The longest reason that fits a close frame: 125 bytes of control frame, less two for the code (RFC 6455 5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// Why the server closes a connection, and thereby what the SDK does next.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum CloseCode {
    /// This node shuts down or drains; the client reconnects to another one.
    GoingAway,
    /// The peer broke the WebSocket framing.
    ProtocolError,
    /// A text message was not UTF-8.
    InvalidPayload,
    /// A client message above the size limit. SDKs do not reconnect.
    MessageTooBig,
    /// Closed in the ordinary way; no close frame is sent.
    ConnectionClosed,
    /// The server shuts down.
    Shutdown,
    /// A bug or a failed dependency on our side.
    InternalServerError,
    /// The connection token expired and was not refreshed in time.
    ConnectionExpired,
    /// A server-side subscription expired and was not prolonged.
    SubscriptionExpired,
    /// The client does not read fast enough: its outgoing queue is over the limit.
    Slow,
    /// Writing to the socket failed.
    WriteError,
    /// What the client holds no longer fits what the server knows: a lost position of a server-side subscription, or
    /// another set of server-side channels. Reconnecting repairs it.
    InsufficientState,
    /// Moved on purpose, for example to another node.
    ForceReconnect,
    /// The client did not answer a ping.
    NoPong,
    /// The client sends more than the server is willing to keep waiting.
    TooManyRequests,
    /// Everything the client has cached is void, tokens included.
    StateInvalidated,
    /// The token is malformed, forged, or for somebody else.
    InvalidToken,
    /// The client broke the protocol.
    BadRequest,
    /// The client did not authenticate in time.
    Stale,
    /// The application told the client to go.
    ForceDisconnect,
    /// The user has too many connections.
    ConnectionLimit,
    /// The connection has too many server-side channels.
    ChannelLimit,
    /// A payload that is not JSON is due to a JSON connection.
    InappropriateProtocol,
    /// Anonymous users are not allowed.
    PermissionDenied,
    /// The client used a feature that this server does not have.
    NotAvailable,
    /// The client caused too many errors.
    TooManyErrors,
    /// The session goes on over another connection, which has taken it over.
    TakenOver,
    /// A code and reason chosen by the application.
    Custom(CustomClose),
}

impl CloseCode {
    /// Every code except [`CloseCode::Custom`], in ascending order of its number.
    pub const BUILT_IN: [Self; 27] = [
        Self::GoingAway,
        Self::ProtocolError,
        Self::InvalidPayload,
        Self::MessageTooBig,
        Self::ConnectionClosed,
        Self::Shutdown,
        Self::InternalServerError,
        Self::ConnectionExpired,
        Self::SubscriptionExpired,
        Self::Slow,
        Self::WriteError,
        Self::InsufficientState,
        Self::ForceReconnect,
        Self::NoPong,
        Self::TooManyRequests,
        Self::StateInvalidated,
        Self::InvalidToken,
        Self::BadRequest,
        Self::Stale,
        Self::ForceDisconnect,
        Self::ConnectionLimit,
        Self::ChannelLimit,
        Self::InappropriateProtocol,
        Self::PermissionDenied,
        Self::NotAvailable,
        Self::TooManyErrors,
        Self::TakenOver,
    ];

    /// A code and reason chosen by the application.
    ///
    /// # Errors
    /// When SDKs would misunderstand them; see [`CustomCloseError`].
    pub fn custom(code: u32, reason: &str) -> Result<Self, CustomCloseError> {
        CustomClose::new(code, reason).map(Self::Custom)
    }

    /// The number of the close frame.
    pub fn code(&self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::ProtocolError => 1002,
            Self::InvalidPayload => 1007,
            Self::MessageTooBig => 1009,
            Self::ConnectionClosed => 3000,
            Self::Shutdown => 3001,
            Self::InternalServerError => 3004,
            Self::ConnectionExpired => 3005,
            Self::SubscriptionExpired => 3006,
            Self::Slow => 3008,
            Self::WriteError => 3009,
            Self::InsufficientState => 3010,
            Self::ForceReconnect => 3011,
            Self::NoPong => 3012,
            Self::TooManyRequests => 3013,
            Self::StateInvalidated => 3014,
            Self::InvalidToken => 3500,
            Self::BadRequest => 3501,
            Self::Stale => 3502,
            Self::ForceDisconnect => 3503,
            Self::ConnectionLimit => 3504,
            Self::ChannelLimit => 3505,
            Self::InappropriateProtocol => 3506,
            Self::PermissionDenied => 3507,
            Self::NotAvailable => 3508,
            Self::TooManyErrors => 3509,
            Self::TakenOver => 4001,
            Self::Custom(custom) => custom.code,
        }
    }

    /// The text beside the number: never empty, never JSON, at most 32 bytes of ASCII for our own codes.
    pub fn reason(&self) -> &str {
        match self {
            Self::GoingAway => "going away",
            Self::ProtocolError => "protocol error",
            Self::InvalidPayload => "invalid payload",
            Self::MessageTooBig => "message size limit exceeded",
            Self::ConnectionClosed => "connection closed",
            Self::Shutdown => "shutdown",
            Self::InternalServerError => "internal server error",
            Self::ConnectionExpired => "connection expired",
            Self::SubscriptionExpired => "subscription expired",
            Self::Slow => "slow",
            Self::WriteError => "write error",
            Self::InsufficientState => "insufficient state",
            Self::ForceReconnect => "force reconnect",
            Self::NoPong => "no pong",
            Self::TooManyRequests => "too many requests",
            Self::StateInvalidated => "state invalidated",
            Self::InvalidToken => "invalid token",
            Self::BadRequest => "bad request",
            Self::Stale => "stale",
            Self::ForceDisconnect => "force disconnect",
            Self::ConnectionLimit => "connection limit",
            Self::ChannelLimit => "channel limit",
            Self::InappropriateProtocol => "inappropriate protocol",
            Self::PermissionDenied => "permission denied",
            Self::NotAvailable => "not available",
            Self::TooManyErrors => "too many errors",
            Self::TakenOver => "session taken over",
            Self::Custom(custom) => &custom.reason,
        }
    }

    /// Whether SDKs reconnect after this code: below 3000 all but 1009, above by range.
    pub fn reconnect(&self) -> bool {
        match self.code() {
            1009 => false,
            code => code < 3000 || matches!(code, 3000..=3499 | 4000..=4499),
        }
    }

    /// Whether what was queued is sent before the close frame. Not worth waiting for when the peer does not read.
    pub fn flushes(&self) -> bool {
        !matches!(self, Self::ConnectionClosed | Self::Slow)
    }
}

/// A checked pair of code and reason; made by [`CloseCode::custom`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CustomClose {
    code: u16,
    reason: Box<str>,
}

impl CustomClose {
    fn new(code: u32, reason: &str) -> Result<Self, CustomCloseError> {
        let code = match u16::try_from(code) {
            Ok(code @ 3000..=4999) => code,
            _ => return Err(CustomCloseError::Code(code)),
        };
        if reason.is_empty() {
            return Err(CustomCloseError::EmptyReason);
        }
        if reason.len() > REASON_BYTES_MAX {
            return Err(CustomCloseError::LongReason(reason.len()));
        }
        if !reason.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(CustomCloseError::UnprintableReason);
        }
        if serde_json::from_str::<&serde_json::value::RawValue>(reason).is_ok() {
            return Err(CustomCloseError::JsonReason);
        }
        Ok(Self { code, reason: reason.into() })
    }
}

/// Why a code and reason of the application cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CustomCloseError {
    /// SDKs give a meaning to 3000 to 4999 only, and larger numbers do not fit a close frame.
    #[error("close code {0} is not in 3000..=4999")]
    Code(u32),
    /// SDKs ignore the code beside an empty reason.
    #[error("the close reason is empty")]
    EmptyReason,
    /// It does not fit a close frame.
    #[error("the close reason has {0} bytes, more than {REASON_BYTES_MAX}")]
    LongReason(usize),
    /// Only printable ASCII is safe in every SDK.
    #[error("the close reason has characters outside printable ASCII")]
    UnprintableReason,
    /// SDKs would read it as a legacy advice object.
    #[error("the close reason is valid JSON, which SDKs misread")]
    JsonReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_reason_is_understood_by_sdks() {
        let mut last = 0;
        for close in &CloseCode::BUILT_IN {
            assert!(close.code() > last, "{close:?} is out of order or repeated");
            last = close.code();
            let reason = close.reason();
            assert!(!reason.is_empty() && reason.is_ascii() && reason.len() <= 32, "{close:?}");
            assert!(serde_json::from_str::<serde_json::Value>(reason).is_err(), "{close:?} is JSON");
        }
    }

    #[test]
    fn numbers_and_reconnect_advice_follow_the_table() {
        let table = [
            (1001, true),
            (1002, true),
            (1007, true),
            (1009, false),
            (3000, true),
            (3001, true),
            (3004, true),
            (3005, true),
            (3006, true),
            (3008, true),
            (3009, true),
            (3010, true),
            (3011, true),
            (3012, true),
            (3013, true),
            (3014, true),
            (3500, false),
            (3501, false),
            (3502, false),
            (3503, false),
            (3504, false),
            (3505, false),
            (3506, false),
            (3507, false),
            (3508, false),
            (3509, false),
            (4001, true),
        ];
        let built: Vec<(u16, bool)> = CloseCode::BUILT_IN.iter().map(|c| (c.code(), c.reconnect())).collect();
        assert_eq!(built, table);
    }

    #[test]
    fn only_the_hopeless_closes_skip_the_flush() {
        let unflushed: Vec<u16> =
            CloseCode::BUILT_IN.iter().filter(|close| !close.flushes()).map(CloseCode::code).collect();
        assert_eq!(unflushed, [3000, 3008]);
    }

    #[test]
    fn custom_closes_are_checked() {
        let long = "x".repeat(REASON_BYTES_MAX + 1);
        for (code, reason, expected) in [
            (2999, "gone", Err(CustomCloseError::Code(2999))),
            (5000, "gone", Err(CustomCloseError::Code(5000))),
            (u32::MAX, "gone", Err(CustomCloseError::Code(u32::MAX))),
            (4000, "", Err(CustomCloseError::EmptyReason)),
            (4000, long.as_str(), Err(CustomCloseError::LongReason(REASON_BYTES_MAX + 1))),
            (4000, "geschlo\u{df}en", Err(CustomCloseError::UnprintableReason)),
            (4000, "a\nb", Err(CustomCloseError::UnprintableReason)),
            (4000, "17", Err(CustomCloseError::JsonReason)),
            (4000, " true ", Err(CustomCloseError::JsonReason)),
            (4000, r#"{"reconnect":true}"#, Err(CustomCloseError::JsonReason)),
            (3503, "force disconnect", Ok(false)),
            (4000, "account moved", Ok(true)),
            (4499, "account moved", Ok(true)),
            (4500, "account closed", Ok(false)),
        ] {
            let close = CloseCode::custom(code, reason);
            assert_eq!(close.as_ref().map(CloseCode::reconnect), expected.as_ref().copied(), "{code} {reason:?}");
            if let Ok(close) = close {
                assert_eq!((u32::from(close.code()), close.reason()), (code, reason));
            }
        }
    }
}
