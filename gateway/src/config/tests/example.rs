//! The sample configuration says the truth: it is accepted, shows the defaults, and has every key.

use super::*;
use crate::config::reader::pattern;

const EXAMPLE: &str = include_str!("../../../config.example.toml");

/// Sections that have the keys of another one, of which the sample shows some, with values as an example.
const IN_PART: [&str; 5] =
    ["namespaces[].", "proxy.connect.", "proxy.refresh.", "proxy.endpoints[].", "rpc.namespaces[]."];

/// The keys of the sample with the text behind them; a key without a default is commented out.
fn shown() -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut shown = BTreeMap::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(header) = line.strip_prefix("[[").and_then(|line| line.strip_suffix("]]")) {
            section = format!("{header}[].");
        } else if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = format!("{header}.");
        } else if let Some((name, value)) = line.split_once(" = ")
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            let value = value.split(" # ").next().unwrap_or(value).trim();
            let before = shown.insert(format!("{section}{name}"), value.to_owned());
            assert_eq!(before, None, "{section}{name} is shown twice");
        }
    }
    shown
}

#[test]
fn the_sample_is_accepted_and_changes_nothing() {
    let sample = Bench::new().toml(EXAMPLE).config();
    let defaults = Bench::new().config();
    assert_eq!(values(&sample), values(&defaults));
    assert_eq!(format!("{:?}", sample.client), format!("{:?}", defaults.client));
    assert_eq!(sample.warnings, defaults.warnings);
}

#[test]
fn the_sample_shows_every_key_and_no_other() {
    // One of each list, for its keys.
    let toml = "namespaces = [{name = \"chat\"}]\n\
                rpc.namespaces = [{name = \"shop\"}]\n\
                proxy.endpoints = [{name = \"default\", endpoint = \"http://127.0.0.1/\"}]";
    let config = Bench::new().toml(toml).config();
    let mut known: BTreeMap<String, Option<String>> =
        config.settings.iter().map(|setting| (pattern(&setting.key), setting.default.clone())).collect();
    let shown = shown();
    // A namespace has the options of `channel`; the sample shows its name and two of them. So it is with proxies.
    let is_in_part = |key: &str| IN_PART.iter().any(|section| key.starts_with(section));
    known.retain(|key, _| !is_in_part(key) || shown.contains_key(key));
    assert!(shown.contains_key("namespaces[].name") && shown.contains_key("proxy.endpoints[].endpoint"));
    let names = |keys: &mut dyn Iterator<Item = &String>| keys.cloned().collect::<Vec<_>>();
    assert_eq!(names(&mut shown.keys()), names(&mut known.keys()));
    for (key, default) in known.iter().filter(|(key, _)| !is_in_part(key)) {
        if let Some(default) = default {
            assert_eq!(&shown[key], default, "{key}: the sample does not show the default");
        }
    }
}

#[test]
fn every_key_of_the_sample_has_a_comment() {
    let mut previous = "";
    for line in EXAMPLE.lines() {
        let key = line.strip_prefix("# ").unwrap_or(line).split_once(" = ").map(|(name, _)| name);
        if let Some(name) = key.filter(|name| !name.contains(' ')) {
            let beside = line.contains(" # ");
            let above = previous.starts_with("# ") && !previous.contains(" = ");
            assert!(beside || above, "{name} has no comment");
        }
        previous = line;
    }
}
