//! From the raw tree to typed values. Reading never stops at a mistake: it is noted, the default takes its place, and
//! what nobody asked for turns out to be an unknown key.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::problem::{Problem, nearest};
use super::secret::{MASK, Secret};
use super::tree::{Node, Origin, Table, Value};
use super::units::{show_duration, show_size};
use super::values::{
    as_address, as_bool, as_duration, as_integer, as_list, as_number, as_size, as_text, as_texts, quoted, read_file,
    show_list, within,
};

/// One key as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The key, with dots; the entries of lists have their position in brackets.
    pub key: String,
    /// The value in use, as one would write it; secrets are masked. `None` where there is none.
    pub value: Option<String>,
    /// The default; `None` where there is none.
    pub default: Option<String>,
    /// Where the value was written; `None` for the default.
    pub place: Option<String>,
}

/// What reading gathers.
pub(super) struct Context {
    /// The name of the config file, for places.
    file: String,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    settings: RefCell<Vec<Setting>>,
    /// Keys that may be written: settings and sections.
    known: RefCell<Vec<String>>,
    unknown: RefCell<Vec<(String, Node)>>,
}

impl Context {
    pub(super) fn new(file: Option<&Path>) -> Self {
        Self {
            file: file.map(|path| path.display().to_string()).unwrap_or_default(),
            problems: RefCell::default(),
            warnings: RefCell::default(),
            settings: RefCell::default(),
            known: RefCell::default(),
            unknown: RefCell::default(),
        }
    }

    pub(super) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Something that works, but probably not as meant.
    pub(super) fn warn(&self, text: impl Into<String>) {
        self.warnings.borrow_mut().push(text.into());
    }

    /// How many mistakes were noted so far; unknown keys come later.
    pub(super) fn problem_count(&self) -> usize {
        self.problems.borrow().len()
    }

    pub(super) fn place(&self, origin: &Origin) -> String {
        match origin {
            Origin::File(line) => format!("{}:{line}", self.file),
            Origin::Variable(name) => name.clone(),
            Origin::Flag(name) => (*name).to_owned(),
        }
    }

    /// Everything gathered, once every section has been dropped.
    pub(super) fn finish(self) -> Gathered {
        let mut problems = self.problems.take();
        let known = self.known.take();
        for (key, node) in self.unknown.take() {
            let place = self.place(&node.origin);
            let reason = match nearest(&pattern(&key), known.iter().map(String::as_str)) {
                Some(meant) => format!("unknown key, did you mean {meant}?"),
                None => "unknown key".to_owned(),
            };
            // The value may be a secret under a misspelt name.
            problems.push(Problem { place: Some(place), key, value: None, reason });
        }
        Gathered { problems, warnings: self.warnings.take(), settings: self.settings.take() }
    }
}

/// A key with the positions in lists left out: `namespaces[2].name` is the key `namespaces[].name`.
pub(super) fn pattern(key: &str) -> String {
    let mut pattern = String::with_capacity(key.len());
    let mut inside = false;
    for c in key.chars() {
        inside = inside && c != ']';
        if !inside {
            pattern.push(c);
        }
        inside = inside || c == '[';
    }
    pattern
}

/// The result of reading.
pub(super) struct Gathered {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    pub(super) settings: Vec<Setting>,
}

/// The keys of one table, taken out one by one. When it is dropped, the keys that are left are unknown.
pub(super) struct Section<'c> {
    pub(super) context: &'c Context,
    path: String,
    table: Table,
    read: BTreeMap<String, Read>,
}

/// A key of a section after it was read.
struct Read {
    /// The value in use; `None` where there is none or it is a secret.
    shown: Option<String>,
    /// Where it was written; `None` for the default.
    origin: Option<Origin>,
}

/// How values of a kind are read and shown.
struct Kind<'k, T> {
    parse: &'k dyn Fn(&Node) -> Result<T, String>,
    show: &'k dyn Fn(&T) -> String,
    /// What was written must not be repeated anywhere.
    secret: bool,
}

impl<'k, T> Kind<'k, T> {
    fn shown(parse: &'k dyn Fn(&Node) -> Result<T, String>, show: &'k dyn Fn(&T) -> String) -> Self {
        Self { parse, show, secret: false }
    }
}

impl<'c> Section<'c> {
    pub(super) fn new(context: &'c Context, path: String, table: Table) -> Self {
        Self { context, path, table, read: BTreeMap::new() }
    }

    /// The full name of a key of this section.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether the section has anything in it that was not read yet.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether somebody wrote this key, which has been read already.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.read.get(name).is_some_and(|read| read.origin.is_some())
    }

    /// A table inside this one; empty when it is missing.
    pub(super) fn section(&mut self, name: &str) -> Section<'c> {
        let key = self.key(name);
        self.context.known.borrow_mut().push(pattern(&key));
        let table = match self.table.remove(name) {
            None | Some(Node { value: Value::Null, .. }) => Table::new(),
            Some(Node { value: Value::Table(table), .. }) => table,
            Some(node) => {
                self.wrong(&key, &node, "is a section: write its keys, not a value");
                Table::new()
            }
        };
        Section::new(self.context, key, table)
    }

    /// The tables of a list.
    pub(super) fn sections(&mut self, name: &str) -> Vec<Section<'c>> {
        let key = self.key(name);
        self.context.known.borrow_mut().push(pattern(&key));
        let Some(node) = self.table.remove(name) else { return Vec::new() };
        let list = match as_list(&node) {
            Ok(list) => list,
            Err(reason) => {
                self.wrong(&key, &node, reason);
                return Vec::new();
            }
        };
        let mut sections = Vec::with_capacity(list.len());
        for (index, item) in list.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            match item.value {
                Value::Table(table) => sections.push(Section::new(self.context, key, table)),
                _ => self.wrong(&key, &item, "is not a table of keys"),
            }
        }
        sections
    }

    pub(super) fn flag(&mut self, name: &str, default: bool) -> bool {
        self.value(name, default, Kind::shown(&as_bool, &bool::to_string))
    }

    pub(super) fn duration(&mut self, name: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let parse = |node: &Node| within(as_duration(node)?, &range, |bound| show_duration(*bound));
        self.value(name, default, Kind::shown(&parse, &|duration| quoted(show_duration(*duration))))
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, name: &str, default: usize, range: RangeInclusive<usize>) -> usize {
        let parse = |node: &Node| within(as_size(node)?, &range, |bound| show_size(*bound));
        let show = |size: &usize| {
            let shown = show_size(*size);
            if shown.ends_with('B') { quoted(shown) } else { shown }
        };
        self.value(name, default, Kind::shown(&parse, &show))
    }

    pub(super) fn count(&mut self, name: &str, default: usize, range: RangeInclusive<usize>) -> usize {
        let parse = |node: &Node| {
            let count = usize::try_from(as_integer(node)?).map_err(|_| "must not be negative".to_owned())?;
            within(count, &range, usize::to_string)
        };
        self.value(name, default, Kind::shown(&parse, &usize::to_string))
    }

    /// A part of a whole, as a number or in percent.
    pub(super) fn part(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let parse = |node: &Node| within(as_number(node)?, &range, f64::to_string);
        self.value(name, default, Kind::shown(&parse, &f64::to_string))
    }

    pub(super) fn integer_opt(&mut self, name: &str) -> Option<i64> {
        self.optional(name, Kind::shown(&as_integer, &i64::to_string))
    }

    pub(super) fn text(&mut self, name: &str, default: &str) -> String {
        self.value(name, default.to_owned(), Kind::shown(&as_text, &|text: &String| quoted(text)))
    }

    /// A text that may be missing; an empty one counts as missing, so that a variable can take a value away.
    pub(super) fn text_opt(&mut self, name: &str) -> Option<String> {
        self.optional(name, Kind::shown(&as_text, &|text: &String| quoted(text))).filter(|text| !text.is_empty())
    }

    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        self.texts_or(name, &[])
    }

    pub(super) fn texts_or(&mut self, name: &str, default: &[String]) -> Vec<String> {
        self.value(name, default.to_vec(), Kind::shown(&as_texts, &|texts: &Vec<String>| show_list(texts)))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy + PartialEq>(&mut self, name: &str, default: T, words: &[(&str, T)]) -> T {
        let parse = |node: &Node| {
            let text = as_text(node)?;
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<String> = words.iter().map(|(word, _)| quoted(word)).collect();
                format!("must be one of {}", words.join(", "))
            })
        };
        let show = |value: &T| {
            let word = words.iter().find(|(_, other)| other == value).map_or("", |(word, _)| word);
            quoted(word)
        };
        self.value(name, default, Kind::shown(&parse, &show))
    }

    pub(super) fn address(&mut self, name: &str, default: SocketAddr) -> SocketAddr {
        self.value(name, default, Kind::shown(&as_address, &|address| quoted(address.to_string())))
    }

    /// A text from the key itself or from the file that `<name>_file` names. The later layer wins; both in one layer
    /// are a mistake.
    pub(super) fn text_or_file(&mut self, name: &str) -> Option<String> {
        self.text_or_file_as(name, Kind::shown(&as_text, &|text: &String| quoted(text))).filter(|text| !text.is_empty())
    }

    /// Like [`Section::text_or_file`] for a text that must not be shown, and must not be empty: an empty secret is a
    /// variable that was not filled in, and would be worse than none.
    pub(super) fn secret(&mut self, name: &str) -> Option<Secret> {
        let text = self.text_or_file_as(name, Kind { parse: &as_text, show: &|_| MASK.to_owned(), secret: true })?;
        if text.is_empty() {
            self.problem(name, "is empty");
            return None;
        }
        Some(Secret::new(text))
    }

    /// A list of secrets, none of them empty, from the key itself or line by line from the file that `<name>_file` names.
    pub(super) fn secrets(&mut self, name: &str) -> Vec<Secret> {
        let from_file = self.file_content(name);
        let show = |texts: &Vec<String>| format!("[{}]", vec![MASK; texts.len()].join(", "));
        let texts = self.value(name, Vec::new(), Kind { parse: &as_texts, show: &show, secret: true });
        let texts = match from_file {
            Some(content) => {
                content.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
            }
            None => texts,
        };
        if texts.iter().any(String::is_empty) {
            self.problem(name, "has an empty entry");
        }
        texts.into_iter().map(Secret::new).collect()
    }

    fn text_or_file_as(&mut self, name: &str, kind: Kind<'_, String>) -> Option<String> {
        let from_file = self.file_content(name);
        let text = self.optional(name, kind);
        from_file.or(text)
    }

    /// The content of the file that `<name>_file` names, unless the key itself was written in a later layer. Where the
    /// file wins, the key itself is dropped.
    fn file_content(&mut self, name: &str) -> Option<String> {
        let file_name = format!("{name}_file");
        let path = self.text_opt(&file_name)?;
        let rank = self.read.get(&file_name)?.origin.as_ref()?.rank();
        if let Some(direct) = self.table.get(name) {
            if direct.origin.rank() > rank {
                return None;
            }
            if direct.origin.rank() == rank {
                self.problem(&file_name, format!("{} is given too; keep one of them", self.key(name)));
            }
            self.table.remove(name);
        }
        match read_file(Path::new(&path)) {
            Ok(content) => Some(content.trim_end_matches(['\r', '\n']).to_owned()),
            Err(reason) => {
                self.problem(&file_name, reason);
                None
            }
        }
    }

    /// Notes a mistake in a key of this section that was read already.
    pub(super) fn problem(&self, name: &str, reason: impl Into<String>) {
        let read = self.read.get(name);
        let origin = read.and_then(|read| read.origin.as_ref());
        let shown = read.and_then(|read| read.shown.clone());
        let value = if origin.is_some() { shown } else { shown.map(|shown| format!("{shown} (the default)")) };
        let place = origin.map(|origin| self.context.place(origin));
        self.context.problem(Problem { place, key: self.key(name), value, reason: reason.into() });
    }

    fn wrong(&self, key: &str, node: &Node, reason: impl Into<String>) {
        self.context.problem(Problem {
            place: Some(self.context.place(&node.origin)),
            key: key.to_owned(),
            value: Some(node.to_string()),
            reason: reason.into(),
        });
    }

    fn value<T: Clone>(&mut self, name: &str, default: T, kind: Kind<'_, T>) -> T {
        self.take(name, Some(default.clone()), kind).unwrap_or(default)
    }

    fn optional<T: Clone>(&mut self, name: &str, kind: Kind<'_, T>) -> Option<T> {
        self.take(name, None, kind)
    }

    /// Every read ends here.
    fn take<T: Clone>(&mut self, name: &str, default: Option<T>, kind: Kind<'_, T>) -> Option<T> {
        let key = self.key(name);
        self.context.known.borrow_mut().push(pattern(&key));
        let shown_default = default.as_ref().map(kind.show);
        let node = self.table.remove(name).filter(|node| !matches!(node.value, Value::Null));
        let (value, origin) = match node {
            None => (default, None),
            Some(node) => {
                let parsed = (kind.parse)(&node);
                let value = parsed.map(Some).unwrap_or_else(|reason| {
                    self.context.problem(Problem {
                        place: Some(self.context.place(&node.origin)),
                        key: key.clone(),
                        value: (!kind.secret).then(|| node.to_string()),
                        reason,
                    });
                    default
                });
                (value, Some(node.origin))
            }
        };
        let shown = value.as_ref().map(kind.show);
        let place = origin.as_ref().map(|origin| self.context.place(origin));
        self.read.insert(name.to_owned(), Read { shown: shown.clone().filter(|_| !kind.secret), origin });
        self.context.settings.borrow_mut().push(Setting { key, value: shown, default: shown_default, place });
        value
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (name, node) in std::mem::take(&mut self.table) {
            let key = self.key(&name);
            self.context.unknown.borrow_mut().push((key, node));
        }
    }
}
