//! Turns `oneOf` into `anyOf` where no value fits two branches: unions of different types or values, and unions of objects
//! that a property tells apart, through references.
//!
//! `llguidance` compares branches as they stand and takes each reference for a schema that may overlap with any other.

use std::collections::HashMap;

use rustc_hash::FxHashSet;
use serde_json::{Map, Number, Value};

/// Largest number of branches that are compared, each with each.
const MAX_BRANCHES: usize = 256;
/// Longest chain of references that is followed.
const MAX_REFERENCES: usize = 8;

/// Rewrites each such `oneOf` of a checked schema.
///
/// Pydantic leaves the property that a `discriminator` names out of `required` if it has a default. Validators refuse an
/// object without it, which fits several branches, so the property becomes required.
pub(super) fn tell_apart(schema: &mut Value) {
    let text = schema.to_string();
    // A reference into a branch would lead nowhere once the branch's keyword has another name.
    if !text.contains("\"oneOf\"") || text.contains("/oneOf/") {
        return;
    }
    let mut plan = Plan::default();
    Document { root: schema }.visit(schema, String::new(), &mut plan);
    plan.apply(schema);
}

/// Changes to a schema, with the places of what changes.
#[derive(Default)]
struct Plan {
    /// Objects that get a required property.
    tagged: Vec<(String, String)>,
    /// Schemas whose `oneOf` becomes `anyOf`, inner ones first, so that the places stay right.
    renamed: Vec<String>,
}

impl Plan {
    fn apply(self, schema: &mut Value) {
        for (place, tag) in self.tagged {
            let required = schema.pointer_mut(&place).and_then(Value::as_object_mut);
            let required = required.map(|fields| fields.entry("required").or_insert_with(|| Value::Array(vec![])));
            if let Some(Value::Array(names)) = required
                && !names.iter().any(|name| *name == *tag)
            {
                names.push(Value::String(tag));
            }
        }
        for place in self.renamed {
            let Some(fields) = schema.pointer_mut(&place).and_then(Value::as_object_mut) else { continue };
            let renamed = |(keyword, value)| (if keyword == "oneOf" { "anyOf".to_owned() } else { keyword }, value);
            *fields = std::mem::take(fields).into_iter().map(renamed).collect(); // in the order of before
        }
    }
}

/// A value without parts; numbers that are equal are the same constant.
#[derive(PartialEq, Eq, Hash)]
enum Constant<'a> {
    Null,
    Boolean(bool),
    Number(u64),
    Text(&'a str),
}

/// Kinds of JSON values, a bit each. Integers are numbers, and so are fractions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kinds(u8);

impl Kinds {
    const NONE: Self = Self(0);
    const ALL: Self = Self(0x7f);
    const OBJECT: Self = Self(1 << 6);

    fn named(name: &str) -> Self {
        match name {
            "null" => Self(1),
            "boolean" => Self(1 << 1),
            "integer" => Self(1 << 2),
            "number" => Self(1 << 2 | 1 << 3),
            "string" => Self(1 << 4),
            "array" => Self(1 << 5),
            "object" => Self::OBJECT,
            _ => Self::ALL,
        }
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::named("null"),
            Value::Bool(_) => Self::named("boolean"),
            Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
                Self::named("integer")
            }
            Value::Number(_) => Self::named("number"),
            Value::String(_) => Self::named("string"),
            Value::Array(_) => Self::named("array"),
            Value::Object(_) => Self::named("object"),
        }
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The values that a schema may accept: of these kinds, and among these constants if it names all of them.
struct Values<'a> {
    kinds: Kinds,
    constants: Option<FxHashSet<Constant<'a>>>,
}

impl Values<'_> {
    fn excludes(&self, other: &Self) -> bool {
        let differ = match (&self.constants, &other.constants) {
            (Some(one), Some(other)) => one.is_disjoint(other),
            _ => false,
        };
        differ || self.kinds.and(other.kinds) == Kinds::NONE
    }
}

/// What is true of every value that a branch accepts.
struct Branch<'a> {
    place: String,
    values: Values<'a>,
    required: FxHashSet<&'a str>,
    properties: HashMap<&'a str, Values<'a>>,
}

impl Branch<'_> {
    /// Whether no value fits both: they differ, or one property of theirs must be there and does.
    fn excludes(&self, other: &Self) -> bool {
        let must_differ = |name: &&str| {
            (self.required.contains(name) || other.required.contains(name)) && self.differs_in(other, name)
        };
        let has_object = self.values.kinds == Kinds::OBJECT || other.values.kinds == Kinds::OBJECT;
        self.values.excludes(&other.values) || has_object && self.properties.keys().any(must_differ)
    }

    fn differs_in(&self, other: &Self, name: &str) -> bool {
        let found = self.properties.get(name).zip(other.properties.get(name));
        found.is_some_and(|(own, others)| own.excludes(others))
    }

    /// Whether no value fits both once both require the property.
    fn excludes_with(&self, other: &Self, tag: &str) -> bool {
        self.values.kinds == Kinds::OBJECT && other.values.kinds == Kinds::OBJECT && self.differs_in(other, tag)
    }
}

struct Document<'a> {
    root: &'a Value,
}

impl<'a> Document<'a> {
    fn visit(&self, schema: &'a Value, place: String, plan: &mut Plan) {
        let fields = match schema {
            Value::Array(items) => return self.visit_all(items.iter().enumerate(), &place, plan),
            Value::Object(fields) => fields,
            _ => return,
        };
        for (keyword, value) in fields {
            let inner = format!("{place}/{keyword}");
            match keyword.as_str() {
                "properties" | "patternProperties" | "$defs" | "definitions" => {
                    self.visit_all(value.as_object().into_iter().flatten(), &inner, plan);
                }
                "allOf" | "anyOf" | "oneOf" | "prefixItems" | "items" | "additionalProperties" | "additionalItems" => {
                    self.visit(value, inner, plan);
                }
                _ => {}
            }
        }
        self.plan(fields, place, plan);
    }

    fn visit_all<N: ToString>(&self, schemas: impl Iterator<Item = (N, &'a Value)>, place: &str, plan: &mut Plan) {
        for (name, schema) in schemas {
            let name = name.to_string().replace('~', "~0").replace('/', "~1");
            self.visit(schema, format!("{place}/{name}"), plan);
        }
    }

    /// Plans the changes to a schema with `oneOf`.
    fn plan(&self, fields: &'a Map<String, Value>, place: String, plan: &mut Plan) {
        let Some(branches) = fields.get("oneOf").and_then(Value::as_array) else { return };
        if fields.contains_key("anyOf") || branches.len() > MAX_BRANCHES {
            return;
        }
        let numbered = branches.iter().enumerate();
        let found: Vec<_> =
            numbered.map(|(index, branch)| self.branch(branch, format!("{place}/oneOf/{index}"))).collect();
        let tag = fields.get("discriminator").and_then(|named| named.get("propertyName")).and_then(Value::as_str);
        if !are_apart(&found, Branch::excludes) {
            let Some(tag) = tag.filter(|tag| are_apart(&found, |one, other| one.excludes_with(other, tag))) else {
                return;
            };
            plan.tagged.extend(found.into_iter().map(|branch| (branch.place, tag.to_owned())));
        }
        plan.renamed.push(place);
    }

    fn branch(&self, schema: &'a Value, place: String) -> Branch<'a> {
        let values = self.values(schema);
        let (place, fields) = self.resolved(schema, place);
        let list = |keyword| fields.and_then(|fields| fields.get(keyword));
        let required = list("required").and_then(Value::as_array).into_iter().flatten();
        let properties = list("properties").and_then(Value::as_object).into_iter().flatten();
        Branch {
            place,
            values,
            required: required.filter_map(Value::as_str).collect(),
            properties: properties.map(|(name, inner)| (name.as_str(), self.values(inner))).collect(),
        }
    }

    fn values(&self, schema: &'a Value) -> Values<'a> {
        let (_, Some(fields)) = self.resolved(schema, String::new()) else {
            return Values { kinds: Kinds::ALL, constants: None };
        };
        let types = match fields.get("type") {
            Some(Value::String(name)) => Kinds::named(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).map(Kinds::named).fold(Kinds::NONE, Kinds::or)
            }
            _ => Kinds::ALL,
        };
        let Some(named) = self.named(fields) else { return Values { kinds: types, constants: None } };
        let kinds = named.iter().map(Kinds::of).fold(Kinds::NONE, Kinds::or);
        Values { kinds: types.and(kinds), constants: named.iter().map(constant).collect() }
    }

    /// The values that a schema accepts, if it names all of them.
    fn named(&self, fields: &'a Map<String, Value>) -> Option<&'a [Value]> {
        // The oldest version of JSON Schema knows no `const`, so validators ignore it there.
        let is_oldest = self.root.get("$schema").and_then(Value::as_str).is_some_and(|uri| uri.contains("draft-04"));
        match (fields.get("const"), fields.get("enum")) {
            (Some(value), _) if !is_oldest => Some(std::slice::from_ref(value)),
            (_, Some(values)) => values.as_array().map(Vec::as_slice),
            _ => None,
        }
    }

    /// The place and fields of the schema at the end of a chain of references. What stands beside a reference doesn't
    /// count, as in the older versions of JSON Schema.
    fn resolved(&self, mut schema: &'a Value, mut place: String) -> (String, Option<&'a Map<String, Value>>) {
        for _ in 0..MAX_REFERENCES {
            let Some(fields) = schema.as_object() else { break };
            let Some(reference) = fields.get("$ref") else { return (place, Some(fields)) };
            let Some(path) = reference.as_str().and_then(|uri| uri.strip_prefix('#')) else { break };
            let path = if path == "/" { "" } else { path };
            let Some(target) = self.root.pointer(path) else { break };
            (schema, place) = (target, path.to_owned());
        }
        (place, None)
    }
}

fn are_apart<'a>(branches: &[Branch<'a>], exclude: impl Fn(&Branch<'a>, &Branch<'a>) -> bool) -> bool {
    branches.iter().enumerate().all(|(index, branch)| branches[..index].iter().all(|other| exclude(branch, other)))
}

/// Returns `None` for arrays and objects.
fn constant(value: &Value) -> Option<Constant<'_>> {
    match value {
        Value::Null => Some(Constant::Null),
        Value::Bool(value) => Some(Constant::Boolean(*value)),
        Value::Number(number) => bits(number).map(Constant::Number),
        Value::String(text) => Some(Constant::Text(text)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// The bits of a number as a float, with one zero. The check of schemas admits only numbers that floats hold exactly.
fn bits(number: &Number) -> Option<u64> {
    number.as_f64().map(|number| (number + 0.0).to_bits())
}
