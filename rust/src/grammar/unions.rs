//! Turns `oneOf` into `anyOf` where no value fits two branches: unions told apart by a property, through references.
//!
//! `llguidance` compares branches as they stand and takes each reference for a schema that may overlap with any other.

use std::collections::HashMap;

use rustc_hash::FxHashSet;
use serde_json::{Map, Value};

/// Largest number of branches that are compared, each with each.
const MAX_BRANCHES: usize = 256;
/// Longest chain of references that is followed.
const MAX_REFERENCES: usize = 8;

/// Rewrites each such `oneOf` of a checked schema.
pub(super) fn tell_apart(schema: &mut Value) {
    if schema.get("oneOf").is_none() && !schema.to_string().contains("\"oneOf\"") {
        return;
    }
    let document = Document { root: schema.clone() };
    document.rewrite(schema);
}

struct Document {
    root: Value,
}

/// What is true of every value that a branch accepts.
#[derive(Default)]
struct Branch<'a> {
    is_object: bool,
    required: FxHashSet<&'a str>,
    /// The texts that a property may be, for properties that are limited to some.
    texts: HashMap<&'a str, FxHashSet<&'a str>>,
}

impl Branch<'_> {
    /// Whether no value fits both: one property must be there, with a text of one branch that the other doesn't allow.
    fn excludes(&self, other: &Self) -> bool {
        let differs = |(name, texts): (&&str, &FxHashSet<&str>)| {
            (self.required.contains(name) || other.required.contains(name))
                && other.texts.get(name).is_some_and(|others| others.is_disjoint(texts))
        };
        (self.is_object || other.is_object) && self.texts.iter().any(differs)
    }
}

impl Document {
    fn rewrite(&self, schema: &mut Value) {
        let fields = match schema {
            Value::Array(items) => return items.iter_mut().for_each(|item| self.rewrite(item)),
            Value::Object(fields) => fields,
            _ => return,
        };
        for (keyword, value) in fields.iter_mut() {
            match keyword.as_str() {
                "properties" | "patternProperties" | "$defs" | "definitions" => {
                    value.as_object_mut().into_iter().flatten().for_each(|(_, inner)| self.rewrite(inner));
                }
                "allOf" | "anyOf" | "oneOf" | "prefixItems" | "items" | "additionalProperties" | "additionalItems" => {
                    self.rewrite(value);
                }
                _ => {}
            }
        }
        let branches = fields.get("oneOf").and_then(Value::as_array);
        if !fields.contains_key("anyOf") && branches.is_some_and(|branches| self.are_apart(branches)) {
            let renamed = |(keyword, value)| (if keyword == "oneOf" { "anyOf".to_owned() } else { keyword }, value);
            *fields = std::mem::take(fields).into_iter().map(renamed).collect(); // in the order of before
        }
    }

    fn are_apart(&self, branches: &[Value]) -> bool {
        let facts: Vec<_> = branches.iter().take(MAX_BRANCHES + 1).map(|branch| self.branch(branch)).collect();
        let is_apart = |(index, branch): (usize, &Branch)| facts[..index].iter().all(|other| branch.excludes(other));
        facts.len() <= MAX_BRANCHES && facts.iter().enumerate().all(is_apart)
    }

    fn branch<'a>(&'a self, schema: &'a Value) -> Branch<'a> {
        let Some(fields) = self.resolved(schema) else { return Branch::default() };
        let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
        let properties = fields.get("properties").and_then(Value::as_object).into_iter().flatten();
        Branch {
            is_object: fields.get("type").is_some_and(|kind| kind == "object"),
            required: required.filter_map(Value::as_str).collect(),
            texts: properties.filter_map(|(name, inner)| Some((name.as_str(), self.texts(inner)?))).collect(),
        }
    }

    /// The texts that a schema accepts, if it names all of them.
    fn texts<'a>(&'a self, schema: &'a Value) -> Option<FxHashSet<&'a str>> {
        let fields = self.resolved(schema)?;
        // The oldest version of JSON Schema knows no `const`, so validators ignore it there.
        let is_oldest = self.root.get("$schema").and_then(Value::as_str).is_some_and(|uri| uri.contains("draft-04"));
        match (fields.get("const"), fields.get("enum")) {
            (Some(value), _) if !is_oldest => Some(FxHashSet::from_iter([value.as_str()?])),
            (_, Some(values)) => values.as_array()?.iter().map(Value::as_str).collect(),
            _ => None,
        }
    }

    /// The fields of the schema at the end of a chain of references. What stands beside a reference doesn't count, as in
    /// the older versions of JSON Schema.
    fn resolved<'a>(&'a self, mut schema: &'a Value) -> Option<&'a Map<String, Value>> {
        for _ in 0..MAX_REFERENCES {
            let fields = schema.as_object()?;
            let Some(reference) = fields.get("$ref") else { return Some(fields) };
            let path = reference.as_str()?.strip_prefix('#')?;
            schema = if path == "/" { &self.root } else { self.root.pointer(path)? };
        }
        None
    }
}
