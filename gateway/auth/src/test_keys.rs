//! Fresh key pairs of every family, and tokens signed with them.

use std::sync::LazyLock;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::{KeyPair, RsaKeySize};
use serde_json::Value;

use crate::KeySet;

pub(crate) const SECRET: &[u8] = b"a secret of 32 bytes for testing";

/// A key pair that was made for this test run.
pub(crate) struct Pair {
    pub(crate) public_pem: String,
    pub(crate) signer: EncodingKey,
}

fn pair(keys: KeyPair, signer: fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>) -> Pair {
    Pair { public_pem: keys.public_key_pem(), signer: signer(keys.serialize_pem().as_bytes()).expect("a PKCS#8 key") }
}

fn generated(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("the system has randomness")
}

pub(crate) static RSA: LazyLock<Pair> = LazyLock::new(|| {
    let keys = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("randomness");
    pair(keys, EncodingKey::from_rsa_pem)
});
pub(crate) static P256: LazyLock<Pair> =
    LazyLock::new(|| pair(generated(&rcgen::PKCS_ECDSA_P256_SHA256), EncodingKey::from_ec_pem));
pub(crate) static P384: LazyLock<Pair> =
    LazyLock::new(|| pair(generated(&rcgen::PKCS_ECDSA_P384_SHA384), EncodingKey::from_ec_pem));
pub(crate) static ED: LazyLock<Pair> =
    LazyLock::new(|| pair(generated(&rcgen::PKCS_ED25519), EncodingKey::from_ed_pem));

/// A signer for the algorithm, and the key set that accepts it and nothing else.
pub(crate) fn signer_and_keys(algorithm: Algorithm) -> (EncodingKey, KeySet) {
    let none = KeySet::default();
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            (EncodingKey::from_secret(SECRET), KeySet { hmac_secret: Some(SECRET.to_vec()), ..none })
        }
        Algorithm::ES256 => (P256.signer.clone(), KeySet { ecdsa_public_key: Some(P256.public_pem.clone()), ..none }),
        Algorithm::ES384 => (P384.signer.clone(), KeySet { ecdsa_public_key: Some(P384.public_pem.clone()), ..none }),
        Algorithm::EdDSA => (ED.signer.clone(), KeySet { eddsa_public_key: Some(ED.public_pem.clone()), ..none }),
        _ => (RSA.signer.clone(), KeySet { rsa_public_key: Some(RSA.public_pem.clone()), ..none }),
    }
}

/// A token with these claims; `kid` goes into its header.
pub(crate) fn sign(algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &signer_and_keys(algorithm).0).expect("claims can be signed")
}

/// The public key as a member of a JWKS document.
pub(crate) fn jwk(algorithm: Algorithm, kid: &str) -> Value {
    let pem = |pair: &Pair| pair.public_pem.clone().into_bytes();
    let key = match algorithm {
        Algorithm::ES256 => DecodingKey::from_ec_pem(&pem(&P256)),
        Algorithm::ES384 => DecodingKey::from_ec_pem(&pem(&P384)),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(&pem(&ED)),
        _ => DecodingKey::from_rsa_pem(&pem(&RSA)),
    }
    .expect("a public key");
    let mut jwk = Jwk::from_decoding_key(&key, Some(algorithm)).expect("a public key");
    jwk.common.key_id = Some(kid.to_owned());
    serde_json::to_value(&jwk).expect("a JWK is JSON")
}
