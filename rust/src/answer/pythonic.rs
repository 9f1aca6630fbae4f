//! Calls as a Python list of calls with keyword arguments, whose values become JSON as they arrive.

use super::body::{Body, Step, Tools, escaped, is_name, quoted};
use super::parts::Parts;

#[derive(Debug)]
enum Place {
    BeforeList,
    BeforeCall,
    Name,
    /// Before a keyword or the end of the arguments.
    BeforeKeyword,
    Keyword,
    /// After a keyword, before its `=`.
    BeforeEquals,
    Value,
    AfterValue,
    AfterCall,
}

/// The parser of a list of calls.
#[derive(Debug)]
pub(super) struct PythonicCalls {
    /// In an answer that only looks like calls, the names of functions decide, unless no function is known.
    known: Option<Vec<String>>,
    place: Place,
    name: String,
    text: String,
    has_begun: bool,
    num_arguments: usize,
    value: Value,
}

impl PythonicCalls {
    pub fn new(tools: &Tools, is_bare: bool) -> Self {
        Self {
            known: is_bare.then(|| tools.keys().cloned().collect()).filter(|known: &Vec<_>| !known.is_empty()),
            place: Place::BeforeList,
            name: String::new(),
            text: String::new(),
            has_begun: false,
            num_arguments: 0,
            value: Value::default(),
        }
    }

    /// Takes the name before a parenthesis.
    fn open(&mut self) -> Step {
        let name = self.text.trim();
        if name.is_empty() || self.known.as_ref().is_some_and(|known| !known.iter().any(|known| known == name)) {
            return Step::Over;
        }
        self.name = name.to_owned();
        self.text.clear();
        (self.has_begun, self.num_arguments) = (false, 0);
        self.place = Place::BeforeKeyword;
        Step::Pending
    }

    fn begin(&mut self, parts: &mut Parts) {
        if !std::mem::replace(&mut self.has_begun, true) {
            parts.begin_call(&self.name);
            parts.add_arguments("{");
        }
    }

    fn before_keyword(&mut self, letter: char, parts: &mut Parts) -> Step {
        match letter {
            ')' => return self.close(parts),
            _ if letter.is_whitespace() => {}
            _ if is_name(letter) => {
                self.text.push(letter);
                self.place = Place::Keyword;
            }
            _ => return self.break_off(parts),
        }
        self.claimed()
    }

    fn keyword(&mut self, letter: char, parts: &mut Parts) -> Step {
        let may_go_on = matches!(self.place, Place::Keyword);
        match letter {
            '=' => {
                self.begin(parts);
                let separator = if self.num_arguments == 0 { "" } else { ", " };
                parts.add_arguments(&format!("{separator}{}: ", quoted(&std::mem::take(&mut self.text))));
                self.num_arguments += 1;
                self.value = Value::default();
                self.place = Place::Value;
            }
            _ if letter.is_whitespace() => self.place = Place::BeforeEquals,
            _ if may_go_on && is_name(letter) => self.text.push(letter),
            _ => return self.break_off(parts),
        }
        self.claimed()
    }

    fn value(&mut self, letter: char, parts: &mut Parts) -> Step {
        match self.value.push(letter, parts) {
            Step::Claimed | Step::Pending => Step::Claimed,
            Step::Done => {
                self.place = Place::AfterValue;
                Step::Claimed
            }
            Step::Over => {
                self.place = Place::AfterValue;
                self.after_value(letter, parts)
            }
        }
    }

    fn after_value(&mut self, letter: char, parts: &mut Parts) -> Step {
        match letter {
            ',' => self.place = Place::BeforeKeyword,
            ')' => return self.close(parts),
            _ if letter.is_whitespace() => {}
            _ => return self.break_off(parts),
        }
        Step::Claimed
    }

    fn close(&mut self, parts: &mut Parts) -> Step {
        self.begin(parts);
        parts.add_arguments("}");
        self.place = Place::AfterCall;
        Step::Claimed
    }

    /// Ends a call at a character that no call has there.
    fn break_off(&mut self, parts: &mut Parts) -> Step {
        if self.has_begun {
            parts.add_arguments("}");
        }
        Step::Over
    }

    fn claimed(&self) -> Step {
        if self.has_begun { Step::Claimed } else { Step::Pending }
    }
}

impl Body for PythonicCalls {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        match (&self.place, letter) {
            (Place::BeforeKeyword, _) => self.before_keyword(letter, parts),
            (Place::Keyword | Place::BeforeEquals, _) => self.keyword(letter, parts),
            (Place::Value, _) => self.value(letter, parts),
            (Place::AfterValue, _) => self.after_value(letter, parts),
            (Place::Name, '(') => self.open(),
            (Place::BeforeCall | Place::AfterCall, ']') if parts.num_calls() > 0 => Step::Done,
            (Place::BeforeList | Place::BeforeCall | Place::AfterCall, _) if letter.is_whitespace() => Step::Pending,
            (Place::BeforeList, '[') | (Place::AfterCall, ',') => {
                self.place = Place::BeforeCall;
                Step::Pending
            }
            (Place::BeforeCall | Place::Name, _) if is_name(letter) => {
                self.text.push(letter);
                self.place = Place::Name;
                Step::Pending
            }
            _ => Step::Over,
        }
    }

    fn finish(&mut self, parts: &mut Parts) {
        if matches!(self.place, Place::Value) {
            self.value.finish(parts);
        }
    }
}

/// A Python value that becomes JSON: a literal string, number, word, list, tuple or dict.
#[derive(Debug, Default)]
struct Value {
    /// The brackets that are open, as their closing ones in Python.
    open: Vec<char>,
    /// The quote of the string being read.
    quote: Option<char>,
    /// An escape sequence as far as it was read.
    escape: String,
    /// A number or word as far as it was read.
    word: String,
    /// Whether a comma was read that stands before the next value, not before a bracket's end.
    has_comma: bool,
    /// The first half of a surrogate pair.
    half: Option<u32>,
}

impl Value {
    fn push(&mut self, letter: char, parts: &mut Parts) -> Step {
        if let Some(quote) = self.quote {
            return self.in_string(letter, quote, parts);
        }
        if letter.is_alphanumeric() || matches!(letter, '_' | '.' | '+' | '-') {
            self.word.push(letter);
            return Step::Claimed;
        }
        let ended_word = self.end_word(letter == ':', parts);
        match letter {
            '"' | '\'' if !ended_word => {
                self.quote = Some(letter);
                self.add_comma(parts);
                parts.add_arguments("\"");
            }
            '[' | '(' | '{' if !ended_word => {
                self.open.push(closing(letter));
                self.add_comma(parts);
                parts.add_arguments(if letter == '{' { "{" } else { "[" });
            }
            ']' | ')' | '}' if self.open.last() == Some(&letter) => {
                self.open.pop();
                self.has_comma = false;
                parts.add_arguments(if letter == '}' { "}" } else { "]" });
                return self.ended();
            }
            ',' if !self.open.is_empty() => self.has_comma = true,
            ':' if !self.open.is_empty() => parts.add_arguments(": "),
            _ if letter.is_whitespace() && !(ended_word && self.open.is_empty()) => {}
            _ => return Step::Over,
        }
        Step::Claimed
    }

    fn ended(&self) -> Step {
        if self.open.is_empty() { Step::Done } else { Step::Claimed }
    }

    fn in_string(&mut self, letter: char, quote: char, parts: &mut Parts) -> Step {
        if !self.escape.is_empty() {
            self.escape.push(letter);
            if let Some(text) = self.unescaped() {
                self.escape.clear();
                parts.add_arguments(&escaped(&text));
            }
            return Step::Claimed;
        }
        match letter {
            '\\' => self.escape.push(letter),
            _ if letter == quote => {
                self.quote = None;
                parts.add_arguments("\"");
                return self.ended();
            }
            _ => parts.add_arguments(&escaped(letter.encode_utf8(&mut [0; 4]))),
        }
        Step::Claimed
    }

    /// The text of the escape sequence; `None` while it is incomplete.
    fn unescaped(&mut self) -> Option<String> {
        let kind = self.escape[1..].chars().next()?;
        let digits = &self.escape[1 + kind.len_utf8()..];
        let num_digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return Some(self.escape.clone());
        }
        if digits.len() < num_digits {
            return None;
        }
        let text = match kind {
            'n' => "\n",
            't' => "\t",
            'r' => "\r",
            'b' => "\u{8}",
            'f' => "\u{c}",
            '0' => "\0",
            '\n' => "",
            '\\' | '\'' | '"' | '/' => return Some(kind.to_string()),
            'x' | 'u' | 'U' => return Some(self.code_point(u32::from_str_radix(digits, 16).unwrap_or(0xFFFD))),
            _ => return Some(self.escape.clone()),
        };
        Some(text.to_owned())
    }

    fn code_point(&mut self, code: u32) -> String {
        let half = self.half.take();
        if (0xD800..0xDC00).contains(&code) {
            self.half = Some(code);
            return String::new();
        }
        let joined = match half {
            Some(half) if (0xDC00..0xE000).contains(&code) => 0x10000 + ((half - 0xD800) << 10) + (code - 0xDC00),
            _ => code,
        };
        char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER).to_string()
    }

    fn add_comma(&mut self, parts: &mut Parts) {
        if std::mem::take(&mut self.has_comma) {
            parts.add_arguments(", ");
        }
    }

    /// Gives the number or word that was read, if any.
    fn end_word(&mut self, is_key: bool, parts: &mut Parts) -> bool {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return false;
        }
        self.add_comma(parts);
        let text = match word.as_str() {
            _ if is_key => quoted(&word),
            "True" | "true" => "true".to_owned(),
            "False" | "false" => "false".to_owned(),
            "None" | "null" => "null".to_owned(),
            _ => number(&word).unwrap_or_else(|| quoted(&word)),
        };
        parts.add_arguments(&text);
        true
    }

    fn finish(&mut self, parts: &mut Parts) {
        self.end_word(false, parts);
        let escape = std::mem::take(&mut self.escape);
        parts.add_arguments(&escaped(&escape));
    }
}

/// A Python number as JSON.
fn number(word: &str) -> Option<String> {
    let plain = word.replace('_', "");
    let plain = plain.strip_prefix('+').unwrap_or(&plain);
    let is_json = |text: &str| {
        text.starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
            && serde_json::from_str::<serde_json::Value>(text).is_ok()
    };
    if is_json(plain) {
        return Some(plain.to_owned());
    }
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain), |digits| ("-", digits));
    let padded = match (digits.strip_prefix('.'), digits.strip_suffix('.')) {
        (Some(fraction), _) => format!("{sign}0.{fraction}"),
        (_, Some(whole)) => format!("{sign}{whole}.0"),
        _ => return None,
    };
    is_json(&padded).then_some(padded)
}

fn closing(bracket: char) -> char {
    match bracket {
        '[' => ']',
        '(' => ')',
        _ => '}',
    }
}
