//! Connection tokens: none, one for all, or one minted per connection.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// How long minted tokens are valid, in seconds: longer than any run, as loadgen does not refresh them.
const VALID_SECONDS: u64 = 24 * 3600;

/// Where a connection's token comes from.
pub enum Tokens {
    /// Connect without one.
    None,
    /// All connections use this one.
    Fixed(String),
    /// Each connection is a user of its own, `u0`, `u1` and so on, with an HS256 token signed with this key.
    Minted(EncodingKey),
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    exp: u64,
}

impl Tokens {
    /// Tokens as asked for on the command line; a secret wins over a token.
    pub fn new(secret: Option<&str>, token: Option<&str>) -> Self {
        match (secret, token) {
            (Some(secret), _) => Self::Minted(EncodingKey::from_secret(secret.as_bytes())),
            (None, Some(token)) => Self::Fixed(token.to_owned()),
            (None, None) => Self::None,
        }
    }

    /// The token of connection `index`; empty when there is none.
    pub fn of(&self, index: usize) -> Result<String> {
        match self {
            Self::None => Ok(String::new()),
            Self::Fixed(token) => Ok(token.clone()),
            Self::Minted(key) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let claims = Claims { sub: format!("u{index}"), exp: now + VALID_SECONDS };
                jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, key).context("cannot sign a token")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn a_minted_token_names_its_user_and_verifies() {
        let token = Tokens::new(Some("a secret"), Some("ignored")).of(41).expect("signed");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = true;
        let key = DecodingKey::from_secret(b"a secret");
        let claims = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).expect("valid").claims;
        assert_eq!(claims["sub"], "u41");
    }

    #[test]
    fn without_a_secret_the_token_is_taken_as_it_is() {
        assert_eq!(Tokens::new(None, Some("t")).of(3).expect("a token"), "t");
        assert_eq!(Tokens::new(None, None).of(3).expect("no token"), "");
    }
}
