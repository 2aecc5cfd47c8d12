//! Changes of objects: server-side apply with owners of fields, and merge patches.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A place in an object. Lists are one value as a whole, which is how the lists of an EndpointSlice are declared.
type Path = Vec<String>;

/// Who has set which fields of an object: managers that applied, and managers that did it in another way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields {
    applied: BTreeMap<String, BTreeSet<Path>>,
    updated: BTreeMap<Path, String>,
}

impl Fields {
    /// Who beside `manager` has set a field.
    fn others(&self, manager: &str, path: &Path) -> Vec<String> {
        let applied = self.applied.iter().filter(|(other, paths)| *other != manager && paths.contains(path));
        applied.map(|(other, _)| other.clone()).chain(self.updated.get(path).cloned()).collect()
    }

    /// Notes that `manager` has made `after` of `before`, other than by applying.
    pub(crate) fn note_update(&mut self, manager: &str, before: &Value, after: &Value) {
        let old = leaves(before);
        for (path, value) in leaves(after) {
            if old.get(&path) != Some(&value) {
                self.updated.insert(path, manager.to_owned());
            }
        }
    }
}

/// `object` with `config` applied by `manager`. The error: fields that others own and that would change.
pub(crate) fn apply(
    object: &Value,
    fields: &mut Fields,
    manager: &str,
    config: &Value,
    is_forced: bool,
) -> Result<Value, Vec<String>> {
    let wanted = leaves(&settable(config));
    let current = leaves(object);
    let differs = |path: &Path, value: &Value| current.get(path).is_some_and(|now| now != value);
    let conflicts =
        wanted.iter().filter(|(path, value)| differs(path, value) && !fields.others(manager, path).is_empty());
    let conflicts: Vec<String> = conflicts
        .map(|(path, _)| format!("{} is owned by {:?}", path.join("."), fields.others(manager, path)))
        .collect();
    if !conflicts.is_empty() && !is_forced {
        return Err(conflicts);
    }
    let mut after = object.clone();
    let before = fields.applied.remove(manager).unwrap_or_default();
    for path in before.iter().filter(|path| !wanted.contains_key(*path) && fields.others(manager, path).is_empty()) {
        remove(&mut after, path);
    }
    for (path, value) in &wanted {
        if differs(path, value) {
            for paths in fields.applied.values_mut() {
                paths.remove(path);
            }
            fields.updated.remove(path);
        }
        set(&mut after, path, value.clone());
    }
    fields.applied.insert(manager.to_owned(), wanted.into_keys().collect());
    Ok(after)
}

/// What a manager can own of `config`.
fn settable(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(meta) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
            meta.remove(field);
        }
    }
    config
}

fn leaves(value: &Value) -> BTreeMap<Path, Value> {
    let mut all = BTreeMap::new();
    collect(value, &mut Vec::new(), &mut all);
    all
}

fn collect(value: &Value, path: &mut Path, all: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Object(fields) if path.is_empty() || !fields.is_empty() => {
            for (name, value) in fields {
                path.push(name.clone());
                collect(value, path, all);
                path.pop();
            }
        }
        // A field that is null is one that is not there.
        Value::Null => {}
        leaf => drop(all.insert(path.clone(), leaf.clone())),
    }
}

fn set(object: &mut Value, path: &[String], value: Value) {
    match path {
        [] => *object = value,
        [first, rest @ ..] => {
            if !object.is_object() {
                *object = Value::Object(Map::new());
            }
            set(&mut object[first], rest, value);
        }
    }
}

fn remove(object: &mut Value, path: &[String]) {
    let [parents @ .., last] = path else { return };
    let mut place = object;
    for parent in parents {
        let Some(next) = place.get_mut(parent) else { return };
        place = next;
    }
    if let Some(fields) = place.as_object_mut() {
        fields.remove(last);
    }
}

/// `object` with a JSON merge patch (RFC 7396).
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(fields) = object.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_manager_does_not_apply_any_more_goes() {
        let mut fields = Fields::default();
        let first = json!({ "metadata": { "name": "a", "labels": { "x": "1", "y": "2" } }, "list": [1, 2] });
        let object = apply(&json!({}), &mut fields, "m", &first, false).expect("nobody else");
        let second = json!({ "metadata": { "labels": { "y": "3" } }, "list": [2] });
        let object = apply(&object, &mut fields, "m", &second, false).expect("nobody else");
        assert_eq!(object, json!({ "metadata": { "labels": { "y": "3" } }, "list": [2] }));
    }

    #[test]
    fn fields_of_others_are_a_conflict_unless_forced_or_the_same() {
        let mut fields = Fields::default();
        let object = apply(&json!({}), &mut fields, "one", &json!({ "a": 1, "b": 1 }), false).expect("nobody else");
        apply(&object, &mut fields, "two", &json!({ "a": 1 }), false).expect("the same value");
        let conflicts = apply(&object, &mut fields, "two", &json!({ "b": 2 }), false).expect_err("owned by one");
        assert!(conflicts[0].contains("one"), "{conflicts:?}");
        let object = apply(&object, &mut fields, "two", &json!({ "b": 2 }), true).expect("forced");
        assert_eq!(object, json!({ "a": 1, "b": 2 }), "one still owns a");
        let object = apply(&object, &mut fields, "one", &json!({}), false).expect("gives all up");
        assert_eq!(object, json!({ "b": 2 }), "what two has taken over stays");
    }

    #[test]
    fn updates_own_too() {
        let mut fields = Fields::default();
        fields.note_update("someone", &json!({}), &json!({ "a": 1 }));
        let object = json!({ "a": 1 });
        apply(&object, &mut fields, "m", &json!({ "a": 2 }), false).expect_err("owned");
        apply(&object, &mut fields, "m", &json!({ "a": 2 }), true).expect("forced");
    }

    #[test]
    fn a_merge_patch_sets_and_removes() {
        let mut object = json!({ "a": { "b": 1, "c": 2 } });
        merge(&mut object, &json!({ "a": { "b": null, "d": [3] } }));
        assert_eq!(object, json!({ "a": { "c": 2, "d": [3] } }));
    }
}
