//! Closes the gaps between a format's grammar, which `llguidance` follows, and what validators accept.

use serde_json::{Map, Value, json};

/// Keywords that describe and never reject a value.
const ANNOTATIONS: [&str; 14] = [
    "$anchor",
    "$comment",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// A second of at most 59: a leap second is valid in one minute of the day only, which a grammar can't tell.
const NO_LEAP_SECOND: &str = "^[^:]*:[^:]*:[0-5]";
/// The 29th of February only in leap years.
const EXISTING_DAY: &str = r"^(\d{4}-(0[13-9]|1[0-2]|02-[01]|02-2[0-8])|(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)";
/// At most 64 bytes before the at sign (RFC 5321, section 4.5.3.1.1), and 63 in each label of the domain (RFC 1035,
/// section 2.3.4).
const SHORT_PARTS: &str = r"^[^@]{1,64}@[^@.]{1,63}(\.[^@.]{1,63})*$";
/// Longest address that fits in a path (RFC 5321, section 4.5.3.1.3, less its brackets).
const MAX_EMAIL: u32 = 254;
/// Longest name of a host as text (RFC 1035, section 2.3.4).
const MAX_HOSTNAME: u32 = 253;

/// Adds to each schema with such a `format` the rules that its grammar leaves out, as branches of `allOf`, and drops what
/// asks for nothing: `uniqueItems: false`, which `llguidance` refuses, and annotations that it takes for constraints, so
/// that it could not read a recursive reference beside them.
pub(super) fn complete(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for (keyword, value) in fields.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(complete);
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(complete);
            }
            ("items" | "additionalProperties" | "additionalItems", schema) => complete(schema),
            _ => {}
        }
    }
    fields.retain(|keyword, value| !is_idle(keyword, value));
    let rules = fields.get("format").and_then(Value::as_str).map(rules_of).unwrap_or_default();
    if !rules.is_empty() {
        require(fields, rules);
    }
}

/// Whether a keyword describes and never rejects a value.
pub(super) fn is_annotation(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword) || keyword.starts_with("x-")
}

fn is_idle(keyword: &str, value: &Value) -> bool {
    ANNOTATIONS.contains(&keyword) && !keyword.starts_with('$')
        || keyword == "uniqueItems" && *value == Value::Bool(false)
}

fn rules_of(format: &str) -> Vec<Value> {
    match format {
        "date" => vec![json!({ "pattern": EXISTING_DAY })],
        "time" => vec![json!({ "pattern": NO_LEAP_SECOND })],
        "date-time" => vec![json!({ "pattern": EXISTING_DAY }), json!({ "pattern": NO_LEAP_SECOND })],
        "email" => vec![json!({ "pattern": SHORT_PARTS, "maxLength": MAX_EMAIL })],
        "hostname" => vec![json!({ "maxLength": MAX_HOSTNAME })],
        _ => vec![],
    }
}

fn require(fields: &mut Map<String, Value>, rules: Vec<Value>) {
    let branches = fields.entry("allOf").or_insert_with(|| json!([]));
    // The check before has seen to it that `allOf` is an array.
    if let Value::Array(branches) = branches {
        branches.extend(rules);
    }
}
