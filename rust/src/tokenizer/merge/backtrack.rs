//! Finds the tokens of long pieces in linear time.

use super::table::{Merges, NO_MERGE};
use crate::tokenizer::memory::LargeSlice;
use crate::tokenizer::tokens::NO_ID;
use crate::tokenizer::tokens::TokenTable;
use crate::tokenizer::vocab::Vocab;

/// Number of pairs of adjacent tokens whose check is remembered; a long piece that cannot be cut repeats few pairs.
const REMEMBERED_PAIRS: usize = 4096;

/// Finds the tokens that merging would make of a piece from left to right, without merging.
///
/// Merging gives a sequence of tokens if and only if, for every two adjacent tokens, merging their joined bytes gives
/// these two tokens. The search therefore takes the longest token that can follow the one before; if no token can, it
/// gives up the last token for a shorter one. A position that was given up is never tried again, so the cost is linear.
///
/// Source: Antoine, van Antwerpen, "So many tokens, so little time", 2024, and Berglund, van der Merwe, "Formalizing
/// BPE Tokenization", NCMA 2023, for the condition on adjacent tokens.
pub struct Backtracker {
    trie: Trie,
    /// The merge that makes each id.
    parts: Vec<Parts>,
    /// The longest token that is a proper prefix of each token.
    shorter: Vec<u32>,
    lens: Vec<u32>,
}

/// The token found at a position, and the number of bytes that the result depends on: more than remain if the piece
/// ended before.
struct Walk {
    from: usize,
    len: usize,
    token: Option<u32>,
    /// Whether the walk before found the same token. Bytes are compared only then, so most texts need no comparison.
    repeats: bool,
}

/// The merge that makes a token; a single byte has itself as both parts, and rank zero.
#[derive(Debug, Clone, Copy)]
struct Parts {
    left: u32,
    right: u32,
    /// One plus the rank of the merge.
    rank: u32,
}

impl Backtracker {
    /// Builds the backtracker of a vocabulary in which each token comes from one merge, of tokens that come from merges
    /// of lower rank. Returns `None` for any other vocabulary.
    pub fn new(vocab: &Vocab, merges: Merges<'_>) -> Option<Self> {
        let tokens = vocab.tokens();
        if vocab.byte_ids().contains(&NO_ID) {
            return None;
        }
        let mut parts = vec![Parts { left: NO_ID, right: NO_ID, rank: NO_MERGE }; tokens.len()];
        for &id in vocab.byte_ids() {
            parts[id as usize] = Parts { left: id, right: id, rank: 0 };
        }
        let mut is_reached = vec![false; tokens.len()];
        vocab.byte_ids().iter().for_each(|&id| is_reached[id as usize] = true);
        for (merge, rank) in vocab.merges().iter().zip(1..) {
            let (pair, id) = ((merge.left, merge.right), merge.id as usize);
            if parts[id].rank != NO_MERGE || parts[pair.0 as usize].rank.max(parts[pair.1 as usize].rank) >= rank {
                return None;
            }
            parts[id] = Parts { left: pair.0, right: pair.1, rank };
            // A token is never made if its parts are never made, or do not stay adjacent until its merge has its turn.
            let has_parts = is_reached[pair.0 as usize] && is_reached[pair.1 as usize];
            is_reached[id] = has_parts && are_neighbours(&parts, merges, pair, rank);
        }
        let reached: Vec<u32> = (0..tokens.len() as u32).filter(|&id| is_reached[id as usize]).collect();
        let mut backtracker =
            Self { trie: Trie::new(), parts, shorter: vec![NO_ID; tokens.len()], lens: vec![0; tokens.len()] };
        backtracker.add(tokens, reached);
        Some(backtracker)
    }

    fn add(&mut self, tokens: &TokenTable, mut reached: Vec<u32>) {
        // Shorter tokens first, so that the longest proper prefix of a token is in the trie before the token.
        reached.sort_by_key(|&id| tokens.bytes(id).map_or(0, <[u8]>::len));
        for id in reached {
            let Some(token) = tokens.bytes(id) else { continue };
            self.shorter[id as usize] = self.trie.longest(token).0.unwrap_or(NO_ID);
            self.lens[id as usize] = token.len() as u32;
            self.trie.insert(token, id);
        }
    }

    /// Appends the tokens of `piece` to `ids`.
    pub fn encode(&self, piece: &[u8], merges: Merges<'_>, ids: &mut Vec<u32>) {
        let first = ids.len();
        let mut remembered = [u64::MAX; REMEMBERED_PAIRS];
        let mut given_up = vec![false; piece.len() + 1];
        let mut at = 0;
        let mut walk = Walk { from: 0, len: usize::MAX, token: None, repeats: false };
        let mut next = self.longest(piece, at, &mut walk);
        while let Some(token) = next {
            let end = at + self.lens[token as usize] as usize;
            let stays = !given_up[end]
                && ids[first..].last().is_none_or(|&last| self.stays(&mut remembered, merges, (last, token)));
            next = if stays {
                ids.push(token);
                at = end;
                self.longest(piece, at, &mut walk)
            } else if self.shorter[token as usize] != NO_ID {
                Some(self.shorter[token as usize])
            } else {
                // No token can stand here, so the token before cannot end here.
                given_up[at] = true;
                let last = ids[first..].last().copied();
                if let Some(last) = last {
                    ids.pop();
                    at -= self.lens[last as usize] as usize;
                }
                last
            };
        }
    }

    /// The longest token from `at` on. Reuses the last walk if its token repeats and the bytes are those that the walk
    /// saw.
    #[inline]
    fn longest(&self, piece: &[u8], at: usize, walk: &mut Walk) -> Option<u32> {
        let bytes = |from: usize| piece.get(from..)?.get(..walk.len);
        let is_same = walk.repeats && bytes(at).is_some_and(|here| Some(here) == bytes(walk.from));
        if !is_same {
            let (token, len) = self.trie.longest(&piece[at..]);
            *walk = Walk { from: at, len, token, repeats: token == walk.token };
        }
        walk.token
    }

    #[inline]
    fn stays(&self, remembered: &mut [u64; REMEMBERED_PAIRS], merges: Merges<'_>, pair: (u32, u32)) -> bool {
        // Ids are below 2^24, so a pair leaves one bit for the answer.
        let key = u64::from(pair.0) << 32 | u64::from(pair.1) << 1;
        let place = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - REMEMBERED_PAIRS.ilog2())) as usize;
        if remembered[place] & !1 != key {
            remembered[place] = key | u64::from(are_neighbours(&self.parts, merges, pair, NO_MERGE));
        }
        remembered[place] & 1 == 1
    }
}

/// Whether merging leaves the boundary between two tokens alone, up to the merge of rank `limit - 1`.
///
/// Undoes the last merges of the two tokens, the later merge first. Before each step, the two tokens at the boundary
/// must not have a merge that goes first.
fn are_neighbours(parts: &[Parts], merges: Merges<'_>, (mut left, mut right): (u32, u32), mut limit: u32) -> bool {
    loop {
        let rank = merges.rank(left, right);
        if rank != NO_MERGE && rank + 1 < limit {
            return false;
        }
        let [before, after] = [left, right].map(|id| parts[id as usize]);
        if before.rank > after.rank {
            // Of equal ranks the left merge goes first, and the merge undone here is on the left.
            (limit, left) = (before.rank, before.right);
        } else if after.rank > 0 {
            (limit, right) = (after.rank + 1, after.left);
        } else {
            return true;
        }
    }
}

/// A trie of tokens, to find the longest token that a text begins with.
struct Trie {
    /// Hash table with open addressing: one plus a node and a byte in the upper half, the node after them in the lower
    /// half; zero marks an empty slot.
    next: LargeSlice<u64>,
    shift: u32,
    /// The token that ends at each node.
    tokens: Vec<u32>,
}

impl Trie {
    fn new() -> Self {
        Self { next: LargeSlice::new(2), shift: 63, tokens: vec![NO_ID] }
    }

    /// The slot of a node and a byte, or the empty slot where they belong.
    #[inline(always)]
    fn find(slots: &[u64], shift: u32, key: u64) -> usize {
        let mut at = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize;
        while slots[at] != 0 && slots[at] >> 32 != key {
            at = (at + 1) & (slots.len() - 1);
        }
        at
    }

    fn grow(&mut self) {
        let larger = LargeSlice::new(2 * self.next.get().len());
        let old = std::mem::replace(&mut self.next, larger);
        self.shift -= 1;
        for &slot in old.get().iter().filter(|&&slot| slot != 0) {
            let at = Self::find(self.next.get(), self.shift, slot >> 32);
            self.next.get_mut()[at] = slot;
        }
    }

    fn insert(&mut self, token: &[u8], id: u32) {
        let mut node = 0;
        for &byte in token {
            if 2 * self.tokens.len() > self.next.get().len() {
                self.grow();
            }
            let key = key(node, byte);
            let at = Self::find(self.next.get(), self.shift, key);
            let slot = &mut self.next.get_mut()[at];
            if *slot == 0 {
                *slot = key << 32 | self.tokens.len() as u64;
                self.tokens.push(NO_ID);
            }
            node = *slot as u32;
        }
        self.tokens[node as usize] = id;
    }

    /// The longest token that `text` begins with, and the number of bytes that this result depends on: one more than
    /// all if it depends on the end of the text too.
    #[inline]
    fn longest(&self, text: &[u8]) -> (Option<u32>, usize) {
        let (slots, mut node, mut longest) = (self.next.get(), 0, None);
        for (index, &byte) in text.iter().enumerate() {
            let slot = slots[Self::find(slots, self.shift, key(node, byte))];
            if slot == 0 {
                return (longest, index + 1);
            }
            node = slot as u32;
            longest = Some(self.tokens[node as usize]).filter(|&id| id != NO_ID).or(longest);
        }
        (longest, text.len() + 1)
    }
}

/// The key of a node and a byte in the hash table.
#[inline(always)]
fn key(node: u32, byte: u8) -> u64 {
    u64::from(node << 8 | u32::from(byte)) + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A vocabulary of all bytes and of merges chosen from the tokens so far, in any valid order.
    fn vocab(choices: &[(usize, usize)]) -> Vocab {
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        let mut tokens: Vec<Vec<u8>> = bytes.iter().map(|&byte| vec![byte]).collect();
        let mut known: Vec<u32> = (b'a'..=b'c').map(u32::from).collect();
        let mut merges = Vec::new();
        for &(left, right) in choices {
            let (left, right) = (known[left % known.len()], known[right % known.len()]);
            let merged = [tokens[left as usize].as_slice(), &tokens[right as usize]].concat();
            if !tokens.contains(&merged) {
                known.push(tokens.len() as u32);
                tokens.push(merged);
                merges.push((left, right));
            }
        }
        Vocab::new(&bytes, merges, vec![]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn backtracking_gives_what_merging_gives(
            choices in proptest::collection::vec((0usize..60, 0usize..60), 0..60),
            text in "[abc]{0,200}|(a{1,40}|[bc]|(ab){1,20}|(abc){1,9}){0,20}",
        ) {
            let vocab = vocab(&choices);
            let merges = vocab.merge_table().merges();
            let backtracker = Backtracker::new(&vocab, merges).unwrap();
            let mut merged: Vec<u32> = text.bytes().map(u32::from).collect();
            vocab.merge_table().apply(&mut merged, 0);
            let mut found = vec![7];
            backtracker.encode(text.as_bytes(), merges, &mut found);
            prop_assert_eq!(&found[1..], merged);
        }
    }
}
