//! Which signature algorithms exist, and which key family each needs.

use jsonwebtoken::{Algorithm, AlgorithmFamily};

use session::io::TokenError;

/// Reads the `alg` header. Every refusal names the algorithm, so that an operator sees at once what a token was signed
/// with.
pub(crate) fn parse(name: &str) -> Result<Algorithm, TokenError> {
    Ok(match name {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        // RFC 9864 gives Ed25519 a name of its own; it is the same signature.
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        "none" => return Err(invalid("algorithm none is never accepted: the token is not signed")),
        "ES512" => return Err(invalid("algorithm ES512 is not supported (use ES256, ES384 or EdDSA)")),
        other => return Err(invalid(format!("algorithm {} is not supported", shown(other)))),
    })
}

/// The config keys which make an algorithm of this family acceptable, for error messages.
pub(crate) fn config_key(family: AlgorithmFamily) -> &'static str {
    match family {
        AlgorithmFamily::Hmac => "hmac_secret",
        AlgorithmFamily::Rsa => "rsa_public_key",
        AlgorithmFamily::Ec => "ecdsa_public_key",
        AlgorithmFamily::Ed => "eddsa_public_key",
    }
}

/// Shorthand for the error that names what is wrong with a token.
pub(crate) fn invalid(reason: impl Into<String>) -> TokenError {
    TokenError::Invalid(reason.into())
}

/// Text out of a token as it may appear in a log: quoted, escaped and short.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 64;
    let short: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if short.len() < text.len() { ".." } else { "" };
    format!("{short:?}{more}")
}
