//! Splits text into the pieces that BPE merges stay within.
//!
//! The published patterns are regular expressions with a look-ahead. Each has a scanner here that never backtracks;
//! tests check that every scanner and a regex engine find the same pieces. Any other expression runs on that engine.

mod blocks;
mod classes;
mod custom;
mod masks;
mod scanners;
mod visit;

use self::blocks::Block;
use self::classes::Classes;
pub use self::custom::CustomPattern;
use self::masks::BLOCK_BYTES;
pub use self::visit::{MAX_PIECES, Visit};
use crate::{Error, Result};

/// A rule that splits text into pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's pattern (also r50k, p50k).
    Gpt2,
    /// GPT-4's pattern as first published and used by most later tokenizers, such as Llama 3's: groups of up to three
    /// digits, and contractions in any case.
    Gpt4,
    /// GPT-4's pattern as in tiktoken today: like [`Pattern::Gpt4`], but white space at the end of the text is one
    /// piece even if it contains newlines.
    Cl100k,
    /// GPT-4o's pattern: a word ends where a capital follows lowercase letters, and a contraction belongs to its word.
    O200k,
    /// The pattern of Qwen 2 and 3: like [`Pattern::Gpt4`], but every digit is a piece.
    Qwen2,
    /// Runs of white space, and the text between them.
    Whitespace,
    /// Any regular expression without a scanner.
    Custom(CustomPattern),
}

/// cl100k's expression in tiktoken. It means something else in Oniguruma, which reads `tokenizer.json` and takes
/// `{1,3}+` for a repeated group. [`Pattern::regex`] therefore drops that `+`, which changes no match.
const TIKTOKEN_CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";

/// Aliases of a [`Pattern::name`].
const ALIASES: [(&str, Pattern); 1] = [("llama3", Pattern::Gpt4)];

impl Pattern {
    /// All patterns that have a scanner.
    pub const ALL: [Self; 6] = [Self::Gpt2, Self::Gpt4, Self::Cl100k, Self::O200k, Self::Qwen2, Self::Whitespace];

    /// Parses a pattern's name, or a regular expression as tiktoken or Hugging Face write it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` listing the names if `text` looks like a name but is none; otherwise the same as
    /// [`Pattern::from_regex`].
    pub fn parse(text: &str) -> Result<Self> {
        let names = || Self::ALL.into_iter().map(|pattern| (pattern.built_in_name(), pattern)).chain(ALIASES);
        if let Some((_, pattern)) = names().find(|(name, _)| *name == text) {
            return Ok(pattern);
        }
        if text.chars().all(|character| character.is_ascii_alphanumeric() || "-_ ".contains(character)) {
            let names: Vec<String> = names().map(|(name, _)| format!("\"{name}\"")).collect();
            return Err(Error::InvalidArgument(format!(
                "`pattern` must be one of {} or a regular expression, got {text:?}",
                names.join(", ")
            )));
        }
        if text == TIKTOKEN_CL100K { Ok(Self::Cl100k) } else { Self::from_regex(text) }
    }

    /// Returns the pattern of a regular expression in a `tokenizer.json`: the pattern with a scanner if the expression
    /// is published, otherwise [`Pattern::Custom`].
    ///
    /// # Errors
    ///
    /// `Tokenizer` if the expression does not compile.
    pub fn from_regex(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|pattern| pattern.published().contains(&text)) {
            Some(pattern) => Ok(pattern),
            None => CustomPattern::new(text).map(Self::Custom),
        }
    }

    /// Returns the name of the pattern; a custom pattern returns its regular expression instead.
    pub fn name(&self) -> &str {
        match self {
            Self::Custom(pattern) => pattern.text(),
            _ => self.built_in_name(),
        }
    }

    fn built_in_name(&self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt4 => "gpt4",
            Self::Cl100k => "cl100k",
            Self::O200k => "o200k",
            Self::Qwen2 => "qwen2",
            Self::Whitespace => "whitespace",
            Self::Custom(_) => "custom",
        }
    }

    /// Returns whether the pattern has no scanner and runs on the regex engine.
    pub fn is_custom(&self) -> bool {
        matches!(self, Self::Custom(_))
    }

    /// Returns the regular expression that the pattern is equivalent to.
    pub fn regex(&self) -> &str {
        match self {
            Self::Custom(pattern) => pattern.text(),
            _ => self.published()[0],
        }
    }

    /// Returns the published forms of the regular expression. All split text alike, and the first is the form to write.
    ///
    /// Source: openai/gpt-2 `encoder.py`; openai/tiktoken `openai_public.py` of several releases; meta-llama/llama3
    /// `tokenizer.py`; Qwen/Qwen2 `tokenizer.json`.
    pub fn published(&self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &[
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
                r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
                r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
            ],
            Self::Gpt4 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ],
            Self::Cl100k => &[
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
            ],
            Self::O200k => &[
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Self::Qwen2 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Self::Whitespace => &[r"\s+|\S+", r"\S+|\s+", r"\s+", r"\S+"],
            Self::Custom(_) => &[],
        }
    }

    /// Calls `visit` with every piece of `text` in order; joined, the pieces are `text`.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text; the other patterns never fail.
    pub fn for_each_piece<'a>(&self, text: &'a str, mut visit: impl FnMut(&'a str)) -> Result<()> {
        self.for_each_span(text, |start, end| visit(&text[start..end]))
    }

    /// Calls `visit` with the start and end of every piece of `text`, in bytes.
    ///
    /// # Errors
    ///
    /// Same as [`Pattern::for_each_piece`].
    #[inline(always)]
    pub fn for_each_span(&self, text: &str, visit: impl Visit) -> Result<()> {
        let bytes = text.as_bytes();
        match self {
            Self::Gpt2 => scan(bytes, blocks::gpt2, scanners::gpt2, visit),
            Self::Gpt4 => scan(bytes, blocks::gpt4::<3>, scanners::gpt4, visit),
            Self::Cl100k => scan(bytes, blocks::gpt4::<3>, scanners::cl100k, visit),
            Self::O200k => scan(bytes, blocks::o200k, scanners::o200k, visit),
            Self::Qwen2 => scan(bytes, blocks::gpt4::<1>, scanners::qwen2, visit),
            Self::Whitespace => scan(bytes, blocks::whitespace, scanners::whitespace, visit),
            Self::Custom(pattern) => return pattern.for_each_span(text, visit),
        }
        Ok(())
    }

    /// Returns the pieces of `text`.
    ///
    /// ```
    /// use llm_core::tokenizer::split::pretokenize::Pattern;
    ///
    /// assert_eq!(Pattern::Gpt4.pieces("I'm  2024!")?, ["I", "'m", " ", " ", "202", "4", "!"]);
    /// # Ok::<(), llm_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Same as [`Pattern::for_each_piece`].
    pub fn pieces<'a>(&self, text: &'a str) -> Result<Vec<&'a str>> {
        let mut pieces = Vec::new();
        self.for_each_piece(text, |piece| pieces.push(piece))?;
        Ok(pieces)
    }
}

/// Minimum length of a text that is split by blocks; a shorter text is scanned piece by piece.
const MIN_BLOCK_BYTES: usize = 8;

/// Calls `visit` with each piece: whole blocks give most borders, and the scanner finds the remaining pieces one by
/// one.
#[inline(always)]
fn scan(
    text: &[u8],
    borders: impl Fn(&Block) -> u64,
    first_piece_len: impl Fn(&Classes, &[u8]) -> usize,
    mut visit: impl Visit,
) {
    let classes = Classes::get();
    let (mut first, mut start) = (0, 0);
    let (mut ends, mut num_ends) = ([0; MAX_PIECES], 0);
    while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
        // A block has at most 64 pieces.
        if num_ends >= MAX_PIECES - BLOCK_BYTES {
            visit.pieces(first, &ends[..num_ends]);
            (first, num_ends) = (start, 0);
        }
        if rest.len() >= MIN_BLOCK_BYTES {
            let (mut borders, goes_on) = block_borders(rest, classes, &borders);
            let base = start;
            while borders != 0 {
                start = base + borders.trailing_zeros() as usize;
                borders &= borders - 1;
                ends[num_ends] = start;
                num_ends += 1;
            }
            if goes_on && start > base {
                continue;
            }
        }
        // The block does not show the end of this piece, so the scanner finds it.
        start += first_piece_len(classes, &text[start..]);
        ends[num_ends] = start;
        num_ends += 1;
    }
    visit.pieces(first, &ends[..num_ends]);
}

/// Returns the borders in the block that `text` starts with, without the block's start, and whether another block may
/// follow.
#[inline(always)]
fn block_borders(text: &[u8], classes: &Classes, borders: impl Fn(&Block) -> u64) -> (u64, bool) {
    let mut padded = [0; BLOCK_BYTES];
    let block = match text.first_chunk() {
        Some(bytes) => Block::new(bytes, BLOCK_BYTES, classes),
        None => {
            padded[..text.len()].copy_from_slice(text);
            Block::new(&padded, text.len(), classes)
        }
    };
    // The first bit is the start of the block. Up to three bytes of an incomplete character may end the block.
    (borders(&block) & !1, block.len > BLOCK_BYTES - 4)
}
