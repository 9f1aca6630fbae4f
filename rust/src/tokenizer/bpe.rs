//! Merges the symbols of one piece into tokens.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::memory::LargeSlice;

/// Up to this many symbols, looking at every pair for the lowest rank beats a heap, and one bit each says which symbols
/// are left.
pub const SHORT_PIECE: usize = 64;

/// Most words have fewer symbols than this, and get by with a fourth of the room.
const WORD: usize = 16;

/// Stands for "these two can't be merged"; no table has that many merges.
pub const NO_MERGE: u32 = u32::MAX;

/// Most merges of a table: a rank and a place among [`SHORT_PIECE`] symbols share a word.
pub const MAX_MERGES: usize = (1 << 26) - 2;

/// Which two tokens merge into which. A merge inserted earlier comes first.
///
/// Open addressing with one cache line a look-up: most pairs that are looked up do not merge, and a miss ends at the
/// first empty slot.
#[derive(Debug, Clone)]
pub struct MergeTable {
    slots: LargeSlice<Slot>,
    num_merges: usize,
}

/// The two ids of a pair, one more than its rank (zero: an empty slot) and the id that it makes.
type Slot = [u32; 4];

/// A table, for look-ups one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Merges<'a> {
    slots: &'a [Slot],
}

impl Default for MergeTable {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl MergeTable {
    /// An empty table with room for `num_merges`.
    pub fn with_capacity(num_merges: usize) -> Self {
        Self { slots: LargeSlice::new((2 * num_merges + 2).next_power_of_two().max(16)), num_merges: 0 }
    }

    /// Makes `left` and `right` merge into `id`, after all merges before; false if they already merge into something.
    pub fn insert(&mut self, left: u32, right: u32, id: u32) -> bool {
        if 2 * (self.num_merges + 1) > self.slots.get().len() {
            self.grow();
        }
        self.num_merges += 1;
        let place = self.merges().find(left, right);
        let slot = &mut self.slots.get_mut()[place];
        let is_new = slot[2] == 0;
        if is_new {
            *slot = [left, right, self.num_merges as u32, id];
        }
        is_new
    }

    fn grow(&mut self) {
        let larger = LargeSlice::new(2 * self.slots.get().len());
        let old = std::mem::replace(&mut self.slots, larger);
        for slot in old.get().iter().filter(|slot| slot[2] != 0) {
            let place = self.merges().find(slot[0], slot[1]);
            self.slots.get_mut()[place] = *slot;
        }
    }

    /// The table, to look up from.
    #[inline]
    pub fn merges(&self) -> Merges<'_> {
        Merges { slots: self.slots.get() }
    }

    /// Merges the tokens `ids[start..]` in place: always the lowest rank there is, the leftmost of equal ones.
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
        merges.apply_short(&symbols, |left| merges.get(symbols[left], symbols[left + 1]), ids);
    }
}

impl Merges<'_> {
    /// The slot of a pair, or the empty one where it belongs.
    #[inline]
    fn find(&self, left: u32, right: u32) -> usize {
        let last = self.slots.len() - 1;
        let hash = (u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut at = (hash ^ hash >> 32) as usize & last;
        while self.slots[at][2] != 0 && self.slots[at][..2] != [left, right] {
            at = (at + 1) & last;
        }
        at
    }

    /// Rank and result of the merge of `left` and `right`; the rank is `NO_MERGE` if there is none.
    #[inline]
    pub fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let [.., rank, id] = self.slots[self.find(left, right)];
        (rank.wrapping_sub(1), id)
    }

    /// Adds to `ids` what merging makes of at most [`SHORT_PIECE`] symbols; `first` has the merge of each with the next.
    #[inline]
    pub fn apply_short(&self, symbols: &[u32], first: impl Fn(usize) -> (u32, u32), ids: &mut Vec<u32>) {
        if symbols.len() <= WORD {
            ShortPiece::<WORD>::new(symbols, first).merge(self, ids);
        } else {
            ShortPiece::<SHORT_PIECE>::new(symbols, first).merge(self, ids);
        }
    }

    fn apply_with_heap(&self, ids: &mut Vec<u32>, start: usize) {
        let mut chain = Chain::new(ids.split_off(start));
        let mut heap: BinaryHeap<Reverse<(u32, u32)>> =
            (0..chain.end()).filter_map(|at| chain.merge_at(at, self)).collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            // Entries are not removed when a neighbour merges; one that no longer holds is passed over here.
            if chain.merge_at(at, self) != Some(Reverse((rank, at))) {
                continue;
            }
            let previous = chain.merge(at, self);
            heap.extend(chain.merge_at(at, self));
            heap.extend(previous.and_then(|previous| chain.merge_at(previous, self)));
        }
        ids.extend(chain.into_ids());
    }
}

/// At most `N` symbols, each at the place where it began; a merged pair stays at the place of its first.
struct ShortPiece<const N: usize> {
    ids: [u32; N],
    /// Rank of the merge with the next symbol and, in the last bits, the place: the least is the lowest, leftmost one.
    merges: [u32; N],
    /// What each merge would make.
    merged: [u32; N],
    /// One bit for each place that still has a symbol.
    live: u64,
}

impl<const N: usize> ShortPiece<N> {
    #[inline]
    fn new(symbols: &[u32], first: impl Fn(usize) -> (u32, u32)) -> Self {
        let live = if symbols.len() >= 64 { u64::MAX } else { (1 << symbols.len()) - 1 };
        let mut piece = Self { ids: [0; N], merges: [NO_MERGE; N], merged: [0; N], live };
        piece.ids[..symbols.len()].copy_from_slice(symbols);
        for left in 1..symbols.len() {
            piece.set(left - 1, first(left - 1));
        }
        piece
    }

    #[inline]
    fn set(&mut self, left: usize, (rank, id): (u32, u32)) {
        // The shift drops the high bits of `NO_MERGE`, so it is put back where there is no merge.
        self.merges[left] = if rank == NO_MERGE { NO_MERGE } else { rank << 6 | left as u32 };
        self.merged[left] = id;
    }

    #[inline]
    fn merge(&mut self, table: &Merges<'_>, ids: &mut Vec<u32>) {
        loop {
            let merge = self.merges.iter().fold(NO_MERGE, |least, &merge| least.min(merge));
            if merge == NO_MERGE {
                break;
            }
            let at = merge as usize % N;
            let next = at + 1 + (self.live >> at >> 1).trailing_zeros() as usize;
            self.ids[at] = self.merged[at];
            self.live &= !(1 << next);
            self.merges[next % N] = NO_MERGE;
            let after = self.live >> at >> 1;
            if after == 0 {
                self.merges[at] = NO_MERGE;
            } else {
                let right = at + 1 + after.trailing_zeros() as usize;
                self.set(at, table.get(self.ids[at], self.ids[right % N]));
            }
            let before = self.live & ((1 << at) - 1);
            if before != 0 {
                let left = 63 - before.leading_zeros() as usize;
                self.set(left, table.get(self.ids[left % N], self.ids[at]));
            }
        }
        let mut live = self.live;
        while live != 0 {
            ids.push(self.ids[live.trailing_zeros() as usize % N]);
            live &= live - 1;
        }
    }
}

/// A doubly linked list of tokens in arrays, each token at the place of its first symbol.
struct Chain {
    /// `NO_MERGE` where a token was swallowed by the one before.
    ids: Vec<u32>,
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Chain {
    fn new(ids: Vec<u32>) -> Self {
        let end = ids.len() as u32;
        Self { next: (1..=end).collect(), previous: (0..end).map(|at| at.wrapping_sub(1)).collect(), ids }
    }

    fn end(&self) -> u32 {
        self.ids.len() as u32
    }

    /// The heap entry of the merge of the token at `at` with the next, if there is one.
    fn merge_at(&self, at: u32, table: &Merges<'_>) -> Option<Reverse<(u32, u32)>> {
        let left = self.ids[at as usize];
        let right = *self.ids.get(self.next[at as usize] as usize)?;
        let rank = if left == NO_MERGE { NO_MERGE } else { table.get(left, right).0 };
        (rank != NO_MERGE).then_some(Reverse((rank, at)))
    }

    /// Merges the token at `at` with the next; returns the place of the token before.
    fn merge(&mut self, at: u32, table: &Merges<'_>) -> Option<u32> {
        let swallowed = self.next[at as usize] as usize;
        let after = self.next[swallowed];
        self.ids[at as usize] = table.get(self.ids[at as usize], self.ids[swallowed]).1;
        self.ids[swallowed] = NO_MERGE;
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
                if table.merges().get(left, right).0 == NO_MERGE {
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
}
