use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jsonwebtoken::AlgorithmFamily;
use regex::Regex;
use serde_json::{Value, json};
use session::io::{Overrides, SubscriptionOptions};

use super::*;
use crate::keys::PreviousSecret;
use crate::test_keys::{ED, P256, RSA, SECRET, sign, signer_and_keys};
use crate::{NewToken, mint_token};

const NOW: i64 = 1_700_000_000;

const ALGORITHMS: [Algorithm; 12] = [
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

fn verifier(connection: KeySet) -> Verifier {
    Verifier::new(&VerifierConfig { connection, ..VerifierConfig::default() }).expect("usable keys")
}

fn hmac() -> KeySet {
    KeySet { hmac_secret: Some(SECRET.to_vec()), ..KeySet::default() }
}

fn ready<T: fmt::Debug>(verification: Verification<T>) -> Result<T, TokenError> {
    match verification {
        Verification::Ready(result) => result,
        Verification::Pending(_) => panic!("static keys are always at hand"),
    }
}

fn connect(keys: KeySet, token: &str) -> Result<ConnectionGrant, TokenError> {
    ready(verifier(keys).verify_connection(token, NOW))
}

fn connect_with(claims: Value) -> Result<ConnectionGrant, TokenError> {
    connect(hmac(), &sign(Algorithm::HS256, None, &claims))
}

fn subscribe_with(claims: Value) -> Result<SubscriptionGrant, TokenError> {
    ready(verifier(hmac()).verify_subscription(&sign(Algorithm::HS256, None, &claims), NOW))
}

#[track_caller]
fn assert_invalid<T: fmt::Debug>(result: Result<T, TokenError>, part: &str) {
    match result {
        Err(TokenError::Invalid(reason)) if reason.contains(part) => {}
        other => panic!("expected an invalid token that names {part:?}, got {other:?}"),
    }
}

/// A token out of raw header and payload text, signed with [`SECRET`] as HS256 whatever the header says.
fn raw_token(header: &str, payload: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("HS256 signs");
    format!("{message}.{signature}")
}

#[test]
fn every_algorithm_is_accepted_with_its_key_and_refused_without() {
    for algorithm in ALGORITHMS {
        let keys = signer_and_keys(algorithm).1;
        let good = sign(algorithm, None, &json!({"sub": "u17", "exp": NOW + 60}));
        let grant = connect(keys.clone(), &good).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        assert_eq!(grant.user.as_str(), "u17", "{algorithm:?}");
        assert_eq!(grant.expire_at, Some(NOW + 60), "{algorithm:?}");

        let late = sign(algorithm, None, &json!({"sub": "u17", "exp": NOW - 60}));
        assert_eq!(connect(keys.clone(), &late), Err(TokenError::Expired), "{algorithm:?}");

        let (head, signature) = good.rsplit_once('.').expect("three parts");
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        assert_invalid(connect(keys.clone(), &format!("{head}.{flipped}{}", &signature[1..])), "signature");

        let swapped = URL_SAFE_NO_PAD.encode(r#"{"sub":"root"}"#);
        let (header, _) = good.split_once('.').expect("three parts");
        assert_invalid(connect(keys, &format!("{header}.{swapped}.{signature}")), "signature");

        assert_invalid(connect(KeySet::default(), &good), &format!("{algorithm:?} is not configured"));
    }
}

#[test]
fn a_key_serves_only_the_algorithms_of_its_family() {
    for configured in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let keys = signer_and_keys(configured).1;
        for algorithm in ALGORITHMS.into_iter().filter(|other| other.family() != configured.family()) {
            let token = sign(algorithm, None, &json!({"sub": "u17"}));
            assert_invalid(connect(keys.clone(), &token), &format!("{algorithm:?} is not configured"));
        }
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_shared_secret() {
    for pair in [&*RSA, &*P256, &*ED] {
        let keys = KeySet {
            rsa_public_key: Some(RSA.public_pem.clone()),
            ecdsa_public_key: Some(P256.public_pem.clone()),
            eddsa_public_key: Some(ED.public_pem.clone()),
            ..KeySet::default()
        };
        let forged = mint_token(pair.public_pem.as_bytes(), &json!({"sub": "root"})).expect("a token");
        assert_invalid(connect(keys, &forged), "HS256 is not configured");
    }
}

#[test]
fn the_curve_of_the_key_decides_between_es256_and_es384() {
    let token = sign(Algorithm::ES384, None, &json!({"sub": "u17"}));
    assert_invalid(connect(signer_and_keys(Algorithm::ES256).1, &token), "ES384 does not fit");
}

#[test]
fn an_algorithm_that_is_not_supported_is_named() {
    for (name, part) in [
        ("none", "algorithm none"),
        ("ES512", "algorithm ES512"),
        ("HS128", "algorithm \"HS128\""),
        ("None", "algorithm \"None\""),
        ("hs256", "algorithm \"hs256\""),
        ("", "algorithm \"\""),
    ] {
        let header = json!({"alg": name, "typ": "JWT"}).to_string();
        assert_invalid(connect(hmac(), &raw_token(&header, r#"{"sub":"u17"}"#)), part);
    }
    let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode("{}"));
    assert_invalid(connect(hmac(), &unsigned), "algorithm none");
    let long = json!({"alg": "x".repeat(5000)}).to_string();
    let Err(TokenError::Invalid(reason)) = connect(hmac(), &raw_token(&long, "{}")) else {
        panic!("an unknown algorithm was accepted");
    };
    assert!(reason.len() < 200, "a log line is flooded by {} bytes", reason.len());
}

#[test]
fn what_is_not_a_token_is_refused_with_its_reason() {
    let good = sign(Algorithm::HS256, None, &json!({"sub": "u17"}));
    assert!(connect(hmac(), &good).is_ok());
    for (token, part) in [
        (String::new(), "three parts"),
        ("abc".to_owned(), "three parts"),
        ("a.b".to_owned(), "three parts"),
        (format!("{good}.more"), "three parts"),
        (format!("!{good}"), "header is not base64url"),
        (format!("{good}="), "signature"),
        (good[..good.len() - 4].to_owned(), "signature"),
        (raw_token("[]", "{}"), "header is not an object"),
        (raw_token(r#" ["HS256"]"#, "{}"), "header is not an object"),
        (raw_token("{}", "{}"), "header is not an object"),
        (raw_token(r#"{"alg":7}"#, "{}"), "header is not an object"),
        (raw_token(r#"{"alg":"HS256","crit":["exp"]}"#, "{}"), "critical"),
        (raw_token(r#"{"alg":"HS256"}"#, "[]"), "payload is not an object"),
        (raw_token(r#"{"alg":"HS256"}"#, "\n[\"root\"]"), "payload is not an object"),
        (raw_token(r#"{"alg":"HS256"}"#, "not json"), "payload is not an object"),
        (raw_token(r#"{"alg":"HS256"}"#, r#"{"sub":"a","sub":"b"}"#), "duplicate"),
        ("x".repeat(MAX_TOKEN_BYTES + 1), "limit"),
    ] {
        assert_invalid(connect(hmac(), &token), part);
    }
}

#[test]
fn a_token_at_the_size_limit_is_read_and_one_byte_more_is_not() {
    let with_filler = |filler: usize| sign(Algorithm::HS256, None, &json!({"sub": "u", "x": "y".repeat(filler)}));
    let overhead = with_filler(0).len();
    let mut filler = (MAX_TOKEN_BYTES - overhead) * 3 / 4;
    while with_filler(filler + 1).len() <= MAX_TOKEN_BYTES {
        filler += 1;
    }
    assert!(connect(hmac(), &with_filler(filler)).is_ok());
    assert_invalid(connect(hmac(), &with_filler(filler + 1)), "16384 are the limit");
}

#[test]
fn times_are_checked_without_leeway() {
    for (claims, expected) in [
        (json!({"exp": NOW + 1}), Ok(Some(NOW + 1))),
        (json!({"exp": NOW}), Err(TokenError::Expired)),
        (json!({"exp": NOW - 1}), Err(TokenError::Expired)),
        (json!({"exp": 0}), Err(TokenError::Expired)),
        (json!({"exp": (NOW + 1) as f64 + 0.5}), Ok(Some(NOW + 1))),
        (json!({"exp": null}), Ok(None)),
        (json!({}), Ok(None)),
        (json!({"nbf": NOW}), Ok(None)),
        (json!({"nbf": NOW - 1}), Ok(None)),
        (json!({"nbf": NOW + 1}), Err(TokenError::Expired)),
        (json!({"nbf": NOW + 1, "exp": NOW + 60}), Err(TokenError::Expired)),
        (json!({"exp": 1e300}), Ok(Some(i64::MAX))),
    ] {
        assert_eq!(connect_with(claims.clone()).map(|grant| grant.expire_at), expected, "{claims}");
    }
}

#[test]
fn a_time_that_is_no_number_is_invalid_and_not_expired() {
    for claim in ["exp", "nbf", "expire_at"] {
        for value in [json!("1700000000"), json!([]), json!(true)] {
            assert_invalid(connect_with(json!({"sub": "u17", claim: value})), claim);
        }
    }
}

#[test]
fn expire_at_replaces_exp_for_the_connection_but_not_for_the_token() {
    for (claims, expected) in [
        (json!({"exp": NOW + 9, "expire_at": NOW + 99}), Ok(Some(NOW + 99))),
        (json!({"exp": NOW + 9, "expire_at": 0}), Ok(None)),
        (json!({"exp": NOW + 9, "expire_at": null}), Ok(Some(NOW + 9))),
        (json!({"expire_at": NOW + 99}), Ok(Some(NOW + 99))),
        (json!({"expire_at": NOW - 99}), Ok(Some(NOW - 99))),
        (json!({"exp": NOW - 1, "expire_at": 0}), Err(TokenError::Expired)),
        (json!({"exp": NOW - 1, "expire_at": NOW + 99}), Err(TokenError::Expired)),
    ] {
        assert_eq!(connect_with(claims.clone()).map(|grant| grant.expire_at), expected, "{claims}");
    }
}

#[test]
fn sub_is_a_string_or_absent() {
    assert_eq!(connect_with(json!({"sub": "u17"})).expect("valid").user.as_str(), "u17");
    assert_eq!(connect_with(json!({"sub": "a\"b\n"})).expect("valid").user.as_str(), "a\"b\n");
    for anonymous in [json!({}), json!({"sub": ""}), json!({"sub": null})] {
        assert!(connect_with(anonymous).expect("valid").user.is_anonymous());
    }
    for wrong in [json!(17), json!(true), json!(["u17"]), json!({"id": "u17"})] {
        assert_invalid(connect_with(json!({"sub": wrong})), "sub is not a string");
    }
}

#[test]
fn the_user_id_may_come_from_another_claim() {
    let user = |claim: &str, claims: Value| {
        let keys = KeySet { user_id_claim: Some(claim.to_owned()), ..hmac() };
        connect(keys, &sign(Algorithm::HS256, None, &claims)).map(|grant| grant.user.as_str().to_owned())
    };
    assert_eq!(user("uid", json!({"uid": "u17", "sub": 3})), Ok("u17".to_owned()));
    assert_eq!(user("uid", json!({"sub": "u17"})), Ok(String::new()));
    assert_eq!(user("realm.user.id", json!({"realm": {"user": {"id": "u17"}}})), Ok("u17".to_owned()));
    assert_eq!(user("https://x.test/id", json!({"https://x.test/id": "u17"})), Ok("u17".to_owned()));
    assert_eq!(user("realm.user.id", json!({"realm": {"user": 5}})), Ok(String::new()));
    assert_invalid(user("uid", json!({"uid": 17})), "uid is not a string");
}

#[test]
fn json_claims_are_kept_as_written() {
    let payload = "{\"sub\":\"u\",\"info\": { \"b\" : 1.50, \"a\":[ 1,\n2 ] },\"meta\":{ \"z\":1 }}";
    let grant = connect(hmac(), &raw_token(r#"{"alg":"HS256"}"#, payload)).expect("valid");
    assert_eq!(grant.info, Bytes::from_static(b"{ \"b\" : 1.50, \"a\":[ 1,\n2 ] }"));
    assert_eq!(grant.meta, Bytes::from_static(b"{ \"z\":1 }"));
}

#[test]
fn base64_claims_win_unless_they_are_empty() {
    for (claims, expected) in [
        (json!({"info": {"a": 1}}), &b"{\"a\":1}"[..]),
        (json!({"info": {"a": 1}, "b64info": "aGk="}), b"hi"),
        (json!({"b64info": "aGk"}), b"hi"),
        (json!({"b64info": STANDARD.encode([0xfb, 0xff])}), &[0xfb, 0xff]),
        (json!({"info": {"a": 1}, "b64info": ""}), b"{\"a\":1}"),
        (json!({"info": null}), b""),
        (json!({}), b""),
    ] {
        assert_eq!(connect_with(claims.clone()).expect("valid").info, expected, "{claims}");
    }
    assert_invalid(connect_with(json!({"b64info": "#"})), "b64info");
    assert_invalid(connect_with(json!({"b64info": 7})), "b64info");
}

#[test]
fn server_side_subscriptions_come_from_subs_or_else_from_channels() {
    let names = |claims: Value| connect_with(claims).map(|grant| grant.subs.into_keys().collect::<Vec<_>>());
    assert_eq!(names(json!({"channels": ["b", "a", "a"]})), Ok(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(names(json!({"channels": ["b"], "subs": {"a": {}}})), Ok(vec!["a".to_owned()]));
    assert_eq!(names(json!({"channels": ["b"], "subs": {}})), Ok(vec!["b".to_owned()]));
    assert_eq!(names(json!({"subs": {"a": null}})), Ok(vec!["a".to_owned()]));
    assert_invalid(names(json!({"channels": "b"})), "channels");
    assert_invalid(names(json!({"channels": [1]})), "channels");
    assert_invalid(names(json!({"channels": [""]})), "channels");
    assert_invalid(names(json!({"subs": ["a"]})), "subs");
    assert_invalid(names(json!({"subs": {"": {}}})), "subs");
    assert_invalid(names(json!({"subs": {"a": [1]}})), "subs");
    assert_invalid(names(json!({"subs": {"a": {"b64data": "#"}}})), "subs.b64data");
}

#[test]
fn options_of_server_side_subscriptions_are_read() {
    let claims = json!({"subs": {"a": {
        "info": {"i": 1}, "b64data": "aGk=", "unknown": 1,
        "override": {"presence": {"value": true}, "join_leave": {"value": false}, "force_recovery": {},
                     "force_positioning": null, "unknown": {"value": true}},
    }}});
    let expected = SubscriptionOptions {
        info: Bytes::from_static(b"{\"i\":1}"),
        data: Bytes::from_static(b"hi"),
        overrides: Overrides {
            presence: Some(true),
            join_leave: Some(false),
            force_recovery: Some(false),
            force_positioning: None,
            force_push_join_leave: None,
        },
    };
    assert_eq!(connect_with(claims).expect("valid").subs.get("a"), Some(&expected));
    for wrong in [json!({"presence": true}), json!({"presence": [true]}), json!([]), json!({"presence": {"value": 1}})]
    {
        assert_invalid(connect_with(json!({"subs": {"a": {"override": wrong}}})), "override");
    }
}

#[test]
fn the_two_kinds_of_tokens_do_not_replace_each_other() {
    for channel in [json!("a"), json!(""), json!(7)] {
        assert_invalid(connect_with(json!({"sub": "u17", "channel": channel})), "subscription token");
    }
    for claims in [json!({"sub": "u17"}), json!({"channel": ""}), json!({"channel": null})] {
        assert_invalid(subscribe_with(claims), "not a subscription token");
    }
    assert_invalid(subscribe_with(json!({"channel": 7})), "channel is not a string");
}

#[test]
fn a_subscription_token_is_read_in_full() {
    let grant = subscribe_with(json!({
        "sub": "u17", "channel": "orders:eu", "client": "c1", "exp": NOW + 9, "expire_at": 0,
        "info": [1], "data": {"d": 2}, "override": {"force_push_join_leave": {"value": true}},
    }));
    let overrides = Overrides { force_push_join_leave: Some(true), ..Overrides::default() };
    assert_eq!(
        grant,
        Ok(SubscriptionGrant {
            user: "u17".into(),
            channel: "orders:eu".to_owned(),
            client: Some("c1".to_owned()),
            expire_at: None,
            options: SubscriptionOptions {
                info: Bytes::from_static(b"[1]"),
                data: Bytes::from_static(b"{\"d\":2}"),
                overrides,
            },
        })
    );
    let short = subscribe_with(json!({"channel": "a", "client": "", "exp": NOW + 9})).expect("valid");
    assert_eq!((short.client, short.expire_at, short.user.is_anonymous()), (None, Some(NOW + 9), true));
    assert_eq!(subscribe_with(json!({"channel": "a", "exp": NOW})), Err(TokenError::Expired));
    assert_invalid(subscribe_with(json!({"channel": "a", "client": 1})), "client");
}

#[test]
fn issuer_and_audience_are_checked_where_configured() {
    let exact = |text: &str| Some(Expected::Exact(text.to_owned()));
    let matching = |text: &str| Some(Expected::Matching(Regex::new(text).expect("a regex")));
    let check = |issuer, audience, claims: &Value| {
        let keys = KeySet { issuer, audience, ..hmac() };
        connect(keys, &sign(Algorithm::HS256, None, claims)).map(|_| ())
    };
    let both = json!({"iss": "https://a.test", "aud": ["x", "chat"]});
    assert_eq!(check(None, None, &both), Ok(()));
    assert_eq!(check(exact("https://a.test"), exact("chat"), &both), Ok(()));
    assert_eq!(check(matching("^https://[ab]\\.test$"), matching("^ch"), &both), Ok(()));
    assert_eq!(check(None, exact("chat"), &json!({"aud": "chat"})), Ok(()));
    for (issuer, audience, claims, part) in [
        (exact("https://b.test"), None, both.clone(), "iss is not"),
        (matching("^b"), None, both.clone(), "iss is not"),
        (exact("a"), None, json!({}), "iss is missing"),
        (exact("a"), None, json!({"iss": 1}), "iss is not a string"),
        (None, exact("y"), both.clone(), "aud does not"),
        (None, matching("^y"), both, "aud does not"),
        (None, exact("y"), json!({}), "aud is missing"),
        (None, exact("y"), json!({"aud": []}), "aud does not"),
        (None, exact("y"), json!({"aud": 1}), "aud is not"),
        (None, exact("y"), json!({"aud": ["y", 1]}), "aud is not"),
        // A token for somebody else is not merely expired.
        (exact("b"), None, json!({"iss": "a", "exp": NOW - 1}), "iss is not"),
    ] {
        assert_invalid(check(issuer, audience, &claims), part);
    }
}

#[test]
fn the_previous_secret_works_until_its_time() {
    let old = b"the secret of last year, 32 byte";
    let token = mint_token(old, &json!({"sub": "u17"})).expect("a token");
    let keys = |until| KeySet { hmac_previous_secret: Some(PreviousSecret { secret: old.to_vec(), until }), ..hmac() };
    assert_invalid(connect(hmac(), &token), "signature");
    assert!(connect(keys(None), &token).is_ok());
    assert!(connect(keys(Some(NOW + 1)), &token).is_ok());
    assert_invalid(connect(keys(Some(NOW)), &token), "signature");
    assert!(connect(keys(Some(NOW + 1)), &sign(Algorithm::HS256, None, &json!({}))).is_ok());
    assert_invalid(connect(keys(None), &mint_token(b"a third one", &json!({})).expect("a token")), "signature");
}

#[test]
fn subscription_tokens_may_have_keys_of_their_own() {
    let other = KeySet { hmac_secret: Some(b"only for subscriptions".to_vec()), ..KeySet::default() };
    let config = VerifierConfig { connection: hmac(), subscription: Some(other), ..VerifierConfig::default() };
    let verifier = Verifier::new(&config).expect("usable keys");
    let claims = json!({"channel": "a"});
    let own = mint_token(b"only for subscriptions", &claims).expect("a token");
    assert!(ready(verifier.verify_subscription(&own, NOW)).is_ok());
    assert_invalid(ready(verifier.verify_subscription(&sign(Algorithm::HS256, None, &claims), NOW)), "signature");
    let connection = mint_token(b"only for subscriptions", &json!({})).expect("a token");
    assert_invalid(ready(verifier.verify_connection(&connection, NOW)), "signature");
}

#[test]
fn unusable_keys_are_refused_by_name() {
    let error = |set: KeySet| match Verifier::new(&VerifierConfig { connection: set, ..VerifierConfig::default() }) {
        Ok(_) => panic!("unusable keys were accepted"),
        Err(error) => error.to_string(),
    };
    let none = KeySet::default;
    let text = |text: &str| Some(text.to_owned());
    let empty = PreviousSecret { secret: Vec::new(), until: None };
    for (set, part) in [
        (KeySet { hmac_secret: Some(Vec::new()), ..none() }, "hmac_secret is empty"),
        (KeySet { hmac_previous_secret: Some(empty), ..none() }, "hmac_previous_secret is empty"),
        (KeySet { rsa_public_key: text(" "), ..none() }, "rsa_public_key is empty"),
        (KeySet { rsa_public_key: text("no pem"), ..none() }, "rsa_public_key is not"),
        (KeySet { rsa_public_key: text(&P256.public_pem), ..none() }, "rsa_public_key is not"),
        (KeySet { ecdsa_public_key: text(&RSA.public_pem), ..none() }, "ecdsa_public_key is not"),
        (KeySet { eddsa_public_key: text(&P256.public_pem), ..none() }, "eddsa_public_key is not"),
        (KeySet { jwks_url: text("ftp://x.test/keys"), ..none() }, "neither http nor https"),
        (KeySet { jwks_url: text("nonsense"), ..none() }, "is not a URL"),
        (KeySet { jwks_url: text("https://x.test/{{tenant}}"), ..none() }, "placeholder"),
    ] {
        let message = error(set);
        assert!(message.contains(part), "{message:?} does not contain {part:?}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let previous = PreviousSecret { secret: b"previous-secret".to_vec(), until: None };
    let keys = KeySet { hmac_previous_secret: Some(previous), ..hmac() };
    let config = VerifierConfig { connection: keys, ..VerifierConfig::default() };
    let printed = format!("{config:?} {:?}", Verifier::new(&config).expect("usable keys"));
    let bytes = |secret: &[u8]| format!("{secret:?}");
    for secret in ["a secret of 32", "previous-secret", &bytes(SECRET), &bytes(b"previous-secret")] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn a_minted_token_is_accepted() {
    let new = NewToken { sub: "u17".to_owned(), exp: Some(NOW + 9), iat: Some(NOW), ..NewToken::default() };
    let grant = connect(hmac(), &mint_token(SECRET, &new).expect("a token")).expect("valid");
    assert_eq!((grant.user.as_str(), grant.expire_at), ("u17", Some(NOW + 9)));
    let new = NewToken { channel: Some("a:b".to_owned()), ..new };
    let token = mint_token(SECRET, &new).expect("a token");
    let grant = ready(verifier(hmac()).verify_subscription(&token, NOW)).expect("valid");
    assert_eq!((grant.user.as_str(), grant.channel.as_str()), ("u17", "a:b"));
    assert_eq!(mint_token(b"", &new), Err(crate::MintError::EmptySecret));
}

#[test]
fn families_cover_every_algorithm() {
    for family in [AlgorithmFamily::Hmac, AlgorithmFamily::Rsa, AlgorithmFamily::Ec, AlgorithmFamily::Ed] {
        for algorithm in family.algorithms() {
            assert!(ALGORITHMS.contains(algorithm), "{algorithm:?} is not in the test table");
            assert_eq!(algorithm::parse(&format!("{algorithm:?}")), Ok(*algorithm));
        }
    }
}
