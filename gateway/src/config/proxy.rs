//! Event proxies: what is asked of the application over HTTP, and how (protocol section 9).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use session::proxy::{CONNECT, ProxyName, ProxySettings, REFRESH, RpcRoutes};
use url::Url;

use super::problem::Problem;
use super::reader::Section;
use super::secret::Secret;
use super::server::check_certificates;
use super::values::read_file;

const SECOND: Duration = Duration::from_secs(1);

/// Every proxy by its name.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Proxies {
    /// [`CONNECT`], [`REFRESH`], and those of channels and methods under the names they were given.
    pub endpoints: BTreeMap<ProxyName, Endpoint>,
}

/// Where one proxy is, and how it is asked.
#[derive(Clone, PartialEq, Debug)]
pub struct Endpoint {
    /// `http` or `https`.
    pub url: Url,
    /// How long a call may take, waiting for its turn included.
    pub timeout: Duration,
    /// Calls under way.
    pub concurrency: usize,
    /// Calls that wait for their turn; above it they fail at once.
    pub queue: usize,
    /// The longest answer.
    pub response_bytes: usize,
    /// Failures in a row after which it is not asked for a while; 0 asks always.
    pub breaker_failures: u32,
    /// That while.
    pub breaker_pause: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Headers of the upgrade request that are passed on.
    pub http_headers: Vec<HeaderName>,
    /// Headers that clients may emulate.
    pub emulated_headers: Vec<HeaderName>,
    /// Headers of our own. The values are secret.
    pub static_headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether it is told the connection's `meta`.
    pub include_connection_meta: bool,
    /// Whether payloads are sent in base64.
    pub binary_encoding: bool,
    /// The certificate authorities to trust, PEM; `None` takes those of the system.
    pub ca: Option<String>,
}

/// What the keys of [`Endpoint`] are where they are not written.
#[derive(Clone)]
struct Defaults {
    timeout: Duration,
    concurrency: usize,
    queue: usize,
    response_bytes: usize,
    breaker_failures: usize,
    breaker_pause: Duration,
    idle_timeout: Duration,
    http_headers: Vec<String>,
    emulated_headers: Vec<String>,
    static_headers: Vec<Secret>,
    include_connection_meta: bool,
    binary_encoding: bool,
    ca_file: Option<PathBuf>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            // Protocol section 9.1; clients wait 5 s for an answer.
            timeout: SECOND,
            // At 10 ms a call some 25,000 calls per second and node, which is more than a node takes connects.
            concurrency: 256,
            // A storm of connects: those waiting longer than the timeout fail anyway.
            queue: 4096,
            // As much as the server API takes.
            response_bytes: 1 << 20,
            // A pod that restarts costs a few calls, a backend that is down many more.
            breaker_failures: 10,
            breaker_pause: SECOND,
            // Below the 5 s after which common servers (Node.js) close an idle connection: a call on a connection that
            // is just being closed would fail.
            idle_timeout: 4 * SECOND,
            http_headers: Vec::new(),
            emulated_headers: Vec::new(),
            static_headers: Vec::new(),
            include_connection_meta: false,
            binary_encoding: false,
            ca_file: None,
        }
    }
}

/// Reads the tables `proxy` and `rpc`.
pub(super) fn read(root: &mut Section<'_>) -> (Proxies, ProxySettings) {
    let mut endpoints = BTreeMap::new();
    let mut section = root.section("proxy");
    let common = keys(&mut section, &Defaults::default());
    for name in [CONNECT, REFRESH] {
        if let Some(endpoint) = endpoint(&mut section.section(name), &common, false) {
            endpoints.insert(ProxyName::from(name), endpoint);
        }
    }
    for mut own in section.sections("endpoints") {
        let name = own.text("name", "");
        let endpoint = endpoint(&mut own, &common, true);
        if !is_name(&name) {
            own.problem("name", "must be one or more of the characters A-Z a-z 0-9 - _ .");
        } else if name == CONNECT || name == REFRESH {
            own.problem("name", format!("{name} has a section of its own"));
        } else if endpoints.contains_key(name.as_str()) {
            own.problem("name", "is the name of another endpoint too");
        } else if let Some(endpoint) = endpoint {
            endpoints.insert(ProxyName::from(name), endpoint);
        }
    }
    let proxies = Proxies { endpoints };
    let rpc = rpc(root, &proxies);
    let any = |is: fn(&Endpoint) -> bool| proxies.endpoints.values().any(is);
    let settings = ProxySettings {
        connect: proxies.endpoints.contains_key(CONNECT),
        refresh: proxies.endpoints.contains_key(REFRESH),
        rpc,
        keeps_meta: any(|endpoint| endpoint.include_connection_meta),
        emulates_headers: any(|endpoint| !endpoint.emulated_headers.is_empty()),
    };
    (proxies, settings)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// `<what>proxy_enabled` and `<what>proxy_name`: the proxy that is asked, if any.
pub(super) fn reference(section: &mut Section<'_>, what: &str, proxies: &Proxies) -> Option<ProxyName> {
    let (enabled_key, name_key) = (format!("{what}proxy_enabled"), format!("{what}proxy_name"));
    let enabled = section.flag(&enabled_key, false);
    let name = section.text(&name_key, "default");
    if !enabled {
        return None;
    }
    let known =
        proxies.endpoints.get_key_value(name.as_str()).filter(|(name, _)| !matches!(&***name, CONNECT | REFRESH));
    if known.is_none() {
        let at = if section.is_set(&name_key) { &name_key } else { &enabled_key };
        section.problem(at, format!("there is no usable endpoint {name:?} in proxy.endpoints"));
    }
    known.map(|(name, _)| name.clone())
}

fn rpc(root: &mut Section<'_>, proxies: &Proxies) -> RpcRoutes {
    let mut section = root.section("rpc");
    let boundary = section.text("namespace_boundary", ":");
    let without_namespace = reference(&mut section, "", proxies);
    let mut namespaces = BTreeMap::new();
    for mut own in section.sections("namespaces") {
        let name = own.text("name", "");
        let proxy = reference(&mut own, "", proxies);
        if !is_name(&name) || (!boundary.is_empty() && name.contains(&boundary)) {
            own.problem("name", "must be one or more of the characters A-Z a-z 0-9 - _ ., without the boundary");
        } else if namespaces.insert(name, proxy).is_some() {
            own.problem("name", "is the name of another namespace too");
        }
    }
    RpcRoutes { without_namespace, namespaces, boundary }
}

/// The keys that `proxy` and every endpoint have.
fn keys(section: &mut Section<'_>, defaults: &Defaults) -> Defaults {
    let ca_file = section.text_opt("ca_file").map(PathBuf::from);
    if let Some(path) = &ca_file
        && let Err(reason) = check_certificates(path)
    {
        section.problem("ca_file", reason);
    }
    let own_headers = section.secrets("static_headers");
    let has_own = section.is_set("static_headers") || section.is_set("static_headers_file");
    let static_headers = if has_own { own_headers } else { defaults.static_headers.clone() };
    let keys = Defaults {
        timeout: section.duration("timeout", defaults.timeout, Duration::from_millis(10)..=30 * SECOND),
        concurrency: section.count("concurrency", defaults.concurrency, 1..=100_000),
        queue: section.count("queue", defaults.queue, 0..=1_000_000),
        response_bytes: section.size("response_bytes", defaults.response_bytes, 1024..=64 << 20),
        breaker_failures: section.count("breaker_failures", defaults.breaker_failures, 0..=1_000_000),
        breaker_pause: section.duration(
            "breaker_pause",
            defaults.breaker_pause,
            Duration::from_millis(10)..=300 * SECOND,
        ),
        idle_timeout: section.duration("idle_timeout", defaults.idle_timeout, Duration::ZERO..=3600 * SECOND),
        http_headers: section.texts_or("http_headers", &defaults.http_headers),
        emulated_headers: section.texts_or("emulated_headers", &defaults.emulated_headers),
        static_headers,
        include_connection_meta: section.flag("include_connection_meta", defaults.include_connection_meta),
        binary_encoding: section.flag("binary_encoding", defaults.binary_encoding),
        ca_file: ca_file.or_else(|| defaults.ca_file.clone()),
    };
    check_headers(section, &keys, has_own);
    keys
}

/// Looks at what is written here; what is inherited was looked at where it is written.
fn check_headers(section: &Section<'_>, keys: &Defaults, has_own_static: bool) {
    for (key, texts) in [("http_headers", &keys.http_headers), ("emulated_headers", &keys.emulated_headers)] {
        for text in texts.iter().filter(|_| section.is_set(key)) {
            if let Err(reason) = header_name(text) {
                section.problem(key, format!("{text:?} {reason}"));
            }
        }
    }
    for header in &keys.static_headers {
        match static_header(header) {
            Ok((name, _)) => {
                let here = has_own_static || section.is_set("emulated_headers");
                if here && keys.emulated_headers.iter().any(|text| name == text.as_str()) {
                    let key = section.key("emulated_headers");
                    section.context.warn(format!("{key} lets clients replace the header {name} of static_headers"));
                }
            }
            Err(reason) if has_own_static => section.problem("static_headers", reason),
            Err(_) => {}
        }
    }
}

/// One endpoint; `None` when it has no address, or mistakes.
fn endpoint(section: &mut Section<'_>, common: &Defaults, needed: bool) -> Option<Endpoint> {
    let problems = section.context.problem_count();
    let text = section.text_opt("endpoint");
    let keys = keys(section, common);
    let url = match text.as_deref().map(parse_url) {
        Some(Ok(url)) => Some(url),
        Some(Err(reason)) => {
            // Without the value, which may have a password in it.
            let key = section.key("endpoint");
            section.context.problem(Problem { place: None, key, value: None, reason });
            None
        }
        None if needed => {
            section.problem("endpoint", "is missing");
            None
        }
        None => None,
    };
    let ca = keys.ca_file.as_deref().and_then(ca);
    if section.context.problem_count() > problems {
        return None;
    }
    Some(Endpoint {
        url: url?,
        timeout: keys.timeout,
        concurrency: keys.concurrency,
        queue: keys.queue,
        response_bytes: keys.response_bytes,
        breaker_failures: u32::try_from(keys.breaker_failures).unwrap_or(u32::MAX),
        breaker_pause: keys.breaker_pause,
        idle_timeout: keys.idle_timeout,
        http_headers: keys.http_headers.iter().filter_map(|name| header_name(name).ok()).collect(),
        emulated_headers: keys.emulated_headers.iter().filter_map(|name| header_name(name).ok()).collect(),
        static_headers: keys.static_headers.iter().filter_map(|header| static_header(header).ok()).collect(),
        include_connection_meta: keys.include_connection_meta,
        binary_encoding: keys.binary_encoding,
        ca,
    })
}

/// The file was checked where its key was read.
fn ca(path: &Path) -> Option<String> {
    read_file(path).ok()
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user name in it: put credentials into static_headers, which are never shown".to_owned());
    }
    Ok(url)
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(text).map_err(|_| "is not the name of a header".to_owned())?;
    if is_of_the_request(&name) {
        return Err("belongs to the gateway's own request and cannot be set".to_owned());
    }
    Ok(name)
}

/// Headers that say how a request is framed, or that are about one connection and mean nothing on another.
fn is_of_the_request(name: &HeaderName) -> bool {
    [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
    ]
    .contains(name)
        || name.as_str().starts_with("sec-websocket-")
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// `Name: value`. The reason never repeats the value.
fn static_header(header: &Secret) -> Result<(HeaderName, HeaderValue), String> {
    let Some((name, value)) = header.expose().split_once(':') else {
        return Err("has an entry that is not \"Name: value\"".to_owned());
    };
    let name = header_name(name.trim()).map_err(|reason| format!("has an entry whose name {reason}"))?;
    let mut value = HeaderValue::from_str(value.trim())
        .map_err(|_| format!("has a value of {name} with characters that no header may have"))?;
    value.set_sensitive(true);
    Ok((name, value))
}
