//! Reads one text field of each line of JSON.

use std::fmt;

use memchr::memchr_iter;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::DocumentCutter;
use super::field::append_field;

/// Cuts bytes into lines and takes the text of one field from each.
#[derive(Debug)]
pub struct JsonLines {
    field: String,
    /// The beginning of a line that the next bytes complete.
    rest: Vec<u8>,
    num_lines: usize,
}

impl JsonLines {
    /// Creates a reader of the field `field`.
    pub fn new(field: String) -> Self {
        Self { field, rest: Vec::new(), num_lines: 0 }
    }

    /// Adds the text of each complete line to `cutter`, a document a line; blank lines are skipped.
    ///
    /// A line that is no plain object with the field goes to `other` with its number from 1, which returns its text.
    ///
    /// # Errors
    ///
    /// Those of `other`.
    pub fn push<E>(
        &mut self,
        bytes: &[u8],
        is_last: bool,
        cutter: &mut DocumentCutter,
        mut other: impl FnMut(usize, &[u8]) -> Result<String, E>,
    ) -> Result<(), E> {
        let mut start = 0;
        for stop in memchr_iter(b'\n', bytes) {
            if self.rest.is_empty() {
                self.line(&bytes[start..stop], cutter, &mut other)?;
            } else {
                self.rest.extend_from_slice(&bytes[start..stop]);
                let line = std::mem::take(&mut self.rest);
                self.line(&line, cutter, &mut other)?;
            }
            start = stop + 1;
        }
        self.rest.extend_from_slice(&bytes[start..]);
        if is_last {
            let line = std::mem::take(&mut self.rest);
            self.line(&line, cutter, &mut other)?;
        }
        Ok(())
    }

    fn line<E>(
        &mut self,
        line: &[u8],
        cutter: &mut DocumentCutter,
        other: &mut impl FnMut(usize, &[u8]) -> Result<String, E>,
    ) -> Result<(), E> {
        self.num_lines += 1;
        // `bytes.strip` of Python takes a vertical tab for white space as well.
        if line.iter().all(|byte| byte.is_ascii_whitespace() || *byte == b'\x0b') {
            return Ok(());
        }
        let field = &self.field;
        if cutter.push_with(true, |text| append_field(line, field, text).ok_or(())).is_ok()
            || cutter.push_with(true, |text| read_field(line, field, text)).is_ok()
        {
            return Ok(());
        }
        let found = other(self.num_lines, line)?;
        cutter.push_with(true, |text| {
            text.push_str(&found);
            Ok(())
        })
    }
}

/// Appends the value of `field` to `text`.
fn read_field(line: &[u8], field: &str, text: &mut String) -> serde_json::Result<()> {
    let mut source = serde_json::Deserializer::from_slice(line);
    if !source.deserialize_map(Fields { field, text })? {
        return Err(serde_json::Error::custom("no such field"));
    }
    source.end()
}

/// Visits an object; says whether it has the field.
struct Fields<'a> {
    field: &'a str,
    text: &'a mut String,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let before = self.text.len();
        let mut found = false;
        while let Some(is_field) = map.next_key_seed(IsField(self.field))? {
            if is_field {
                self.text.truncate(before); // of a field that comes twice, the last counts
                map.next_value_seed(Append(self.text))?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a key, without a copy of it.
struct IsField<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for IsField<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<bool, D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for IsField<'_> {
    type Value = bool;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Appends a text.
struct Append<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text")
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.push_str(value);
        Ok(())
    }
}
