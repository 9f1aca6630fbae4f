//! A hash table of token pairs.

/// A left id and a right id.
pub type Pair = (u32, u32);

/// Key of an empty slot; ids are far smaller.
const EMPTY: u64 = u64::MAX;

/// A pair with its count and its list of places.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    key: u64,
    /// Number of occurrences of the pair.
    pub count: u64,
    /// Index of the pair's list of places.
    pub list: u32,
}

const NO_ENTRY: Entry = Entry { key: EMPTY, count: 0, list: 0 };

impl Entry {
    /// Returns the pair.
    pub fn pair(&self) -> Pair {
        ((self.key >> 32) as u32, self.key as u32)
    }
}

/// A table of pairs with counts: open addressing with linear probing, at most half full. Pairs are never removed.
#[derive(Debug, Clone, Default)]
pub struct PairTable {
    entries: Vec<Entry>,
    num_used: usize,
}

impl PairTable {
    /// Returns a mutable reference to the entry of `pair`, if the table has one.
    pub fn get_mut(&mut self, pair: Pair) -> Option<&mut Entry> {
        let index = self.index(key(pair))?;
        let entry = &mut self.entries[index];
        (entry.key != EMPTY).then_some(entry)
    }

    /// Returns the entry of `pair`, if the table has one.
    pub fn get(&self, pair: Pair) -> Option<&Entry> {
        let entry = &self.entries[self.index(key(pair))?];
        (entry.key != EMPTY).then_some(entry)
    }

    /// Returns the entry of `pair`; inserts an entry of zeros if the table has none.
    pub fn get_or_insert(&mut self, pair: Pair) -> &mut Entry {
        if self.num_used * 2 >= self.entries.len() {
            self.grow();
        }
        let key = key(pair);
        let index = self.index(key).unwrap_or(0);
        if self.entries[index].key == EMPTY {
            self.entries[index].key = key;
            self.num_used += 1;
        }
        &mut self.entries[index]
    }

    /// Iterates over all entries, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.key != EMPTY)
    }

    /// Returns the slot where `key` is or would be inserted; `None` if the table has no slots.
    fn index(&self, key: u64) -> Option<usize> {
        let mask = self.entries.len().checked_sub(1)?;
        let mut index = hash(key) as usize & mask;
        while self.entries[index].key != key && self.entries[index].key != EMPTY {
            index = (index + 1) & mask;
        }
        Some(index)
    }

    fn grow(&mut self) {
        let num_entries = (self.entries.len() * 2).max(64);
        let old = std::mem::replace(&mut self.entries, vec![NO_ENTRY; num_entries]);
        for entry in old.into_iter().filter(|entry| entry.key != EMPTY) {
            if let Some(index) = self.index(entry.key) {
                self.entries[index] = entry;
            }
        }
    }
}

fn key((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Hashes a key by multiplication; the high half, which depends on all bits, is folded onto the low half.
fn hash(key: u64) -> u64 {
    let product = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ product >> 32
}

/// Sums of the counts of all pairs with the same hash: an upper bound of each pair's count, in little memory.
#[derive(Debug, Clone)]
pub struct Sketch {
    sums: Vec<u32>,
    shift: u32,
}

/// Limits the sums to 4 MiB.
const MAX_SKETCH_BITS: u32 = 20;

impl Sketch {
    /// Creates an empty sketch with room for about `num_pairs` pairs.
    pub fn new(num_pairs: usize) -> Self {
        let bits = num_pairs.max(2).ilog2().min(MAX_SKETCH_BITS);
        Self { sums: vec![0; 1 << bits], shift: u64::BITS - bits }
    }

    /// Adds `count` to the sum of a pair.
    pub fn add(&mut self, pair: Pair, count: u64) {
        let index = self.index(pair);
        let sum = &mut self.sums[index];
        *sum = sum.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Adds the sums of `other`, which must have the same size.
    pub fn merged(mut self, other: Self) -> Self {
        for (sum, more) in self.sums.iter_mut().zip(other.sums) {
            *sum = sum.saturating_add(more);
        }
        self
    }

    /// Returns a filter that contains every pair that may occur `count` times or more.
    pub fn reaching(&self, count: u64) -> PairFilter {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let bits = |sums: &[u32]| sums.iter().rev().fold(0, |bits, &sum| bits << 1 | u64::from(sum >= count));
        PairFilter { bits: self.sums.chunks(64).map(bits).collect(), shift: self.shift }
    }

    /// Returns a count that at most `num_pairs` sums reach; if the highest size class alone has more sums, the lowest
    /// count of that class.
    pub fn count_of_top(&self, num_pairs: usize) -> u64 {
        let mut by_size = [0usize; 32 * 8];
        self.sums.iter().filter(|&&sum| sum > 0).for_each(|&sum| by_size[size_class(sum)] += 1);
        let (mut num_taken, mut lowest) = (0, 1);
        for (class, &number) in by_size.iter().enumerate().rev().filter(|(_, number)| **number > 0) {
            num_taken += number;
            if num_taken > num_pairs && num_taken > number {
                return lowest;
            }
            lowest = class_floor(class);
        }
        1
    }

    fn index(&self, pair: Pair) -> usize {
        sketch_index(pair, self.shift)
    }
}

/// A set that contains some pairs for certain and others by chance. It stores one bit per sum, so it fits in a core's
/// own cache.
#[derive(Debug, Clone)]
pub struct PairFilter {
    bits: Vec<u64>,
    shift: u32,
}

impl PairFilter {
    /// Returns whether the set may contain `pair`.
    pub fn may_have(&self, pair: Pair) -> bool {
        let index = sketch_index(pair, self.shift);
        self.bits[index / 64] >> (index % 64) & 1 == 1
    }
}

fn sketch_index(pair: Pair, shift: u32) -> usize {
    (key(pair).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize
}

/// Returns the size class of a sum; each power of two has eight classes.
fn size_class(sum: u32) -> usize {
    let log2 = sum.ilog2();
    let eighth = (u64::from(sum) << 3 >> log2) & 7;
    (log2 as usize) * 8 + eighth as usize
}

/// Returns the smallest sum in a class.
fn class_floor(class: usize) -> u64 {
    let (log2, eighth) = (class / 8, (class % 8) as u64);
    ((8 + eighth) << log2).div_ceil(8)
}
