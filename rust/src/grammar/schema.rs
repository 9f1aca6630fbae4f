//! Checks a JSON schema before it is compiled: every keyword must be one that is enforced or that only describes.
//!
//! `llguidance` ignores keywords it doesn't know, and bounds the size of what it builds too late or not at all. What
//! passes here is enforced to the letter, and small enough.

use rustc_hash::FxHashSet;
use serde_json::{Map, Number, Value};

use super::formats;
use super::limits::{Multiples, Sizes};
use super::problem::{Checked, shown, unsupported, wrong};
use super::unions;

/// Formats of strings that are enforced.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"];
const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Versions of JSON Schema, oldest first.
const DRAFTS: [&str; 5] = [
    "http://json-schema.org/draft-04/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
];
/// Integers from here on are not all represented by the 64-bit floats that schemas are compiled with.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Parses and checks a schema.
///
/// # Errors
///
/// What is wrong, beginning with a verb so that the setting's name can stand before it.
pub(super) fn checked(text: &str) -> Checked<Value> {
    let mut schema: Value = serde_json::from_str(text).map_err(|error| format!("must be a JSON schema: {error}"))?;
    if schema.get("x-guidance").is_some() {
        return Err(unsupported("x-guidance", "#"));
    }
    check(&schema)?;
    complete(&mut schema);
    Ok(schema)
}

/// Rewrites a checked schema so that `llguidance` accepts no more than validators do, and refuses less.
pub(super) fn complete(schema: &mut Value) {
    unions::tell_apart(schema);
    formats::complete(schema);
}

/// Checks a schema and everything that its references reach.
///
/// # Errors
///
/// As [`checked`].
pub(super) fn check(root: &Value) -> Checked {
    let is_latest = match root.get("$schema") {
        None => true,
        Some(Value::String(uri)) if DRAFTS.contains(&uri.trim_end_matches('#')) => uri.contains("2020-12"),
        Some(other) => return Err(wrong("$schema", "#", &format!("one of {}", DRAFTS.join(", ")), other)),
    };
    let mut check = Check { root, is_latest, queue: vec![(root, "#".to_owned())], ..Check::new(root) };
    let mut seen = FxHashSet::default();
    while let Some((schema, place)) = check.queue.pop() {
        if seen.insert(std::ptr::from_ref(schema)) {
            check.schema(schema, &place)?;
        }
    }
    check.multiples.check(check.has_combinations)
}

struct Check<'a> {
    root: &'a Value,
    /// Whether the schema is of the newest version, where arrays have `prefixItems`.
    is_latest: bool,
    /// Schemas to check, with their places.
    queue: Vec<(&'a Value, String)>,
    sizes: Sizes,
    multiples: Multiples,
    has_combinations: bool,
}

impl<'a> Check<'a> {
    fn new(root: &'a Value) -> Self {
        Self {
            root,
            is_latest: true,
            queue: Vec::new(),
            sizes: Sizes::default(),
            multiples: Multiples::default(),
            has_combinations: false,
        }
    }

    fn schema(&mut self, schema: &'a Value, place: &str) -> Checked {
        self.sizes.count_schema(place)?;
        match schema {
            Value::Bool(_) => Ok(()),
            Value::Object(fields) => fields.iter().try_for_each(|(keyword, value)| self.keyword(keyword, value, place)),
            other => Err(format!("must be an object, true or false at {place}, got {}", shown(other))),
        }
    }

    fn keyword(&mut self, keyword: &'a str, value: &'a Value, place: &str) -> Checked {
        match keyword {
            "properties" | "patternProperties" => self.map(keyword, value, place),
            // Only what references reach counts.
            "$defs" | "definitions" => object(keyword, value, place).map(drop),
            "items" if value.is_array() => self.list(keyword, value, place),
            "items" | "additionalProperties" | "additionalItems" => self.push(value, &[place, keyword]),
            "prefixItems" if self.is_latest => self.list(keyword, value, place),
            "allOf" | "anyOf" | "oneOf" => {
                self.has_combinations = true;
                self.list(keyword, value, place)
            }
            "$ref" => self.reference(value, place),
            "enum" => {
                let values = array(keyword, value, place)?;
                values.iter().try_for_each(|value| self.constant(keyword, value, place))
            }
            "const" => self.constant(keyword, value, place),
            "type" => types(value, place),
            "required" => strings(keyword, value, place),
            "pattern" => value.as_str().map(drop).ok_or_else(|| wrong(keyword, place, "a regular expression", value)),
            "format" => one_of(keyword, value, &FORMATS, place),
            "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties" | "maxProperties" => {
                value.as_u64().map(drop).ok_or_else(|| wrong(keyword, place, "an integer of at least 0", value))
            }
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => Ok(()),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => bound(keyword, value, place),
            "multipleOf" => self.multiples.add(value, place),
            "uniqueItems" if *value == Value::Bool(false) => Ok(()),
            "$id" | "id" if place == "#" => Ok(()),
            _ if formats::is_annotation(keyword) => Ok(()),
            _ => Err(unsupported(keyword, place)),
        }
    }

    fn push(&mut self, schema: &'a Value, steps: &[&str]) -> Checked {
        self.queue.push((schema, steps.join("/")));
        Ok(())
    }

    fn map(&mut self, keyword: &str, value: &'a Value, place: &str) -> Checked {
        let fields = object(keyword, value, place)?;
        self.sizes.count_properties(fields.len(), place)?;
        fields.iter().try_for_each(|(name, schema)| self.push(schema, &[place, keyword, name]))
    }

    fn list(&mut self, keyword: &str, value: &'a Value, place: &str) -> Checked {
        let schemas = array(keyword, value, place)?;
        let mut numbered = schemas.iter().enumerate();
        numbered.try_for_each(|(index, schema)| self.push(schema, &[place, keyword, &index.to_string()]))
    }

    /// Follows a reference within the document; other documents are never fetched.
    fn reference(&mut self, value: &'a Value, place: &str) -> Checked {
        self.has_combinations = true;
        let allowed = "the place of a schema in this document, such as \"#/$defs/name\", without ~ and %";
        let problem = || wrong("$ref", place, allowed, value);
        let path = value.as_str().and_then(|uri| uri.strip_prefix('#')).ok_or_else(problem)?;
        if path.contains(['~', '%']) {
            return Err(problem());
        }
        let target = if path == "/" { Some(self.root) } else { self.root.pointer(path) };
        let target =
            target.ok_or_else(|| format!("has a `$ref` to {} at {place}, which does not exist", shown(value)))?;
        self.push(target, &[&format!("#{path}")])
    }

    fn constant(&mut self, keyword: &str, value: &Value, place: &str) -> Checked {
        self.sizes.count_constant(place)?;
        match value {
            Value::Number(number) => exact(number).then_some(()).ok_or_else(|| inexact(keyword, value, place)),
            Value::Array(items) => items.iter().try_for_each(|item| self.constant(keyword, item, place)),
            Value::Object(fields) => fields.values().try_for_each(|item| self.constant(keyword, item, place)),
            _ => Ok(()),
        }
    }
}

fn object<'a>(keyword: &str, value: &'a Value, place: &str) -> Checked<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| wrong(keyword, place, "an object", value))
}

fn array<'a>(keyword: &str, value: &'a Value, place: &str) -> Checked<&'a Vec<Value>> {
    value.as_array().ok_or_else(|| wrong(keyword, place, "an array", value))
}

fn types(value: &Value, place: &str) -> Checked {
    match value {
        Value::Array(names) if !names.is_empty() => {
            names.iter().try_for_each(|name| one_of("type", name, &TYPES, place))
        }
        name => one_of("type", name, &TYPES, place),
    }
}

fn strings(keyword: &str, value: &Value, place: &str) -> Checked {
    match array(keyword, value, place)?.iter().find(|item| !item.is_string()) {
        None => Ok(()),
        Some(other) => Err(wrong(keyword, place, "an array of strings", other)),
    }
}

fn one_of(keyword: &str, value: &Value, names: &[&str], place: &str) -> Checked {
    match value.as_str().is_some_and(|name| names.contains(&name)) {
        true => Ok(()),
        false => Err(wrong(keyword, place, &format!("one of {}", names.join(", ")), value)),
    }
}

fn bound(keyword: &str, value: &Value, place: &str) -> Checked {
    match value {
        Value::Number(number) if exact(number) => Ok(()),
        Value::Number(_) => Err(inexact(keyword, value, place)),
        _ => Err(wrong(keyword, place, "a number", value)),
    }
}

fn exact(number: &Number) -> bool {
    number.as_f64().is_some_and(|value| value.abs() < MAX_EXACT)
}

fn inexact(keyword: &str, value: &Value, place: &str) -> String {
    wrong(keyword, place, "below 2 to the power of 53, either sign", value)
}
