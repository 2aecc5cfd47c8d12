//! From the command line to [`Options`], and what `--dev` prints.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backplane::memory::MemoryLimits;
use tokio_rustls::TlsAcceptor;
use tracing_subscriber::EnvFilter;

use super::websocket_url;
use crate::cli::{self, Command};
use crate::config::{ApiListen, BackplaneKind, Config, Handshake, Log, LogFormat, Secret, Sources};
use crate::drain::DrainTimes;
use crate::hub::HubSettings;
use crate::hub::registry::SHARDS_MAX;
use crate::kubernetes::KubernetesSettings;
use crate::node::{NodeOptions, Runtime};
use crate::shard::inbox::InboxLimits;
use crate::transport::client_address::AddressRules;
use crate::transport::tls;

/// Descriptors kept for everything that is not a client: listeners, files, handshakes, API calls.
const SPARE_DESCRIPTORS: usize = 512;

/// Of these, the ones for listeners, files, the internal listener and the backplane.
const OWN_DESCRIPTORS: usize = 128;

/// The client libraries of Redis, NATS and Kubernetes, as they call themselves in logs, and what they may say unless asked
/// for more: they warn of every single connection that breaks, or comes. That a server is away is said once.
const CLIENT_LIBRARIES: [(&str, &str); 4] =
    [("fred", "error"), ("async_nats", "off"), ("kube_client", "off"), ("kube_runtime", "off")];

/// Handshakes among the connections of a shard that are no WebSockets, by their bounds: a quarter more at the hard limit,
/// and as many calls of the API.
const HANDSHAKES_SHARE: (usize, usize) = (4, 9);

/// Even with next to no descriptors, some handshakes have to be possible.
const HANDSHAKES_MIN: usize = 16;

/// Everything [`super::serve`] needs.
pub struct Options {
    /// For humans; see [`crate::node::Node::name`].
    pub name: String,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub internal_listen: SocketAddr,
    /// Shards, at least 1.
    pub shards: usize,
    /// TLS for clients.
    pub tls: Option<TlsAcceptor>,
    /// What can be reloaded.
    pub runtime: Runtime,
    /// Delivery on this node.
    pub hub: HubSettings,
    /// Bounds between threads.
    pub inbox: InboxLimits,
    /// What carries publications between nodes.
    pub backplane: BackplaneKind,
    /// Bounds of the embedded backplane.
    pub memory: MemoryLimits,
    /// What the node as a whole is bound by.
    pub node: NodeOptions,
    /// The open set in Kubernetes.
    pub kubernetes: KubernetesSettings,
    /// What calls of `/admin` must present.
    pub admin_token: Option<Secret>,
    /// Bounds on connections that are not WebSockets yet.
    pub handshake: Handshake,
    /// Whom to believe about the addresses of clients.
    pub addresses: AddressRules,
    /// The server API is on the internal listener.
    pub api_is_internal: bool,
    /// Bounds of the server API.
    pub api: crate::api::ApiLimits,
    /// Serve the demo page.
    pub demo: bool,
    /// What to print once everything is bound.
    pub announce: Box<dyn Fn(&Places) -> String + Send>,
    /// Reads the configuration again.
    pub reload: Reload,
}

/// Reads the configuration again: the new runtime and the changed keys that need a restart, or every mistake.
pub type Reload = Box<dyn Fn(&Runtime) -> Result<(Runtime, Vec<String>), String> + Send>;

/// Where the gateway listens.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Clients.
    pub public: SocketAddr,
    /// Operators.
    pub internal: SocketAddr,
    /// Clients speak TLS.
    pub tls: bool,
}

pub(super) fn run(arguments: impl IntoIterator<Item = OsString>, environment: BTreeMap<String, String>) -> ExitCode {
    let command = match cli::parse(arguments) {
        Ok(command) => command,
        // Help and version go to standard output and succeed, mistakes to standard error and fail.
        Err(answer) => answer.exit(),
    };
    match command {
        Command::Serve(arguments) => serve(arguments.sources(environment)).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }),
        Command::CheckConfig(arguments) => print(&cli::check_config(&arguments.sources(environment))),
        Command::Token(arguments) => print(&cli::token(&arguments, environment, unix_now())),
        Command::Health(arguments) => print(&cli::health(&arguments)),
        Command::Top(arguments) => crate::top::run(&arguments),
    }
}

fn print(printed: &cli::Printed) -> ExitCode {
    print!("{}", printed.stdout);
    eprint!("{}", printed.stderr);
    printed.exit_code()
}

fn serve(sources: Sources) -> Result<ExitCode> {
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(problems) => bail!("the configuration has mistakes; nothing was started:\n{problems}"),
    };
    start_logs(&config.log)?;
    // Two providers in one process would leave rustls without a default; there is one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    super::serve(options(config, sources)?)
}

fn options(config: Config, sources: Sources) -> Result<Options> {
    let tls = match &config.tls {
        Some(files) => Some(tls::acceptor(&files.cert_file, &files.key_file)?),
        None => None,
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let shards = if config.shards == 0 { cores } else { config.shards }.clamp(1, SHARDS_MAX);
    let (connections_max, handshakes_max) = descriptors(config.limits.max_connections, shards)?;
    Ok(Options {
        name: config.kubernetes.pod_name.clone().unwrap_or_else(host_name),
        listen: config.listen,
        internal_listen: config.internal.listen,
        shards,
        tls,
        runtime: Runtime::new(&config, None)?,
        backplane: config.backplane.kind.clone(),
        hub: hub_settings(&config),
        inbox: InboxLimits { deliveries: config.hub.queue_len, bytes: config.hub.queue_bytes },
        memory: config.memory,
        node: NodeOptions {
            connections_max,
            connections_per_user: config.client.connections_per_user,
            admission: config.admission,
            drain: DrainTimes {
                grace_accept: config.drain.grace_accept,
                window: config.drain.window,
                deadline: config.drain.deadline,
            },
            placement: config.placement.clone(),
        },
        kubernetes: config.kubernetes.clone(),
        addresses: config.addresses.clone(),
        admin_token: config.internal.admin_token.clone(),
        handshake: Handshake { in_flight: config.handshake.in_flight.min(handshakes_max), ..config.handshake.clone() },
        api_is_internal: config.api.listen == ApiListen::Internal,
        api: crate::api::ApiLimits {
            body_bytes: config.api.body_bytes,
            channels_per_broadcast: config.api.channels_per_broadcast,
            commands_per_batch: config.api.commands_per_batch,
        },
        demo: config.dev,
        announce: announcement(&config),
        reload: reload(config, sources),
    })
}

fn hub_settings(config: &Config) -> HubSettings {
    HubSettings {
        linger: config.hub.linger,
        position_check: config.hub.position_check,
        checks_per_tick: config.hub.checks_per_tick,
        losses_per_tick: config.hub.losses_per_tick,
        hold_back_len: config.hub.hold_back_len,
        hold_back_bytes: config.hub.hold_back_bytes,
        recovery_limit: config.client.session.recovery_limit,
        recovery_share: config.hub.recovery_share,
        repair_limit: config.hub.repair_limit,
        repair_rounds: config.hub.repair_rounds,
        retry_delay: config.hub.retry_delay,
    }
}

/// The configured number of connections, or what the descriptor limit leaves room for; and the handshakes per shard
/// that the rest allows, so that a storm of them leaves descriptors to the health checks.
fn descriptors(configured: usize, shards: usize) -> Result<(usize, usize)> {
    let available = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the descriptor limit")?;
    let available = usize::try_from(available).unwrap_or(usize::MAX);
    let room = available.saturating_sub(SPARE_DESCRIPTORS);
    if configured > room {
        tracing::warn!(
            "limits.max_connections is {configured}, but the descriptor limit of {available} has room for {room}: \
             using {room} (raise nofile to have more)"
        );
    }
    let connections = configured.min(room);
    let others = available.saturating_sub(connections).saturating_sub(OWN_DESCRIPTORS) / shards;
    let (share, of) = HANDSHAKES_SHARE;
    Ok((connections, (others / of * share).max(HANDSHAKES_MIN)))
}

fn reload(config: Config, sources: Sources) -> Reload {
    let current = Mutex::new(config);
    Box::new(move |running| {
        let mut current = current.lock().map_err(|_| "an earlier reload failed badly".to_owned())?;
        let (new, needs_restart) = current.reload(&sources).map_err(|problems| problems.to_string())?;
        let runtime = Runtime::new(&new, Some(running)).map_err(|error| format!("{error:#}"))?;
        *current = new;
        Ok((runtime, needs_restart))
    })
}

fn start_logs(log: &Log) -> Result<()> {
    let mut filter = EnvFilter::try_new(&log.level).with_context(|| format!("log.level = {}", log.level))?;
    for (library, level) in CLIENT_LIBRARIES {
        if !log.level.contains(library) {
            filter = filter.add_directive(format!("{library}={level}").parse()?);
        }
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// The two addresses, for whoever started the process; in `--dev` also what a newcomer needs to try it.
fn announcement(config: &Config) -> Box<dyn Fn(&Places) -> String + Send> {
    let dev_key = config.dev.then(|| config.api.keys.first().map(|key| key.expose().to_owned())).flatten();
    let dev = config.dev;
    let api_is_internal = config.api.listen == ApiListen::Internal;
    Box::new(move |places| {
        let websocket = websocket_url(places.public, places.tls);
        let mut text = format!("listening public={websocket}\nlistening internal=http://{}\n", places.internal);
        if dev {
            let scheme = if places.tls { "https" } else { "http" };
            let api = if api_is_internal {
                format!("http://{}", places.internal)
            } else {
                format!("{scheme}://{}", places.public)
            };
            let key = dev_key.as_deref().unwrap_or_default();
            let _ = write!(
                text,
                "\n  demo       {scheme}://{}/   (open it in two tabs)\n  websocket  {websocket}\n  API key    {key}\n\n  \
                 publish from a shell:\n  curl -H 'X-API-Key: {key}' {api}/api/publish \
                 -d '{{\"channel\":\"chat:lobby\",\"data\":{{\"from\":\"curl\",\"text\":\"hello\"}}}}'\n\n",
                places.public,
            );
        }
        text
    })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "gateway".to_owned(), |name| name.trim().to_owned())
}

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
