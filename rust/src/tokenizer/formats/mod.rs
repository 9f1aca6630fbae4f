//! Hugging Face's `tokenizer.json`, written and read.

mod components;
mod model;

use serde_json::{Map, Value, json};

use self::components::{PreTokenizer, read_decoder, read_normalizer, read_pre_tokenizer, read_template};
use self::model::{read_model, written_tokens};
use super::Tokenizer;
use super::memory::join_freed;
use super::normalizer::Normalizer;
use super::pipeline::Pipeline;
use super::pretokenize::Pattern;
use super::special::AddedToken;
use super::stages::Stage;
use super::vocab::Vocab;
use crate::{Error, Result};

/// The expression of a tokenizer that does not cut text by one.
const WHOLE_TEXT: &str = r"[\s\S]+";

/// What a `tokenizer.json` has beside vocabulary, merges and added tokens, kept as it was read to be written again.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    truncation: Value,
    padding: Value,
    /// All of the model but vocabulary and merges.
    model: Map<String, Value>,
    /// Tokens that no text becomes and whose name does not stand for bytes.
    raw_names: Vec<(u32, String)>,
}

/// Ids around the ids of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Ids before it.
    pub prefix: Vec<u32>,
    /// Ids after it.
    pub suffix: Vec<u32>,
}

impl Components {
    /// Those of a byte-level tokenizer that cuts text by `pattern`.
    pub fn byte_level(pattern: &Pattern) -> Self {
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        });
        Self {
            normalizer: Value::Null,
            pre_tokenizer: components::pre_tokenizer(pattern),
            post_processor: Value::Null,
            decoder: components::byte_level(true),
            truncation: Value::Null,
            padding: Value::Null,
            model: model.as_object().cloned().unwrap_or_default(),
            raw_names: vec![],
        }
    }

    fn read(document: &Value, raw_names: Vec<(u32, String)>) -> Self {
        let part = |name: &str| document[name].clone();
        let flags = document["model"].as_object().into_iter().flatten();
        let flags = flags.filter(|(name, _)| !["vocab", "merges"].contains(&name.as_str()));
        Self {
            normalizer: part("normalizer"),
            pre_tokenizer: part("pre_tokenizer"),
            post_processor: part("post_processor"),
            decoder: part("decoder"),
            truncation: part("truncation"),
            padding: part("padding"),
            model: flags.map(|(name, value)| (name.clone(), value.clone())).collect(),
            raw_names,
        }
    }
}

impl Tokenizer {
    /// The tokenizer as Hugging Face's `tokenizer.json`; `tokenizers` and `transformers` give the same ids with it.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a special token reads like an ordinary token in that file, which has one namespace for both.
    pub fn to_json(&self) -> Result<String> {
        let (vocab, components) = (self.vocab(), &self.components);
        let (ids, merges) = written_tokens(vocab, &components.raw_names)?;
        let mut model = components.model.clone();
        model.insert("ignore_merges".to_owned(), Value::from(vocab.whole_first()));
        model.insert("vocab".to_owned(), Value::Object(ids));
        model.insert("merges".to_owned(), merges);
        let document = json!({
            "version": "1.0",
            "truncation": components.truncation,
            "padding": components.padding,
            "added_tokens": vocab.added().iter().map(added_token).collect::<Vec<_>>(),
            "normalizer": components.normalizer,
            "pre_tokenizer": components.pre_tokenizer,
            "post_processor": components.post_processor,
            "decoder": components.decoder,
            "model": model,
        });
        serde_json::to_string_pretty(&document).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Reads Hugging Face's `tokenizer.json`.
    ///
    /// Sections on truncation and padding are kept and change nothing here.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if it is not such a file, or has a component that would change ids and is not supported; the
    /// message names it.
    pub fn from_json(text: &str) -> Result<Self> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| Error::Tokenizer(format!("must be JSON: {error}")))?;
        let normalizer = Normalizer::new(read_normalizer(&document["normalizer"])?);
        let PreTokenizer { stages, is_byte_level } = read_pre_tokenizer(&document["pre_tokenizer"])?;
        let token_text = read_decoder(&document["decoder"], is_byte_level)?;
        let template = read_template(&document["post_processor"])?;
        let (vocab, raw_names) = read_model(&document, is_byte_level, &token_text)?;
        check_template(template.as_ref(), &vocab)?;
        let components = Components::read(&document, raw_names);
        let pipeline = Pipeline::new(normalizer, stages, vocab.added());
        let is_plain = vocab.characters().is_none()
            && vocab.has_all_bytes()
            && pipeline.normalizer().steps().is_empty()
            && matches!(pipeline.stages(), [Stage::Pattern(_)])
            && vocab.added().iter().all(AddedToken::is_plain);
        let plain = Self::new(vocab, main_pattern(pipeline.stages())?);
        let pipeline = (!is_plain).then_some(pipeline);
        drop(document);
        join_freed();
        Ok(Self { pipeline, decoder: token_text.decoder, template, components, ..plain })
    }
}

fn check_template(template: Option<&Template>, vocab: &Vocab) -> Result<()> {
    let ids = template.into_iter().flat_map(|template| template.prefix.iter().chain(&template.suffix));
    match ids.copied().find(|&id| vocab.tokens().bytes(id).is_none()) {
        Some(id) => Err(Error::Tokenizer(format!("`post_processor` must use ids that have a token, got {id}"))),
        None => Ok(()),
    }
}

/// The pattern that does most of the cutting.
fn main_pattern(stages: &[Stage]) -> Result<Pattern> {
    let last = stages.iter().rev().find_map(|stage| match stage {
        Stage::Pattern(pattern) => Some(pattern.clone()),
        _ => None,
    });
    last.map_or_else(|| Pattern::from_regex(WHOLE_TEXT), Ok)
}

fn added_token(token: &AddedToken) -> Value {
    json!({
        "id": token.id, "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
        "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
    })
}

/// The value if it is allowed, else an error that names it.
fn expect(object: &Value, name: &str, allowed: &str, is_allowed: impl Fn(&Value) -> bool) -> Result<()> {
    let value = &object[name];
    if is_allowed(value) { Ok(()) } else { Err(unsupported(name, allowed, value)) }
}

/// A flag of `object`; `default` where it is not there.
fn flag(object: &Value, name: &str, default: bool) -> Result<bool> {
    match &object[name] {
        Value::Null => Ok(default),
        Value::Bool(flag) => Ok(*flag),
        other => Err(unsupported(name, "true or false", other)),
    }
}

fn text<'a>(object: &'a Value, name: &str) -> Result<&'a str> {
    object[name].as_str().ok_or_else(|| unsupported(name, "a string", &object[name]))
}

/// The list under `name`; an empty one where there is none.
fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value]> {
    match &object[name] {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        other => Err(unsupported(name, "a list", other)),
    }
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// The error about a component; a long one is cut.
fn unsupported(name: &str, allowed: &str, value: &Value) -> Error {
    let mut got = value.to_string();
    if let Some((cut, _)) = got.char_indices().nth(200) {
        got.truncate(cut);
        got.push('…');
    }
    Error::Tokenizer(format!("unsupported `{name}`: must be {allowed}, got {got}"))
}
