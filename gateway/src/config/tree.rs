//! The raw form of a configuration: a tree of values in which each remembers where it was written. The file is read
//! first, then environment variables and flags are laid over it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned as YamlSpanned;
use toml::Spanned as TomlSpanned;
use toml::de::{DeTable, DeValue};

/// A mapping of keys to values.
pub(super) type Table = BTreeMap<String, Node>;

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Table),
}

/// Where a value was written. Later variants win over earlier ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Origin {
    /// The line of the config file.
    File(usize),
    /// The environment variable.
    Variable(String),
    /// The flag.
    Flag(&'static str),
}

impl Origin {
    /// Files, variables and flags in the order of their precedence.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::File(_) => 0,
            Self::Variable(_) => 1,
            Self::Flag(_) => 2,
        }
    }
}

impl Node {
    pub(super) fn text(text: impl Into<String>, origin: Origin) -> Self {
        Self { value: Value::Text(text.into()), origin }
    }
}

impl fmt::Display for Node {
    /// The value as one would write it, cut where it is long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_CHARS: usize = 80;
        match &self.value {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Integer(value) => write!(f, "{value}"),
            Value::Float(value) => write!(f, "{value}"),
            Value::Text(text) if text.chars().count() > SHOWN_CHARS => {
                write!(f, "{:?}..", text.chars().take(SHOWN_CHARS).collect::<String>())
            }
            Value::Text(text) => write!(f, "{text:?}"),
            Value::List(list) => write!(f, "[{} values]", list.len()),
            Value::Table(table) => write!(f, "{{{} keys}}", table.len()),
        }
    }
}

/// A mistake in the syntax of a file, with its line where the parser tells it.
pub(super) struct SyntaxError {
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// Reads TOML. All syntax errors are reported, as far as the parser can go on.
pub(super) fn parse_toml(text: &str) -> Result<Table, Vec<SyntaxError>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::new(text);
    if errors.is_empty() {
        return Ok(toml_table(document.get_ref(), &lines));
    }
    Err(errors
        .into_iter()
        .map(|error| SyntaxError {
            line: error.span().map(|span| lines.line_of(span.start)),
            reason: format!("TOML: {}", error.message()),
        })
        .collect())
}

fn toml_table(table: &DeTable<'_>, lines: &Lines) -> Table {
    table
        .iter()
        .map(|(key, value)| {
            let mut node = toml_node(value, lines);
            // The line of the key: that of a table's value would be the end of its header.
            node.origin = Origin::File(lines.line_of(key.span().start));
            (key.get_ref().clone().into_owned(), node)
        })
        .collect()
}

fn toml_node(value: &TomlSpanned<DeValue<'_>>, lines: &Lines) -> Node {
    let converted = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        // An integer that does not fit keeps its digits, so that an error can show them.
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Value::Integer(value),
            Err(_) => Value::Text(integer.as_str().to_owned()),
        },
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(datetime) => Value::Text(datetime.to_string()),
        DeValue::Array(list) => Value::List(list.iter().map(|item| toml_node(item, lines)).collect()),
        DeValue::Table(table) => Value::Table(toml_table(table, lines)),
    };
    Node { value: converted, origin: Origin::File(lines.line_of(value.span().start)) }
}

/// Byte offsets to line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset).collect())
    }

    fn line_of(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

/// Reads YAML (or JSON, which is YAML too).
pub(super) fn parse_yaml(text: &str) -> Result<Table, Vec<SyntaxError>> {
    let node = parse_yaml_value(text)?;
    match node.value {
        Value::Null => Ok(Table::new()),
        Value::Table(table) => Ok(table),
        _ => Err(vec![SyntaxError { line: None, reason: "YAML: the document is not a mapping of keys".to_owned() }]),
    }
}

/// Reads one YAML or JSON value.
pub(super) fn parse_yaml_value(text: &str) -> Result<Node, Vec<SyntaxError>> {
    if text.trim().is_empty() {
        return Ok(Node { value: Value::Null, origin: Origin::File(1) });
    }
    serde_saphyr::from_str::<YamlNode>(text).map(|node| node.0).map_err(|error| {
        let line = error.location().map(|location| usize::try_from(location.line()).unwrap_or(usize::MAX));
        // The plain form: the rendered one has a picture of the source over several lines.
        vec![SyntaxError { line, reason: format!("YAML: {}", one_line(&error.without_snippet().to_string())) }]
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A node as the YAML reader makes it.
struct YamlNode(Node);

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = YamlSpanned::<YamlValue>::deserialize(deserializer)?;
        let line = usize::try_from(spanned.referenced.line()).unwrap_or(usize::MAX);
        Ok(Self(Node { value: spanned.value.0, origin: Origin::File(line) }))
    }
}

struct YamlValue(Value);

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor).map(Self)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(YamlNode(node)) = access.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut table = Table::new();
        while let Some(key) = access.next_key::<YamlSpanned<String>>()? {
            let YamlNode(mut node) = access.next_value()?;
            node.origin = Origin::File(usize::try_from(key.referenced.line()).unwrap_or(usize::MAX));
            table.insert(key.value, node);
        }
        Ok(Value::Table(table))
    }
}

/// Lays a value over the tree, at a path of keys. `Err` names the key on the way that holds something else than keys.
pub(super) fn overlay(table: &mut Table, path: &[&str], node: Node) -> Result<(), String> {
    let (name, outer) = path.split_last().expect("a path has at least one key");
    let mut inner = table;
    for (depth, key) in outer.iter().enumerate() {
        let child = inner
            .entry((*key).to_owned())
            .or_insert_with(|| Node { value: Value::Table(Table::new()), origin: node.origin.clone() });
        if matches!(child.value, Value::Null) {
            child.value = Value::Table(Table::new());
        }
        let Value::Table(next) = &mut child.value else {
            return Err(path[..=depth].join("."));
        };
        inner = next;
    }
    inner.insert((*name).to_owned(), node);
    Ok(())
}
