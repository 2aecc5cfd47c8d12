//! Several commands in one request: the method `batch` and the legacy route (protocol section 7.1).
//!
//! The whole body is read before anything is carried out, so that a body which is not JSON does nothing.

use std::fmt;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Api;
use super::error::{ApiError, ErrorCode, Failure, Malformed};
use super::execute::IN_HAND;
use super::outcome::{Answer, Replies, Reply, write};
use super::request::{Method, Text, parse};

#[derive(Deserialize, Default)]
#[serde(default)]
struct BatchRequest<'a> {
    #[serde(borrow)]
    commands: Option<Vec<Option<Command<'a>>>>,
    parallel: Option<bool>,
}

/// One of `{"<method>": {...}}`. A method whose value is `null` counts as absent.
enum Command<'a> {
    One(Method, &'a RawValue),
    Empty,
    Unknown,
    Several,
}

impl<'de: 'a, 'a> Deserialize<'de> for Command<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CommandVisitor;
        impl<'de> Visitor<'de> for CommandVisitor {
            type Value = Command<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one method")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Command<'de>, A::Error> {
                let mut command = Command::Empty;
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    let Some(method) = Method::parse(&name) else {
                        map.next_value::<IgnoredAny>()?;
                        if matches!(command, Command::Empty) {
                            command = Command::Unknown;
                        }
                        continue;
                    };
                    let Some(params) = map.next_value::<Option<&RawValue>>()? else { continue };
                    command = match command {
                        Command::Empty | Command::Unknown => Command::One(method, params),
                        Command::One(..) | Command::Several => Command::Several,
                    };
                }
                Ok(command)
            }
        }
        deserializer.deserialize_map(CommandVisitor)
    }
}

/// Carries out a batch in order, or all at once where the request allows it; writes the replies in order.
pub(super) async fn batch(api: &Api, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
    let request: BatchRequest<'_> = parse(body)?;
    let commands = request.commands.unwrap_or_default();
    let commands_max = api.limits.commands_per_batch;
    if commands.len() > commands_max {
        return Err(too_many(commands_max).into());
    }
    let mut replies = Vec::with_capacity(commands.len());
    for some in commands.chunks(IN_HAND) {
        if !replies.is_empty() {
            tokio::task::yield_now().await;
        }
        if request.parallel == Some(true) {
            replies.extend(join_all(some.iter().map(|command| carry_out(api, command.as_ref()))).await);
        } else {
            for command in some {
                replies.push(carry_out(api, command.as_ref()).await);
            }
        }
    }
    write(&Replies(&replies), out);
    Ok(())
}

async fn carry_out(api: &Api, command: Option<&Command<'_>>) -> Reply {
    match command {
        Some(Command::One(method, params)) => match api.execute(*method, params.get().as_bytes()).await {
            Ok(outcome) => Reply::Result(*method, outcome),
            Err(failure) => Reply::Error(failure.into_api()),
        },
        Some(Command::Unknown) => Reply::Error(ErrorCode::MethodNotFound.into()),
        Some(Command::Several) => Reply::Error(ApiError::bad_request("a command names more than one method")),
        Some(Command::Empty) | None => Reply::Error(ErrorCode::BadRequest.into()),
    }
}

#[derive(Deserialize)]
struct LegacyCommand<'a> {
    #[serde(borrow, default)]
    method: Text<'a>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
}

/// Carries out the commands of the legacy route one after another; writes one line for each.
pub(super) async fn legacy(api: &Api, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
    let commands_max = api.limits.commands_per_batch;
    let mut commands = Vec::new();
    for command in serde_json::Deserializer::from_slice(body).into_iter::<LegacyCommand<'_>>() {
        commands.push(command.map_err(Malformed::from)?);
        if commands.len() > commands_max {
            return Err(too_many(commands_max).into());
        }
    }
    if commands.is_empty() {
        return Err(Malformed::Empty.into());
    }
    for (index, command) in commands.iter().enumerate() {
        if index > 0 {
            out.push(b'\n');
            if index % IN_HAND == 0 {
                tokio::task::yield_now().await;
            }
        }
        let result = match Method::parse(&command.method) {
            Some(method) => {
                let params = command.params.map_or("{}", RawValue::get);
                api.execute(method, params.as_bytes()).await.map_err(Failure::into_api)
            }
            None => Err(ErrorCode::MethodNotFound.into()),
        };
        let start = out.len();
        write(&Answer::of(result.as_ref()), out);
        // In JSON a line break is only ever space between tokens, but here it separates answers; an embedded payload
        // may have some.
        out[start..].iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    }
    Ok(())
}

fn too_many(commands_max: usize) -> ApiError {
    ApiError::bad_request(format_args!("more than {commands_max} commands"))
}
