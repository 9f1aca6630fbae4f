//! Sizes of a schema that decide how long it takes to compile and how much memory that needs.

use serde_json::Value;

use super::problem::{Checked, wrong};

/// Largest number of schemas in a schema: the compiler recurses into them, up to 16 kB of stack each.
const MAX_SCHEMAS: usize = 3000;
/// Largest number of named properties; 1,000 of them in one object compile in about 100 ms.
const MAX_PROPERTIES: usize = 1500;
/// Largest number of values in `enum` and `const`.
const MAX_CONSTANTS: usize = 10_000;
/// Largest numerator of `multipleOf`; each unit costs two states of 35 bytes.
const MAX_MULTIPLE: u128 = 10_000;
/// Largest number of decimals of `multipleOf`.
const MAX_DECIMALS: usize = 8;

/// Counts the parts of a schema.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    num_schemas: usize,
    num_properties: usize,
    num_constants: usize,
}

impl Sizes {
    pub fn count_schema(&mut self, place: &str) -> Checked {
        count(&mut self.num_schemas, 1, MAX_SCHEMAS, "schemas", place)
    }

    pub fn count_properties(&mut self, number: usize, place: &str) -> Checked {
        count(&mut self.num_properties, number, MAX_PROPERTIES, "properties", place)
    }

    pub fn count_constant(&mut self, place: &str) -> Checked {
        count(&mut self.num_constants, 1, MAX_CONSTANTS, "values of `enum` and `const`", place)
    }
}

fn count(number: &mut usize, more: usize, limit: usize, what: &str, place: &str) -> Checked {
    *number += more;
    match *number > limit {
        true => Err(format!("must have at most {limit} {what}, got more at {place}")),
        false => Ok(()),
    }
}

/// The values of `multipleOf`: a number that must be a multiple of several is tracked by their least common multiple.
#[derive(Debug, Default)]
pub(super) struct Multiples {
    found: Vec<Decimal>,
}

/// The number `digits / 10^num_decimals`.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    digits: u128,
    num_decimals: usize,
}

impl Multiples {
    pub fn add(&mut self, value: &Value, place: &str) -> Checked {
        let decimal = value.as_f64().filter(|&number| number > 0.0).and_then(Decimal::new);
        let decimal = decimal.filter(|decimal| decimal.digits <= MAX_MULTIPLE && decimal.num_decimals <= MAX_DECIMALS);
        let allowed = format!("above 0, with at most {MAX_DECIMALS} decimals and digits up to {MAX_MULTIPLE}");
        self.found.push(decimal.ok_or_else(|| wrong("multipleOf", place, &allowed, value))?);
        Ok(())
    }

    /// Checks all values together if some of them may apply to one number.
    pub fn check(&self, may_combine: bool) -> Checked {
        let num_decimals = self.found.iter().map(|decimal| decimal.num_decimals).max().unwrap_or(0);
        let scaled =
            self.found.iter().map(|decimal| decimal.digits * 10_u128.pow((num_decimals - decimal.num_decimals) as u32));
        let common = scaled.fold(1, |common: u128, digits| (common / gcd(common, digits)).saturating_mul(digits));
        match may_combine && self.found.len() > 1 && common > MAX_MULTIPLE {
            true => Err(format!("must have values of `multipleOf` with a least common multiple up to {MAX_MULTIPLE}")),
            false => Ok(()),
        }
    }
}

impl Decimal {
    /// Returns `None` if the shortest form of the number has an exponent or too many digits.
    fn new(number: f64) -> Option<Self> {
        let text = number.to_string();
        let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
        let digits = format!("{whole}{decimals}").parse().ok()?;
        Some(Self { digits, num_decimals: decimals.len() })
    }
}

fn gcd(one: u128, other: u128) -> u128 {
    if other == 0 { one } else { gcd(other, one % other) }
}
