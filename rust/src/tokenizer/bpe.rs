//! Merges the symbols of one piece into tokens.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Up to this many symbols, looking at every pair for the lowest rank beats a heap, and one bit each says which symbols
/// are left.
pub const SHORT_PIECE: usize = 64;

/// Stands for "these two can't be merged"; no table has that many merges.
pub const NO_MERGE: u32 = u32::MAX;

/// Most merges of a table: a rank and a place among [`SHORT_PIECE`] symbols share a word.
pub const MAX_MERGES: usize = (1 << 26) - 1;

/// Which two tokens merge into which. A merge inserted earlier comes first.
///
/// Open addressing with one cache line a look-up: most pairs that are looked up do not merge, and a miss ends at the
/// first empty slot.
#[derive(Debug, Clone)]
pub struct MergeTable {
    slots: Vec<Slot>,
    num_merges: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    pair: u64,
    rank: u32,
    id: u32,
}

const EMPTY: Slot = Slot { pair: u64::MAX, rank: NO_MERGE, id: NO_MERGE };

impl Default for MergeTable {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl MergeTable {
    /// An empty table with room for `num_merges`.
    pub fn with_capacity(num_merges: usize) -> Self {
        Self { slots: vec![EMPTY; (2 * num_merges + 2).next_power_of_two().max(16)], num_merges: 0 }
    }

    /// Makes `left` and `right` merge into `id`, after all merges before; false if they already merge into something.
    pub fn insert(&mut self, left: u32, right: u32, id: u32) -> bool {
        if 2 * (self.num_merges + 1) > self.slots.len() {
            self.grow();
        }
        let rank = self.num_merges as u32;
        self.num_merges += 1;
        let slot = self.find(pair(left, right));
        let is_new = self.slots[slot].rank == NO_MERGE;
        if is_new {
            self.slots[slot] = Slot { pair: pair(left, right), rank, id };
        }
        is_new
    }

    fn grow(&mut self) {
        let slots = vec![EMPTY; 2 * self.slots.len()];
        let old = std::mem::replace(&mut self.slots, slots);
        for slot in old.into_iter().filter(|slot| slot.rank != NO_MERGE) {
            let place = self.find(slot.pair);
            self.slots[place] = slot;
        }
    }

    /// The slot of `pair`, or the empty one where it belongs.
    #[inline]
    fn find(&self, pair: u64) -> usize {
        let last = self.slots.len() - 1;
        let hash = pair.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut at = (hash ^ hash >> 32) as usize & last;
        while self.slots[at].pair != pair && self.slots[at].rank != NO_MERGE {
            at = (at + 1) & last;
        }
        at
    }

    /// Rank and result of the merge of `left` and `right`; both `NO_MERGE` if there is none.
    #[inline]
    pub fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let Slot { rank, id, .. } = self.slots[self.find(pair(left, right))];
        (rank, id)
    }

    /// Merges the tokens `ids[start..]` in place: always the lowest rank there is, the leftmost of equal ones.
    ///
    /// Cost: O(n²) up to 64 tokens, O(n log n) above, so no input is quadratic.
    ///
    /// Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, §3.2.
    pub fn apply(&self, ids: &mut Vec<u32>, start: usize) {
        let num_symbols = ids.len() - start;
        if num_symbols > SHORT_PIECE {
            return self.apply_with_heap(ids, start);
        }
        let mut symbols = [0; SHORT_PIECE];
        symbols[..num_symbols].copy_from_slice(&ids[start..]);
        let mut short = ShortPiece::new(symbols, num_symbols, self);
        ids.truncate(start);
        ids.extend(short.merge(self));
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

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// At most [`SHORT_PIECE`] symbols, each at the place where it began; a merged pair stays at the place of its first.
struct ShortPiece {
    ids: [u32; SHORT_PIECE],
    /// Rank of the merge with the next symbol and, in the last bits, the place: the least is the lowest, leftmost one.
    merges: [u32; SHORT_PIECE],
    /// What each merge would make.
    merged: [u32; SHORT_PIECE],
    /// One bit for each place that still has a symbol.
    live: u64,
    len: usize,
}

impl ShortPiece {
    fn new(ids: [u32; SHORT_PIECE], len: usize, table: &MergeTable) -> Self {
        let live = if len == SHORT_PIECE { u64::MAX } else { (1 << len) - 1 };
        let mut piece = Self { ids, merges: [NO_MERGE; SHORT_PIECE], merged: [NO_MERGE; SHORT_PIECE], live, len };
        for at in 1..len {
            piece.look_up(at - 1, at, table);
        }
        piece
    }

    #[inline]
    fn look_up(&mut self, left: usize, right: usize, table: &MergeTable) {
        let (rank, id) = table.get(self.ids[left], self.ids[right]);
        // The shift drops the high bits of `NO_MERGE`, so it is put back where there is no merge.
        self.merges[left] = if rank == NO_MERGE { NO_MERGE } else { rank << 6 | left as u32 };
        self.merged[left] = id;
    }

    fn merge(&mut self, table: &MergeTable) -> impl Iterator<Item = u32> {
        while let Some(&merge) = self.merges[..self.len].iter().min()
            && merge != NO_MERGE
        {
            let at = merge as usize % SHORT_PIECE;
            let next = at + 1 + (self.live >> at >> 1).trailing_zeros() as usize;
            self.ids[at] = self.merged[at];
            self.live &= !(1 << next);
            self.merges[next] = NO_MERGE;
            let after = self.live >> at >> 1;
            if after == 0 {
                self.merges[at] = NO_MERGE;
            } else {
                self.look_up(at, at + 1 + after.trailing_zeros() as usize, table);
            }
            let before = self.live & ((1 << at) - 1);
            if before != 0 {
                self.look_up(63 - before.leading_zeros() as usize, at, table);
            }
        }
        let (ids, live) = (&self.ids, self.live);
        (0..self.len).filter(move |at| live >> at & 1 == 1).map(move |at| ids[at])
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
    fn merge_at(&self, at: u32, table: &MergeTable) -> Option<Reverse<(u32, u32)>> {
        let left = self.ids[at as usize];
        let right = *self.ids.get(self.next[at as usize] as usize)?;
        let rank = if left == NO_MERGE { NO_MERGE } else { table.get(left, right).0 };
        (rank != NO_MERGE).then_some(Reverse((rank, at)))
    }

    /// Merges the token at `at` with the next; returns the place of the token before.
    fn merge(&mut self, at: u32, table: &MergeTable) -> Option<u32> {
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
                if table.get(left, right).0 == NO_MERGE {
                    table.insert(left, right, 256 + index as u32);
                }
            }
            let mut scanned: Vec<u32> = ids.bytes().map(u32::from).collect();
            let mut heaped = scanned.clone();
            table.apply(&mut scanned, 0);
            table.apply_with_heap(&mut heaped, 0);
            prop_assert_eq!(scanned, heaped);
        }
    }
}
