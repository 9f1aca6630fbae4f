//! Writes and reads Hugging Face's `tokenizer.json`.

pub(super) mod components;
mod json;
mod model;
mod read;

use serde_json::{Value, json};

use self::components::Components;
use self::model::{read_model, written_tokens};
use self::read::{PreTokenizer, read_decoder, read_normalizer, read_pre_tokenizer, read_template};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::memory::join_freed;
use crate::tokenizer::options::Template;
use crate::tokenizer::split::normalizer::Normalizer;
use crate::tokenizer::split::pipeline::Pipeline;
use crate::tokenizer::split::pretokenize::Pattern;
use crate::tokenizer::split::special::AddedToken;
use crate::tokenizer::split::stages::Stage;
use crate::tokenizer::vocab::Vocab;
use crate::{Error, Result};

/// The regular expression written for a tokenizer that does not split text by a pattern.
const WHOLE_TEXT: &str = r"[\s\S]+";

impl Tokenizer {
    /// Writes the tokenizer as Hugging Face's `tokenizer.json`; `tokenizers` and `transformers` encode to the same ids
    /// with it.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a special token has the name of an ordinary token in that file, which has one namespace for both.
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
    /// The sections on truncation and padding are kept but have no effect here.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if the text is not such a file, or has an unsupported component that would change ids; the message
    /// names the component.
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
        let is_plain = vocab.sentence_piece().is_none()
            && vocab.has_all_bytes()
            && pipeline.normalizer().steps().is_empty()
            && matches!(pipeline.stages(), [Stage::Pattern(_)])
            && vocab.added().iter().all(AddedToken::is_plain);
        let plain = Self::new(vocab, main_pattern(pipeline.stages())?);
        let pipeline = (!is_plain).then_some(pipeline);
        drop(document);
        join_freed();
        Ok(Self { pipeline, joiner: token_text.joiner, template, components, ..plain })
    }
}

fn check_template(template: Option<&Template>, vocab: &Vocab) -> Result<()> {
    let ids = template.into_iter().flat_map(|template| template.before.iter().chain(&template.after));
    match ids.copied().find(|&id| vocab.tokens().bytes(id).is_none()) {
        Some(id) => Err(Error::Tokenizer(format!("`post_processor` must use ids that have a token, got {id}"))),
        None => Ok(()),
    }
}

/// Returns the pattern that does most of the splitting.
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
