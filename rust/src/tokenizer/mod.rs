//! Byte-level BPE: text to ids and back.

mod backtrack;
pub mod batch;
pub mod bpe;
mod cache;
mod encoder;
pub mod formats;
mod memory;
pub mod offsets;
pub mod plan;
pub mod pretokenize;
pub mod special;
pub mod stream;
pub mod threads;
pub mod trainer;
pub mod vocab;

use std::sync::Arc;

use rayon::prelude::*;

use self::encoder::{PieceEncoder, TextEncoder};
use self::pretokenize::Pattern;
use self::special::{Segment, SpecialMatcher};
use self::vocab::Vocab;
use crate::{Error, Result};

/// A byte-level BPE tokenizer. It never changes, so threads share it freely.
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
    encoder: Arc<PieceEncoder>,
}

impl Tokenizer {
    /// A tokenizer that cuts text by `pattern` and merges each piece by `vocab`.
    pub fn new(vocab: Vocab, pattern: Pattern) -> Self {
        let special = SpecialMatcher::new(vocab.special());
        let vocab = Arc::new(vocab);
        let encoder = Arc::new(PieceEncoder::new(Arc::clone(&vocab)));
        Self { vocab, pattern, special, encoder }
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
        let bytes = text.as_bytes();
        self.encoder.session(ids, |session| self.pattern.for_each_span(text, TextEncoder { text: bytes, session }))
    }

    /// The bytes of `ids`, special tokens as their text; `skip_special` leaves those out.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if there is no such id.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<Vec<u8>> {
        let tokens = self.vocab.tokens();
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for (index, &id) in ids.iter().enumerate() {
            let token = tokens.bytes(id).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "token ids must be ids of this tokenizer (0 to {}), got {id} at index {index}",
                    tokens.len() - 1
                ))
            })?;
            if !(skip_special && tokens.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
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
}
