//! JWTs for the clients of the tests.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::gateway::SECRET;

/// The time in Unix seconds.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_secs()).expect("the time fits")
}

/// A connection token with these claims, valid for ten minutes unless they say otherwise.
pub fn connection(claims: Value) -> String {
    let mut claims = claims;
    if claims.get("exp").is_none() {
        claims["exp"] = json!(now() + 600);
    }
    sign(&json!({ "alg": "HS256", "typ": "JWT" }), &claims, SECRET)
}

/// A subscription token for this user and channel with these further claims.
pub fn subscription(user: &str, channel: &str, more: Value) -> String {
    let mut claims = more;
    claims["sub"] = json!(user);
    claims["channel"] = json!(channel);
    connection(claims)
}

/// A token with exactly this header and these claims, HS256-signed whatever the header says.
pub fn sign(header: &Value, claims: &Value, secret: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(body.as_bytes(), &key, Algorithm::HS256).expect("any secret can sign");
    format!("{body}.{signature}")
}
