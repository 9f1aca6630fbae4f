//! BPE: text to ids and back.

pub mod bpe;
pub mod characters;
pub mod decoder;
pub mod formats;
pub mod normalizer;
pub mod pipeline;
pub mod pretokenize;
pub mod special;
pub mod stages;
pub mod stream;
pub mod trainer;
pub mod vocab;

use rayon::prelude::*;

use self::decoder::{Decoder, run_text, stands_for_byte};
use self::formats::{Components, Template};
use self::pipeline::{Part, Pipeline};
use self::pretokenize::Pattern;
use self::special::{Segment, SpecialMatcher};
use self::vocab::Vocab;
use crate::{Error, Result};

/// A BPE tokenizer. It never changes, so threads share it freely.
///
/// ```
/// use llm_core::tokenizer::{Tokenizer, pretokenize::Pattern, vocab::Vocab};
///
/// let bytes: Vec<u8> = (0..=255).collect();
/// let vocab = Vocab::new(&bytes, vec![(104, 105)], vec![("<|end|>".to_owned(), 257)])?;
/// let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
/// assert_eq!(tokenizer.encode("hi!<|end|>", true)?, [256, 33, 257]);
/// assert_eq!(tokenizer.decode_bytes(&[256, 33])?, b"hi!");
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocab: Vocab,
    pattern: Pattern,
    special: SpecialMatcher,
    /// What text goes through if there is more to it than special tokens and one pattern.
    pipeline: Option<Pipeline>,
    decoder: Decoder,
    template: Option<Template>,
    components: Components,
}

impl Tokenizer {
    /// A tokenizer that cuts text by `pattern` and merges each piece by `vocab`.
    pub fn new(vocab: Vocab, pattern: Pattern) -> Self {
        let special = SpecialMatcher::new(vocab.special());
        let components = Components::byte_level(&pattern);
        Self { vocab, pattern, special, pipeline: None, decoder: Decoder::Bytes, template: None, components }
    }

    /// Its vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Its pattern.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The ids of `text`. Special tokens in it become their id if `allow_special`, else ids of their text.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text.
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<u32>> {
        // English text has four to five bytes a token; a guess on the low side grows once.
        let mut ids = Vec::with_capacity(text.len() / 4);
        if let Some(pipeline) = &self.pipeline {
            pipeline.for_each_part(text, allow_special, &mut |part| self.encode_part(part, &mut ids))?;
            return Ok(ids);
        }
        if !allow_special {
            self.encode_ordinary(text, &mut ids)?;
            return Ok(ids);
        }
        for segment in self.special.segments(text) {
            match segment {
                Segment::Text(text) => self.encode_ordinary(text, &mut ids)?,
                Segment::Special(id) => ids.push(id),
            }
        }
        Ok(ids)
    }

    /// The ids of each text, on all cores.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], allow_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, allow_special)).collect()
    }

    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        self.pattern.for_each_piece(text, |piece| self.vocab.encode_piece(piece.as_bytes(), ids))
    }

    fn encode_part(&self, part: Part<'_>, ids: &mut Vec<u32>) {
        match (part, self.vocab.characters()) {
            (Part::Token(id), _) => ids.push(id),
            (Part::Piece(piece), Some(characters)) => self.vocab.encode_characters(characters, piece, ids),
            (Part::Piece(piece), None) => self.vocab.encode_any_bytes(piece.as_bytes(), ids),
        }
    }

    /// The pieces that `text` is cut into, normalised, special tokens in it as text.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn pieces(&self, text: &str) -> Result<Vec<String>> {
        let Some(pipeline) = &self.pipeline else {
            return Ok(self.pattern.pieces(text)?.into_iter().map(str::to_owned).collect());
        };
        let mut pieces = Vec::new();
        pipeline.for_each_part(text, false, &mut |part| match part {
            Part::Piece(piece) => pieces.push(piece.to_owned()),
            Part::Token(id) => {
                let token = self.vocab.tokens().bytes(id).unwrap_or_default();
                pieces.push(String::from_utf8_lossy(token).into_owned());
            }
        })?;
        Ok(pieces)
    }

    /// What is put around the ids of a text when special tokens are asked for; None if nothing is.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// Whether no token reaches over the end of a line between two that begin and end with neither white space nor
    /// `/`. Then the parts of a long text have the ids of the whole.
    pub fn cuts_at_line_ends(&self) -> bool {
        self.pipeline.as_ref().map_or(!self.pattern.is_custom(), Pipeline::cuts_at_line_ends)
            && self.vocab.characters().is_none()
    }

    /// The bytes of `ids`, special tokens as their text; `skip_special` leaves those out.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such id.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut is_first = true;
        self.for_each_token(ids, skip_special, |_, token| {
            self.decoder.push(token, is_first, &mut bytes);
            is_first = false;
        })?;
        bytes.drain(..self.decoder.stripped(&bytes));
        Ok(bytes)
    }

    /// The bytes of `ids`, special tokens as their text.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such id.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        self.decode(ids, false)
    }

    /// The text of `ids`; what is no UTF-8 becomes U+FFFD, as often as Hugging Face has it for such a vocabulary.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such id.
    pub fn decode_text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if self.vocab.characters().is_none() {
            let bytes = self.decode(ids, skip_special)?;
            return Ok(
                String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            );
        }
        let (mut text, mut run, mut is_first) = (String::new(), Vec::new(), true);
        self.for_each_token(ids, skip_special, |id, token| {
            if !stands_for_byte(&self.vocab, id) {
                text += &run_text(&std::mem::take(&mut run));
            }
            self.decoder.push(token, is_first, &mut run);
            is_first = false;
            if !stands_for_byte(&self.vocab, id) {
                text += &String::from_utf8_lossy(&std::mem::take(&mut run));
            }
        })?;
        text += &run_text(&run);
        text.drain(..self.decoder.stripped(text.as_bytes()));
        Ok(text)
    }

    /// Calls `visit` with each id and its bytes.
    fn for_each_token(&self, ids: &[u32], skip_special: bool, mut visit: impl FnMut(u32, &[u8])) -> Result<()> {
        let tokens = self.vocab.tokens();
        for (index, &id) in ids.iter().enumerate() {
            let token = tokens.bytes(id).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "token ids must be ids of this tokenizer (0 to {}), got {id} at index {index}",
                    tokens.len().saturating_sub(1)
                ))
            })?;
            if !(skip_special && tokens.is_special(id)) {
                visit(id, token);
            }
        }
        Ok(())
    }
}
