//! Merges the symbols of a piece into tokens by rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::select_unpredictable;

use crate::prefetch;
use crate::tokenizer::bits::places;
use crate::tokenizer::memory::LargeSlice;

/// Maximum number of symbols merged without a heap: up to this number, scanning every pair for the lowest rank is
/// faster, and one bit per symbol records which symbols remain.
pub const SHORT_PIECE: usize = 64;

/// Maximum number of symbols of most words; many other words have at most [`LONG_WORD`]. Both kinds need only part of
/// the memory of a longer piece.
const WORD: usize = 16;
const LONG_WORD: usize = 32;

/// The rank of a pair that cannot be merged; no table has that many merges.
pub const NO_MERGE: u32 = u32::MAX;

/// Maximum number of merges of a table: a rank shares a word with a position among [`SHORT_PIECE`] symbols, and with a
/// pair of ids.
pub const MAX_MERGES: usize = (1 << RANK_BITS) - 2;

/// Exclusive upper limit of the ids of tokens that merge.
pub const MAX_MERGED_IDS: usize = 1 << ID_BITS;
const RANK_BITS: u32 = 22;
const ID_BITS: u32 = 21;

/// Maps each pair of tokens to the token that they merge into. A merge inserted earlier has a lower rank.
///
/// The table uses open addressing with eight bytes per merge, behind a filter: most pairs that are looked up do not
/// merge, and the filter, which stays in the processor's caches, rejects most of those.
#[derive(Debug, Clone)]
pub struct MergeTable {
    /// Each pair, combined with one plus its rank; zero marks an empty slot.
    slots: LargeSlice<u64>,
    /// A bit for each hash of a pair in the table.
    filter: Vec<u32>,
    /// The id made by the merge of each rank.
    ids: Vec<u32>,
    /// Whether these ids are consecutive, as in most vocabularies; an id then needs no look-up.
    counts_up: bool,
}

/// A view of a [`MergeTable`] for a series of look-ups.
#[derive(Debug, Clone, Copy)]
pub struct Merges<'a> {
    slots: &'a [u64],
    filter: &'a [u32],
    ids: &'a [u32],
    first_id: Option<u32>,
}

impl Default for MergeTable {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl MergeTable {
    /// An empty table with room for `num_merges`.
    pub fn with_capacity(num_merges: usize) -> Self {
        let num_slots = (2 * num_merges).next_power_of_two().max(64);
        Self { slots: LargeSlice::new(num_slots), filter: vec![0; num_slots / 8], ids: Vec::new(), counts_up: true }
    }

    /// Number of merges.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the table has no merges.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Adds the merge of `left` and `right` into `id`, ranked after all earlier merges. Returns false if the pair
    /// already has a merge. Ids must be below [`MAX_MERGED_IDS`], and a table has at most [`MAX_MERGES`] merges.
    pub fn insert(&mut self, left: u32, right: u32, id: u32) -> bool {
        debug_assert!((left.max(right) as usize) < MAX_MERGED_IDS && self.ids.len() < MAX_MERGES);
        if 8 * (self.ids.len() + 1) > 7 * self.slots.get().len() {
            self.grow();
        }
        self.counts_up &= self.ids.last().is_none_or(|&last| last + 1 == id);
        self.ids.push(id);
        let (pair, rank) = (pair(left, right), self.ids.len() as u64);
        let place = self.merges().find(pair);
        let is_new = self.slots.get()[place] == 0;
        if is_new {
            self.put(place, pair | rank);
        }
        is_new
    }

    fn put(&mut self, place: usize, slot: u64) {
        self.slots.get_mut()[place] = slot;
        let (word, bit) = filter_place(hash(slot & !RANK_MASK), self.filter.len());
        self.filter[word] |= bit;
    }

    fn grow(&mut self) {
        let larger = Self::with_capacity(self.slots.get().len());
        let old = std::mem::replace(self, larger);
        (self.ids, self.counts_up) = (old.ids, old.counts_up);
        for &slot in old.slots.get().iter().filter(|&&slot| slot != 0) {
            self.put(self.merges().find(slot & !RANK_MASK), slot);
        }
    }

    /// A view of the table for a series of look-ups.
    #[inline]
    pub fn merges(&self) -> Merges<'_> {
        let first_id = self.ids.first().copied().filter(|_| self.counts_up);
        Merges { slots: self.slots.get(), filter: &self.filter, ids: &self.ids, first_id }
    }

    /// Merges the tokens `ids[start..]` in place: always the pair with the lowest rank, the leftmost of equal ranks.
    ///
    /// Cost: O(n²) up to 64 tokens, O(n log n) above, so no input is quadratic.
    ///
    /// Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, §3.2.
    pub fn apply(&self, ids: &mut Vec<u32>, start: usize) {
        let merges = self.merges();
        if ids.len() - start > SHORT_PIECE {
            return merges.apply_with_heap(ids, start);
        }
        let symbols = ids.split_off(start);
        let ranks = symbols.windows(2).map(|pair| merges.rank(pair[0], pair[1]));
        let mut left = [0; SHORT_PIECE];
        let count = merges.apply_short(symbols.iter().copied(), ranks, &mut left);
        ids.extend_from_slice(&left[..count]);
    }
}

const RANK_MASK: u64 = (1 << RANK_BITS) - 1;

#[inline(always)]
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << (ID_BITS + RANK_BITS) | u64::from(right) << RANK_BITS
}

/// The multiplier of the hash: the binary digits of the golden ratio. The multiplier is odd, so no two pairs have the
/// same hash.
pub const HASH_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// Hashes a pair. Folds down the upper bits of the pair first, because vector instructions give no upper half of a
/// product.
#[inline(always)]
fn hash(pair: u64) -> u64 {
    (pair ^ pair >> 32).wrapping_mul(HASH_FACTOR)
}

#[inline(always)]
fn filter_shift(num_words: usize) -> u32 {
    u32::BITS - u32::BITS.ilog2() - num_words.ilog2()
}

/// The word and the bit of the filter for a hash, given by the uppermost bits of the hash.
#[inline(always)]
fn filter_place(hash: u64, num_words: usize) -> (usize, u32) {
    let at = (hash >> 32) as u32 >> filter_shift(num_words);
    ((at >> 5) as usize & (num_words - 1), 1 << (at & 31))
}

impl Merges<'_> {
    /// The slot where the search for a pair begins.
    #[inline(always)]
    fn home(&self, pair: u64) -> usize {
        (hash(pair) >> 32) as usize & (self.slots.len() - 1)
    }

    /// The slot of a pair, or the empty slot where the pair belongs.
    #[inline]
    fn find(&self, pair: u64) -> usize {
        let last = self.slots.len() - 1;
        let mut at = self.home(pair);
        while self.slots[at] != 0 && self.slots[at] & !RANK_MASK != pair {
            at = (at + 1) & last;
        }
        at
    }

    /// The rank of the merge of `left` and `right`, or [`NO_MERGE`].
    #[inline]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = pair(left, right);
        if self.may_merge(pair) { self.rank_of(pair) } else { NO_MERGE }
    }

    /// Whether the filter admits a pair; a pair that the filter rejects never merges.
    #[inline(always)]
    fn may_merge(&self, pair: u64) -> bool {
        let (word, bit) = filter_place(hash(pair), self.filter.len());
        self.filter[word] & bit != 0
    }

    /// The words of the filter, and the shift that turns the upper half of a hash into the number of its bit in the
    /// filter.
    #[inline(always)]
    pub fn filter(&self) -> (&[u32], u32) {
        (self.filter, filter_shift(self.filter.len()))
    }

    /// The id of the merge of rank zero, if ids are consecutive in order of rank.
    #[inline(always)]
    pub fn first_id(&self) -> Option<u32> {
        self.first_id
    }

    /// The rank of the merge of `left` and `right`, combined with the position `at`. The smallest such value has the
    /// lowest rank, and the leftmost position of equal ranks.
    #[inline(always)]
    pub fn place_of(&self, left: u32, right: u32, at: usize) -> i32 {
        place(self.rank_of(pair(left, right)), at)
    }

    /// The value of [`Merges::place_of`], with a look-up only if the filter admits the pair.
    #[inline(always)]
    pub fn place_if_any(&self, left: u32, right: u32, at: usize) -> i32 {
        let pair = pair(left, right);
        if self.may_merge(pair) { place(self.rank_of(pair), at) } else { i32::MAX }
    }

    /// Number of slots, a power of two. Vector code begins the search for a pair at the slot given by the lowest bits
    /// of the upper half of the hash.
    #[inline(always)]
    pub fn num_slots(&self) -> usize {
        self.slots.len()
    }

    /// Prefetches the slot where a search begins.
    #[inline(always)]
    pub fn fetch(&self, home: usize) {
        prefetch::near(&raw const self.slots[home]);
    }

    /// The value of [`Merges::place_of`] for position zero, with the search beginning at slot `home`. Reads the first
    /// two slots without a branch, because the processor cannot predict which of them matches.
    #[inline(always)]
    pub fn place_from(&self, home: usize, left: u32, right: u32) -> i32 {
        let (pair, last) = (pair(left, right), self.slots.len() - 1);
        let [first, second] = [home, home + 1].map(|at| self.slots[at & last]);
        let [is_first, is_second] = [first, second].map(|slot| slot & !RANK_MASK == pair);
        let slot = select_unpredictable(is_first, first, select_unpredictable(is_second, second, 0));
        let is_further = slot == 0 && first != 0 && second != 0;
        let slot = if is_further { self.slots[self.find(pair)] } else { slot };
        place(((slot & RANK_MASK) as u32).wrapping_sub(1), 0)
    }

    #[inline(always)]
    fn rank_of(&self, pair: u64) -> u32 {
        ((self.slots[self.find(pair)] & RANK_MASK) as u32).wrapping_sub(1)
    }

    /// The id made by the merge of this rank.
    #[inline]
    pub fn id(&self, rank: u32) -> u32 {
        self.first_id.map_or_else(|| self.ids[rank as usize], |first| first + rank)
    }

    /// The id made by the merge of this rank if `is_made`, else `other`. Has no branch in most vocabularies.
    #[inline(always)]
    pub fn id_or(&self, is_made: bool, rank: u32, other: u32) -> u32 {
        match self.first_id {
            Some(first) => select_unpredictable(is_made, first.wrapping_add(rank), other),
            None if is_made => self.ids[rank as usize],
            None => other,
        }
    }

    /// Stores in `ranks` the rank of the merge of some ids, one bit each in `which`, with the next id. Checks the
    /// filter for all of them first, because each look-up has to wait for memory.
    #[inline(always)]
    pub fn look_up(&self, ids: &[u32; SHORT_PIECE], which: u64, ranks: &mut [u32; SHORT_PIECE]) {
        let pair = |at: usize| pair(ids[at], ids[(at + 1) % SHORT_PIECE]);
        let mut may = 0;
        for at in places(which) {
            ranks[at] = NO_MERGE;
            may |= u64::from(self.may_merge(pair(at))) << at;
        }
        for at in places(may) {
            ranks[at] = self.rank_of(pair(at));
        }
    }

    /// Merges at most [`SHORT_PIECE`] symbols into `out` and returns the number of tokens. `ranks` has the rank of the
    /// merge of each symbol with the next.
    #[inline]
    pub fn apply_short(
        &self,
        symbols: impl ExactSizeIterator<Item = u32>,
        ranks: impl Iterator<Item = u32>,
        out: &mut [u32],
    ) -> usize {
        if symbols.len() <= WORD {
            ShortPiece::<WORD>::new(symbols, ranks).merge(self, out)
        } else if symbols.len() <= LONG_WORD {
            ShortPiece::<LONG_WORD>::new(symbols, ranks).merge(self, out)
        } else {
            ShortPiece::<SHORT_PIECE>::new(symbols, ranks).merge(self, out)
        }
    }

    fn apply_with_heap(&self, ids: &mut Vec<u32>, start: usize) {
        let mut chain = Chain::new(ids.split_off(start));
        let mut heap: BinaryHeap<Reverse<u64>> =
            (0..chain.end()).filter_map(|at| chain.look_up(at, self).map(Reverse)).collect();
        while let Some(Reverse(entry)) = heap.pop() {
            let (rank, at) = ((entry >> 32) as u32, entry as u32);
            // Entries are not removed when a neighbour merges; outdated entries are skipped here.
            if chain.ranks[at as usize] != rank {
                continue;
            }
            let previous = chain.merge(at, self.id(rank));
            heap.extend(chain.look_up(at, self).map(Reverse));
            heap.extend(previous.and_then(|previous| chain.look_up(previous, self)).map(Reverse));
        }
        ids.extend(chain.into_ids());
    }
}

/// At most `N` symbols, each at the position where it began; a merged pair stays at the position of its first symbol.
struct ShortPiece<const N: usize> {
    ids: [u32; N],
    /// Rank of the merge with the next symbol, with the position in the lowest bits. The smallest value has the lowest
    /// rank, and the leftmost position of equal ranks.
    merges: [i32; N],
    /// One bit for each position that still has a symbol.
    live: u64,
}

impl<const N: usize> ShortPiece<N> {
    #[inline(always)]
    fn new(symbols: impl ExactSizeIterator<Item = u32>, ranks: impl Iterator<Item = u32>) -> Self {
        let live = if symbols.len() >= 64 { u64::MAX } else { (1 << symbols.len()) - 1 };
        let mut piece = Self { ids: [0; N], merges: [i32::MAX; N], live };
        piece.ids.iter_mut().zip(symbols).for_each(|(id, symbol)| *id = symbol);
        ranks.take(N).enumerate().for_each(|(left, rank)| piece.set(left, rank));
        piece
    }

    #[inline]
    fn set(&mut self, left: usize, rank: u32) {
        // Signed, because SSE2 has no minimum of unsigned words.
        self.merges[left] = if rank == NO_MERGE { i32::MAX } else { (rank << 6) as i32 | left as i32 };
    }

    /// Merges until no pair merges, writes the remaining ids to `out` and returns their number.
    #[inline]
    fn merge(&mut self, table: &Merges<'_>, out: &mut [u32]) -> usize {
        loop {
            let merge = self.merges.iter().fold(i32::MAX, |least, &merge| least.min(merge));
            if merge == i32::MAX {
                break;
            }
            let at = merge as usize % N;
            let next = at + 1 + (self.live >> at >> 1).trailing_zeros() as usize;
            let id = table.id(merge as u32 >> 6);
            self.ids[at] = id;
            self.live &= !(1 << next);
            self.merges[next % N] = i32::MAX;
            self.merges[at] = i32::MAX;
            // Check the filter for both pairs before a branch depends on either, because its words come from far away
            // in memory.
            let (after, before) = (self.live >> at >> 1, self.live & ((1 << at) - 1));
            let right = (at + 1 + after.trailing_zeros() as usize) % N;
            let left = (63 - (before | 1).leading_zeros() as usize) % N;
            let (with_right, with_left) = (pair(id, self.ids[right]), pair(self.ids[left], id));
            let right_may = table.may_merge(with_right) & (after != 0);
            let left_may = table.may_merge(with_left) & (before != 0);
            if right_may {
                self.set(at, table.rank_of(with_right));
            }
            if before != 0 {
                self.set(left, if left_may { table.rank_of(with_left) } else { NO_MERGE });
            }
        }
        let (mut live, mut count) = (self.live, 0);
        while live != 0 {
            out[count] = self.ids[live.trailing_zeros() as usize % N];
            live &= live - 1;
            count += 1;
        }
        count
    }
}

/// Combines a rank and a position. The smallest value has the lowest rank, and the leftmost position of equal ranks.
#[inline(always)]
fn place(rank: u32, left: usize) -> i32 {
    // Signed, because SSE2 has no minimum of unsigned words.
    if rank == NO_MERGE { i32::MAX } else { (rank << 6) as i32 | left as i32 }
}

/// A doubly linked list of tokens in arrays, with each token at the position of its first symbol.
struct Chain {
    /// The id at each position; `NO_MERGE` where the token before has absorbed the symbol.
    ids: Vec<u32>,
    /// Rank of the merge with the next token, or `NO_MERGE`.
    ranks: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Chain {
    fn new(ids: Vec<u32>) -> Self {
        let end = ids.len() as u32;
        let (next, previous) = ((1..=end).collect(), (0..end).map(|at| at.wrapping_sub(1)).collect());
        Self { next, previous, ranks: vec![NO_MERGE; ids.len()], ids }
    }

    fn end(&self) -> u32 {
        self.ids.len() as u32
    }

    /// Looks up the merge of the token at `at` with the next token. Returns its rank and position in one word, if the
    /// pair merges.
    fn look_up(&mut self, at: u32, table: &Merges<'_>) -> Option<u64> {
        let right = self.ids.get(self.next[at as usize] as usize);
        let rank = right.map_or(NO_MERGE, |&right| table.rank(self.ids[at as usize], right));
        self.ranks[at as usize] = rank;
        (rank != NO_MERGE).then_some(u64::from(rank) << 32 | u64::from(at))
    }

    /// Merges the token at `at` with the next token into `id` and returns the position of the token before.
    fn merge(&mut self, at: u32, id: u32) -> Option<u32> {
        let swallowed = self.next[at as usize] as usize;
        let after = self.next[swallowed];
        self.ids[at as usize] = id;
        (self.ids[swallowed], self.ranks[swallowed]) = (NO_MERGE, NO_MERGE);
        self.next[at as usize] = after;
        if let Some(previous) = self.previous.get_mut(after as usize) {
            *previous = at;
        }
        (at > 0).then(|| self.previous[at as usize])
    }

    fn into_ids(self) -> impl Iterator<Item = u32> {
        self.ids.into_iter().filter(|&id| id != NO_MERGE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_ways_merge_alike(merges in proptest::collection::vec((0usize..40, 0usize..40), 0..40), ids in "[a-d]{0,64}") {
            let mut table = MergeTable::default();
            let known: Vec<u32> = (b'a'..=b'd').map(u32::from).chain(256..).take(40).collect();
            for (index, &(left, right)) in merges.iter().enumerate() {
                let (left, right) = (known[left % (4 + index)], known[right % (4 + index)]);
                if table.merges().rank(left, right) == NO_MERGE {
                    table.insert(left, right, 256 + index as u32);
                }
            }
            let mut scanned: Vec<u32> = ids.bytes().map(u32::from).collect();
            let mut heaped = scanned.clone();
            table.apply(&mut scanned, 0);
            table.merges().apply_with_heap(&mut heaped, 0);
            prop_assert_eq!(scanned, heaped);
        }
    }

    #[test]
    fn a_table_that_grew_and_is_as_full_as_it_gets_has_every_pair_and_no_other() {
        let mut table = MergeTable::default();
        let pairs: Vec<[u32; 2]> = (0..7 * 2048 / 8).map(|number| [7919 * number % 2999, number % 251]).collect();
        for (&[left, right], rank) in pairs.iter().zip(0..) {
            assert!(table.insert(left, right, 3000 + rank));
        }
        let merges = table.merges();
        assert_eq!(merges.num_slots(), 2048);
        for (&[left, right], rank) in pairs.iter().zip(0..) {
            for (right, rank) in [(right, rank), (right + 251, NO_MERGE)] {
                let expected = place(rank, 0);
                assert_eq!(merges.rank(left, right), rank);
                assert_eq!(merges.place_of(left, right, 0), expected);
                assert_eq!(merges.place_if_any(left, right, 0), expected);
                assert_eq!(merges.place_from(merges.home(pair(left, right)), left, right), expected);
            }
        }
    }
}
