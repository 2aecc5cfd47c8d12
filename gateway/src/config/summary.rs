//! What `check-config` prints of a configuration without mistakes.

use std::fmt::Write as _;

use super::{ApiListen, Config};

impl Config {
    /// The listeners, what differs from the defaults and what is doubtful, as lines of text. Secrets are masked.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name:<11} {value}").expect("a String takes any text");
        };
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        line("clients", format!("{scheme}://{}/connection/websocket", self.listen));
        let api = match self.api.listen {
            ApiListen::Public => "public",
            ApiListen::Internal => "internal",
        };
        line("server API", format!("/api on the {api} listener, {}", counted(self.api.keys.len(), "key")));
        line("operators", format!("http://{}/health", self.internal.listen));
        let tokens = &self.client.tokens;
        let keys = if tokens.connection.jwks_url.is_some() {
            "keys from jwks_url"
        } else if tokens.connection.has_keys() {
            "configured keys"
        } else {
            "no keys"
        };
        let anonymous = if self.client.session.allow_anonymous { ", anonymous clients allowed" } else { "" };
        line("tokens", format!("{keys}{anonymous}"));
        text.push_str("settings that differ from the defaults:\n");
        let changed: Vec<_> = self.settings.iter().filter(|setting| setting.value != setting.default).collect();
        if changed.is_empty() {
            text.push_str("  none\n");
        }
        for setting in changed {
            let value = setting.value.as_deref().unwrap_or("none");
            let place = setting.place.as_deref().unwrap_or("made up");
            writeln!(text, "  {} = {value}  ({place})", setting.key).expect("a String takes any text");
        }
        for warning in &self.warnings {
            writeln!(text, "warning: {warning}").expect("a String takes any text");
        }
        text
    }
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        0 => format!("no {noun}"),
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
