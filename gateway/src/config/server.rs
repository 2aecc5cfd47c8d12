//! The process: listeners, certificates, the server API, resources, the hub and the backplane, shutdown and logs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backplane::memory::MemoryLimits;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing_subscriber::EnvFilter;

use super::reader::Section;
use super::secret::Secret;
use super::units::show_duration;
use super::values::read_file;
use crate::admission::AdmissionSettings;
use crate::drain::DrainTimes;
use crate::sessions::SessionSettings;
use crate::transport::client_address::{AddressHeader, AddressRules};
use crate::transport::network::Network;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The listener for operators.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Internal {
    /// Its address. Loopback unless configured: metrics and drain are nobody else's business.
    pub listen: SocketAddr,
    /// What calls of `/admin` must present, beside the header that all of them need.
    pub admin_token: Option<Secret>,
}

/// The certificate of the public listener. Both files were readable and well-formed when the configuration was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// PEM, the leaf first.
    pub cert_file: PathBuf,
    /// PEM, one private key.
    pub key_file: PathBuf,
}

/// The server API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Api {
    /// Which listener serves `/api`.
    pub listen: ApiListen,
    /// Accepted keys. None answers every call with 401.
    pub keys: Vec<Secret>,
    /// Whether `?api_key=` is accepted beside the headers: only with `--dev`, since addresses end up in logs.
    pub key_in_query: bool,
    /// The longest request body.
    pub body_bytes: usize,
    /// Most channels of one broadcast.
    pub channels_per_broadcast: usize,
    /// Most commands of one batch, or of one call in the old form.
    pub commands_per_batch: usize,
}

/// Which listener serves the server API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApiListen {
    /// The one that clients use.
    Public,
    /// The one for operators.
    Internal,
}

/// Bounds of the whole process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Client connections. To be clamped to the descriptor limit minus 512.
    pub max_connections: usize,
}

/// Bounds on connections that are not WebSockets yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handshake {
    /// How long a peer may take for the TLS handshake, and again for the head of a request.
    pub header_timeout: Duration,
    /// The longest head of a request.
    pub header_bytes: usize,
    /// Handshakes under way per shard; above it who comes waits, and where nobody gets in the answer is 503. As many other
    /// connections (calls of the API on the public listener) may be open beside them.
    pub in_flight: usize,
    /// Connections per shard that may wait until a handshake with them begins, beside the few that are taken at once in any
    /// case; more stay with the kernel.
    pub queue_len: usize,
    /// How long they may wait; then the answer is 503.
    pub queue_timeout: Duration,
}

/// Delivery on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hub {
    /// A positioned channel that was quiet this long is compared with the backplane's top.
    pub position_check: Duration,
    /// Channels compared per tenth of a second and shard.
    pub checks_per_tick: usize,
    /// Subscribers told per tenth of a second and shard that their position is lost.
    pub losses_per_tick: usize,
    /// How long a channel without subscribers keeps its interest.
    pub linger: Duration,
    /// Deliveries held back per channel while it is repaired.
    pub hold_back_len: usize,
    /// Bytes held back per channel while it is repaired.
    pub hold_back_bytes: usize,
    /// How long what one recovery has read answers those who come back after it.
    pub recovery_share: Duration,
    /// Publications read per repair round.
    pub repair_limit: usize,
    /// Repair rounds before the position counts as lost.
    pub repair_rounds: u32,
    /// Pause before a failed repair read is tried again.
    pub retry_delay: Duration,
    /// Deliveries that may wait for a shard.
    pub queue_len: usize,
    /// Bytes of the deliveries that may wait for a shard.
    pub queue_bytes: usize,
}

/// How the process ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drain {
    /// How long new connections are accepted after readiness failed.
    pub grace_accept: Duration,
    /// The time over which connections are closed.
    pub window: Duration,
    /// When it is over at the latest, counted from its beginning.
    pub deadline: Duration,
}

/// Logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// A level, or directives such as `info,gateway=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

pub(super) fn listen(root: &mut Section<'_>, dev: bool) -> SocketAddr {
    let host = if dev { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let listen = root.address("listen", SocketAddr::new(IpAddr::V4(host), 8000));
    if dev && !listen.ip().is_loopback() {
        root.context.warn(format!("--dev lets everybody who reaches {listen} read and publish"));
    }
    listen
}

pub(super) fn internal(root: &mut Section<'_>, public: SocketAddr) -> Internal {
    let mut section = root.section("internal");
    let listen = section.address("listen", SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9000));
    let same_port = listen.port() == public.port() && listen.port() != 0;
    if same_port && (listen.ip() == public.ip() || listen.ip().is_unspecified() || public.ip().is_unspecified()) {
        section.problem("listen", format!("overlaps listen = \"{public}\""));
    }
    Internal { listen, admin_token: section.secret("admin_token") }
}

pub(super) fn tls(root: &mut Section<'_>) -> Option<Tls> {
    let mut section = root.section("tls");
    let cert_file = section.text_opt("cert_file").map(PathBuf::from);
    let key_file = section.text_opt("key_file").map(PathBuf::from);
    if let Some(path) = &cert_file
        && let Err(reason) = check_certificates(path)
    {
        section.problem("cert_file", reason);
    }
    if let Some(path) = &key_file
        && let Err(reason) = check_private_key(path)
    {
        section.problem("key_file", reason);
    }
    match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(Tls { cert_file, key_file }),
        (None, None) => None,
        (Some(_), None) => {
            section.problem("cert_file", "needs key_file too");
            None
        }
        (None, Some(_)) => {
            section.problem("key_file", "needs cert_file too");
            None
        }
    }
}

pub(super) fn check_certificates(path: &Path) -> Result<(), String> {
    let pem = read_file(path)?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        certificate.map_err(|error| format!("is not PEM: {error}"))?;
        count += 1;
    }
    if count == 0 { Err("has no certificate in it".to_owned()) } else { Ok(()) }
}

pub(super) fn check_private_key(path: &Path) -> Result<(), String> {
    let pem = read_file(path)?;
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map(|_| ())
        .map_err(|error| format!("has no usable private key: {error}"))
}

/// The second result is whether the key was made up.
pub(super) fn api(root: &mut Section<'_>, dev: bool, kept_key: Option<&Secret>) -> (Api, bool) {
    let mut section = root.section("api");
    let mut keys = section.secrets("keys");
    let generated = dev && keys.is_empty();
    if generated {
        keys.push(kept_key.cloned().unwrap_or_else(Secret::random));
    }
    if keys.is_empty() {
        section.context.warn("api.keys is empty: the server API answers every call with 401");
    }
    let words = [("public", ApiListen::Public), ("internal", ApiListen::Internal)];
    let api = Api {
        listen: section.choice("listen", ApiListen::Public, &words),
        keys,
        key_in_query: dev,
        body_bytes: section.size("body_bytes", 1 << 20, 1024..=1 << 30),
        channels_per_broadcast: section.count("channels_per_broadcast", 10_000, 1..=1_000_000),
        commands_per_batch: section.count("commands_per_batch", 1_000, 1..=1_000_000),
    };
    (api, generated)
}

pub(super) fn limits(root: &mut Section<'_>) -> Limits {
    let mut section = root.section("limits");
    Limits { max_connections: section.count("max_connections", 100_000, 1..=10_000_000) }
}

pub(super) fn handshake(root: &mut Section<'_>) -> Handshake {
    let mut section = root.section("handshake");
    Handshake {
        header_timeout: section.duration("header_timeout", 5 * SECOND, Duration::from_millis(100)..=MINUTE),
        // hyper keeps at least 8 KiB of a head; tokens in the address or cookies need a few KiB.
        header_bytes: section.size("header_bytes", 16 << 10, 8 << 10..=1 << 20),
        in_flight: section.count("in_flight", 512, 1..=1_000_000),
        // Two seconds of handshakes of a fast core. Who waits costs us some hundred bytes, and the kernel what it would have
        // cost it in its own queue.
        queue_len: section.count("queue_len", 16_384, 0..=1_000_000),
        // SDKs give up an attempt after 5 s. Who waited for less than half of it can still become connected.
        queue_timeout: section.duration("queue_timeout", 2 * SECOND, Duration::from_millis(100)..=MINUTE),
    }
}

pub(super) fn admission(root: &mut Section<'_>) -> AdmissionSettings {
    let defaults = AdmissionSettings::default();
    let mut section = root.section("admission");
    let mut count = |name: &str, default: u32| {
        u32::try_from(section.count(name, default as usize, 0..=1_000_000)).unwrap_or(default)
    };
    AdmissionSettings {
        rate: count("rate", defaults.rate),
        connections_per_address: count("connections_per_address", defaults.connections_per_address),
        rate_per_address: count("rate_per_address", defaults.rate_per_address),
        ramp: section.duration("ramp", defaults.ramp, Duration::ZERO..=10 * MINUTE),
    }
}

pub(super) fn client_address(root: &mut Section<'_>) -> AddressRules {
    let mut section = root.section("client_address");
    let texts = section.texts("trusted_proxies");
    let networks = texts.iter().filter_map(|text| match text.parse::<Network>() {
        Ok(network) => Some(network),
        Err(reason) => {
            section.problem("trusted_proxies", format!("{text:?} {reason}"));
            None
        }
    });
    let trusted_proxies: Vec<Network> = networks.collect();
    let words = [
        ("x-forwarded-for", AddressHeader::XForwardedFor),
        ("forwarded", AddressHeader::Forwarded),
        ("none", AddressHeader::Off),
    ];
    let header = section.choice("header", AddressHeader::XForwardedFor, &words);
    let proxy_protocol = section.flag("proxy_protocol", false);
    if proxy_protocol && texts.is_empty() {
        section.problem("proxy_protocol", "needs trusted_proxies: PROXY headers are read from nobody else");
    }
    AddressRules { trusted_proxies, header, proxy_protocol }
}

pub(super) fn hub(root: &mut Section<'_>) -> Hub {
    let mut section = root.section("hub");
    Hub {
        position_check: section.duration("position_check", 40 * SECOND, SECOND..=24 * HOUR),
        checks_per_tick: section.count("checks_per_tick", 100, 1..=100_000),
        losses_per_tick: section.count("losses_per_tick", 500, 1..=1_000_000),
        linger: section.duration("linger", 5 * SECOND, Duration::ZERO..=HOUR),
        hold_back_len: section.count("hold_back_len", 1024, 1..=1_000_000),
        hold_back_bytes: section.size("hold_back_bytes", 1 << 20, 1024..=1 << 30),
        recovery_share: section.duration("recovery_share", SECOND, Duration::ZERO..=MINUTE),
        repair_limit: section.count("repair_limit", 1_000, 1..=100_000),
        repair_rounds: u32::try_from(section.count("repair_rounds", 16, 1..=1_000)).unwrap_or(16),
        retry_delay: section.duration("retry_delay", SECOND, Duration::from_millis(10)..=MINUTE),
        queue_len: section.count("queue_len", 65_536, 64..=16_777_216),
        queue_bytes: section.size("queue_bytes", 64 << 20, 1 << 20..=16 << 30),
    }
}

pub(super) fn session(root: &mut Section<'_>, dev: bool) -> SessionSettings {
    let defaults = SessionSettings::default();
    let mut section = root.section("session");
    let settings = SessionSettings {
        enabled: section.flag("enabled", defaults.enabled),
        ttl: section.duration("ttl", defaults.ttl, 10 * SECOND..=24 * HOUR),
        presence_grace: section.duration("presence_grace", defaults.presence_grace, SECOND..=10 * MINUTE),
        verdict_ttl: section.duration("verdict_ttl", defaults.verdict_ttl, Duration::ZERO..=24 * HOUR),
        anonymous: section.flag("anonymous", dev),
    };
    if settings.verdict_ttl.subsec_nanos() != 0 {
        section.problem("verdict_ttl", "must be whole seconds");
    }
    if settings.presence_grace > settings.ttl {
        section.problem("presence_grace", "must not be longer than session.ttl: nobody could come back to it");
    }
    settings
}

pub(super) fn memory(backplane: &mut Section<'_>) -> MemoryLimits {
    let defaults = MemoryLimits::default();
    let mut section = backplane.section("memory");
    MemoryLimits {
        history_bytes: section.size("history_bytes", defaults.history_bytes, 1 << 20..=1 << 40),
        channels: section.count("channels", defaults.channels, 1_000..=1_000_000_000),
        presence_entries: section.count("presence_entries", defaults.presence_entries, 1_000..=1_000_000_000),
        idempotency_keys: section.count("idempotency_keys", defaults.idempotency_keys, 1_000..=1_000_000_000),
        session_bytes: section.size("session_bytes", defaults.session_bytes, 1 << 20..=1 << 40),
    }
}

pub(super) fn drain(root: &mut Section<'_>, dev: bool) -> Drain {
    let mut section = root.section("drain");
    let default = |time: Duration| if dev { Duration::ZERO } else { time };
    let grace_accept = section.duration("grace_accept", default(5 * SECOND), Duration::ZERO..=10 * MINUTE);
    let window = section.duration("window", default(30 * SECOND), Duration::ZERO..=HOUR);
    let whole = DrainTimes::deadline_of(grace_accept, window);
    let deadline = section.duration("deadline", whole, SECOND..=2 * HOUR);
    if deadline < whole {
        section.context.warn(format!(
            "drain.deadline leaves less than drain.grace_accept and drain.window together need: closes come faster              (it takes {})",
            show_duration(whole)
        ));
    }
    Drain { grace_accept, window, deadline }
}

pub(super) fn log(root: &mut Section<'_>) -> Log {
    let mut section = root.section("log");
    let level = section.text("level", "info");
    if let Err(error) = EnvFilter::try_new(&level) {
        section.problem("level", format!("must be error, warn, info, debug, trace or directives: {error}"));
    }
    let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log { level, format: section.choice("format", LogFormat::Text, &words) }
}
