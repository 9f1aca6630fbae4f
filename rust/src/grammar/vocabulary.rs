//! The tokens of a model as the trie that grammars are matched with.

use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::{Error, Result};

/// Largest number of ids: the trie stores an id in 24 bits, with one value reserved.
const MAX_IDS: usize = (1 << 24) - 2;

/// The bytes of each token id of a model.
pub trait Vocabulary: Send + Sync {
    /// Number of ids.
    fn num_ids(&self) -> usize;
    /// The bytes of `id`; `None` if it has no text.
    fn token_bytes(&self, id: u32) -> Option<&[u8]>;
    /// Whether `id` is a special token, which no text stands for.
    fn is_special_token(&self, id: u32) -> bool;
    /// The ids into which the tokenizer cuts a text; `None` without a tokenizer, or if the text can't be encoded.
    fn encode(&self, _text: &str) -> Option<Vec<u32>> {
        None
    }
}

/// A vocabulary's trie, and its own way to cut text.
struct Environment {
    trie: TokTrie,
    vocabulary: Arc<dyn Vocabulary>,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Cuts a text as the tokenizer does, or else into the longest tokens. A tokenizer that changes the text, by a space in
    /// front for example, has no say.
    fn tokenize_bytes(&self, text: &[u8]) -> Vec<u32> {
        let ids = std::str::from_utf8(text).ok().and_then(|text| self.vocabulary.encode(text));
        let same = ids.filter(|ids| self.trie.decode_raw(ids) == text);
        same.unwrap_or_else(|| self.trie.greedy_tokenize(text))
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// Builds the trie. Special tokens and `end_ids` are in it under a marker that no text contains, so that a grammar allows
/// them only where it names them. The trie's own end token is an extra id past the vocabulary.
pub(super) fn token_environment(vocabulary: &Arc<dyn Vocabulary>, end_ids: &[u32]) -> Result<TokEnv> {
    let num_ids = vocabulary.num_ids();
    if num_ids > MAX_IDS {
        return Err(Error::InvalidArgument(format!(
            "a vocabulary with grammars has at most {MAX_IDS} ids, got {num_ids}"
        )));
    }
    let ids = 0..num_ids as u32;
    let mut words: Vec<Vec<u8>> = ids.map(|id| word_of(&**vocabulary, id, end_ids.contains(&id))).collect();
    words.push(marked(b"<|end of grammar|>"));
    let end_id = num_ids as u32;
    let trie = TokTrie::from(&TokRxInfo::new(end_id + 1, end_id), &words);
    Ok(Arc::new(Environment { trie, vocabulary: Arc::clone(vocabulary) }))
}

/// A token whose bytes contain the marker could be taken for a special token; no UTF-8 text needs one.
fn word_of(vocabulary: &dyn Vocabulary, id: u32, is_end: bool) -> Vec<u8> {
    let bytes = vocabulary.token_bytes(id).unwrap_or_default();
    match () {
        () if vocabulary.is_special_token(id) || is_end => marked(bytes),
        () if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
        () => bytes.to_vec(),
    }
}

fn marked(bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() { Vec::new() } else { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat() }
}
