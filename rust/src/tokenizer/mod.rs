//! BPE tokenization: encodes text into ids and decodes ids into text.
//!
//! Encoding passes through `split` (text to pieces), `cache` (pieces seen before) and `merge` (new pieces to tokens),
//! driven by `encoder`; `decode` turns ids into text. `vocab` and `tokens` hold the data, `formats` reads and writes
//! `tokenizer.json`, `trainer` learns a vocabulary.

pub mod batch;
mod bits;
mod cache;
pub mod decode;
mod encoder;
pub mod formats;
pub(crate) mod memory;
pub mod merge;
pub mod options;
pub mod split;
pub mod threads;
pub mod tokens;
pub mod trainer;
pub mod vocab;

use std::sync::Arc;

use rayon::prelude::*;

use self::decode::join::{Joiner, run_text, stands_for_byte};
use self::decode::offsets::{Offsets, offsets};
use self::encoder::{PieceEncoder, Session, TextEncoder};
use self::formats::components::Components;
use self::options::{Allowed, EncodePlan, Template};
use self::split::aligned::Origin;
use self::split::pipeline::{Part, Pipeline};
use self::split::pretokenize::Pattern;
use self::split::special::{Segment, SpecialMatcher};
use self::split::stages::{Stage, Stretch};
use self::vocab::Vocab;
use crate::{Error, Result};

/// A BPE tokenizer. It is immutable, so threads share it freely.
///
/// ```
/// use llm_core::tokenizer::options::Allowed;
/// use llm_core::tokenizer::{Tokenizer, split::pretokenize::Pattern, vocab::Vocab};
///
/// let bytes: Vec<u8> = (0..=255).collect();
/// let vocab = Vocab::new(&bytes, vec![(104, 105)], vec![("<|end|>".to_owned(), 257)])?;
/// let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
/// assert_eq!(tokenizer.encode("hi!<|end|>", &Allowed::All)?, [256, 33, 257]);
/// assert_eq!(tokenizer.decode(&[256, 33], false)?, "hi!");
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    vocab: Arc<Vocab>,
    pattern: Pattern,
    special: SpecialMatcher,
    /// The encoder and the pieces that it remembers, shared by all clones.
    encoder: Arc<PieceEncoder>,
    /// Turns text into pieces; `None` if special tokens and one pattern are enough for that.
    pipeline: Option<Pipeline>,
    joiner: Joiner,
    template: Option<Template>,
    components: Components,
}

impl Tokenizer {
    /// Creates a tokenizer that cuts text by `pattern` and merges each piece by `vocab`.
    pub fn new(vocab: Vocab, pattern: Pattern) -> Self {
        let special = SpecialMatcher::new(vocab.special());
        let components = Components::byte_level(&pattern);
        let vocab = Arc::new(vocab);
        let encoder = Arc::new(PieceEncoder::new(Arc::clone(&vocab)));
        Self { vocab, pattern, special, encoder, pipeline: None, joiner: Joiner::Bytes, template: None, components }
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// The pattern that cuts text into pieces.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The ids of `text`. The `allowed` special tokens in `text` become their ids.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text.
    pub fn encode(&self, text: &str, allowed: &Allowed) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, allowed, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `ids`; see [`Tokenizer::encode`].
    ///
    /// # Errors
    ///
    /// See [`Tokenizer::encode`]; `ids` may then hold the ids of part of the text.
    pub fn encode_into(&self, text: &str, allowed: &Allowed, ids: &mut Vec<u32>) -> Result<()> {
        // English text has four to five bytes per token; a guess on the low side grows once.
        ids.reserve(text.len() / 4);
        self.encoder.session(ids, text.len(), |session| {
            let finds_special = matches!(allowed, Allowed::All);
            let chosen = match allowed {
                Allowed::Some(tokens) => &**tokens,
                // A pipeline finds special tokens itself, among other added tokens, before and after normalising.
                Allowed::All if self.pipeline.is_none() => &self.special,
                _ => return self.encode_segment(text, finds_special, session),
            };
            chosen.segments(text).try_for_each(|segment| match segment {
                Segment::Text(text) => self.encode_segment(text, false, session),
                Segment::Special(id) => {
                    session.push(id);
                    Ok(())
                }
            })
        })
    }

    /// Appends the ids of `text` to `ids`, according to `plan`.
    ///
    /// # Errors
    ///
    /// See [`EncodePlan::check`] and [`Tokenizer::encode`].
    pub fn encode_planned(&self, text: &str, plan: &EncodePlan, ids: &mut Vec<u32>) -> Result<()> {
        plan.check(text)?;
        let start = ids.len();
        self.encode_into(text, plan.allowed(), ids)?;
        plan.frame(ids, start);
        Ok(())
    }

    /// The ids of each text, computed on all cores.
    ///
    /// # Errors
    ///
    /// See [`Tokenizer::encode`].
    pub fn encode_batch(&self, texts: &[&str], allowed: &Allowed) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, allowed)).collect()
    }

    /// Encodes text. Only a pipeline looks for special tokens in the text, and only if `finds_special` is true.
    fn encode_segment(&self, text: &str, finds_special: bool, session: &mut Session<'_>) -> Result<()> {
        let Some(pipeline) = &self.pipeline else { return self.encode_ordinary(text, session) };
        // With one pattern and a byte vocabulary, as after NFC alone, encoding is as fast as without a pipeline.
        if let ([Stage::Pattern(_)], None) = (pipeline.stages(), self.vocab.sentence_piece()) {
            return pipeline.for_each_stretch(text, finds_special, &mut |part| match part {
                Part::Text(stretch) => self.encode_ordinary(stretch.text, session),
                Part::Token(id, _) => {
                    session.push(id);
                    Ok(())
                }
            });
        }
        pipeline.for_each_piece(text, finds_special, &mut |part| match part {
            Part::Text(piece) => self.encode_piece(piece.text, session),
            Part::Token(id, _) => session.push(id),
        })
    }

    /// The ids of `text`, and the part of `text` that each token comes from.
    ///
    /// # Errors
    ///
    /// See [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, allowed: &Allowed) -> Result<(Vec<u32>, Offsets)> {
        let mut ids = Vec::new();
        let Some(pipeline) = &self.pipeline else {
            self.encode_into(text, allowed, &mut ids)?;
            let found = offsets(self.vocab.tokens(), self.joiner, &ids, text)?;
            return Ok((ids, found));
        };
        let mut bytes = Vec::new();
        let chosen = SpecialMatcher::new(&[]);
        let (chosen, finds_special) = match allowed {
            Allowed::None => (&chosen, false),
            Allowed::All => (&chosen, true),
            Allowed::Some(tokens) => (&**tokens, false),
        };
        for (range, segment) in chosen.located_segments(text, true) {
            match segment {
                Segment::Special(id) => {
                    ids.push(id);
                    bytes.push([range.start, range.end]);
                }
                Segment::Text(part) => pipeline.for_each_aligned(part, finds_special, &mut |part| {
                    let first = bytes.len();
                    match part {
                        Part::Token(id, origin) => {
                            ids.push(id);
                            bytes.push(origin);
                        }
                        Part::Text(piece) => self.align_piece(piece, &mut ids, &mut bytes),
                    }
                    bytes[first..].iter_mut().flatten().for_each(|at| *at += range.start);
                })?,
            }
        }
        let found = Offsets::of(bytes, text);
        Ok((ids, found))
    }

    /// Appends the ids of a piece and the origin of each id. The symbols that a token was merged from say how many
    /// bytes of the piece the token covers, whatever its name.
    fn align_piece(&self, piece: Stretch<'_>, ids: &mut Vec<u32>, bytes: &mut Vec<Origin>) {
        let (mut symbols, first) = (Vec::new(), ids.len());
        self.vocab.symbols(piece.text, |id, num_bytes| symbols.push((id, num_bytes)));
        self.encoder.session(ids, piece.text.len(), |session| self.encode_piece(piece.text, session));
        let (mut at, mut symbols) = (0, symbols.into_iter());
        for &id in &ids[first..] {
            let (num_token, mut num_known, mut start) = (self.vocab.symbol_bytes(id), 0, at);
            for (symbol, num_bytes) in symbols.by_ref() {
                at += num_bytes;
                match symbol {
                    // Bytes without a token, before the first symbol or between two that merged.
                    None if num_known == 0 => start = at,
                    None => {}
                    Some(symbol) => num_known += if symbol == id { num_token.max(num_bytes) } else { num_bytes },
                }
                if num_known >= num_token && num_known > 0 {
                    break;
                }
            }
            let origins = &piece.origins[start.min(piece.origins.len())..at.min(piece.origins.len())];
            bytes.push([origins.first().map_or(0, |origin| origin[0]), origins.last().map_or(0, |origin| origin[1])]);
        }
    }

    fn encode_ordinary(&self, text: &str, session: &mut Session<'_>) -> Result<()> {
        self.pattern.for_each_span(text, TextEncoder { text: text.as_bytes(), session })
    }

    fn encode_piece(&self, piece: &str, session: &mut Session<'_>) {
        match self.vocab.sentence_piece() {
            Some(start) => start.encode(piece, self.vocab.unknown(), self.vocab.merge_table(), session.ids()),
            None => session.encode(piece.as_bytes(), 0, piece.len()),
        }
    }

    /// The normalised pieces that `text` is cut into. Special tokens in `text` are ordinary text.
    ///
    /// # Errors
    ///
    /// See [`Tokenizer::encode`].
    pub fn pieces(&self, text: &str) -> Result<Vec<String>> {
        let Some(pipeline) = &self.pipeline else {
            return Ok(self.pattern.pieces(text)?.into_iter().map(str::to_owned).collect());
        };
        let mut pieces = Vec::new();
        pipeline.for_each_piece(text, false, &mut |part| match part {
            Part::Text(piece) => pieces.push(piece.text.to_owned()),
            Part::Token(id, _) => {
                let token = self.vocab.tokens().bytes(id).unwrap_or_default();
                pieces.push(String::from_utf8_lossy(token).into_owned());
            }
        })?;
        Ok(pieces)
    }

    /// How the bytes of tokens are joined into text.
    pub fn joiner(&self) -> Joiner {
        self.joiner
    }

    /// The ids added around a text that is encoded with special tokens; `None` if there are none.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// Whether no token crosses a line end between two lines that begin and end with neither white space nor `/`. The
    /// parts of a long text then have the ids of the whole.
    pub fn cuts_at_line_ends(&self) -> bool {
        self.pipeline.as_ref().map_or(!self.pattern.is_custom(), Pipeline::cuts_at_line_ends)
            && self.vocab.sentence_piece().is_none()
    }

    /// The bytes of `ids`. A special token gives its text, or nothing if `skip_special`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if an id is not in the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32], skip_special: bool) -> Result<Vec<u8>> {
        if self.joiner == Joiner::Bytes && !skip_special {
            // English text has four to five bytes per token.
            let mut bytes = Vec::with_capacity(ids.len() * 5);
            return match self.vocab.tokens().append(ids, &mut bytes) {
                None => Ok(bytes),
                Some(index) => Err(self.unknown_id(index, ids[index])),
            };
        }
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut is_first = true;
        self.for_each_token(ids, skip_special, |_, token| {
            self.joiner.push(token, is_first, &mut bytes);
            is_first = false;
        })?;
        bytes.drain(..self.joiner.stripped(&bytes));
        Ok(bytes)
    }

    /// The text of `ids`. Bytes that are not valid UTF-8 become as many U+FFFD as `tokenizers` gives for such a
    /// vocabulary.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if self.vocab.sentence_piece().is_none() {
            let bytes = self.decode_bytes(ids, skip_special)?;
            return Ok(
                String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
            );
        }
        let (mut text, mut run, mut is_first) = (String::new(), Vec::new(), true);
        self.for_each_token(ids, skip_special, |id, token| {
            if !stands_for_byte(&self.vocab, id) {
                text += &run_text(&std::mem::take(&mut run));
            }
            self.joiner.push(token, is_first, &mut run);
            is_first = false;
            if !stands_for_byte(&self.vocab, id) {
                text += &String::from_utf8_lossy(&std::mem::take(&mut run));
            }
        })?;
        text += &run_text(&run);
        text.drain(..self.joiner.stripped(text.as_bytes()));
        Ok(text)
    }

    /// Calls `visit` with each id and the bytes of its token.
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
