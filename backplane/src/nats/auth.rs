//! Proving to a server who this node is.

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;

use super::config::NatsAuth;
use crate::BackplaneError;

/// What is shown to servers, read and checked once.
#[derive(Clone)]
pub(super) enum Proof {
    Nothing,
    User {
        name: String,
        password: String,
    },
    Token(String),
    /// The key's seed, and the user token that names the key, if there is one.
    Key {
        seed: String,
        jwt: Option<String>,
    },
}

impl Proof {
    /// Reads files and checks keys now, so that mistakes show at the start.
    pub(super) fn new(auth: &NatsAuth) -> Result<Self, BackplaneError> {
        let key = |seed: String, jwt: Option<String>| match KeyPair::from_seed(&seed) {
            Ok(_) => Ok(Self::Key { seed, jwt }),
            // The error may tell a part of the seed.
            Err(_) => Err(refuse("the seed of the nkey is not one")),
        };
        match auth {
            NatsAuth::None => Ok(Self::Nothing),
            NatsAuth::User { name, password } => Ok(Self::User { name: name.clone(), password: password.clone() }),
            NatsAuth::Token(token) => Ok(Self::Token(token.clone())),
            NatsAuth::Nkey(seed) => key(seed.trim().to_owned(), None),
            NatsAuth::Credentials(file) => {
                let shown = file.display();
                let text = std::fs::read_to_string(file)
                    .map_err(|error| refuse(&format!("credentials file {shown}: {error}")))?;
                let block = |name: &str| {
                    block(&text, name).ok_or_else(|| refuse(&format!("credentials file {shown}: it holds no {name}")))
                };
                key(block("USER NKEY SEED")?, Some(block("NATS USER JWT")?))
            }
        }
    }

    /// The answer to a server's challenge.
    pub(super) fn answer(&self, challenge: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        match self {
            Self::Nothing => {}
            Self::User { name, password } => {
                auth.username = Some(name.clone());
                auth.password = Some(password.clone());
            }
            Self::Token(token) => auth.token = Some(token.clone()),
            Self::Key { seed, jwt } => {
                let pair = KeyPair::from_seed(seed).map_err(|_| AuthError::new("the nkey is unusable"))?;
                auth.signature = Some(pair.sign(challenge).map_err(|_| AuthError::new("the nkey cannot sign"))?);
                match jwt {
                    Some(jwt) => auth.jwt = Some(jwt.clone()),
                    None => auth.nkey = Some(pair.public_key()),
                }
            }
        }
        Ok(auth)
    }
}

/// What stands between `-----BEGIN <name>-----` and the end of it; the number of hyphens differs between tools.
fn block(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.ends_with(&format!("BEGIN {name}-----")));
    lines.next()?;
    let content: String = lines.take_while(|line| !line.starts_with("-----")).collect();
    (!content.is_empty()).then_some(content)
}

fn refuse(why: &str) -> BackplaneError {
    BackplaneError::Protocol(format!("nats settings: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_mistakes_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("the directory is writable");
            path
        };
        let seed = KeyPair::new_user().seed().expect("a new key has a seed");
        let sound = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.eyJq\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let proof = Proof::new(&NatsAuth::Credentials(file("sound", &sound))).expect("it is complete");
        let auth = proof.answer(b"challenge").expect("it can be answered");
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.eyJq"));
        let pair = KeyPair::from_seed(&seed).expect("it is a seed");
        assert!(pair.verify(b"challenge", &auth.signature.expect("it is signed")).is_ok());
        let refused = |auth: NatsAuth| match Proof::new(&auth) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{auth:?} is accepted"),
        };
        assert!(refused(NatsAuth::Credentials(file("empty", ""))).contains("USER NKEY SEED"));
        assert!(refused(NatsAuth::Credentials(directory.path().join("absent"))).contains("absent"));
        let broken = sound.replace(&seed, "SUABCDEF");
        let why = refused(NatsAuth::Credentials(file("broken", &broken)));
        assert!(why.contains("nkey") && !why.contains("SUABCDEF"), "{why}");
        assert!(refused(NatsAuth::Nkey("nonsense".to_owned())).contains("nkey"));
    }
}
