//! Connection and subscription tokens (protocol section 6).
//!
//! Read in this order: [`KeySet`] (what a token is checked against), [`Verifier`] (the checks), [`JwksOptions`] (keys
//! fetched over HTTP), [`mint_token`] (the other direction, for the command line).
//!
//! Rules that hold everywhere here: the time is passed in; there is no leeway; `exp` and `nbf` violations are
//! [`TokenError::Expired`](session::io::TokenError), everything else about a token is `Invalid`, and what could not be
//! decided for want of keys is `Unavailable`, so that a client is only ever turned away for good when its token was
//! really checked.

#![forbid(unsafe_code)]

mod algorithm;
mod claims;
mod jwks;
mod keys;
mod sign;
#[cfg(test)]
mod test_keys;
mod verifier;

pub use jwks::{JwksOptions, JwksStats};
pub use keys::{Expected, KeyError, KeySet, PreviousSecret};
pub use sign::{MintError, NewToken, mint_token};
pub use verifier::{MAX_TOKEN_BYTES, Verification, Verifier, VerifierConfig};
