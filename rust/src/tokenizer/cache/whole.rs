//! Finds, without merging, the pieces that are a token as a whole, although merging would reach most of them too.

use super::key::{Key, key_hash, piece_key};
use crate::prefetch;
use crate::tokenizer::memory::LargeSlice;
use crate::tokenizer::split::pretokenize::MAX_PIECES;
use crate::tokenizer::tokens::TokenTable;

/// Finds tokens by their bytes, which stay in the token table. A filter comes first, because most new pieces are not a
/// token.
pub struct WholeTable {
    /// One plus the id, and half of the hash of the token's bytes; zero marks an empty slot.
    slots: LargeSlice<[u32; 2]>,
    /// Two bits for each hash of a token.
    filter: Vec<u64>,
}

impl WholeTable {
    /// An empty table for up to `num_tokens` tokens.
    pub fn new(num_tokens: usize) -> Self {
        let num_slots = (2 * num_tokens).next_power_of_two().max(16);
        Self { slots: LargeSlice::new(num_slots), filter: vec![0; num_slots / 16] }
    }

    /// Half of a hash, and the slots to search.
    #[inline]
    fn places(&self, hash: u64) -> (u32, impl Iterator<Item = usize> + use<>) {
        let len = self.slots.get().len();
        ((hash >> 32) as u32, (0..len).map(move |step| (hash as usize).wrapping_add(step) & (len - 1)))
    }

    /// The word and the bits of the filter for a hash.
    #[inline]
    fn filter_place(&self, hash: u64) -> (usize, u64) {
        ((hash >> 44) as usize & (self.filter.len() - 1), 1 << (hash >> 32 & 63) | 1 << (hash >> 38 & 63))
    }

    /// Whether a token may have this hash.
    #[inline]
    fn may_have(&self, hash: u64) -> bool {
        let (word, bits) = self.filter_place(hash);
        self.filter[word] & bits == bits
    }

    /// Adds a token; the table must have room for it.
    pub fn insert(&mut self, id: u32, token: &[u8]) {
        let hash = key_hash(piece_key(token, 0, token.len()));
        let (word, bits) = self.filter_place(hash);
        let (half, mut places) = self.places(hash);
        let slots = self.slots.get_mut();
        if let Some(place) = places.find(|&place| slots[place][0] == 0) {
            slots[place] = [id + 1, half];
            self.filter[word] |= bits;
        }
    }

    /// Prefetches the memory that looking up these keys (at most [`MAX_PIECES`]) reads. Goes step by step, because each
    /// step depends on memory read by the step before.
    pub fn fetch(&self, keys: impl Iterator<Item = Key>, tokens: &TokenTable) {
        let (mut hashes, mut count, mut num_left) = ([0; MAX_PIECES], 0, 0);
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = key_hash(key);
            prefetch::near(&raw const self.filter[self.filter_place(*hash).0]);
            count += 1;
        }
        let slots = self.slots.get();
        let place = |hash: u64| hash as usize & (slots.len() - 1);
        for index in 0..count {
            let hash = hashes[index];
            if self.may_have(hash) {
                prefetch::near(&raw const slots[place(hash)]);
                hashes[num_left] = hash;
                num_left += 1;
            }
        }
        for &hash in &hashes[..num_left] {
            tokens.fetch(slots[place(hash)][0].wrapping_sub(1));
        }
    }

    /// The token that is equal to the piece with this key.
    #[inline]
    pub fn get(&self, piece: &[u8], key: Key, tokens: &TokenTable) -> Option<u32> {
        let hash = key_hash(key);
        if !self.may_have(hash) {
            return None;
        }
        let (half, places) = self.places(hash);
        let slots = self.slots.get();
        let mut slots = places.map(|place| slots[place]).take_while(|slot| slot[0] != 0);
        slots.find(|slot| slot[1] == half && tokens.bytes(slot[0] - 1) == Some(piece)).map(|slot| slot[0] - 1)
    }
}
