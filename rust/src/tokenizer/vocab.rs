//! Ids, their bytes and the merges that make them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::bpe::MergeTable;
use super::stream::TokenTable;
use crate::{Error, Result};

/// Number of byte tokens every vocabulary starts with.
pub const NUM_BYTES: usize = 256;

/// Limit of ids: a table has a place for every id below the highest, so a wild special id must not make it huge.
pub const MAX_IDS: usize = 1 << 24;

/// The vocabulary: ids 0 to 255 are the single bytes in some order, then come the merges in order, then special tokens.
#[derive(Debug, Clone)]
pub struct Vocab {
    tokens: TokenTable,
    byte_ids: [u32; NUM_BYTES],
    merges: Vec<(u32, u32)>,
    table: MergeTable,
    /// Pieces that are one token, so that merging can be left out. Only tokens that merging would make are here.
    whole: FxHashMap<Box<[u8]>, u32>,
    special: Vec<(String, u32)>,
}

impl Vocab {
    /// Builds a vocabulary from the byte of each of the first 256 ids, the merges and the special tokens with their ids.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a byte is missing, a merge uses a later id or is there twice, two tokens have the same bytes, a
    /// special token is empty, repeated, or has an id or text that is taken, or an id of [`MAX_IDS`] or more.
    pub fn new(bytes: &[u8], merges: Vec<(u32, u32)>, special: Vec<(String, u32)>) -> Result<Self> {
        let mut tokens: Vec<Vec<u8>> = bytes.iter().map(|&byte| vec![byte]).collect();
        let byte_ids = byte_ids(bytes)?;
        let mut table = MergeTable::default();
        for &(left, right) in &merges {
            let id = tokens.len();
            let (Some(first), Some(second)) = (tokens.get(left as usize), tokens.get(right as usize)) else {
                return Err(Error::Tokenizer(format!("merge into id {id} must use lower ids, got ({left}, {right})")));
            };
            let merged = [first.as_slice(), second.as_slice()].concat();
            if !table.insert(left, right, id as u32) {
                return Err(Error::Tokenizer(format!("merge ({left}, {right}) into id {id} is there twice")));
            }
            tokens.push(merged);
        }
        let mut ids: FxHashMap<Box<[u8]>, u32> = FxHashMap::default();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_slice().into(), id as u32) {
                let text = String::from_utf8_lossy(token);
                return Err(Error::Tokenizer(format!("ids {first} and {id} have the same bytes ({text:?})")));
            }
        }
        check_special(&special, &ids)?;
        let tokens = token_table(tokens, &special)?;
        let mut vocab = Self { tokens, byte_ids, merges, table, whole: FxHashMap::default(), special };
        // A merge list made by hand can hold tokens that merging never reaches; looking those up would change ids.
        ids.retain(|token, id| vocab.merged(token) == [*id]);
        vocab.whole = ids;
        Ok(vocab)
    }

    /// Builds a vocabulary from the bytes of each token in order of rank, as tiktoken has them.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if the first 256 are not the single bytes, if a token is not two lower ones, or as in [`Vocab::new`].
    pub fn from_ranks(ranks: &[Vec<u8>], special: Vec<(String, u32)>) -> Result<Self> {
        let bytes: Vec<u8> =
            ranks.iter().take(NUM_BYTES).filter(|token| token.len() == 1).map(|token| token[0]).collect();
        let byte_ids = byte_ids(&bytes)?;
        let mut table = MergeTable::default();
        let mut merges = Vec::with_capacity(ranks.len() - NUM_BYTES);
        for (id, token) in ranks.iter().enumerate().skip(NUM_BYTES) {
            let mut parts: Vec<u32> = token.iter().map(|&byte| byte_ids[byte as usize]).collect();
            table.apply(&mut parts, 0);
            let [left, right] = parts[..] else {
                let text = String::from_utf8_lossy(token);
                let num_parts = parts.len();
                return Err(Error::Tokenizer(format!(
                    "token {id} ({text:?}) must be two tokens of lower rank, got {num_parts}"
                )));
            };
            table.insert(left, right, id as u32);
            merges.push((left, right));
        }
        Self::new(&bytes, merges, special)
    }

    /// One more than the highest id.
    pub fn size(&self) -> usize {
        self.tokens.len()
    }

    /// Bytes of each id, special tokens included.
    pub fn tokens(&self) -> &TokenTable {
        &self.tokens
    }

    /// The two ids that make id `256 + i`, in order.
    pub fn merges(&self) -> &[(u32, u32)] {
        &self.merges
    }

    /// Special tokens and their ids, in order of id.
    pub fn special(&self) -> &[(String, u32)] {
        &self.special
    }

    /// Adds the ids of one piece to `ids`.
    pub fn encode_piece(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(piece) {
            ids.push(id);
            return;
        }
        let start = ids.len();
        ids.extend(piece.iter().map(|&byte| self.byte_ids[byte as usize]));
        self.table.apply(ids, start);
    }

    fn merged(&self, piece: &[u8]) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_piece(piece, &mut ids);
        ids
    }
}

/// The id of each byte, given the byte of each id.
fn byte_ids(bytes: &[u8]) -> Result<[u32; NUM_BYTES]> {
    let mut ids = [u32::MAX; NUM_BYTES];
    for (id, &byte) in bytes.iter().enumerate() {
        ids[byte as usize] = id as u32;
    }
    if bytes.len() != NUM_BYTES || ids.contains(&u32::MAX) {
        return Err(Error::Tokenizer("the first 256 tokens must be the 256 single bytes, each once".to_owned()));
    }
    Ok(ids)
}

fn check_special(special: &[(String, u32)], ids: &FxHashMap<Box<[u8]>, u32>) -> Result<()> {
    let mut seen_ids = FxHashSet::default();
    let mut seen_texts = FxHashSet::default();
    for (text, id) in special {
        let fault = if text.is_empty() {
            "must not be empty"
        } else if !seen_texts.insert(text) {
            "is there twice"
        } else if ids.contains_key(text.as_bytes()) {
            "has the text of an ordinary token"
        } else if (*id as usize) < ids.len() || !seen_ids.insert(id) {
            "has the id of another token"
        } else if *id as usize >= MAX_IDS {
            "must have an id below 16777216"
        } else {
            continue;
        };
        return Err(Error::Tokenizer(format!("special token {text:?} (id {id}) {fault}")));
    }
    Ok(())
}

fn token_table(tokens: Vec<Vec<u8>>, special: &[(String, u32)]) -> Result<TokenTable> {
    let num_ids = special.iter().map(|&(_, id)| id as usize + 1).max().unwrap_or(0).max(tokens.len());
    let mut bytes: Vec<Option<Vec<u8>>> = tokens.into_iter().map(Some).collect();
    bytes.resize(num_ids, None);
    for (text, id) in special {
        bytes[*id as usize] = Some(text.as_bytes().to_vec());
    }
    let special_ids: Vec<u32> = special.iter().map(|&(_, id)| id).collect();
    TokenTable::new(bytes, &special_ids)
}
