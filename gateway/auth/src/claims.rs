//! The payload of a token: which claims are read, of which type, and what they grant (protocol sections 6.2 and 6.4).

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use session::io::{ConnectionGrant, Overrides, SubscriptionGrant, SubscriptionOptions, TokenError};

use crate::algorithm::invalid;
use crate::keys::Expected;

/// Standard base64; padding may be missing, as several token libraries leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Every claim that is read, not yet looked into: each is parsed where it is used, so that an error can name it. A
/// claim that is `null` counts as absent; a claim that comes twice makes the payload invalid.
#[derive(Deserialize)]
pub(crate) struct Claims<'a> {
    #[serde(borrow, default)]
    sub: Option<&'a RawValue>,
    #[serde(borrow, default)]
    exp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    nbf: Option<&'a RawValue>,
    #[serde(borrow, default)]
    iss: Option<&'a RawValue>,
    #[serde(borrow, default)]
    aud: Option<&'a RawValue>,
    #[serde(borrow, default)]
    expire_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<&'a RawValue>,
    #[serde(borrow, default)]
    client: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channels: Option<&'a RawValue>,
    #[serde(borrow, default)]
    subs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    meta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    b64info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    b64data: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "override")]
    overrides: Option<&'a RawValue>,
}

/// One value of `subs`.
#[derive(Deserialize, Default)]
struct SubClaims<'a> {
    #[serde(borrow, default)]
    info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    b64info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    b64data: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "override")]
    overrides: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OverrideClaims<'a> {
    #[serde(borrow, default)]
    presence: Option<&'a RawValue>,
    #[serde(borrow, default)]
    join_leave: Option<&'a RawValue>,
    #[serde(borrow, default)]
    force_recovery: Option<&'a RawValue>,
    #[serde(borrow, default)]
    force_positioning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    force_push_join_leave: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OverrideValue {
    #[serde(default)]
    value: bool,
}

/// A JSON string that is borrowed where it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Claims<'a> {
    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, TokenError> {
        from_object(payload).map_err(|error| invalid(format!("the payload is not an object of claims: {error}")))
    }

    /// Checks `iss` and `aud` where a rule is configured; a missing claim violates the rule.
    pub(crate) fn check_parties(
        &self,
        issuer: Option<&Expected>,
        audience: Option<&Expected>,
    ) -> Result<(), TokenError> {
        if let Some(rule) = issuer {
            let iss = text("iss", self.iss)?.ok_or_else(|| invalid("iss is missing"))?;
            if !rule.accepts(&iss) {
                return Err(invalid("iss is not the configured issuer"));
            }
        }
        if let Some(rule) = audience {
            let aud = self.aud.ok_or_else(|| invalid("aud is missing"))?;
            let accepted = if aud.get().starts_with('[') {
                read::<Vec<Text<'_>>>("aud", "a string or a list of strings", aud)?
                    .iter()
                    .any(|one| rule.accepts(&one.0))
            } else {
                rule.accepts(&read::<Text<'_>>("aud", "a string or a list of strings", aud)?.0)
            };
            if !accepted {
                return Err(invalid("aud does not name the configured audience"));
            }
        }
        Ok(())
    }

    /// Checks `exp` and `nbf` without leeway (RFC 7519 sections 4.1.4 and 4.1.5): at `exp` itself the token is over,
    /// at `nbf` itself it has begun.
    pub(crate) fn check_times(&self, now_unix: i64) -> Result<(), TokenError> {
        let ended = time("exp", self.exp)?.is_some_and(|exp| now_unix >= exp);
        let early = time("nbf", self.nbf)?.is_some_and(|nbf| now_unix < nbf);
        if ended || early { Err(TokenError::Expired) } else { Ok(()) }
    }

    /// What the token says as a connection token.
    pub(crate) fn connection(&self, user: Cow<'_, str>) -> Result<ConnectionGrant, TokenError> {
        if self.channel.is_some() {
            return Err(invalid("it has a channel claim: this is a subscription token"));
        }
        Ok(ConnectionGrant {
            user: user.as_ref().into(),
            expire_at: self.expire_at()?,
            info: bytes("info", "b64info", self.info, self.b64info)?,
            subs: self.subs()?,
            meta: self.meta.map(raw).unwrap_or_default(),
        })
    }

    /// What the token says as a subscription token.
    pub(crate) fn subscription(&self, user: Cow<'_, str>) -> Result<SubscriptionGrant, TokenError> {
        let channel = text("channel", self.channel)?.unwrap_or_default();
        if channel.is_empty() {
            return Err(invalid("it has no channel claim: this is not a subscription token"));
        }
        Ok(SubscriptionGrant {
            user: user.as_ref().into(),
            channel: channel.into_owned(),
            // An empty binding binds to nothing, like an absent one.
            client: text("client", self.client)?.filter(|client| !client.is_empty()).map(Cow::into_owned),
            expire_at: self.expire_at()?,
            options: SubscriptionOptions {
                info: bytes("info", "b64info", self.info, self.b64info)?,
                data: bytes("data", "b64data", self.data, self.b64data)?,
                overrides: overrides(self.overrides)?,
            },
        })
    }

    /// `sub`; empty when absent. Only a JSON string is a user id.
    pub(crate) fn sub(&self) -> Result<Cow<'a, str>, TokenError> {
        Ok(text("sub", self.sub)?.unwrap_or_default())
    }

    /// `expire_at` if given (0 never expires), else `exp`.
    fn expire_at(&self) -> Result<Option<i64>, TokenError> {
        match time("expire_at", self.expire_at)? {
            Some(0) => Ok(None),
            Some(at) => Ok(Some(at)),
            None => time("exp", self.exp),
        }
    }

    fn subs(&self) -> Result<BTreeMap<String, SubscriptionOptions>, TokenError> {
        const SHAPE: &str = "a map of channels to options";
        if let Some(subs) = self.subs {
            let subs = read::<BTreeMap<Text<'_>, Option<&RawValue>>>("subs", SHAPE, subs)?;
            if !subs.is_empty() {
                return subs.into_iter().map(|(channel, claims)| sub_options(channel.0, claims)).collect();
            }
        }
        let Some(channels) = self.channels else { return Ok(BTreeMap::new()) };
        let channels = read::<Vec<Text<'_>>>("channels", "a list of strings", channels)?;
        channels
            .into_iter()
            .map(|channel| Ok((named_channel("channels", channel.0)?, SubscriptionOptions::default())))
            .collect()
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// Finds the user id in another claim than `sub`: the claim of that very name, else a path with dots into nested
/// objects. Absent means anonymous; anything but a string is refused.
pub(crate) fn user_in<'a>(payload: &'a [u8], claim: &str) -> Result<Cow<'a, str>, TokenError> {
    type Object<'a> = BTreeMap<Text<'a>, &'a RawValue>;
    let object = |json: &'a [u8]| serde_json::from_slice::<Object<'a>>(json).ok();
    let find = |object: &Object<'a>, name: &str| {
        object.iter().find(|(key, _)| key.0 == name).map(|(_, value)| *value).filter(|value| value.get() != "null")
    };
    let Some(top) = object(payload) else {
        return Err(invalid("the payload is not an object of claims"));
    };
    let value = find(&top, claim).or_else(|| {
        let mut names = claim.split('.');
        let first = find(&top, names.next()?)?;
        names.try_fold(first, |outer, name| find(&object(outer.get().as_bytes())?, name))
    });
    match value {
        Some(value) => Ok(read::<Text<'a>>(claim, "a string", value)?.0),
        None => Ok(Cow::Borrowed("")),
    }
}

fn sub_options(channel: Cow<'_, str>, claims: Option<&RawValue>) -> Result<(String, SubscriptionOptions), TokenError> {
    let claims: SubClaims<'_> = match claims {
        Some(claims) => read_object("an entry of subs", "an object of options", claims)?,
        None => SubClaims::default(),
    };
    let options = SubscriptionOptions {
        info: bytes("subs.info", "subs.b64info", claims.info, claims.b64info)?,
        data: bytes("subs.data", "subs.b64data", claims.data, claims.b64data)?,
        overrides: overrides(claims.overrides)?,
    };
    Ok((named_channel("subs", channel)?, options))
}

fn named_channel(claim: &str, channel: Cow<'_, str>) -> Result<String, TokenError> {
    if channel.is_empty() { Err(invalid(format!("{claim} has an empty channel"))) } else { Ok(channel.into_owned()) }
}

/// Parses one claim; the error names it, says what it should be and does not repeat its value, which may be private.
fn read<'a, T: Deserialize<'a>>(claim: &str, shape: &str, value: &'a RawValue) -> Result<T, TokenError> {
    serde_json::from_str(value.get()).map_err(|_| invalid(format!("{claim} is not {shape}")))
}

/// Parses one claim that must be an object.
fn read_object<'a, T: Deserialize<'a>>(claim: &str, shape: &str, value: &'a RawValue) -> Result<T, TokenError> {
    from_object(value.get().as_bytes()).map_err(|_| invalid(format!("{claim} is not {shape}")))
}

/// Parses a struct from a JSON object only: a derived `Deserialize` would take an array of the fields too.
pub(crate) fn from_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    if json.trim_ascii_start().first() == Some(&b'[') {
        return Err(serde::de::Error::custom("an array"));
    }
    serde_json::from_slice(json)
}

fn text<'a>(claim: &str, value: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, TokenError> {
    value.map(|value| Ok(read::<Text<'a>>(claim, "a string", value)?.0)).transpose()
}

/// A NumericDate of RFC 7519: seconds, possibly with a fraction, which is cut off.
fn time(claim: &str, value: Option<&RawValue>) -> Result<Option<i64>, TokenError> {
    const SHAPE: &str = "a Unix time in seconds";
    let Some(value) = value else { return Ok(None) };
    if let Ok(seconds) = value.get().parse::<i64>() {
        return Ok(Some(seconds));
    }
    // The cast saturates: a time beyond the range of i64 stays "far away".
    Ok(Some(read::<f64>(claim, SHAPE, value)?.floor() as i64))
}

/// The raw JSON of a claim, or the decoded form of its base64 twin, which wins unless it is empty.
fn bytes(name: &str, b64_name: &str, plain: Option<&RawValue>, base64: Option<&RawValue>) -> Result<Bytes, TokenError> {
    match text(b64_name, base64)?.filter(|text| !text.is_empty()) {
        Some(text) => BASE64
            .decode(text.as_bytes())
            .map(Bytes::from)
            .map_err(|error| invalid(format!("{b64_name} is not base64 (it stands for {name}): {error}"))),
        None => Ok(plain.map(raw).unwrap_or_default()),
    }
}

/// JSON exactly as the token has it.
fn raw(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

fn overrides(value: Option<&RawValue>) -> Result<Overrides, TokenError> {
    let Some(value) = value else { return Ok(Overrides::default()) };
    const SHAPE: &str = "a map of options to {\"value\": bool}";
    let claims: OverrideClaims<'_> = read_object("override", SHAPE, value)?;
    let set = |option: Option<&RawValue>| match option {
        Some(option) => Ok(Some(read_object::<OverrideValue>("override", SHAPE, option)?.value)),
        None => Ok(None),
    };
    Ok(Overrides {
        presence: set(claims.presence)?,
        join_leave: set(claims.join_leave)?,
        force_recovery: set(claims.force_recovery)?,
        force_positioning: set(claims.force_positioning)?,
        force_push_join_leave: set(claims.force_push_join_leave)?,
    })
}
