//! Label selectors: `a=b`, `a==b`, `a!=b`, `a`, `!a`, joined by commas.

use serde_json::Value;

/// Whether the labels of `object` match.
pub(crate) fn matches(selector: &str, object: &Value) -> bool {
    let label = |name: &str| object["metadata"]["labels"][name.trim()].as_str();
    selector.split(',').filter(|term| !term.trim().is_empty()).all(|term| {
        if let Some((name, value)) = term.split_once("!=") {
            return label(name) != Some(value.trim());
        }
        if let Some((name, value)) = term.split_once('=') {
            return label(name) == Some(value.trim_start_matches('=').trim());
        }
        match term.trim().strip_prefix('!') {
            Some(name) => label(name).is_none(),
            None => label(term).is_some(),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_form_means_what_it_says() {
        let object = json!({ "metadata": { "labels": { "app": "ws", "tier": "edge" } } });
        for (selector, expected) in [
            ("", true),
            ("app=ws", true),
            ("app==ws,tier=edge", true),
            ("app=other", false),
            ("app!=other,none!=x", true),
            ("app", true),
            ("!app", false),
            ("!none", true),
        ] {
            assert_eq!(matches(selector, &object), expected, "{selector}");
        }
    }
}
