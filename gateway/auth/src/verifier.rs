//! The checks a token passes, in order: size, form, algorithm, signature, types of the claims, parties, times.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::IgnoredAny;
use session::io::{ConnectionGrant, SubscriptionGrant, TokenError};

use crate::algorithm::{self, invalid};
use crate::claims::{self, Claims};
use crate::jwks::{JwksOptions, JwksSource, JwksStats, Lookup};
use crate::keys::{Expected, KeyError, KeySet, Signed, StaticKeys};

/// The longest token that is looked at. Tokens travel in one client message of at most 64 KiB; real ones have a few
/// hundred bytes, some thousand with many `subs`.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// What a [`Verifier`] is made from.
#[derive(Clone, Debug, Default)]
pub struct VerifierConfig {
    /// For connection tokens, and for subscription tokens too unless they have their own.
    pub connection: KeySet,
    /// A separate full set for subscription tokens.
    pub subscription: Option<KeySet>,
    /// How fetched keys are kept.
    pub jwks: JwksOptions,
}

/// Verifies connection and subscription tokens. Shared by all shards; a reload builds a new one.
pub struct Verifier {
    connection: Arc<Rules>,
    subscription: Arc<Rules>,
}

/// An answer, or the promise of one.
pub enum Verification<T> {
    /// The key was at hand.
    Ready(Result<T, TokenError>),
    /// Keys must be fetched first. The future needs a Tokio runtime with IO and time; dropping it does not stop a
    /// fetch that others wait for.
    Pending(Pin<Box<dyn Future<Output = Result<T, TokenError>> + Send>>),
}

impl<T> Verification<T> {
    /// The answer, waited for where it must be.
    pub async fn wait(self) -> Result<T, TokenError> {
        match self {
            Self::Ready(result) => result,
            Self::Pending(future) => future.await,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Verification<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(result) => f.debug_tuple("Ready").field(result).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

impl Verifier {
    /// Prepares all keys. Nothing is fetched yet.
    pub fn new(config: &VerifierConfig) -> Result<Self, KeyError> {
        Self::build(config, None)
    }

    /// Like [`Verifier::new`], but takes over the fetched keys of a verifier with the same JWKS address, so that a
    /// reload does not make every node fetch at once.
    pub fn succeed(&self, config: &VerifierConfig) -> Result<Self, KeyError> {
        Self::build(config, Some(self))
    }

    fn build(config: &VerifierConfig, predecessor: Option<&Self>) -> Result<Self, KeyError> {
        let mut sources: Vec<Arc<JwksSource>> = predecessor.map(Self::sources).unwrap_or_default();
        // Options may have changed with the reload: only sources made under the same ones are taken over.
        sources.retain(|source| source.options() == &config.jwks);
        let connection = Arc::new(Rules::prepare(&config.connection, &config.jwks, &mut sources)?);
        let subscription = match &config.subscription {
            Some(set) => Arc::new(Rules::prepare(set, &config.jwks, &mut sources)?),
            None => Arc::clone(&connection),
        };
        Ok(Self { connection, subscription })
    }

    /// Verifies a connection token (protocol section 6.2) at a Unix time in seconds.
    pub fn verify_connection(&self, token: &str, now_unix: i64) -> Verification<ConnectionGrant> {
        verify(&self.connection, token, now_unix, |claims, user| claims.connection(user))
    }

    /// Verifies a subscription token (protocol section 6.4) at a Unix time in seconds. That its user, channel and
    /// client are those of the connection is for the caller to compare.
    pub fn verify_subscription(&self, token: &str, now_unix: i64) -> Verification<SubscriptionGrant> {
        verify(&self.subscription, token, now_unix, |claims, user| claims.subscription(user))
    }

    /// Counters of JWKS use, summed over the addresses of this verifier.
    pub fn jwks_stats(&self) -> JwksStats {
        self.sources().iter().map(|source| source.stats()).fold(JwksStats::default(), JwksStats::plus)
    }

    /// The JWKS sources in use, each once.
    fn sources(&self) -> Vec<Arc<JwksSource>> {
        let mut sources: Vec<Arc<JwksSource>> = Vec::with_capacity(2);
        for rules in [&self.connection, &self.subscription] {
            if let Keys::Fetched(source) = &rules.keys
                && !sources.iter().any(|known| Arc::ptr_eq(known, source))
            {
                sources.push(Arc::clone(source));
            }
        }
        sources
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// One [`KeySet`], prepared.
struct Rules {
    keys: Keys,
    issuer: Option<Expected>,
    audience: Option<Expected>,
    user_id_claim: Option<String>,
}

enum Keys {
    Static(Box<StaticKeys>),
    Fetched(Arc<JwksSource>),
}

impl Rules {
    fn prepare(set: &KeySet, options: &JwksOptions, sources: &mut Vec<Arc<JwksSource>>) -> Result<Self, KeyError> {
        let keys = match &set.jwks_url {
            Some(url) => Keys::Fetched(match sources.iter().find(|source| source.url() == url) {
                Some(source) => Arc::clone(source),
                None => {
                    let source = Arc::new(JwksSource::new(url, options.clone())?);
                    sources.push(Arc::clone(&source));
                    source
                }
            }),
            None => Keys::Static(Box::new(StaticKeys::prepare(set)?)),
        };
        Ok(Self {
            keys,
            issuer: set.issuer.clone(),
            audience: set.audience.clone(),
            user_id_claim: set.user_id_claim.clone().filter(|claim| claim != "sub"),
        })
    }

    /// Everything after the signature.
    fn grant<T>(&self, token: &Token<'_>, now_unix: i64, read: ReadGrant<T>) -> Result<T, TokenError> {
        let payload = token.payload()?;
        let claims = Claims::parse(&payload)?;
        let user = match &self.user_id_claim {
            Some(claim) => claims::user_in(&payload, claim)?,
            None => claims.sub()?,
        };
        let grant = read(&claims, user)?;
        claims.check_parties(self.issuer.as_ref(), self.audience.as_ref())?;
        claims.check_times(now_unix)?;
        Ok(grant)
    }
}

type ReadGrant<T> = fn(&Claims<'_>, Cow<'_, str>) -> Result<T, TokenError>;

fn verify<T: 'static>(rules: &Arc<Rules>, text: &str, now_unix: i64, read: ReadGrant<T>) -> Verification<T> {
    let token = match Token::parse(text) {
        Ok(token) => token,
        Err(error) => return Verification::Ready(Err(error)),
    };
    let source = match &rules.keys {
        Keys::Static(keys) => {
            let checked = keys.check(token.algorithm, &token.signed, now_unix);
            return Verification::Ready(checked.and_then(|()| rules.grant(&token, now_unix, read)));
        }
        Keys::Fetched(source) => source,
    };
    let Some(kid) = token.kid.clone() else {
        return Verification::Ready(Err(invalid("the header has no kid, which a key set from a URL needs")));
    };
    match source.look_up(&kid, token.algorithm) {
        Lookup::Found(key) => {
            let checked = token.signed.check(token.algorithm, &key);
            Verification::Ready(checked.and_then(|()| rules.grant(&token, now_unix, read)))
        }
        Lookup::Refused(error) => Verification::Ready(Err(error)),
        Lookup::Fetch => {
            let (rules, source, text) = (Arc::clone(rules), Arc::clone(source), text.to_owned());
            Verification::Pending(Box::pin(async move {
                let token = Token::parse(&text)?;
                let key = source.fetch_key(&kid, token.algorithm).await?;
                token.signed.check(token.algorithm, &key)?;
                rules.grant(&token, now_unix, read)
            }))
        }
    }
}

/// A compact JWT, taken apart but not believed.
struct Token<'a> {
    algorithm: Algorithm,
    kid: Option<String>,
    payload: &'a str,
    signed: Signed<'a>,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11). None is.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(invalid(format!("it has {} bytes, {MAX_TOKEN_BYTES} are the limit", text.len())));
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("it is not three parts with dots between them"));
        };
        let decoded = decode("header", header)?;
        let fields: Header<'_> = claims::from_object(&decoded)
            .map_err(|error| invalid(format!("the header is not an object with alg: {error}")))?;
        let algorithm = algorithm::parse(&fields.alg)?;
        if fields.crit.is_some() {
            return Err(invalid("the header has critical extensions (crit), which are not supported"));
        }
        let message = &text.as_bytes()[..header.len() + 1 + payload.len()];
        Ok(Self { algorithm, kid: fields.kid, payload, signed: Signed { message, signature } })
    }

    fn payload(&self) -> Result<Vec<u8>, TokenError> {
        decode("payload", self.payload)
    }
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|error| invalid(format!("the {part} is not base64url: {error}")))
}

#[cfg(test)]
mod tests;
