//! What a caller writes down: the kinds of grammar and their text.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use super::schema;
use crate::{Error, Result};

/// Largest text of a grammar.
const MAX_TEXT_BYTES: usize = 256 << 10;
/// Deepest nesting of brackets: parsers recurse into them.
const MAX_DEPTH: usize = 100;
/// Largest number of rules of a Lark grammar: the compiler recurses from rule to rule.
const MAX_RULES: usize = 1000;
/// Largest number of choices.
const MAX_CHOICES: usize = 10_000;
/// White space between the tokens of JSON: what people and models write, but not without end, since a small model would
/// fill an answer with it.
const WHITESPACE: &str = r"(?: |\r?\n[ \t]{0,32})";

/// What a JSON schema in a Lark grammar follows.
const INLINE: &str = "%json";
/// What a schema in a Lark grammar may set about its form; other options would weaken the schema.
const INLINE_OPTIONS: [&str; 4] = ["item_separator", "key_separator", "whitespace_flexible", "whitespace_pattern"];

/// A grammar as text. Equal sources share one compiled grammar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrammarSource {
    /// JSON that a JSON schema accepts.
    JsonSchema {
        /// The schema as JSON text.
        schema: String,
        /// Whether white space between the tokens of the JSON is forbidden.
        is_compact: bool,
    },
    /// The whole answer matches a regular expression in Rust's syntax, without look-around and back-references.
    Regex(String),
    /// The answer is one of these strings.
    Choice(Vec<String>),
    /// The answer follows a grammar in `llguidance`'s variant of Lark's language, with `start` as its first rule.
    ///
    /// `%json { … }` stands for JSON that the schema in braces accepts, `<|name|>` for a special token, and `<[7]>` for
    /// the token with id 7.
    Lark(String),
}

impl GrammarSource {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema { schema: r#"{"type":"object"}"#.to_owned(), is_compact: false }
    }

    /// Size of the text.
    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::JsonSchema { schema: text, .. } | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
        }
    }

    /// Whether the grammar names special tokens: a `<` outside of its strings and regular expressions.
    pub(super) fn names_tokens(&self) -> bool {
        let Self::Lark(text) = self else { return false };
        let mut quote = None;
        let mut is_escaped = false;
        for letter in text.chars() {
            match quote {
                Some(_) if is_escaped => is_escaped = false,
                Some(_) if letter == '\\' => is_escaped = true,
                Some(end) if letter == end => quote = None,
                Some(_) => {}
                None if letter == '<' => return true,
                None if matches!(letter, '"' | '/') => quote = Some(letter),
                None => {}
            }
        }
        false
    }

    /// Name of the setting that holds this kind of grammar, for error messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema { .. } => "json",
            Self::Regex(_) => "regex",
            Self::Choice(_) => "choice",
            Self::Lark(_) => "grammar",
        }
    }

    /// An error about this grammar.
    pub(super) fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::InvalidArgument(format!("`{}` {problem}", self.name()))
    }

    /// Checks the text and converts it to what `llguidance` compiles.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the text is too large or nested too deeply, or if a schema has a keyword that would
    /// not be enforced.
    pub(super) fn to_grammar(&self) -> Result<TopLevelGrammar> {
        let num_bytes = self.num_bytes();
        if num_bytes > MAX_TEXT_BYTES {
            return Err(self.error(format!("must have at most {MAX_TEXT_BYTES} bytes, got {num_bytes}")));
        }
        match self {
            Self::JsonSchema { schema, is_compact } => {
                let schema = schema::checked(schema).map_err(|problem| self.error(problem))?;
                Ok(TopLevelGrammar::from_json_schema(with_options(schema, *is_compact)))
            }
            Self::Regex(regex) => self.check_depth(regex).map(|()| TopLevelGrammar::from_regex(regex)),
            Self::Choice(choices) => self.check_choices(choices).map(|()| any_of(choices)),
            Self::Lark(text) => {
                self.check_depth(text)?;
                self.check_rules(text)?;
                inline_schemas(text).try_for_each(|(schema, _)| self.check_inline(&schema))?;
                Ok(TopLevelGrammar::from_lark(with_complete_schemas(text)))
            }
        }
    }

    fn check_choices(&self, choices: &[String]) -> Result<()> {
        if choices.is_empty() || choices.len() > MAX_CHOICES || choices.iter().any(String::is_empty) {
            let num_empty = choices.iter().filter(|choice| choice.is_empty()).count();
            let got = format!("got {} of which {num_empty} are empty", choices.len());
            return Err(self.error(format!("must be 1 to {MAX_CHOICES} strings with text, {got}")));
        }
        Ok(())
    }

    /// Counts brackets wherever they stand: one in a string only makes the count higher.
    fn check_depth(&self, text: &str) -> Result<()> {
        let mut depth = 0_usize;
        let mut deepest = 0;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        match deepest > MAX_DEPTH {
            true => Err(self.error(format!("must nest brackets at most {MAX_DEPTH} deep, got {deepest}"))),
            false => Ok(()),
        }
    }

    fn check_inline(&self, schema: &Value) -> Result<()> {
        let options = schema.get("x-guidance").and_then(Value::as_object);
        let unknown = options.and_then(|options| options.keys().find(|key| !INLINE_OPTIONS.contains(&key.as_str())));
        if let Some(key) = unknown {
            let allowed = INLINE_OPTIONS.join(", ");
            return Err(self.error(format!("has the option `x-guidance.{key}`, allowed are: {allowed}")));
        }
        schema::check(schema).map_err(|problem| self.error(format!("holds a `%json` that {problem}")))
    }

    fn check_rules(&self, text: &str) -> Result<()> {
        let is_rule =
            |line: &&str| line.contains(':') && line.starts_with(|c: char| c.is_alphabetic() || "_?!".contains(c));
        let num_rules = text.lines().map(str::trim_start).filter(is_rule).count();
        match num_rules > MAX_RULES {
            true => Err(self.error(format!("must have at most {MAX_RULES} rules, got {num_rules}"))),
            false => Ok(()),
        }
    }
}

/// The JSON values after each `%json` in a Lark grammar, with the text behind each; what isn't JSON is left to the parser
/// of the grammar.
fn inline_schemas(text: &str) -> impl Iterator<Item = (Value, &str)> {
    text.split(INLINE).skip(1).filter_map(first_value)
}

fn first_value(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

/// The grammar with schemas that mean to `llguidance` what they mean to validators.
fn with_complete_schemas(text: &str) -> String {
    let mut pieces = text.split(INLINE);
    let mut whole = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        whole.push_str(INLINE);
        match first_value(piece) {
            Some((mut schema @ Value::Object(_), rest)) => {
                schema::complete(&mut schema);
                whole.push_str(&format!(" {schema}{rest}"));
            }
            _ => whole.push_str(piece),
        }
    }
    whole
}

fn with_options(schema: Value, is_compact: bool) -> Value {
    let options = match is_compact {
        true => json!({"whitespace_flexible": false}),
        false => json!({"whitespace_pattern": WHITESPACE}),
    };
    match schema {
        Value::Object(mut fields) => {
            fields.insert("x-guidance".to_owned(), options);
            Value::Object(fields)
        }
        Value::Bool(true) => Value::Object(Map::from_iter([("x-guidance".to_owned(), options)])),
        other => other,
    }
}

/// One regular expression for all choices: its states cost less than a rule for each.
fn any_of(choices: &[String]) -> TopLevelGrammar {
    let escaped: Vec<_> = choices.iter().map(|choice| regex_to_lark(&fancy_regex::escape(choice), "")).collect();
    TopLevelGrammar::from_lark(format!("start: /(?:{})/", escaped.join("|")))
}
