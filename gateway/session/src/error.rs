//! Client error codes and unsubscribe codes: the only place that names their numbers (protocol sections 5.1 and 5.2).

use protocol::{Error, ReplyBody};

use crate::io::OperationError;

/// Why a command failed, as its reply says. The texts are generic on purpose: causes belong into the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ClientError {
    /// A dependency of ours failed; the client may try again.
    #[error("internal server error")]
    Internal,
    /// Reserved for the application.
    #[error("unauthorized")]
    Unauthorized,
    /// The namespace of the channel is not configured.
    #[error("unknown channel")]
    UnknownChannel,
    /// Not allowed, or the subscription token is invalid.
    #[error("permission denied")]
    PermissionDenied,
    /// Unknown RPC method.
    #[error("method not found")]
    MethodNotFound,
    /// The connection has or is making this subscription.
    #[error("already subscribed")]
    AlreadySubscribed,
    /// Too many channels on one connection.
    #[error("limit exceeded")]
    LimitExceeded,
    /// A bad channel name, payload or argument.
    #[error("bad request")]
    BadRequest,
    /// The feature is off for this channel or server.
    #[error("not available")]
    NotAvailable,
    /// The token has expired; the SDK fetches a new one.
    #[error("token expired")]
    TokenExpired,
    /// The subscription's expiry is in the past and there is no token to renew.
    #[error("expired")]
    Expired,
    /// A rate limit; the client may try again later.
    #[error("too many requests")]
    TooManyRequests,
    /// The position the client asked about belongs to another stream, or cannot be recovered from.
    #[error("unrecoverable position")]
    UnrecoverablePosition,
    /// Overlapping pages of a map subscription.
    #[error("concurrent pagination")]
    ConcurrentPagination,
}

impl ClientError {
    /// Every error, in ascending order of its number.
    pub const ALL: [Self; 14] = [
        Self::Internal,
        Self::Unauthorized,
        Self::UnknownChannel,
        Self::PermissionDenied,
        Self::MethodNotFound,
        Self::AlreadySubscribed,
        Self::LimitExceeded,
        Self::BadRequest,
        Self::NotAvailable,
        Self::TokenExpired,
        Self::Expired,
        Self::TooManyRequests,
        Self::UnrecoverablePosition,
        Self::ConcurrentPagination,
    ];

    /// The number on the wire. The server API uses the same ones.
    pub fn code(self) -> u32 {
        match self {
            Self::Internal => 100,
            Self::Unauthorized => 101,
            Self::UnknownChannel => 102,
            Self::PermissionDenied => 103,
            Self::MethodNotFound => 104,
            Self::AlreadySubscribed => 105,
            Self::LimitExceeded => 106,
            Self::BadRequest => 107,
            Self::NotAvailable => 108,
            Self::TokenExpired => 109,
            Self::Expired => 110,
            Self::TooManyRequests => 111,
            Self::UnrecoverablePosition => 112,
            Self::ConcurrentPagination => 113,
        }
    }

    /// Whether SDKs try again by themselves.
    pub fn temporary(self) -> bool {
        match self {
            Self::Internal | Self::TooManyRequests | Self::ConcurrentPagination => true,
            Self::Unauthorized
            | Self::UnknownChannel
            | Self::PermissionDenied
            | Self::MethodNotFound
            | Self::AlreadySubscribed
            | Self::LimitExceeded
            | Self::BadRequest
            | Self::NotAvailable
            | Self::TokenExpired
            | Self::Expired
            | Self::UnrecoverablePosition => false,
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Self { code: error.code(), message: error.to_string(), temporary: error.temporary() }
    }
}

impl From<ClientError> for ReplyBody {
    fn from(error: ClientError) -> Self {
        Self::Error(error.into())
    }
}

impl From<&OperationError> for ClientError {
    fn from(error: &OperationError) -> Self {
        match error {
            OperationError::Unavailable(_) => Self::Internal,
            OperationError::BadRequest => Self::BadRequest,
        }
    }
}

/// Why the server ends a subscription, as the unsubscribe push says. A push never goes without a code: SDKs
/// resubscribe when it is missing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UnsubscribeCode {
    /// The application wants it; final.
    ServerUnsubscribe,
    /// Publications may have been missed; the SDK resubscribes with recovery.
    InsufficientState,
    /// The subscription expired; the SDK resubscribes with a new token.
    SubscriptionExpired,
    /// The SDK drops its token and position and resubscribes.
    StateInvalidated,
}

impl UnsubscribeCode {
    /// The number on the wire: below 2500 final, from there on the SDK resubscribes.
    pub fn code(self) -> u32 {
        match self {
            Self::ServerUnsubscribe => 2000,
            Self::InsufficientState => 2500,
            Self::SubscriptionExpired => 2501,
            Self::StateInvalidated => 2502,
        }
    }

    /// The text beside the number.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ServerUnsubscribe => "server unsubscribe",
            Self::InsufficientState => "insufficient state",
            Self::SubscriptionExpired => "subscription expired",
            Self::StateInvalidated => "state invalidated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_errors_follow_the_table() {
        let table = [
            (100, "internal server error", true),
            (101, "unauthorized", false),
            (102, "unknown channel", false),
            (103, "permission denied", false),
            (104, "method not found", false),
            (105, "already subscribed", false),
            (106, "limit exceeded", false),
            (107, "bad request", false),
            (108, "not available", false),
            (109, "token expired", false),
            (110, "expired", false),
            (111, "too many requests", true),
            (112, "unrecoverable position", false),
            (113, "concurrent pagination", true),
        ];
        for (error, (code, message, temporary)) in ClientError::ALL.into_iter().zip(table) {
            assert_eq!(Error::from(error), Error { code, message: message.to_owned(), temporary });
        }
    }

    #[test]
    fn unsubscribe_codes_follow_the_table() {
        for (code, number, reason) in [
            (UnsubscribeCode::ServerUnsubscribe, 2000, "server unsubscribe"),
            (UnsubscribeCode::InsufficientState, 2500, "insufficient state"),
            (UnsubscribeCode::SubscriptionExpired, 2501, "subscription expired"),
            (UnsubscribeCode::StateInvalidated, 2502, "state invalidated"),
        ] {
            assert_eq!((code.code(), code.reason()), (number, reason));
        }
    }
}
