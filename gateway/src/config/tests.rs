//! The configuration as a whole, through its only door.

mod checks;
mod example;
mod proxies;
mod reload;
mod sources;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// Strong enough to cause no warning.
const SECRET: &str = "a secret of 32 bytes for testing";

/// Sources with files in a directory of their own.
struct Bench {
    directory: TempDir,
    sources: Sources,
}

impl Bench {
    /// Without a file, with a secret.
    fn new() -> Self {
        Self::bare().variable("EVENKEEL_TOKEN_HMAC_SECRET", SECRET)
    }

    /// Without anything.
    fn bare() -> Self {
        Self { directory: TempDir::new().expect("a directory"), sources: Sources::default() }
    }

    fn file(mut self, name: &str, content: &str) -> Self {
        self.sources.file = Some(self.write(name, content));
        self
    }

    fn toml(self, content: &str) -> Self {
        self.file("gateway.toml", content)
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn dev(mut self) -> Self {
        self.sources.flags.dev = true;
        self
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).expect("a file can be written");
        path
    }

    #[track_caller]
    fn config(&self) -> Config {
        Config::load(&self.sources).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The lines of all mistakes, with bare file names.
    #[track_caller]
    fn problems(&self) -> Vec<String> {
        let prefix = format!("{}/", self.directory.path().display());
        match Config::load(&self.sources) {
            Ok(_) => panic!("the configuration is accepted"),
            Err(problems) => problems.to_string().lines().map(|line| line.replace(&prefix, "")).collect(),
        }
    }
}

/// The settings that are not secret, by key.
fn values(config: &Config) -> BTreeMap<String, Option<String>> {
    config.settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect()
}
