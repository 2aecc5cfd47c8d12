//! What tokens are checked against: the configured keys and claim rules, and their prepared form.

use std::fmt;

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use regex::Regex;
use session::io::TokenError;

use crate::algorithm::{config_key, invalid};

/// Keys and claim rules for one kind of token (protocol section 6.1). Nothing is accepted by default.
#[derive(Clone, Default)]
pub struct KeySet {
    /// Shared secret for HS256, HS384 and HS512, used as raw bytes.
    pub hmac_secret: Option<Vec<u8>>,
    /// The secret before the current one, accepted during a rotation.
    pub hmac_previous_secret: Option<PreviousSecret>,
    /// PEM public key for RS256/384/512 and PS256/384/512.
    pub rsa_public_key: Option<String>,
    /// PEM public key for ES256 (P-256) or ES384 (P-384).
    pub ecdsa_public_key: Option<String>,
    /// PEM public key for EdDSA (Ed25519).
    pub eddsa_public_key: Option<String>,
    /// Where to fetch public keys. When set, it replaces every key above.
    pub jwks_url: Option<String>,
    /// What `iss` must be; `None` leaves it unchecked.
    pub issuer: Option<Expected>,
    /// What `aud` must contain; `None` leaves it unchecked.
    pub audience: Option<Expected>,
    /// The claim that holds the user id, instead of `sub`. A name with dots that is not a claim itself is a path into
    /// nested objects.
    pub user_id_claim: Option<String>,
}

impl KeySet {
    /// Whether any token could be accepted with these keys.
    pub fn has_keys(&self) -> bool {
        self.hmac_secret.is_some()
            || self.rsa_public_key.is_some()
            || self.ecdsa_public_key.is_some()
            || self.eddsa_public_key.is_some()
            || self.jwks_url.is_some()
    }
}

impl fmt::Debug for KeySet {
    /// Names what is configured; secrets never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("hmac_secret", &self.hmac_secret.as_ref().map(|_| "[secret]"))
            .field("hmac_previous_secret", &self.hmac_previous_secret)
            .field("rsa_public_key", &self.rsa_public_key.is_some())
            .field("ecdsa_public_key", &self.ecdsa_public_key.is_some())
            .field("eddsa_public_key", &self.eddsa_public_key.is_some())
            .field("jwks_url", &self.jwks_url)
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("user_id_claim", &self.user_id_claim)
            .finish()
    }
}

/// An HMAC secret that is on its way out.
#[derive(Clone)]
pub struct PreviousSecret {
    /// The raw bytes.
    pub secret: Vec<u8>,
    /// Unix time in seconds from which on it is refused; `None` accepts it as long as it is configured.
    pub until: Option<i64>,
}

impl fmt::Debug for PreviousSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreviousSecret").field("until", &self.until).finish_non_exhaustive()
    }
}

/// What a text claim must be.
#[derive(Clone, Debug)]
pub enum Expected {
    /// This very text.
    Exact(String),
    /// Any text the expression finds a match in. Anchor it with `^` and `$` to fix the whole text.
    Matching(Regex),
}

impl Expected {
    /// Whether a claim satisfies the rule.
    pub fn accepts(&self, claim: &str) -> bool {
        match self {
            Self::Exact(text) => text == claim,
            Self::Matching(regex) => regex.is_match(claim),
        }
    }
}

/// Why a [`KeySet`] cannot be used. The text names the key of the set.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// A secret is configured as the empty text, which anybody could sign with.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A PEM text is not a public key of the right kind.
    #[error("{key} is not a usable PEM public key: {reason}")]
    Pem {
        /// The key of the set.
        key: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The JWKS address is not a plain http or https URL.
    #[error("jwks_url {url:?} {reason}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client for JWKS could not be made.
    #[error("cannot make an HTTP client for JWKS: {0}")]
    Client(String),
}

/// The keys of a [`KeySet`] that are at hand, ready to use.
pub(crate) struct StaticKeys {
    hmac: Option<DecodingKey>,
    hmac_previous: Option<(DecodingKey, Option<i64>)>,
    rsa: Option<DecodingKey>,
    ec: Option<DecodingKey>,
    ed: Option<DecodingKey>,
}

impl StaticKeys {
    pub(crate) fn prepare(set: &KeySet) -> Result<Self, KeyError> {
        let secret = |key: &'static str, bytes: &[u8]| {
            if bytes.is_empty() { Err(KeyError::Empty(key)) } else { Ok(DecodingKey::from_secret(bytes)) }
        };
        Ok(Self {
            hmac: set.hmac_secret.as_deref().map(|bytes| secret("hmac_secret", bytes)).transpose()?,
            hmac_previous: match &set.hmac_previous_secret {
                Some(previous) => Some((secret("hmac_previous_secret", &previous.secret)?, previous.until)),
                None => None,
            },
            rsa: pem("rsa_public_key", set.rsa_public_key.as_deref(), DecodingKey::from_rsa_pem)?,
            ec: pem("ecdsa_public_key", set.ecdsa_public_key.as_deref(), DecodingKey::from_ec_pem)?,
            ed: pem("eddsa_public_key", set.eddsa_public_key.as_deref(), DecodingKey::from_ed_pem)?,
        })
    }

    /// Checks a signature with the key of the algorithm's family. A key is never used with another family's
    /// algorithms: that is what keeps a public RSA key from being taken for an HMAC secret.
    pub(crate) fn check(&self, algorithm: Algorithm, signed: &Signed<'_>, now_unix: i64) -> Result<(), TokenError> {
        let family = algorithm.family();
        let key = match family {
            AlgorithmFamily::Hmac => self.hmac.as_ref(),
            AlgorithmFamily::Rsa => self.rsa.as_ref(),
            AlgorithmFamily::Ec => self.ec.as_ref(),
            AlgorithmFamily::Ed => self.ed.as_ref(),
        };
        let Some(key) = key else {
            return Err(invalid(format!("algorithm {algorithm:?} is not configured (no {})", config_key(family))));
        };
        match signed.check(algorithm, key) {
            Err(error) if family == AlgorithmFamily::Hmac => match &self.hmac_previous {
                Some((previous, until)) if until.is_none_or(|until| now_unix < until) => {
                    signed.check(algorithm, previous)
                }
                _ => Err(error),
            },
            result => result,
        }
    }
}

fn pem(
    key: &'static str,
    text: Option<&str>,
    parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
) -> Result<Option<DecodingKey>, KeyError> {
    let Some(text) = text else { return Ok(None) };
    if text.trim().is_empty() {
        return Err(KeyError::Empty(key));
    }
    let unusable = |reason: String| KeyError::Pem { key, reason };
    let decoded = parse(text.trim().as_bytes()).map_err(|error| unusable(error.to_string()))?;
    if decoded.family() == AlgorithmFamily::Ec && ec_algorithm(&decoded).is_none() {
        return Err(unusable("only the curves P-256 (ES256) and P-384 (ES384) are supported".to_owned()));
    }
    Ok(Some(decoded))
}

/// The only algorithm an EC key can be used with, told by the length of its uncompressed point.
fn ec_algorithm(key: &DecodingKey) -> Option<Algorithm> {
    match key.try_get_as_bytes().map(<[u8]>::len) {
        Ok(65) => Some(Algorithm::ES256),
        Ok(97) => Some(Algorithm::ES384),
        _ => None,
    }
}

/// The signed part of a token and its signature, as they arrived.
pub(crate) struct Signed<'a> {
    /// Header and payload with the dot between them.
    pub(crate) message: &'a [u8],
    /// The base64url text of the signature.
    pub(crate) signature: &'a str,
}

impl Signed<'_> {
    pub(crate) fn check(&self, algorithm: Algorithm, key: &DecodingKey) -> Result<(), TokenError> {
        if let (AlgorithmFamily::Ec, Some(fits)) = (key.family(), ec_algorithm(key))
            && fits != algorithm
        {
            return Err(invalid(format!("algorithm {algorithm:?} does not fit the configured key ({fits:?})")));
        }
        match jsonwebtoken::crypto::verify(self.signature, self.message, key, algorithm) {
            Ok(true) => Ok(()),
            Ok(false) => Err(invalid(format!("wrong {algorithm:?} signature"))),
            Err(error) => Err(invalid(format!("{algorithm:?} signature cannot be checked: {error}"))),
        }
    }
}
