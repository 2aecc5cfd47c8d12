//! How a request fails: the codes of the server API and the HTTP statuses (protocol section 7.1).

use std::borrow::Cow;
use std::fmt::Display;

use http::StatusCode;
use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use session::ClientError;

/// An error that the answer carries as `{"code": ..., "message": ...}`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error.
    pub code: ErrorCode,
    /// The text beside the code: the one of the protocol page, with a detail where one helps.
    pub message: Cow<'static, str>,
}

impl ApiError {
    /// The error 107, and what is wrong with the request.
    pub fn bad_request(detail: impl Display) -> Self {
        let message = format!("{}: {detail}", ErrorCode::BadRequest.message());
        Self { code: ErrorCode::BadRequest, message: message.into() }
    }

    /// The error 100. Its cause is for the log only, and not at a level that a lost backplane would flood it with:
    /// failed publishes and the state of the backplane have metrics.
    pub fn internal(cause: impl Display) -> Self {
        tracing::debug!(%cause, "a call of the server API failed");
        ErrorCode::Internal.into()
    }
}

impl From<ErrorCode> for ApiError {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: Cow::Borrowed(code.message()) }
    }
}

impl Serialize for ApiError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut error = serializer.serialize_struct("ApiError", 2)?;
        error.serialize_field("code", &self.code.number())?;
        error.serialize_field("message", &self.message)?;
        error.end()
    }
}

/// The kinds of errors that methods of this server can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorCode {
    /// The backplane or a shard failed, or the call cannot be carried out now; trying again may help.
    Internal,
    /// The namespace of the channel is not configured.
    UnknownChannel,
    /// There is no such method or extension.
    MethodNotFound,
    /// A field is missing, malformed or too large.
    BadRequest,
    /// The feature is off in the channel's namespace.
    NotAvailable,
    /// The position belongs to another epoch.
    UnrecoverablePosition,
}

impl ErrorCode {
    /// Numbers and texts are those of the client protocol.
    fn error(self) -> ClientError {
        match self {
            Self::Internal => ClientError::Internal,
            Self::UnknownChannel => ClientError::UnknownChannel,
            Self::MethodNotFound => ClientError::MethodNotFound,
            Self::BadRequest => ClientError::BadRequest,
            Self::NotAvailable => ClientError::NotAvailable,
            Self::UnrecoverablePosition => ClientError::UnrecoverablePosition,
        }
    }

    /// The number in the answer.
    pub fn number(self) -> u32 {
        self.error().code()
    }

    /// The text of the protocol page.
    pub fn message(self) -> &'static str {
        match self {
            Self::Internal => "internal server error",
            Self::UnknownChannel => "unknown channel",
            Self::MethodNotFound => "method not found",
            Self::BadRequest => "bad request",
            Self::NotAvailable => "not available",
            Self::UnrecoverablePosition => "unrecoverable position",
        }
    }

    /// The status that stands for it in the transport error mode.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnknownChannel | Self::MethodNotFound => StatusCode::NOT_FOUND,
            Self::BadRequest | Self::NotAvailable => StatusCode::BAD_REQUEST,
            Self::UnrecoverablePosition => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }

    /// The value of the metric's `result` label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Internal => "100",
            Self::UnknownChannel => "102",
            Self::MethodNotFound => "104",
            Self::BadRequest => "107",
            Self::NotAvailable => "108",
            Self::UnrecoverablePosition => "112",
        }
    }
}

/// The text is not JSON, or not of the shape that the method asks for.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or a field of the wrong type.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but no object.
    #[error("a JSON object is expected")]
    NotObject,
    /// The legacy route needs at least one object.
    #[error("the body is empty")]
    Empty,
    /// Readers of such a payload may recurse.
    #[error("the body is nested deeper than {0} levels")]
    TooDeep(usize),
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// 400 where the command is the whole body; 107 where it is one of several.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Told in the answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl Failure {
    /// The answer's error for a command among others, whose answers must not suffer from this one.
    pub fn into_api(self) -> ApiError {
        match self {
            Self::Malformed(malformed) => ApiError::bad_request(malformed),
            Self::Api(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_table() {
        for (code, number, status) in [
            (ErrorCode::Internal, 100, 500),
            (ErrorCode::UnknownChannel, 102, 404),
            (ErrorCode::MethodNotFound, 104, 404),
            (ErrorCode::BadRequest, 107, 400),
            (ErrorCode::NotAvailable, 108, 400),
            (ErrorCode::UnrecoverablePosition, 112, 416),
        ] {
            assert_eq!((code.number(), code.status().as_u16()), (number, status));
            assert_eq!(code.label(), number.to_string());
            assert_eq!(code.message(), code.error().to_string());
        }
    }
}
