//! The configuration: one TOML or YAML file, then environment variables, then flags.
//!
//! Read in this order: [`Sources`] (what goes in), [`Config`] (what comes out), [`Problems`] (what else may), then the
//! parts. Inside: `tree` (the raw form, every value with its place), `reader` (typed values out of it), `units` and
//! `values` (single values), `environment` (variables as keys), `client`, `channels`, `proxy`, `server`, `placement`, `kubernetes`,
//! `backplane`, `redis` and `nats` (the keys, with defaults and checks).
//!
//! All mistakes are reported at once, before anything else happens. Every part of the program gets its own part of
//! [`Config`], fully checked.

mod backplane;
mod channels;
mod client;
mod environment;
mod kubernetes;
mod nats;
pub mod origin;
mod placement;
mod problem;
mod proxy;
mod reader;
mod redis;
mod remote;
mod secret;
mod server;
mod summary;
mod tree;
mod units;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ::backplane::memory::MemoryLimits;
use session::Channels;

pub use self::backplane::{Backplane, BackplaneKind};
pub use client::Client;
pub use problem::{Problem, Problems};
pub use proxy::{Endpoint, Proxies};
pub use reader::Setting;
pub use secret::Secret;
pub use server::{Api, ApiListen, Drain, Handshake, Hub, Internal, Limits, Log, LogFormat, Tls};

use crate::admission::AdmissionSettings;
use crate::kubernetes::KubernetesSettings;
use crate::placing::{PlacementSettings, RebalanceSettings};
use crate::sessions::SessionSettings;
use crate::transport::client_address::AddressRules;
use reader::{Context, Section};
use tree::{Node, Origin, Table, overlay};
pub(crate) use units::parse_duration;

/// Most shards. More cores than this in one process are better used by a second one.
const SHARDS_MAX: usize = 64;

/// Where a configuration comes from. Nothing else is consulted.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The config file; `None` goes without.
    pub file: Option<PathBuf>,
    /// The environment; only names that begin with `EVENKEEL_` are looked at.
    pub environment: BTreeMap<String, String>,
    /// The command line.
    pub flags: Flags,
}

/// Settings that have a flag.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// `--listen`
    pub listen: Option<String>,
    /// `--internal-listen`
    pub internal_listen: Option<String>,
    /// `--dev`: the loopback playground.
    pub dev: bool,
}

/// Every setting, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether this is the playground: on loopback, keys made up, everything allowed.
    pub dev: bool,
    /// The address for clients.
    pub listen: SocketAddr,
    /// Shards, each with a thread of its own; 0 takes one per core.
    pub shards: usize,
    /// The listener for operators.
    pub internal: Internal,
    /// The certificate of the public listener; `None` speaks plain TCP.
    pub tls: Option<Tls>,
    /// The server API.
    pub api: Api,
    /// Clients.
    pub client: Client,
    /// Channel namespaces and their options.
    pub channels: Channels,
    /// What is asked of the application.
    pub proxies: Proxies,
    /// Bounds of the process.
    pub limits: Limits,
    /// Bounds on handshakes.
    pub handshake: Handshake,
    /// Who is let in.
    pub admission: AdmissionSettings,
    /// Whom to believe about the addresses of clients.
    pub addresses: AddressRules,
    /// Delivery on this node.
    pub hub: Hub,
    /// Sessions that outlive a connection.
    pub session: SessionSettings,
    /// What carries publications between nodes.
    pub backplane: Backplane,
    /// Bounds of the embedded backplane.
    pub memory: MemoryLimits,
    /// How the process ends.
    pub drain: Drain,
    /// What the fleet is told of this node, and how this node coordinates it.
    pub placement: PlacementSettings,
    /// The open set in Kubernetes.
    pub kubernetes: KubernetesSettings,
    /// How connections are moved.
    pub rebalance: RebalanceSettings,
    /// Logs.
    pub log: Log,
    /// What was made up because `--dev` found nothing.
    pub generated: Generated,
    /// What works, but probably not as meant. To be logged once.
    pub warnings: Vec<String>,
    /// Every key with its value in use, secrets masked.
    pub settings: Vec<Setting>,
}

/// What `--dev` made up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Generated {
    /// `api.keys`
    pub api_key: bool,
    /// `client.token.hmac_secret`
    pub hmac_secret: bool,
}

/// Secrets to use instead of new ones where `--dev` would make them up.
#[derive(Default)]
struct Kept {
    api_key: Option<Secret>,
    hmac_secret: Option<Secret>,
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// Every mistake in the sources.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        Self::load_with(sources, &Kept::default())
    }

    /// Reads everything again and takes over what can change while the process runs: API keys, token keys and
    /// rules, origins, channels and proxies. The second result names the keys that changed but need a restart.
    ///
    /// # Errors
    /// Every mistake in the sources; the running configuration is then to be kept.
    pub fn reload(&self, sources: &Sources) -> Result<(Self, Vec<String>), Problems> {
        let kept = Kept {
            api_key: self.generated.api_key.then(|| self.api.keys.first().cloned()).flatten(),
            hmac_secret: self.generated.hmac_secret.then(|| self.hmac_secret()).flatten(),
        };
        let new = Self::load_with(sources, &kept)?;
        let restart = changed_keys(&self.settings, &new.settings)
            .into_iter()
            .filter(|key| !RELOADABLE.iter().any(|prefix| key.starts_with(prefix)))
            .collect();
        let settings = new
            .settings
            .iter()
            .map(|setting| {
                let reloaded = RELOADABLE.iter().any(|prefix| setting.key.starts_with(prefix));
                let old = self.settings.iter().find(|old| old.key == setting.key);
                if reloaded { setting } else { old.unwrap_or(setting) }.clone()
            })
            .collect();
        let mut config = self.clone();
        config.api.keys = new.api.keys;
        config.client.tokens = new.client.tokens;
        config.client.origins = new.client.origins;
        config.channels = new.channels;
        config.client.session.proxy = new.client.session.proxy;
        config.proxies = new.proxies;
        config.rebalance = new.rebalance;
        config.generated = new.generated;
        config.warnings = new.warnings;
        config.settings = settings;
        Ok((config, restart))
    }

    /// The secret that signs tokens made by the `token` command; `None` when none is configured.
    pub fn hmac_secret(&self) -> Option<Secret> {
        let bytes = self.client.tokens.connection.hmac_secret.clone()?;
        String::from_utf8(bytes).ok().map(Secret::new)
    }

    fn load_with(sources: &Sources, kept: &Kept) -> Result<Self, Problems> {
        let context = Context::new(sources.file.as_deref());
        let mut table = match &sources.file {
            Some(path) => read_tree(path)?,
            None => Table::new(),
        };
        environment::apply(&mut table, &sources.environment, &context);
        apply_flags(&mut table, &sources.flags);
        let config = resolve(Section::new(&context, String::new(), table), sources.flags.dev, kept);
        let gathered = context.finish();
        if !gathered.problems.is_empty() {
            return Err(Problems(gathered.problems));
        }
        Ok(Self { warnings: gathered.warnings, settings: gathered.settings, ..config })
    }
}

/// The keys that [`Config::reload`] takes over, by prefix.
const RELOADABLE: [&str; 12] = [
    "api.keys",
    "client.token.",
    "client.subscription_token.",
    "client.jwks.",
    "client.allowed_origins",
    "channel.",
    "channel_syntax.",
    "namespaces",
    "proxy.",
    "rpc.",
    "rebalance.",
    "connection.",
];

fn changed_keys(old: &[Setting], new: &[Setting]) -> Vec<String> {
    let old: BTreeMap<&str, &Option<String>> = old.iter().map(|setting| (&*setting.key, &setting.value)).collect();
    new.iter()
        .filter(|setting| old.get(&*setting.key).is_some_and(|value| **value != setting.value))
        .map(|setting| setting.key.clone())
        .collect()
}

/// Reads the file as its name says.
fn read_tree(path: &Path) -> Result<Table, Problems> {
    let whole = |reason: String| {
        let place = Some(path.display().to_string());
        Problems(vec![Problem { place, key: String::new(), value: None, reason }])
    };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let parse = match extension {
        "toml" => tree::parse_toml,
        "yaml" | "yml" => tree::parse_yaml,
        _ => return Err(whole("the name of a config file ends with .toml, .yaml or .yml".to_owned())),
    };
    let text = values::read_file(path).map_err(whole)?;
    parse(&text).map_err(|errors| {
        let problem = |error: tree::SyntaxError| {
            let line = error.line.map(|line| format!(":{line}")).unwrap_or_default();
            let place = Some(format!("{}{line}", path.display()));
            Problem { place, key: String::new(), value: None, reason: error.reason }
        };
        Problems(errors.into_iter().map(problem).collect())
    })
}

fn apply_flags(table: &mut Table, flags: &Flags) {
    let flags: [(&'static str, &[&str], &Option<String>); 2] = [
        ("--listen", &["listen"], &flags.listen),
        ("--internal-listen", &["internal", "listen"], &flags.internal_listen),
    ];
    for (flag, path, value) in flags {
        if let Some(text) = value {
            // A value in the place of a section is reported when the section is read.
            let _ = overlay(table, path, Node::text(text, Origin::Flag(flag)));
        }
    }
}

fn resolve(mut root: Section<'_>, dev: bool, kept: &Kept) -> Config {
    let listen = server::listen(&mut root, dev);
    let shards = root.count("shards", 0, 0..=SHARDS_MAX);
    let internal = server::internal(&mut root, listen);
    let tls = server::tls(&mut root);
    let (api, api_key) = server::api(&mut root, dev, kept.api_key.as_ref());
    let (proxies, asked) = proxy::read(&mut root);
    let (client, hmac_secret) = client::read(&mut root, dev, kept.hmac_secret.as_ref(), asked);
    let channels = channels::read(&mut root, dev, &proxies);
    let mut backplane_section = root.section("backplane");
    let memory = server::memory(&mut backplane_section);
    let backplane = self::backplane::read(&mut root, &mut backplane_section);
    let session = server::session(&mut root, dev);
    let rebalance = self::placement::rebalance(&mut root);
    let placement = self::placement::read(&mut root, &rebalance);
    let kubernetes = self::kubernetes::read(&mut root, &backplane.kind);
    Config {
        dev,
        listen,
        shards,
        internal,
        tls,
        api,
        client,
        channels,
        proxies,
        limits: server::limits(&mut root),
        handshake: server::handshake(&mut root),
        admission: server::admission(&mut root),
        addresses: server::client_address(&mut root),
        hub: server::hub(&mut root),
        session,
        backplane,
        memory,
        drain: server::drain(&mut root, dev),
        placement,
        kubernetes,
        rebalance,
        log: server::log(&mut root),
        generated: Generated { api_key, hmac_secret },
        warnings: Vec::new(),
        settings: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
