//! Single values: what a node must be to be read as each type. A variable or flag is always text, so text is accepted
//! for every type. Reasons never repeat the value, which may be a secret.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::tree::{Node, Origin, Value, parse_yaml_value};
use super::units::{parse_duration, parse_size};

/// The longest file that is read: config files, keys and certificates have some KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn as_bool(node: &Node) -> Result<bool, String> {
    match &node.value {
        Value::Bool(value) => Ok(*value),
        Value::Text(text) if is_outside_file(node) && text == "true" => Ok(true),
        Value::Text(text) if is_outside_file(node) && text == "false" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

pub(super) fn as_integer(node: &Node) -> Result<i64, String> {
    match &node.value {
        Value::Integer(value) => Ok(*value),
        Value::Text(text) if is_outside_file(node) => text.trim().parse().map_err(|_| "must be a number".to_owned()),
        _ => Err("must be a number without a fraction".to_owned()),
    }
}

/// A number with or without a fraction, or text such as `2%`.
pub(super) fn as_number(node: &Node) -> Result<f64, String> {
    let number = match &node.value {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        Value::Text(text) => match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(|percent: f64| percent / 100.0),
            None if is_outside_file(node) => text.trim().parse().ok(),
            None => None,
        },
        _ => None,
    };
    number.filter(|number| number.is_finite()).ok_or_else(|| "must be a number, such as 0.02 or \"2%\"".to_owned())
}

pub(super) fn as_duration(node: &Node) -> Result<Duration, String> {
    match &node.value {
        Value::Text(text) => parse_duration(text),
        Value::Integer(_) | Value::Float(_) => {
            Err("has no unit; write \"25s\", \"500ms\", \"2m\" or \"1h\"".to_owned())
        }
        _ => Err("must be a duration such as \"25s\"".to_owned()),
    }
}

pub(super) fn as_size(node: &Node) -> Result<usize, String> {
    match &node.value {
        Value::Text(text) => parse_size(text),
        Value::Integer(value) => usize::try_from(*value).map_err(|_| "must not be negative".to_owned()),
        _ => Err("must be a size such as \"64KiB\"".to_owned()),
    }
}

pub(super) fn as_text(node: &Node) -> Result<String, String> {
    match &node.value {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) => Err("must be text: put it in quotes".to_owned()),
        _ => Err("must be text".to_owned()),
    }
}

/// A list of texts; from a variable also text with commas, or a list in brackets.
pub(super) fn as_texts(node: &Node) -> Result<Vec<String>, String> {
    match &node.value {
        Value::Text(text) if is_outside_file(node) && !text.trim_start().starts_with('[') => {
            Ok(text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned).collect())
        }
        _ => as_list(node)
            .map_err(|_| "must be a list of texts".to_owned())?
            .iter()
            .map(|item| as_text(item).map_err(|reason| format!("each entry {reason}")))
            .collect(),
    }
}

/// A list; from a variable the text of one, in JSON.
pub(super) fn as_list(node: &Node) -> Result<Vec<Node>, String> {
    match &node.value {
        Value::List(list) => Ok(list.clone()),
        Value::Text(text) if is_outside_file(node) => match parse_yaml_value(text) {
            Ok(Node { value: Value::List(list), .. }) => {
                Ok(list.into_iter().map(|item| item.moved_to(&node.origin)).collect())
            }
            _ => Err("must be a list; in a variable write it as JSON".to_owned()),
        },
        _ => Err("must be a list".to_owned()),
    }
}

/// `1.2.3.4:8000`, `[::1]:8000`, `localhost:8000`, or `:8000` for every IPv4 address of the machine.
pub(super) fn as_address(node: &Node) -> Result<SocketAddr, String> {
    let text = as_text(node)?;
    let port = |port: &str| port.parse::<u16>().ok();
    let address = match text.rsplit_once(':') {
        Some(("", after)) => port(after).map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
        Some(("localhost", after)) => port(after).map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        _ => text.parse().ok(),
    };
    address.ok_or_else(|| "must be an IP address and a port, such as \"0.0.0.0:8000\"".to_owned())
}

/// Whether a value is in its range; the reason names the bound it breaks.
pub(super) fn within<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if value < *range.start() {
        Err(format!("must be at least {}", show(range.start())))
    } else if value > *range.end() {
        Err(format!("must be at most {}", show(range.end())))
    } else {
        Ok(value)
    }
}

/// Text in double quotes, with escapes that TOML, YAML and JSON share.
pub(super) fn quoted(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string()
}

pub(super) fn show_list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(quoted).collect::<Vec<_>>().join(", "))
}

/// The text of a file, up to a bound.
pub(super) fn read_file(path: &Path) -> Result<String, String> {
    let mut content = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut content));
    match read {
        Ok(_) if content.len() as u64 > FILE_BYTES_MAX => Err(format!("the file has more than {FILE_BYTES_MAX} bytes")),
        Ok(_) => Ok(content),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Variables and flags have no types of their own.
fn is_outside_file(node: &Node) -> bool {
    !matches!(node.origin, Origin::File(_))
}

impl Node {
    /// The same value with everything in it said to come from elsewhere.
    fn moved_to(self, origin: &Origin) -> Self {
        let value = match self.value {
            Value::List(list) => Value::List(list.into_iter().map(|item| item.moved_to(origin)).collect()),
            Value::Table(table) => {
                Value::Table(table.into_iter().map(|(key, node)| (key, node.moved_to(origin))).collect())
            }
            value => value,
        };
        Self { value, origin: origin.clone() }
    }
}
