//! What is wrong with a configuration: all of it at once, each line with key, value and reason.

use std::fmt;

/// One mistake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where it was written: `file:line`, the environment variable or the flag; `None` for a default or a missing key.
    pub place: Option<String>,
    /// The key, with dots; empty when the problem is with the file as a whole.
    pub key: String,
    /// The value as written; `None` where there is none or it is a secret.
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        match (self.key.as_str(), &self.value) {
            ("", _) => {}
            (key, Some(value)) => write!(f, "{key} = {value}: ")?,
            (key, None) => write!(f, "{key}: ")?,
        }
        f.write_str(&self.reason)
    }
}

/// Every mistake of a configuration, in the order of the keys. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The known key that was probably meant: one that differs by a few letters, or the same name in another section.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let unknown_name = last_segment(unknown);
    known
        .filter_map(|candidate| {
            let whole = distance(unknown, candidate);
            if whole <= tolerance(unknown) {
                return Some((whole, candidate));
            }
            // A section was left out or is the wrong one: worse than any near miss, better than nothing.
            let name = distance(unknown_name, last_segment(candidate));
            (name <= tolerance(unknown_name)).then_some((whole.max(name) + unknown.len(), candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn last_segment(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// A third of a short key, three letters of a long one.
fn tolerance(key: &str) -> usize {
    (key.len() / 3).min(3)
}

/// Edit distance in which two swapped letters count as one mistake.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut current = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let replaced = previous[j] + usize::from(a != b);
            let mut best = replaced.min(previous[j + 1] + 1).min(current[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            current.push(best);
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_found_and_a_far_one_is_not() {
        let known = ["drain.window", "drain.grace_accept", "client.ping_interval", "client.pong_timeout", "listen"];
        let near = |unknown: &str| nearest(unknown, known.into_iter());
        assert_eq!(near("drain.windwo"), Some("drain.window"));
        assert_eq!(near("drian.window"), Some("drain.window"));
        assert_eq!(near("client.ping_intervall"), Some("client.ping_interval"));
        assert_eq!(near("ping_interval"), Some("client.ping_interval"));
        assert_eq!(near("websocket.pong_timeout"), Some("client.pong_timeout"));
        assert_eq!(near("lisen"), Some("listen"));
        assert_eq!(near("colour"), None);
        assert_eq!(near("x"), None);
    }

    #[test]
    fn distances_are_those_of_single_mistakes() {
        for (left, right, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "xbc", 1), ("", "abc", 3)]
        {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }

    #[test]
    fn a_line_names_place_key_value_and_reason() {
        let problem = Problem {
            place: Some("gateway.toml:3".to_owned()),
            key: "drain.window".to_owned(),
            value: Some("\"x\"".to_owned()),
            reason: "is not a duration".to_owned(),
        };
        assert_eq!(problem.to_string(), "gateway.toml:3: drain.window = \"x\": is not a duration");
        let bare =
            Problem { place: None, key: "tls.key_file".to_owned(), value: None, reason: "is missing".to_owned() };
        assert_eq!(
            Problems(vec![bare.clone(), bare]).to_string(),
            "tls.key_file: is missing\ntls.key_file: is missing"
        );
    }
}
