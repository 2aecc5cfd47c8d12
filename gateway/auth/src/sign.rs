//! Making tokens, for the command line and for tests. A backend makes its own.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// The claims of a new token. Use any other `Serialize` type with [`mint_token`] for more.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct NewToken {
    /// The user id; empty for an anonymous user.
    pub sub: String,
    /// The channel of a subscription token; `None` makes a connection token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// When it was made, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<i64>,
    /// When it ends, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    /// The issuer, where the gateway checks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The audience, where the gateway checks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
}

/// Why a token could not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MintError {
    /// A token signed with an empty secret could be made by anybody.
    #[error("the HMAC secret is empty")]
    EmptySecret,
    /// The claims are not representable as JSON, or the signer failed.
    #[error("cannot sign the token: {0}")]
    Sign(String),
}

/// Signs claims with HS256 and returns the compact JWT.
pub fn mint_token(secret: &[u8], claims: &impl Serialize) -> Result<String, MintError> {
    if secret.is_empty() {
        return Err(MintError::EmptySecret);
    }
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret))
        .map_err(|error| MintError::Sign(error.to_string()))
}
