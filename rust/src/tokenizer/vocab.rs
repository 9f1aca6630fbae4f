//! Token ids, their bytes and the merges that make them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::merge::sentencepiece::SentencePiece;
use super::merge::table::{MAX_MERGED_IDS, MAX_MERGES, MergeTable};
use super::merge::unknown::{Symbols, Unknown};
use super::split::special::AddedToken;
use super::tokens::{MAX_IDS, Merge, NO_ID, NUM_BYTES, TokenTable};
use crate::{Error, Result};

/// The parts from which a vocabulary is built.
#[derive(Debug, Clone)]
pub struct VocabParts {
    /// Ids and bytes of the tokens that text is merged into, in any order; ids without a token are allowed.
    pub tokens: Vec<(u32, Vec<u8>)>,
    /// Ids and bytes of tokens that no text is encoded into.
    pub unreached: Vec<(u32, Vec<u8>)>,
    /// The id of each single byte; [`NO_ID`] for a byte without one.
    pub byte_ids: [u32; NUM_BYTES],
    /// The token for a byte or character without one; if `None`, such a byte or character is left out.
    pub unknown: Option<Unknown>,
    /// How merging starts from characters; `None` if it starts from bytes.
    pub sentence_piece: Option<SentencePiece>,
    /// Merges by rank; several may make the same token.
    pub merges: Vec<Merge>,
    /// Whether a piece that is a token as a whole becomes that token, even if merging would not make it.
    pub whole_first: bool,
    /// Tokens that are found in the text before the text is cut into pieces.
    pub added: Vec<AddedToken>,
}

/// A vocabulary. Ids may be any numbers, as long as each byte has one or merging starts from characters.
#[derive(Debug, Clone)]
pub struct Vocab {
    tokens: TokenTable,
    byte_ids: [u32; NUM_BYTES],
    unknown: Option<Unknown>,
    merges: Vec<Merge>,
    table: MergeTable,
    whole_first: bool,
    reaches_all: bool,
    is_ordinary: Vec<bool>,
    sentence_piece: Option<SentencePiece>,
    added: Vec<AddedToken>,
    special: Vec<(String, u32)>,
}

impl Vocab {
    /// Builds a vocabulary in the order of training: the byte of each of the first 256 ids, the merges, each of which
    /// makes the next id, and the special tokens.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a byte is missing, a merge uses a later id or occurs twice, two tokens have the same bytes, a
    /// special token is empty, repeated, or has an id or text that is taken, or an id is [`MAX_IDS`] or more.
    pub fn new(bytes: &[u8], merges: Vec<(u32, u32)>, special: Vec<(String, u32)>) -> Result<Self> {
        let mut tokens: Vec<Vec<u8>> = bytes.iter().map(|&byte| vec![byte]).collect();
        let byte_ids = byte_ids(&tokens)?;
        let mut ranked = Vec::with_capacity(merges.len());
        for (left, right) in merges {
            let id = tokens.len();
            let (Some(first), Some(second)) = (tokens.get(left as usize), tokens.get(right as usize)) else {
                return Err(Error::Tokenizer(format!("merge into id {id} must use lower ids, got ({left}, {right})")));
            };
            tokens.push([first.as_slice(), second.as_slice()].concat());
            ranked.push(Merge { left, right, id: id as u32 });
        }
        check_distinct(&tokens)?;
        let added = special_tokens(special, &tokens)?;
        Self::build(VocabParts {
            tokens: (0u32..).zip(tokens).collect(),
            unreached: vec![],
            byte_ids,
            unknown: None,
            sentence_piece: None,
            merges: ranked,
            whole_first: false,
            added,
        })
    }

    /// Builds a vocabulary from the bytes of each token in order of rank, as tiktoken stores them. The rank is the id;
    /// empty bytes stand for a rank without a token.
    ///
    /// tiktoken merges any two neighbours that are a token together, the lowest rank first. If merging by lower ranks
    /// leaves two parts of a token, the token needs only the merge of these two: its bytes are never cut in another way
    /// when its turn comes. Any other token gets a merge for every way to cut it into two tokens, and is also found as
    /// a whole piece.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a single byte is missing, two tokens have the same bytes, or a special token is invalid as in
    /// [`Vocab::new`].
    pub fn from_ranks(ranks: &[Vec<u8>], special: Vec<(String, u32)>) -> Result<Self> {
        let byte_ids = byte_ids(ranks)?;
        check_distinct(ranks)?;
        let added = special_tokens(special, ranks)?;
        let mut table = MergeTable::with_capacity(ranks.len());
        let mut merges = Vec::with_capacity(ranks.len());
        let mut ids: Option<FxHashMap<&[u8], u32>> = None;
        for (id, token) in (0u32..).zip(ranks).filter(|(_, token)| token.len() > 1) {
            let mut parts: Vec<u32> = token.iter().map(|&byte| byte_ids[byte as usize]).collect();
            table.apply(&mut parts, 0);
            let first_new = merges.len();
            match parts[..] {
                [left, right] => merges.push(Merge { left, right, id }),
                _ => merges.extend(cuts(token, id, ids.get_or_insert_with(|| ids_by_bytes(ranks)))),
            }
            for merge in &merges[first_new..] {
                check_room(table.len(), merge.left.max(merge.right))?;
                table.insert(merge.left, merge.right, merge.id);
            }
        }
        let whole_first = ids.is_some();
        let tokens = (0u32..).zip(ranks.iter().cloned()).filter(|(_, token)| !token.is_empty()).collect();
        let unreached = vec![];
        let (unknown, sentence_piece) = (None, None);
        let parts = VocabParts { tokens, unreached, byte_ids, unknown, sentence_piece, merges, whole_first, added };
        Self::assemble(parts, Some(table))
    }

    /// Builds a vocabulary from its parts.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if an id occurs twice or is [`MAX_IDS`] or more, a merge occurs twice, uses ids without a token or
    /// does not make the bytes of its token, or an added token is empty or occurs twice.
    pub fn build(parts: VocabParts) -> Result<Self> {
        Self::assemble(parts, None)
    }

    /// Builds a vocabulary from its parts. `ranked` is the merge table of a rank file, for which it is known which
    /// bytes the merges make and which tokens they reach.
    fn assemble(parts: VocabParts, ranked: Option<MergeTable>) -> Result<Self> {
        check_added(&parts.added)?;
        let (tokens, is_ordinary) = token_table(&parts)?;
        let VocabParts { byte_ids, unknown, mut sentence_piece, merges, whole_first, mut added, .. } = parts;
        let reaches_all = ranked.is_some() && !whole_first;
        let table = ranked.map_or_else(|| merge_table(&merges, &tokens), Ok)?;
        added.sort_by_key(|token| token.id);
        let special =
            added.iter().filter(|token| token.special).map(|token| (token.content.clone(), token.id)).collect();
        if let Some(sentence_piece) = &mut sentence_piece {
            sentence_piece.prepare(&merges, whole_first);
        }
        Ok(Self {
            tokens,
            byte_ids,
            unknown,
            merges,
            table,
            whole_first,
            reaches_all,
            is_ordinary,
            sentence_piece,
            added,
            special,
        })
    }

    /// One plus the highest id.
    pub fn size(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of each id, including added tokens.
    pub fn tokens(&self) -> &TokenTable {
        &self.tokens
    }

    /// The id of each single byte; [`NO_ID`] for a byte without one, as in vocabularies learned from text without that
    /// byte.
    pub fn byte_ids(&self) -> &[u32; NUM_BYTES] {
        &self.byte_ids
    }

    /// Merges by rank. Each makes the joined bytes of its two tokens; several may make the same token.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// The table that finds the merge of two tokens.
    pub fn merge_table(&self) -> &MergeTable {
        &self.table
    }

    /// Whether a piece that is a token as a whole becomes that token, even if merging would not make it.
    ///
    /// Hugging Face calls this `ignore_merges`. tiktoken always does it, but it makes no difference if merging reaches
    /// every token.
    pub fn whole_first(&self) -> bool {
        self.whole_first
    }

    /// Whether merging the bytes of each ordinary token is known to give that token, as in a rank file that was read
    /// without finding an exception. If false, merging may give that token or not.
    pub fn reaches_all(&self) -> bool {
        self.reaches_all
    }

    /// Whether `id` is a token that text is merged into and not an added token.
    pub fn is_ordinary(&self, id: u32) -> bool {
        self.is_ordinary.get(id as usize).copied().unwrap_or(false)
    }

    /// Added tokens, special or not, in order of id.
    pub fn added(&self) -> &[AddedToken] {
        &self.added
    }

    /// Special tokens and their ids, in order of id.
    pub fn special(&self) -> &[(String, u32)] {
        &self.special
    }

    /// How merging starts from characters; `None` if it starts from bytes.
    pub fn sentence_piece(&self) -> Option<&SentencePiece> {
        self.sentence_piece.as_ref()
    }

    /// The token for text that has no other.
    pub fn unknown(&self) -> Option<Unknown> {
        self.unknown
    }

    /// Whether every byte that text can have is a token.
    pub fn has_all_bytes(&self) -> bool {
        (0..=u8::MAX).all(|byte| matches!(byte, 0xC0 | 0xC1 | 0xF5..) || self.byte_ids[byte as usize] != NO_ID)
    }

    /// Merges the bytes of a piece and appends the tokens to `ids`. The unknown token stands for a byte without a
    /// token.
    pub fn merge_bytes(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let start = ids.len();
        self.byte_symbols(piece, |id, _| ids.extend(id));
        self.table.apply(ids, start);
    }

    /// Emits the symbols from which merging a piece starts, each with its number of bytes.
    pub fn symbols(&self, piece: &str, emit: impl FnMut(Option<u32>, usize)) {
        match &self.sentence_piece {
            Some(sentence_piece) => sentence_piece.symbols(piece, self.unknown, emit),
            None => self.byte_symbols(piece.as_bytes(), emit),
        }
    }

    /// The number of bytes of a piece that the token covers, unless it stands for unknown characters.
    pub fn symbol_bytes(&self, id: u32) -> usize {
        let name = self.sentence_piece().and_then(|start| start.names().get(id as usize));
        name.map_or_else(|| self.tokens.bytes(id).map_or(0, <[u8]>::len), |name| name.len())
    }

    fn byte_symbols(&self, piece: &[u8], emit: impl FnMut(Option<u32>, usize)) {
        let mut symbols = Symbols::new(self.unknown, emit);
        for &byte in piece {
            match self.byte_ids[byte as usize] {
                NO_ID => symbols.unknown(1),
                id => symbols.known(id, 1),
            }
        }
        symbols.close();
    }
}

/// The id of each byte, given the tokens in order of id.
fn byte_ids(tokens: &[Vec<u8>]) -> Result<[u32; NUM_BYTES]> {
    let mut ids = [NO_ID; NUM_BYTES];
    for (id, token) in (0u32..).zip(tokens) {
        if let [byte] = token[..] {
            ids[byte as usize] = id;
        }
    }
    match ids.iter().position(|&id| id == NO_ID) {
        Some(byte) => Err(Error::Tokenizer(format!("each of the 256 bytes must be a token, byte {byte:#04x} is none"))),
        None => Ok(ids),
    }
}

fn check_distinct(tokens: &[Vec<u8>]) -> Result<()> {
    let mut ids = FxHashMap::default();
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        if let Some(first) = ids.insert(token.as_slice(), id) {
            let text = String::from_utf8_lossy(token);
            return Err(Error::Tokenizer(format!("ids {first} and {id} have the same bytes ({text:?})")));
        }
    }
    Ok(())
}

fn ids_by_bytes(tokens: &[Vec<u8>]) -> FxHashMap<&[u8], u32> {
    tokens.iter().map(Vec::as_slice).zip(0..).filter(|(token, _)| !token.is_empty()).collect()
}

/// Every way to cut `token` into two tokens.
fn cuts<'a>(token: &'a [u8], id: u32, ids: &'a FxHashMap<&[u8], u32>) -> impl Iterator<Item = Merge> + 'a {
    (1..token.len()).filter_map(move |at| {
        let (left, right) = token.split_at(at);
        Some(Merge { left: *ids.get(left)?, right: *ids.get(right)?, id })
    })
}

/// Builds the special tokens, after checking that neither `tokens` nor another special token has their ids or texts.
fn special_tokens(special: Vec<(String, u32)>, tokens: &[Vec<u8>]) -> Result<Vec<AddedToken>> {
    let added: Vec<AddedToken> = special.into_iter().map(|(text, id)| AddedToken::special(text, id)).collect();
    check_added(&added)?;
    let texts: FxHashSet<&[u8]> = added.iter().map(|token| token.content.as_bytes()).collect();
    let taken: FxHashSet<&[u8]> = tokens.iter().map(Vec::as_slice).filter(|token| texts.contains(token)).collect();
    let mut seen = FxHashSet::default();
    for AddedToken { content, id, .. } in &added {
        let has_token = tokens.get(*id as usize).is_some_and(|token| !token.is_empty());
        let fault = if taken.contains(content.as_bytes()) {
            "has the text of an ordinary token"
        } else if has_token || !seen.insert(id) {
            "has the id of another token"
        } else {
            continue;
        };
        return Err(Error::Tokenizer(format!("special token {content:?} (id {id}) {fault}")));
    }
    Ok(added)
}

fn check_added(added: &[AddedToken]) -> Result<()> {
    let mut seen = FxHashSet::default();
    for token in added {
        let fault = if token.content.is_empty() {
            "must not be empty"
        } else if !seen.insert(token.content.as_str()) {
            "is there twice"
        } else if token.id as usize >= MAX_IDS {
            "must have an id below 16777216"
        } else {
            continue;
        };
        let kind = if token.special { "special" } else { "added" };
        return Err(Error::Tokenizer(format!("{kind} token {:?} (id {}) {fault}", token.content, token.id)));
    }
    Ok(())
}

/// The bytes of every id, and which ids are ordinary tokens.
fn token_table(parts: &VocabParts) -> Result<(TokenTable, Vec<bool>)> {
    let ids = parts.tokens.iter().chain(&parts.unreached).map(|&(id, _)| id);
    let last = ids.chain(parts.added.iter().map(|token| token.id)).max();
    let num_ids = last.map_or(0, |id| id as usize + 1);
    if num_ids > MAX_IDS {
        return Err(Error::Tokenizer(format!("token ids must be below {MAX_IDS}, got {}", num_ids - 1)));
    }
    let mut bytes: Vec<Option<Vec<u8>>> = vec![None; num_ids];
    for (id, token) in parts.tokens.iter().chain(&parts.unreached) {
        if bytes[*id as usize].replace(token.clone()).is_some() {
            return Err(Error::Tokenizer(format!(
                "token ids must be there once each, got several tokens with id {id}"
            )));
        }
    }
    let mut is_ordinary = vec![false; num_ids];
    for &(id, _) in &parts.tokens {
        is_ordinary[id as usize] = true;
    }
    for token in &parts.added {
        is_ordinary[token.id as usize] = false;
        // An added token that merging makes as well keeps the bytes that it has there.
        bytes[token.id as usize].get_or_insert_with(|| token.content.as_bytes().to_vec());
    }
    let special: Vec<u32> = parts.added.iter().filter(|token| token.special).map(|token| token.id).collect();
    Ok((TokenTable::new(bytes, &special)?, is_ordinary))
}

fn merge_table(merges: &[Merge], tokens: &TokenTable) -> Result<MergeTable> {
    let mut table = MergeTable::with_capacity(merges.len());
    for merge in merges {
        check_merge(merge, tokens)?;
        let Merge { left, right, id } = *merge;
        check_room(table.len(), left.max(right))?;
        if !table.insert(left, right, id) {
            return Err(Error::Tokenizer(format!("merge ({left}, {right}) into id {id} is there twice")));
        }
    }
    Ok(table)
}

/// Checks that another merge, of ids up to `id`, fits in the table.
fn check_room(num_merges: usize, id: u32) -> Result<()> {
    if num_merges < MAX_MERGES && (id as usize) < MAX_MERGED_IDS {
        return Ok(());
    }
    Err(Error::Tokenizer(format!(
        "a vocabulary must have at most {MAX_MERGES} merges, of tokens with ids below {MAX_MERGED_IDS}, got more: \
         {num_merges} merges before one of id {id}"
    )))
}

fn check_merge(merge: &Merge, tokens: &TokenTable) -> Result<()> {
    let Merge { left, right, id } = *merge;
    let (Some(first), Some(second), Some(merged)) = (tokens.bytes(left), tokens.bytes(right), tokens.bytes(id)) else {
        return Err(Error::Tokenizer(format!("merge ({left}, {right}) into id {id} must use ids that have a token")));
    };
    let is_both = merged.len() == first.len() + second.len() && merged.starts_with(first) && merged.ends_with(second);
    if is_both {
        return Ok(());
    }
    let [first, second, merged] = [first, second, merged].map(String::from_utf8_lossy);
    Err(Error::Tokenizer(format!(
        "merge of {first:?} and {second:?} must make both together, got {merged:?} (id {id})"
    )))
}
