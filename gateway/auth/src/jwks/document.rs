//! A JWKS document, read with care: what cannot be used is left out, and nothing in it can widen what is accepted.

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::debug;

use crate::algorithm;
use crate::claims::from_object;

/// Most keys a document may have. Issuers publish two to ten; the bound keeps the search of a token's key short.
pub(super) const MAX_KEYS: usize = 100;

/// One usable key of a document.
pub(super) struct FetchedKey {
    pub(super) kid: String,
    pub(super) key: DecodingKey,
    /// The algorithms it may be used with.
    algorithms: Vec<Algorithm>,
}

impl FetchedKey {
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a JWK (RFC 7517 section 4, RFC 7518 section 6, RFC 8037) that matter to a verifier.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

/// The usable keys of a document. One key that is not usable does not spoil the others.
pub(super) fn parse(body: &[u8]) -> Result<Vec<FetchedKey>, String> {
    let document: Document<'_> =
        from_object(body).map_err(|error| format!("the answer is not a JWKS document: {error}"))?;
    if document.keys.len() > MAX_KEYS {
        return Err(format!("the document has {} keys, {MAX_KEYS} are the limit", document.keys.len()));
    }
    let mut keys = Vec::with_capacity(document.keys.len());
    for (position, raw) in document.keys.iter().enumerate() {
        match usable(raw) {
            Ok(key) => keys.push(key),
            Err(reason) => debug!(position, reason, "a key of the key set is left out"),
        }
    }
    Ok(keys)
}

fn usable(raw: &RawValue) -> Result<FetchedKey, String> {
    let jwk: Jwk = from_object(raw.get().as_bytes()).map_err(|error| error.to_string())?;
    let kid = jwk.kid.as_deref().filter(|kid| !kid.is_empty()).ok_or("it has no kid")?;
    if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return Err("its use is not sig".to_owned());
    }
    if jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err("its key_ops have no verify".to_owned());
    }
    let (key, mut algorithms) = key_and_algorithms(&jwk)?;
    if let Some(name) = &jwk.alg {
        let declared = algorithm::parse(name).map_err(|error| error.to_string())?;
        algorithms.retain(|algorithm| *algorithm == declared);
        if algorithms.is_empty() {
            return Err(format!("its alg {name} does not fit its kty"));
        }
    }
    Ok(FetchedKey { kid: kid.to_owned(), key, algorithms })
}

fn key_and_algorithms(jwk: &Jwk) -> Result<(DecodingKey, Vec<Algorithm>), String> {
    let curve = jwk.crv.as_deref().unwrap_or_default();
    let made = match (jwk.kty.as_str(), curve) {
        ("RSA", _) => {
            let (n, e) = (jwk.n.as_deref().ok_or("it has no n")?, jwk.e.as_deref().ok_or("it has no e")?);
            (DecodingKey::from_rsa_components(n, e), AlgorithmFamily::Rsa.algorithms().to_vec())
        }
        ("EC", "P-256" | "P-384") => {
            let (x, y) = (jwk.x.as_deref().ok_or("it has no x")?, jwk.y.as_deref().ok_or("it has no y")?);
            let algorithm = if curve == "P-256" { Algorithm::ES256 } else { Algorithm::ES384 };
            (DecodingKey::from_ec_components(x, y), vec![algorithm])
        }
        ("OKP", "Ed25519") => {
            (DecodingKey::from_ed_components(jwk.x.as_deref().ok_or("it has no x")?), vec![Algorithm::EdDSA])
        }
        // Among them oct: a shared secret has no place in a public document.
        (kty, curve) => return Err(format!("kty {kty} with curve {curve:?} is not supported")),
    };
    match made {
        (Ok(key), algorithms) => Ok((key, algorithms)),
        (Err(error), _) => Err(error.to_string()),
    }
}
