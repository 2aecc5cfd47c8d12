//! How clients have to prove who they are.

use std::path::PathBuf;

use backplane::nats::{NatsAuth, NatsConfig};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;

/// What a server asks of its clients.
#[derive(Clone)]
pub enum Access {
    /// Nothing.
    Open,
    /// A user name and a password.
    Password,
    /// A token.
    Token,
    /// A signature with the key of this seed.
    Nkey { seed: String },
    /// A JWT of an account that an operator has signed, and a signature: the content of a credentials file.
    Credentials { credentials: String, settings: String },
    /// Encryption, with this certificate and key; and a certificate of the client, by this authority.
    Tls { certificate: PathBuf, key: PathBuf, client_authority: Option<PathBuf> },
}

pub const USER: &str = "evenkeel";
pub const PASSWORD: &str = "not-a-secret";
pub const TOKEN: &str = "not-a-secret-token";

impl Access {
    /// A key nobody else has.
    pub fn nkey() -> Self {
        Self::Nkey { seed: KeyPair::new_user().seed().expect("a new key has its seed") }
    }

    /// An operator, its account with JetStream, and a user of it.
    pub fn credentials() -> Self {
        let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
        let operator_jwt = jwt(&operator, &operator, "operator", r#"{"type":"operator","version":2}"#);
        let limits = r#"{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,
            "leaf":-1,"mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1}"#;
        let account_claims = format!(r#"{{"limits":{limits},"type":"account","version":2}}"#);
        let account_jwt = jwt(&operator, &account, "account", &account_claims);
        // The server's own, without which it does not offer JetStream.
        let system = KeyPair::new_account();
        let system_claims =
            account_claims.replace(r#""mem_storage":-1,"disk_storage":-1"#, r#""mem_storage":0,"disk_storage":0"#);
        let system_jwt = jwt(&operator, &system, "system", &system_claims);
        let user_claims = r#"{"pub":{},"sub":{},"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
        let user_jwt = jwt(&account, &user, "user", user_claims);
        let seed = user.seed().expect("a new key has its seed");
        Self::Credentials {
            credentials: format!(
                "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
                 -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
            ),
            settings: format!(
                "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
                 resolver_preload {{\n{}: {account_jwt}\n{system}: {system_jwt}\n}}\n",
                account.public_key(),
                system = system.public_key()
            ),
        }
    }

    /// The lines of the server's settings.
    pub(super) fn settings(&self) -> String {
        match self {
            Self::Open => String::new(),
            Self::Password => format!("authorization {{ user: {USER:?}, password: {PASSWORD:?} }}\n"),
            Self::Token => format!("authorization {{ token: {TOKEN:?} }}\n"),
            Self::Nkey { seed } => {
                let key = KeyPair::from_seed(seed).expect("a seed").public_key();
                format!("authorization {{ users: [ {{ nkey: {key} }} ] }}\n")
            }
            Self::Credentials { settings, .. } => settings.clone(),
            Self::Tls { certificate, key, client_authority } => {
                let authority = client_authority.as_ref().map(|path| format!(", ca_file: {path:?}, verify: true"));
                format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}{} }}\n", authority.unwrap_or_default())
            }
        }
    }

    /// Sets how a node proves who it is. A credentials file is left to the test, which knows where it may be.
    pub(super) fn configure(&self, config: &mut NatsConfig) {
        config.auth = match self {
            Self::Password => NatsAuth::User { name: USER.to_owned(), password: PASSWORD.to_owned() },
            Self::Token => NatsAuth::Token(TOKEN.to_owned()),
            Self::Nkey { seed } => NatsAuth::Nkey(seed.clone()),
            Self::Open | Self::Credentials { .. } | Self::Tls { .. } => NatsAuth::None,
        };
    }

    /// The options with which a test connects for itself.
    pub(super) fn admin_connect(&self, info: &str) -> String {
        let common = r#""verbose":false,"pedantic":false,"headers":true,"no_responders":true,"protocol":1"#;
        let proof = match self {
            Self::Open => String::new(),
            Self::Password => format!(r#","user":{USER:?},"pass":{PASSWORD:?}"#),
            Self::Token => format!(r#","auth_token":{TOKEN:?}"#),
            Self::Nkey { seed } => {
                let key = KeyPair::from_seed(seed).expect("a seed");
                format!(r#","nkey":{:?},"sig":{:?}"#, key.public_key(), sign_nonce(&key, info))
            }
            Self::Credentials { credentials, .. } => {
                let lines: Vec<&str> = credentials.lines().collect();
                let key = KeyPair::from_seed(lines[5]).expect("a seed");
                format!(r#","jwt":{:?},"sig":{:?}"#, lines[1], sign_nonce(&key, info))
            }
            Self::Tls { .. } => panic!("a test does not speak TLS with the server itself"),
        };
        format!("{{{common}{proof}}}")
    }
}

fn sign_nonce(key: &KeyPair, info: &str) -> String {
    let (_, after) = info.split_once(r#""nonce":""#).expect("the server asks for a signature");
    let (nonce, _) = after.split_once('"').expect("a nonce ends");
    URL_SAFE_NO_PAD.encode(key.sign(nonce.as_bytes()).expect("a pair of keys signs"))
}

/// A claim about `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, claims: &str) -> String {
    let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let body = format!(
        r#"{{"jti":"{name}","iat":1700000000,"iss":"{}","name":"{name}","sub":"{}","nats":{claims}}}"#,
        issuer.public_key(),
        subject.public_key()
    );
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(body));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).expect("a pair of keys signs"));
    format!("{signed}.{signature}")
}
