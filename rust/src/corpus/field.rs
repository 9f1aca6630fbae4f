//! Reads one text field of a JSON object straight into a text, in one look at each byte where that is possible.

use memchr::memchr;
use serde::de::IgnoredAny;
use serde_json::Deserializer;
use simdutf8::basic::from_utf8;

/// Appends the value of `field` of the object that `line` holds to `text`; of a field that comes twice, the last counts.
///
/// Returns `None` if the line is no such object, or if one of its keys has an escape or a character outside ASCII: the
/// caller then takes a full parser. What was appended until then is no part of any value.
pub fn append_field(line: &[u8], field: &str, text: &mut String) -> Option<()> {
    let before = text.len();
    let mut found = false;
    let mut scanner = Scanner { line, at: 0 };
    scanner.token(b'{')?;
    loop {
        let key = scanner.string()?;
        if !key.is_ascii() || key.contains(&b'\\') {
            return None;
        }
        scanner.token(b':')?;
        if key == field.as_bytes() {
            text.truncate(before);
            append_unescaped(scanner.string()?, text)?;
            found = true;
        } else {
            scanner.skip_value()?;
        }
        if scanner.token(b',').is_none() {
            break;
        }
    }
    scanner.token(b'}')?;
    scanner.skip_space();
    (found && scanner.at == line.len()).then_some(())
}

/// A place in a line.
struct Scanner<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        while matches!(self.line.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Goes past `byte`, if it is what comes next.
    fn token(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (*self.line.get(self.at)? == byte).then(|| self.at += 1)
    }

    /// Goes past a string; returns what stands between its quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.token(b'"')?;
        let start = self.at;
        let mut from = start;
        loop {
            let quote = from + memchr(b'"', &self.line[from..])?;
            let content = &self.line[start..quote];
            let num_slashes = content.iter().rev().take_while(|&&byte| byte == b'\\').count();
            if num_slashes.is_multiple_of(2) {
                self.at = quote + 1;
                // Without an early end, the loop over all bytes runs on vectors.
                let has_control = content.iter().fold(false, |has, &byte| has | (byte < b' '));
                return (!has_control).then_some(content);
            }
            from = quote + 1;
        }
    }

    /// Goes past a value of any kind, which is checked on the way.
    fn skip_value(&mut self) -> Option<()> {
        let mut values = Deserializer::from_slice(&self.line[self.at..]).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(())
    }
}

/// Appends the text that `content`, which stands between quotes, means.
fn append_unescaped(content: &[u8], text: &mut String) -> Option<()> {
    let mut rest = from_utf8(content).ok()?;
    text.reserve(rest.len());
    while let Some(slash) = memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..slash]);
        let (character, length) = escape(&rest.as_bytes()[slash + 1..])?;
        text.push(character);
        rest = &rest[slash + 1 + length..];
    }
    text.push_str(rest);
    Some(())
}

/// The character that the bytes after a backslash mean, and how many bytes say so.
fn escape(bytes: &[u8]) -> Option<(char, usize)> {
    let character = match bytes.first()? {
        b'n' => '\n',
        b't' => '\t',
        b'r' => '\r',
        b'b' => '\x08',
        b'f' => '\x0c',
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'u' => return unicode_escape(bytes),
        _ => return None,
    };
    Some((character, 1))
}

/// The character of `uXXXX`, or of the two halves of a surrogate pair.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = hex(bytes.get(1..5)?)?;
    if let Some(character) = char::from_u32(unit) {
        return Some((character, 5));
    }
    if bytes.get(5..7)? != b"\\u" {
        return None;
    }
    let pair = [unit as u16, hex(bytes.get(7..11)?)? as u16];
    let mut decoded = char::decode_utf16(pair);
    Some((decoded.next()?.ok()?, 11))
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, &digit| Some(value * 16 + char::from(digit).to_digit(16)?))
}
