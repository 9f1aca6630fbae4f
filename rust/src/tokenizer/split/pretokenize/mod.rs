//! Cuts text into the pieces that BPE merges stay within.
//!
//! The published patterns are regular expressions with a look-ahead. Here each is a scanner without backtracking; tests
//! prove them equal to a regex engine. Any other expression goes to that engine.

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

/// Which pieces text is cut into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// GPT-2's (also r50k, p50k).
    Gpt2,
    /// GPT-4's as first published and used by most tokenizers since, Llama 3's among them: digits in threes,
    /// contractions in any case.
    Gpt4,
    /// GPT-4's as tiktoken has it today: as [`Pattern::Gpt4`], but white space that ends the text is one piece even
    /// with newlines in it.
    Cl100k,
    /// GPT-4o's: words end where capitals follow small letters, and contractions belong to their word.
    O200k,
    /// Qwen 2's and 3's: as [`Pattern::Gpt4`], but every digit alone.
    Qwen2,
    /// Runs of white space, and what lies between them.
    Whitespace,
    /// Any other regular expression.
    Custom(CustomPattern),
}

/// cl100k's expression in tiktoken. Elsewhere it means something else: Oniguruma, which reads `tokenizer.json`, takes
/// `{1,3}+` for a repeated group, so [`Pattern::regex`] has it without that `+`, which makes no difference.
const TIKTOKEN_CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";

/// Names beside [`Pattern::name`] that mean the same.
const ALIASES: [(&str, Pattern); 1] = [("llama3", Pattern::Gpt4)];

impl Pattern {
    /// Every pattern that has a scanner.
    pub const ALL: [Self; 6] = [Self::Gpt2, Self::Gpt4, Self::Cl100k, Self::O200k, Self::Qwen2, Self::Whitespace];

    /// The pattern with this name, or else this regular expression as tiktoken or Hugging Face write it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` listing the names if it looks like one and is none; else as [`Pattern::from_regex`].
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

    /// The pattern of a regular expression in a `tokenizer.json`: one with a scanner if the expression is published,
    /// else [`Pattern::Custom`].
    ///
    /// # Errors
    ///
    /// `Tokenizer` if it does not compile.
    pub fn from_regex(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|pattern| pattern.published().contains(&text)) {
            Some(pattern) => Ok(pattern),
            None => CustomPattern::new(text).map(Self::Custom),
        }
    }

    /// Its name; a custom pattern has none and gives its regular expression.
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

    /// Whether it goes to the regex engine, for want of a scanner.
    pub fn is_custom(&self) -> bool {
        matches!(self, Self::Custom(_))
    }

    /// The regular expression it is equal to.
    pub fn regex(&self) -> &str {
        match self {
            Self::Custom(pattern) => pattern.text(),
            _ => self.published()[0],
        }
    }

    /// The forms its regular expression was published in; all cut alike, and the first is the one to write.
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

    /// Calls `visit` with every piece of `text` in order; together they are `text`.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text; others never fail.
    pub fn for_each_piece<'a>(&self, text: &'a str, mut visit: impl FnMut(&'a str)) -> Result<()> {
        self.for_each_span(text, |start, end| visit(&text[start..end]))
    }

    /// Calls `visit` with where every piece of `text` starts and ends, in bytes.
    ///
    /// # Errors
    ///
    /// As [`Pattern::for_each_piece`].
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

    /// The pieces of `text`.
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
    /// As [`Pattern::for_each_piece`].
    pub fn pieces<'a>(&self, text: &'a str) -> Result<Vec<&'a str>> {
        let mut pieces = Vec::new();
        self.for_each_piece(text, |piece| pieces.push(piece))?;
        Ok(pieces)
    }
}

/// A shorter text is cut piece by piece.
const MIN_BLOCK_BYTES: usize = 8;

/// Calls `visit` with each piece: from the borders of whole blocks, and one by one what those can't tell.
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
        // A block has no more than 64 pieces.
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
        // What a block can't tell the end of.
        start += first_piece_len(classes, &text[start..]);
        ends[num_ends] = start;
        num_ends += 1;
    }
    visit.pieces(first, &ends[..num_ends]);
}

/// Borders in the block that `text` starts with, its start left out, and whether another block may follow.
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
    // The first bit is where the block starts. Of its last character there may be up to three bytes.
    (borders(&block) & !1, block.len > BLOCK_BYTES - 4)
}
