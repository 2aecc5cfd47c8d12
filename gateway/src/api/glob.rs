//! Patterns of channel names, for the method `channels`.

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// The longest pattern in bytes: four times the longest channel name of the defaults.
const PATTERN_BYTES_MAX: usize = 1024;

/// The memory a compiled pattern may take. 255 question marks, one for each byte of a name, need half of it; compiling
/// as much as this takes some milliseconds.
const COMPILED_BYTES_MAX: usize = 512 << 10;

/// A compiled pattern. `*` stands for any text (as `**` does: `/` and `:` are ordinary here), `?` for one character,
/// `[abc]`, `[a-z]` and `[!abc]` for one of a set or none of it, `{one,two}` for one of several patterns; `\` takes the
/// meaning from the character after it.
///
/// It is a regular expression inside, so a match takes time linear in the name, whatever the pattern.
#[derive(Debug)]
pub struct Glob {
    pattern: String,
    regex: Regex,
}

impl Glob {
    /// A pattern that may be missing, which the empty text says.
    ///
    /// # Errors
    /// As [`Glob::new`].
    pub fn of(pattern: &str) -> Result<Option<Self>, GlobError> {
        if pattern.is_empty() { Ok(None) } else { Self::new(pattern).map(Some) }
    }

    /// The text it was made of.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Compiles a pattern.
    ///
    /// # Errors
    /// When the pattern is too long or not well formed.
    pub fn new(pattern: &str) -> Result<Self, GlobError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(GlobError::TooLong(pattern.len()));
        }
        let regex = RegexBuilder::new(&translate(pattern)?)
            .dot_matches_new_line(true)
            .size_limit(COMPILED_BYTES_MAX)
            .dfa_size_limit(COMPILED_BYTES_MAX)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => GlobError::TooComplex,
                _ => GlobError::Malformed("a set or an alternative in it makes no sense"),
            })?;
        Ok(Self { pattern: pattern.to_owned(), regex })
    }

    /// Whether the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

/// Why a pattern cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GlobError {
    /// More bytes than any name has.
    #[error("pattern has {0} bytes, more than {PATTERN_BYTES_MAX}")]
    TooLong(usize),
    /// It would take too much memory.
    #[error("pattern is too complex")]
    TooComplex,
    /// Its parts do not fit together.
    #[error("pattern is malformed: {0}")]
    Malformed(&'static str),
}

fn translate(pattern: &str) -> Result<String, GlobError> {
    let mut regex = String::with_capacity(pattern.len() * 2 + 8);
    regex.push_str(r"\A(?:");
    let mut alternatives = 0_usize;
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '*' => {
                while chars.next_if_eq(&'*').is_some() {}
                regex.push_str(".*");
            }
            '?' => regex.push('.'),
            '[' => set(&mut chars, &mut regex)?,
            '{' => {
                alternatives += 1;
                regex.push_str("(?:");
            }
            '}' if alternatives > 0 => {
                alternatives -= 1;
                regex.push(')');
            }
            ',' if alternatives > 0 => regex.push('|'),
            '\\' => {
                let char = chars.next().ok_or(GlobError::Malformed("nothing follows the last \\"))?;
                literal(char, &mut regex);
            }
            _ => literal(char, &mut regex),
        }
    }
    if alternatives > 0 {
        return Err(GlobError::Malformed("a { has no }"));
    }
    regex.push_str(r")\z");
    Ok(regex)
}

/// What follows a `[`, up to its `]`: members and ranges of them.
fn set(chars: &mut Peekable<Chars<'_>>, regex: &mut String) -> Result<(), GlobError> {
    const OPEN: GlobError = GlobError::Malformed("a [ has no ]");
    let member = |chars: &mut Peekable<Chars<'_>>| match chars.next() {
        Some('\\') => chars.next().ok_or(OPEN),
        char => char.ok_or(OPEN),
    };
    regex.push('[');
    if chars.next_if_eq(&'!').is_some() {
        regex.push('^');
    }
    if chars.peek() == Some(&']') {
        return Err(GlobError::Malformed("a set has no members"));
    }
    while chars.next_if_eq(&']').is_none() {
        literal(member(chars)?, regex);
        if chars.peek() == Some(&'-') && chars.clone().nth(1) != Some(']') {
            chars.next();
            regex.push('-');
            literal(member(chars)?, regex);
        }
    }
    regex.push(']');
    Ok(())
}

fn literal(char: char, regex: &mut String) {
    let mut buffer = [0; 4];
    regex.push_str(&regex::escape(char.encode_utf8(&mut buffer)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, matching, others) in [
            ("news", vec!["news"], vec!["new", "news:", "xnews", "News"]),
            ("*", vec!["", "a", "a:b/c", "two\nlines"], vec![]),
            ("chat:*", vec!["chat:", "chat:1", "chat:1:2"], vec!["chat", "xchat:1"]),
            ("**:one", vec![":one", "chat:one", "a:b:one"], vec!["chat:two"]),
            ("*a*b*", vec!["ab", "xaxbx"], vec!["ba", "a"]),
            ("t?o", vec!["two", "t\u{e9}o"], vec!["to", "twoo"]),
            ("a.c+(", vec!["a.c+("], vec!["abc+("]),
            ("[abc]1", vec!["a1", "c1"], vec!["d1", "1", "ab1"]),
            ("[a-c0]x", vec!["bx", "0x"], vec!["dx", "-x"]),
            ("[!a-c]x", vec!["dx", "\u{e9}x"], vec!["ax", "x"]),
            ("[-a]x", vec!["-x", "ax"], vec!["bx"]),
            ("[a-]x", vec!["-x", "ax"], vec!["bx"]),
            ("[+--]x", vec!["+x", ",x", "-x"], vec!["ax"]),
            ("[^a]x", vec!["^x", "ax"], vec!["bx"]),
            ("[&&a]x", vec!["&x", "ax"], vec!["bx"]),
            (r"[\]a]", vec!["]", "a"], vec!["\\"]),
            ("{chat,news}:*", vec!["chat:1", "news:"], vec!["log:1", "chat"]),
            ("{a,{b,c}d}", vec!["a", "bd", "cd"], vec!["b", "ad"]),
            ("a,}", vec!["a,}"], vec!["a"]),
            (r"\*\?\[\{", vec!["*?[{"], vec!["a?[{"]),
        ] {
            let glob = Glob::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            for name in matching {
                assert!(glob.matches(name), "{pattern} should match {name:?}");
            }
            for name in others {
                assert!(!glob.matches(name), "{pattern} should not match {name:?}");
            }
        }
    }

    #[test]
    fn what_is_not_a_pattern_is_refused() {
        for pattern in ["[", "[!", "[]", "[!]", "[a", "[z-a]", "{a", "{a,{b}", "\\", "[\\"] {
            assert!(matches!(Glob::new(pattern), Err(GlobError::Malformed(_))), "{pattern}");
        }
        assert!(Glob::new(&"?".repeat(255)).is_ok());
        assert_eq!(Glob::new(&"?".repeat(1024)).unwrap_err(), GlobError::TooComplex);
        assert_eq!(Glob::new(&"a".repeat(1025)).unwrap_err(), GlobError::TooLong(1025));
        let nested = "{".repeat(500) + &"}".repeat(500);
        assert!(Glob::new(&nested).is_err(), "the depth is bounded");
    }
}
