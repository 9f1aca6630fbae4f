//! Joins the bytes of tokens when ids become text again.

use crate::tokenizer::vocab::Vocab;

/// How the bytes of tokens are joined into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joiner {
    /// Joins the bytes one after the other.
    Bytes,
    /// Joins the bytes one after the other, without a space that the normalizer put before the text.
    Words {
        /// Maximum number of spaces removed at the start of the text.
        strip_start: usize,
        /// Whether all spaces in the first token are removed.
        bare_first: bool,
    },
}

impl Joiner {
    /// Appends the bytes of a token to `bytes`, without removed spaces; `is_first` marks the first token of the text.
    pub(crate) fn push(&self, token: &[u8], is_first: bool, bytes: &mut Vec<u8>) {
        match self {
            Self::Words { bare_first: true, .. } if is_first => {
                bytes.extend(token.iter().filter(|&&byte| byte != b' '))
            }
            _ => bytes.extend_from_slice(token),
        }
    }

    /// Number of bytes to remove at the start of a whole text.
    pub(crate) fn stripped(&self, text: &[u8]) -> usize {
        match self {
            Self::Bytes => 0,
            Self::Words { strip_start, .. } => text.iter().take(*strip_start).take_while(|&&byte| byte == b' ').count(),
        }
    }
}

/// The text of a run of single-byte tokens; if the run is not valid UTF-8, each token becomes U+FFFD.
pub(crate) fn run_text(run: &[u8]) -> String {
    String::from_utf8(run.to_vec()).unwrap_or_else(|_| "\u{fffd}".repeat(run.len()))
}

/// Whether `id` stands for a byte in a vocabulary of characters.
pub(crate) fn stands_for_byte(vocab: &Vocab, id: u32) -> bool {
    matches!(vocab.tokens().bytes(id), Some(&[byte]) if vocab.byte_ids()[byte as usize] == id)
}
