//! Which backplane.

use backplane::nats::NatsConfig;
use backplane::redis::RedisConfig;

use super::reader::Section;
use super::{nats, redis};

/// What carries publications between nodes, and whether a node is ready without it.
#[derive(Clone, Debug)]
pub struct Backplane {
    /// Which one.
    pub kind: BackplaneKind,
    /// Whether readiness fails while it cannot be reached. False by default: pods that all become unready in an outage
    /// of it would lose the clients that they still hold.
    pub required: bool,
}

/// Which backplane.
#[derive(Clone, Debug)]
pub enum BackplaneKind {
    /// The embedded one, for a single node.
    Memory,
    /// Redis, for many.
    Redis(Box<RedisConfig>),
    /// NATS JetStream, for many.
    Nats(Box<NatsConfig>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Memory,
    Redis,
    Nats,
}

/// Reads `[redis]`, `[nats]` and the rest of `[backplane]`, whose section is passed because the embedded one is read from it
/// too.
pub(super) fn read(root: &mut Section<'_>, backplane: &mut Section<'_>) -> Backplane {
    let words = [("memory", Word::Memory), ("redis", Word::Redis), ("nats", Word::Nats)];
    let word = backplane.choice("kind", Word::Memory, &words);
    let required = backplane.flag("required", false);
    let mut redis_section = root.section("redis");
    let (redis, has_redis) = redis::read(&mut redis_section);
    let mut nats_section = root.section("nats");
    let (nats, has_nats) = nats::read(&mut nats_section);
    for (name, is_unused, section) in [
        ("redis", has_redis && word != Word::Redis, &redis_section),
        ("nats", has_nats && word != Word::Nats, &nats_section),
    ] {
        if is_unused {
            section.context.warn(format!("{name} is configured but not used: backplane.kind is not \"{name}\""));
        }
    }
    let kind = match word {
        Word::Memory => BackplaneKind::Memory,
        Word::Redis => BackplaneKind::Redis(Box::new(redis)),
        Word::Nats => BackplaneKind::Nats(Box::new(nats)),
    };
    Backplane { kind, required }
}
