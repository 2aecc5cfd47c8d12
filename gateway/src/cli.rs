//! The command line: what was asked for, and the commands that only print something.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use auth::{Expected, KeySet, NewToken, mint_token};

use crate::ask::{self, Place};
use crate::config::{Config, Flags, Sources, parse_duration};
use crate::top::INTERVAL_MIN;

/// How long a token from `gateway token` is valid unless `--ttl` says otherwise.
const TOKEN_TTL: &str = "1h";

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Run the gateway.
    Serve(ConfigArgs),
    /// Read the configuration and say what is wrong with it.
    CheckConfig(ConfigArgs),
    /// Make a token.
    Token(TokenArgs),
    /// Ask a running gateway whether it is alive.
    Health(HealthArgs),
    /// Show the fleet.
    Top(TopArgs),
}

/// The WebSocket gateway. Without a command it serves.
#[derive(Parser, Debug)]
#[command(name = "gateway", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Subcommands>,
    #[command(flatten)]
    serve: ConfigArgs,
}

#[derive(Subcommand, Debug)]
enum Subcommands {
    /// Run the gateway (the default)
    Serve(ConfigArgs),
    /// Read the configuration, print it in short or everything that is wrong with it
    CheckConfig(ConfigArgs),
    /// Print a token signed with the configured HMAC secret
    Token(TokenArgs),
    /// Ask a running gateway whether it is alive: exit code 0 if it is. For containers without a shell
    Health(HealthArgs),
    /// Show the fleet: nodes, how level they are, what moves and why not. Without a terminal once; q ends it
    Top(TopArgs),
}

/// Flags about the configuration.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigArgs {
    /// The config file, TOML or YAML
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The address for clients, such as 0.0.0.0:8000
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The address for health and metrics, such as 127.0.0.1:9000
    #[arg(long, value_name = "ADDR")]
    pub internal_listen: Option<String>,
    /// A playground on loopback: makes up its keys and lets everybody use any channel
    #[arg(long)]
    pub dev: bool,
}

/// Flags of the `token` command.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct TokenArgs {
    /// The user id; empty for an anonymous user
    #[arg(long, value_name = "USER")]
    pub user: String,
    /// Make a subscription token for this channel instead of a connection token
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<String>,
    /// How long the token is valid, such as 90s, 15m or 12h; 0s for ever
    #[arg(long, value_name = "TTL", default_value = TOKEN_TTL, value_parser = parse_duration)]
    pub ttl: Duration,
    /// The config file that has the secret, unless EVENKEEL_TOKEN_HMAC_SECRET does
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Flags of the `health` command.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct HealthArgs {
    /// The internal address of the gateway
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    pub internal: String,
    /// Ask whether it is ready instead: not before the backplane was reached, nor while it drains
    #[arg(long)]
    pub ready: bool,
}

/// Flags of the `top` command.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct TopArgs {
    /// The internal listener of any node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000", value_parser = Place::parse)]
    pub url: Place,
    /// Print the state once, as without a terminal
    #[arg(long)]
    pub once: bool,
    /// How often to look, such as 500ms or 5s
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < INTERVAL_MIN {
        return Err(format!("shorter than {INTERVAL_MIN:?}, which nobody can see"));
    }
    Ok(interval)
}

impl ConfigArgs {
    /// The sources of the configuration. The environment is passed in: nothing here reads it.
    pub fn sources(&self, environment: BTreeMap<String, String>) -> Sources {
        Sources {
            file: self.config.clone(),
            environment,
            flags: Flags { listen: self.listen.clone(), internal_listen: self.internal_listen.clone(), dev: self.dev },
        }
    }
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// What is wrong with it, or the text of `--help` and `--version`: print it with [`clap::Error::exit`].
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, clap::Error> {
    let cli = Cli::try_parse_from(arguments)?;
    Ok(match cli.command {
        None => Command::Serve(cli.serve),
        Some(Subcommands::Serve(arguments)) => Command::Serve(arguments),
        Some(Subcommands::CheckConfig(arguments)) => Command::CheckConfig(arguments),
        Some(Subcommands::Token(arguments)) => Command::Token(arguments),
        Some(Subcommands::Health(arguments)) => Command::Health(arguments),
        Some(Subcommands::Top(arguments)) => Command::Top(arguments),
    })
}

/// What a command that only prints has to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Printed {
    /// For standard output, with its line ends.
    pub stdout: String,
    /// For standard error, with its line ends.
    pub stderr: String,
    /// Whether the command did what it was asked for: exit code 0, else 1.
    pub success: bool,
}

impl Printed {
    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        if self.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn failure(text: &str) -> Self {
        Self { stderr: format!("{text}\n"), ..Self::default() }
    }
}

/// The `check-config` command: the configuration in short on standard output, or every mistake on standard error.
pub fn check_config(sources: &Sources) -> Printed {
    match Config::load(sources) {
        Ok(config) => Printed {
            stdout: format!("the configuration is valid\n{}", config.summary()),
            success: true,
            ..Printed::default()
        },
        Err(problems) => Printed::failure(&problems.to_string()),
    }
}

/// The `token` command: only the token on standard output, so that a script can use it as it is.
pub fn token(arguments: &TokenArgs, environment: BTreeMap<String, String>, now_unix: i64) -> Printed {
    let sources = Sources { file: arguments.config.clone(), environment, flags: Flags::default() };
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(problems) => return Printed::failure(&problems.to_string()),
    };
    if arguments.channel.as_deref() == Some("") {
        return Printed::failure("--channel is empty");
    }
    let keys = match (&arguments.channel, &config.client.tokens.subscription) {
        (Some(_), Some(own)) => own,
        _ => &config.client.tokens.connection,
    };
    let Some(secret) = keys.hmac_secret.as_deref().filter(|_| keys.jwks_url.is_none()) else {
        return Printed::failure(
            "the gateway checks these tokens with public keys; only their private key makes tokens",
        );
    };
    match mint_token(secret, &claims(arguments, keys, now_unix)) {
        Ok(token) => Printed { stdout: format!("{token}\n"), success: true, ..Printed::default() },
        Err(error) => Printed::failure(&error.to_string()),
    }
}

/// The `health` command.
pub fn health(arguments: &HealthArgs) -> Printed {
    let path = if arguments.ready { "/health/ready" } else { "/health/live" };
    match ask::get(&arguments.internal, path).map(|answer| answer.status) {
        Ok(200) => Printed { success: true, ..Printed::default() },
        Ok(status) => Printed::failure(&format!("{path} of {} answers {status}", arguments.internal)),
        Err(error) => Printed::failure(&format!("{} cannot be asked: {error}", arguments.internal)),
    }
}

/// Claims that pass the gateway's own checks, as far as they ask for one text.
fn claims(arguments: &TokenArgs, keys: &KeySet, now_unix: i64) -> NewToken {
    let exact = |rule: &Option<Expected>| match rule {
        Some(Expected::Exact(text)) => Some(text.clone()),
        Some(Expected::Matching(_)) | None => None,
    };
    let ttl = i64::try_from(arguments.ttl.as_secs()).unwrap_or(i64::MAX);
    NewToken {
        sub: arguments.user.clone(),
        channel: arguments.channel.clone(),
        iat: Some(now_unix),
        exp: (ttl > 0).then(|| now_unix.saturating_add(ttl)),
        iss: exact(&keys.issuer),
        aud: exact(&keys.audience),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use auth::{Verification, Verifier};

    use super::*;

    const NOW: i64 = 1_700_000_000;
    const SECRET: &str = "a secret of 32 bytes for testing";

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn parsed(line: &str) -> Command {
        parse(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn serving_is_the_default_command() {
        let expected = ConfigArgs {
            config: Some("a.toml".into()),
            listen: Some("127.0.0.1:1".to_owned()),
            internal_listen: Some("127.0.0.1:2".to_owned()),
            dev: true,
        };
        let flags = "--config a.toml --listen 127.0.0.1:1 --internal-listen 127.0.0.1:2 --dev";
        assert_eq!(parsed("gateway"), Command::Serve(ConfigArgs::default()));
        assert_eq!(parsed("gateway serve"), Command::Serve(ConfigArgs::default()));
        assert_eq!(parsed(&format!("gateway {flags}")), Command::Serve(expected.clone()));
        assert_eq!(parsed(&format!("gateway serve {flags}")), Command::Serve(expected.clone()));
        assert_eq!(parsed(&format!("gateway check-config {flags}")), Command::CheckConfig(expected));
    }

    #[test]
    fn the_token_command_has_a_user_and_a_lifetime() {
        let expected =
            TokenArgs { user: "u17".to_owned(), channel: None, ttl: Duration::from_secs(3600), config: None };
        assert_eq!(parsed("gateway token --user u17"), Command::Token(expected.clone()));
        let expected = TokenArgs { channel: Some("a:b".to_owned()), ttl: Duration::from_secs(90), ..expected };
        assert_eq!(parsed("gateway token --user u17 --channel a:b --ttl 90s"), Command::Token(expected));
    }

    #[test]
    fn the_fleet_is_looked_at_once_a_second_on_this_machine() {
        let expected = TopArgs {
            url: Place::parse("http://127.0.0.1:9000").expect("a URL"),
            once: false,
            interval: Duration::from_secs(1),
        };
        assert_eq!(parsed("gateway top"), Command::Top(expected.clone()));
        let url = Place::parse("http://pod-1:9000").expect("a URL");
        let expected = TopArgs { url, once: true, interval: Duration::from_millis(500) };
        assert_eq!(parsed("gateway top --url http://pod-1:9000 --once --interval 500ms"), Command::Top(expected));
    }

    #[test]
    fn health_is_what_the_server_says() {
        let answered = |line: &'static str| {
            let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let internal = server.local_addr().expect("a bound socket has an address").to_string();
            let answering = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().expect("somebody asks");
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).expect("a request");
                stream.write_all(line.as_bytes()).expect("it listens");
                request
            });
            let printed = health(&HealthArgs { internal, ready: true });
            assert!(answering.join().expect("no panic").starts_with("GET /health/ready "));
            (printed.success, printed.stderr)
        };
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\n"), (true, String::new()));
        let (success, why) = answered("HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert!(!success && why.contains("503"), "{why}");
        let (success, why) = answered("SSH-2.0\r\n");
        assert!(!success && why.contains("no HTTP server"), "{why}");
        let Command::Health(nobody) = parsed("gateway health --internal 127.0.0.1:1") else {
            panic!("a health command")
        };
        assert!(!health(&nobody).success);
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for line in ["gateway token", "gateway nonsense", "gateway --nonsense", "gateway token --user u --ttl 5"] {
            assert!(parse(line.split(' ')).is_err(), "{line}");
        }
        for line in ["gateway top --url 127.0.0.1:9000", "gateway top --interval 50ms", "gateway top --interval 1"] {
            assert!(parse(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_token_is_printed_alone_and_accepted_by_the_gateway() {
        let variables = environment(&[
            ("EVENKEEL_TOKEN_HMAC_SECRET", SECRET),
            ("EVENKEEL_CLIENT__TOKEN__ISSUER", "https://a.test"),
            ("EVENKEEL_CLIENT__TOKEN__AUDIENCE", "chat"),
        ]);
        let sources = ConfigArgs::default().sources(variables.clone());
        let config = Config::load(&sources).expect("a valid configuration");
        let verifier = Verifier::new(&config.client.tokens).expect("usable keys");
        let Command::Token(arguments) = parsed("gateway token --user u17 --ttl 60s") else { panic!("a token command") };
        let printed = token(&arguments, variables.clone(), NOW);
        assert_eq!((printed.success, printed.stderr.as_str()), (true, ""));
        let jwt = printed.stdout.strip_suffix('\n').expect("one line");
        let Verification::Ready(Ok(grant)) = verifier.verify_connection(jwt, NOW + 59) else {
            panic!("the token is not accepted");
        };
        assert_eq!((grant.user.as_str(), grant.expire_at), ("u17", Some(NOW + 60)));

        let Command::Token(arguments) = parsed("gateway token --user u17 --channel a:b --ttl 0s") else {
            panic!("a token command");
        };
        let printed = token(&arguments, variables, NOW);
        let jwt = printed.stdout.trim_end();
        let Verification::Ready(Ok(grant)) = verifier.verify_subscription(jwt, NOW) else {
            panic!("the token is not accepted");
        };
        assert_eq!((grant.channel.as_str(), grant.expire_at), ("a:b", None));
    }

    #[test]
    fn a_subscription_token_is_made_with_its_own_secret() {
        let variables = environment(&[
            ("EVENKEEL_TOKEN_HMAC_SECRET", SECRET),
            ("EVENKEEL_CLIENT__SUBSCRIPTION_TOKEN__HMAC_SECRET", "another secret of 32 bytes, here"),
        ]);
        let config = Config::load(&ConfigArgs::default().sources(variables.clone())).expect("a valid configuration");
        let verifier = Verifier::new(&config.client.tokens).expect("usable keys");
        let Command::Token(arguments) = parsed("gateway token --user u17 --channel a") else {
            panic!("a token command")
        };
        let printed = token(&arguments, variables, NOW);
        let verification = verifier.verify_subscription(printed.stdout.trim_end(), NOW);
        assert!(matches!(verification, Verification::Ready(Ok(_))), "{verification:?}");
    }

    #[test]
    fn without_a_secret_no_token_is_made() {
        let Command::Token(arguments) = parsed("gateway token --user u17") else { panic!("a token command") };
        let printed = token(&arguments, BTreeMap::new(), NOW);
        assert_eq!((printed.success, printed.stdout.as_str()), (false, ""));
        assert!(printed.stderr.contains("EVENKEEL_TOKEN_HMAC_SECRET"), "{}", printed.stderr);
        let printed = token(&arguments, environment(&[("EVENKEEL_CLIENT__TOKEN__JWKS_URL", "http://k.test/k")]), NOW);
        assert_eq!((printed.success, printed.stdout.as_str()), (false, ""));
        assert!(printed.stderr.contains("public keys"), "{}", printed.stderr);
    }

    #[test]
    fn check_config_prints_a_summary_or_every_mistake() {
        let variables = environment(&[("EVENKEEL_TOKEN_HMAC_SECRET", SECRET), ("EVENKEEL_DRAIN__WINDOW", "20s")]);
        let printed = check_config(&ConfigArgs::default().sources(variables));
        assert!(printed.success);
        assert_eq!(printed.stderr, "");
        assert!(printed.stdout.starts_with("the configuration is valid\n"), "{}", printed.stdout);
        assert!(printed.stdout.contains("drain.window = \"20s\"  (EVENKEEL_DRAIN__WINDOW)"), "{}", printed.stdout);
        assert!(printed.stdout.contains("warning: api.keys is empty"), "{}", printed.stdout);
        assert!(!printed.stdout.contains(SECRET), "{}", printed.stdout);

        let variables = environment(&[("EVENKEEL_DRAIN__WINDOW", "20"), ("EVENKEEL_LISTEN", "x")]);
        let printed = check_config(&ConfigArgs::default().sources(variables));
        assert_eq!((printed.success, printed.stdout.as_str()), (false, ""));
        assert_eq!(printed.stderr.lines().count(), 3, "{}", printed.stderr);
    }
}
