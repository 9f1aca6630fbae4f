//! What becomes of the tokens' bytes when ids are text again.

use crate::tokenizer::vocab::Vocab;

/// How the bytes of tokens are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joiner {
    /// One after the other.
    Bytes,
    /// One after the other, but a space that the normalizer put before the text goes.
    Words {
        /// This many spaces go at most at the start.
        strip_start: usize,
        /// All spaces in the first token go.
        bare_first: bool,
    },
}

impl Joiner {
    /// Adds what is left of the bytes of a token; `is_first` says whether it is the first.
    pub(crate) fn push(&self, token: &[u8], is_first: bool, bytes: &mut Vec<u8>) {
        match self {
            Self::Words { bare_first: true, .. } if is_first => {
                bytes.extend(token.iter().filter(|&&byte| byte != b' '))
            }
            _ => bytes.extend_from_slice(token),
        }
    }

    /// How many bytes of a whole text go at its start.
    pub(crate) fn stripped(&self, text: &[u8]) -> usize {
        match self {
            Self::Bytes => 0,
            Self::Words { strip_start, .. } => text.iter().take(*strip_start).take_while(|&&byte| byte == b' ').count(),
        }
    }
}

/// The text of tokens that stand for a byte each: where together they are no UTF-8, each is U+FFFD.
pub(crate) fn run_text(run: &[u8]) -> String {
    String::from_utf8(run.to_vec()).unwrap_or_else(|_| "\u{fffd}".repeat(run.len()))
}

/// Whether `id` stands for a byte in a vocabulary of characters.
pub(crate) fn stands_for_byte(vocab: &Vocab, id: u32) -> bool {
    matches!(vocab.tokens().bytes(id), Some(&[byte]) if vocab.byte_ids()[byte as usize] == id)
}
