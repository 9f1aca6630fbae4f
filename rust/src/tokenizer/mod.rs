//! BPE: text to ids and back.

mod backtrack;
pub mod batch;
mod bits;
pub mod bpe;
mod byte_merges;
mod cache;
pub mod characters;
pub mod decoder;
mod encoder;
pub mod formats;
mod key;
pub(crate) mod memory;
pub mod normalizer;
pub mod offsets;
pub mod pipeline;
pub mod plan;
pub mod pretokenize;
pub mod special;
pub mod stages;
pub mod stream;
pub mod threads;
pub mod token_stream;
pub mod trainer;
pub mod vocab;
mod whole;
#[cfg(target_arch = "x86_64")]
mod wide_batch;
#[cfg(target_arch = "x86_64")]
mod wide_merges;
mod worker;

use std::sync::Arc;

use rayon::prelude::*;

use self::decoder::{Decoder, run_text, stands_for_byte};
use self::encoder::{PieceEncoder, Session, TextEncoder};
use self::formats::{Components, Template};
use self::pipeline::{Part, Pipeline};
use self::pretokenize::Pattern;
use self::special::{Segment, SpecialMatcher};
use self::stages::Stage;
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
    vocab: Arc<Vocab>,
    pattern: Pattern,
    special: SpecialMatcher,
    /// Shared by clones, what it remembers included.
    encoder: Arc<PieceEncoder>,
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
        let vocab = Arc::new(vocab);
        let encoder = Arc::new(PieceEncoder::new(Arc::clone(&vocab)));
        Self { vocab, pattern, special, encoder, pipeline: None, decoder: Decoder::Bytes, template: None, components }
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
        let mut ids = Vec::new();
        self.encode_into(text, allow_special, &mut ids)?;
        Ok(ids)
    }

    /// Adds the ids of `text` to `ids`, as [`Tokenizer::encode`].
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`]; `ids` may then have some of the text's.
    pub fn encode_into(&self, text: &str, allow_special: bool, ids: &mut Vec<u32>) -> Result<()> {
        // English text has four to five bytes a token; a guess on the low side grows once.
        ids.reserve(text.len() / 4);
        self.encoder.session(ids, |session| {
            if let Some(pipeline) = &self.pipeline {
                return self.encode_through(pipeline, text, allow_special, session);
            }
            if !allow_special {
                return self.encode_ordinary(text, session);
            }
            self.special.segments(text).try_for_each(|segment| match segment {
                Segment::Text(text) => self.encode_ordinary(text, session),
                Segment::Special(id) => {
                    session.push(id);
                    Ok(())
                }
            })
        })
    }

    /// The ids of each text, on all cores.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], allow_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, allow_special)).collect()
    }

    fn encode_ordinary(&self, text: &str, session: &mut Session<'_>) -> Result<()> {
        self.pattern.for_each_span(text, TextEncoder { text: text.as_bytes(), session })
    }

    fn encode_through(
        &self,
        pipeline: &Pipeline,
        text: &str,
        allow_special: bool,
        session: &mut Session<'_>,
    ) -> Result<()> {
        // One pattern and bytes, as after NFC alone, is as fast as without a pipeline.
        if let ([Stage::Pattern(_)], None) = (pipeline.stages(), self.vocab.characters()) {
            return pipeline.for_each_segment(text, allow_special, &mut |segment| match segment {
                (Segment::Text(text), _) => self.encode_ordinary(text, session),
                (Segment::Special(id), _) => {
                    session.push(id);
                    Ok(())
                }
            });
        }
        pipeline.for_each_part(text, allow_special, &mut |part| self.encode_part(part, session))
    }

    fn encode_part(&self, part: Part<'_>, session: &mut Session<'_>) {
        match (part, self.vocab.characters()) {
            (Part::Token(id), _) => session.push(id),
            (Part::Piece(piece), Some(characters)) => self.vocab.encode_characters(characters, piece, session.ids()),
            (Part::Piece(piece), None) => session.encode(piece.as_bytes(), 0, piece.len()),
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

    /// How the bytes of its tokens are put together.
    pub fn decoder(&self) -> Decoder {
        self.decoder
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
        if self.decoder == Decoder::Bytes && !skip_special {
            // English text has four to five bytes a token.
            let mut bytes = Vec::with_capacity(ids.len() * 5);
            return match self.vocab.tokens().append(ids, &mut bytes) {
                None => Ok(bytes),
                Some(index) => Err(self.unknown_id(index, ids[index])),
            };
        }
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
            let token = tokens.bytes(id).ok_or_else(|| self.unknown_id(index, id))?;
            if !(skip_special && tokens.is_special(id)) {
                visit(id, token);
            }
        }
        Ok(())
    }

    fn unknown_id(&self, index: usize, id: u32) -> Error {
        Error::InvalidArgument(format!(
            "token ids must be ids of this tokenizer (0 to {}), got {id} at index {index}",
            self.vocab.size() - 1
        ))
    }
}
