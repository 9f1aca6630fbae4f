//! Counts of pieces, in tables that store short pieces by value.

use std::hash::Hasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHasher};

use crate::Result;
use crate::tokenizer::split::pretokenize::Pattern;
use crate::tokenizer::split::special::{Segment, SpecialMatcher};

/// Maximum number of bytes in a short piece, which fit in a key beside their number. In mixed text, 90 % of the
/// distinct pieces are no longer.
const MAX_SHORT_BYTES: usize = 15;

/// Number of slots in a thread's own table: 1.5 MiB, which stays in a core's cache while the common pieces are counted.
const LOCAL_SLOTS: usize = 1 << 16;

/// Bytes of long pieces that a thread may hold before it hands them over.
const LOCAL_LONG_BYTES: usize = 1 << 21;

/// Base-2 logarithm of the number of parts of the shared table; each part has its own lock.
const NUM_PARTS_LOG2: u32 = 6;

/// A short piece: its bytes, then zeros, and the number of bytes in the last byte. Zero means no piece.
type Key = u128;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// A [`Key`] in two halves, because a `u128` would pad the slot to 32 bytes.
    key: [u64; 2],
    count: u64,
}

/// A piece and its count.
#[derive(Debug, Clone, Copy)]
pub struct Word<'a> {
    /// Number of occurrences of the piece.
    pub count: u64,
    bytes: WordBytes<'a>,
}

#[derive(Debug, Clone, Copy)]
enum WordBytes<'a> {
    Short([u64; 2]),
    Long(&'a [u8]),
}

impl Word<'_> {
    /// Returns the number of bytes in the piece.
    pub fn len(&self) -> usize {
        match self.bytes {
            WordBytes::Short(key) => (key[1] >> 56) as usize,
            WordBytes::Long(bytes) => bytes.len(),
        }
    }

    /// Calls `visit` with the bytes of the piece.
    pub fn with_bytes<T>(&self, visit: impl FnOnce(&[u8]) -> T) -> T {
        match self.bytes {
            WordBytes::Short(key) => visit(&join(key).to_le_bytes()[..self.len()]),
            WordBytes::Long(bytes) => visit(bytes),
        }
    }
}

/// A table of counts by piece: open addressing with linear probing, at most 13/16 full.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    num_used: usize,
    long: FxHashMap<Box<[u8]>, u64>,
    /// Total number of bytes of the pieces in `long`.
    long_bytes: usize,
}

impl Table {
    fn add_short(&mut self, key: [u64; 2], hash: u64, count: u64) {
        if self.num_used * 16 >= self.slots.len() * 13 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut index = hash as usize & mask;
        loop {
            let slot = &mut self.slots[index & mask];
            if slot.key == key {
                slot.count += count;
                return;
            }
            if slot.key == [0, 0] {
                *slot = Slot { key, count };
                self.num_used += 1;
                return;
            }
            index += 1;
        }
    }

    fn add_long(&mut self, piece: &[u8], count: u64) {
        if let Some(total) = self.long.get_mut(piece) {
            *total += count;
            return;
        }
        self.long.insert(piece.into(), count);
        self.long_bytes += piece.len();
    }

    fn grow(&mut self) {
        let num_slots = (self.slots.len() * 2).max(64);
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); num_slots]);
        self.num_used = 0;
        for slot in old.into_iter().filter(|slot| slot.count > 0) {
            self.add_short(slot.key, hash(slot.key), slot.count);
        }
    }

    fn words(&self) -> impl Iterator<Item = Word<'_>> {
        let short = self.slots.iter().filter(|slot| slot.count > 0);
        let short = short.map(|slot| Word { count: slot.count, bytes: WordBytes::Short(slot.key) });
        short.chain(self.long.iter().map(|(piece, &count)| Word { count, bytes: WordBytes::Long(piece) }))
    }
}

/// The counts of all threads together. The distinct pieces bound the memory, regardless of the number of threads.
#[derive(Debug)]
pub struct WordCounts {
    /// Tables, indexed by the highest bits of the hash.
    parts: Vec<Mutex<Table>>,
}

impl WordCounts {
    /// Creates counts without pieces.
    pub fn new() -> Self {
        Self { parts: (0..1 << NUM_PARTS_LOG2).map(|_| Mutex::default()).collect() }
    }

    /// Calls `visit` with every distinct piece, in no particular order.
    pub fn with_words<T>(&mut self, visit: impl FnOnce(Vec<Word<'_>>) -> T) -> T {
        let tables: Vec<&Table> =
            self.parts.iter_mut().map(|part| &*part.get_mut().unwrap_or_else(PoisonError::into_inner)).collect();
        visit(tables.iter().flat_map(|table| table.words()).collect())
    }

    fn part(&self, hash: u64) -> MutexGuard<'_, Table> {
        // A thread that panicked can only leave a table that lacks counts, and its panic reaches the caller.
        self.parts[(hash >> (64 - NUM_PARTS_LOG2)) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts of one thread, moved to [`WordCounts`] when they no longer fit.
#[derive(Debug, Default)]
pub struct LocalCounts {
    table: Table,
}

impl LocalCounts {
    /// Counts the pieces of `text` between special tokens.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much.
    pub fn count(
        &mut self,
        text: &str,
        pattern: &Pattern,
        special: &SpecialMatcher,
        shared: &WordCounts,
    ) -> Result<()> {
        for segment in special.segments(text) {
            let Segment::Text(text) = segment else { continue };
            let mut at = 0;
            pattern.for_each_piece(text, |piece| {
                self.add(text.as_bytes(), at, piece.len(), shared);
                at += piece.len();
            })?;
        }
        Ok(())
    }

    fn add(&mut self, text: &[u8], at: usize, len: usize, shared: &WordCounts) {
        if len > MAX_SHORT_BYTES {
            self.table.add_long(&text[at..at + len], 1);
        } else if len > 0 {
            let key = split(short_key(&text[at..], len));
            self.table.add_short(key, hash(key), 1);
        }
        if self.table.num_used * 16 >= LOCAL_SLOTS * 12 || self.table.long_bytes > LOCAL_LONG_BYTES {
            self.hand_over(shared);
        }
    }

    /// Moves all counts to `shared`.
    pub fn hand_over(&mut self, shared: &WordCounts) {
        let mut counted: Vec<(u64, Slot)> =
            self.table.slots.iter().filter(|slot| slot.count > 0).map(|slot| (hash(slot.key), *slot)).collect();
        counted.sort_unstable_by_key(|(hash, _)| hash >> (64 - NUM_PARTS_LOG2));
        for same_part in counted.chunk_by(|one, other| (one.0 ^ other.0) >> (64 - NUM_PARTS_LOG2) == 0) {
            let mut part = shared.part(same_part[0].0);
            same_part.iter().for_each(|(hash, slot)| part.add_short(slot.key, *hash, slot.count));
        }
        self.table.slots.fill(Slot::default());
        self.table.num_used = 0;
        for (piece, count) in self.table.long.drain() {
            let mut hasher = FxHasher::default();
            hasher.write(&piece);
            shared.part(hasher.finish()).add_long(&piece, count);
        }
        self.table.long_bytes = 0;
    }
}

/// Returns the key of the first `len` bytes of `text`.
fn short_key(text: &[u8], len: usize) -> Key {
    let bytes = match text.first_chunk::<16>() {
        Some(window) => *window,
        None => {
            let mut window = [0; 16];
            window[..len].copy_from_slice(&text[..len]);
            window
        }
    };
    let mask = (1 << (8 * len)) - 1;
    (u128::from_le_bytes(bytes) & mask) | ((len as u128) << 120)
}

fn split(key: Key) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}

fn join(key: [u64; 2]) -> Key {
    u128::from(key[0]) | u128::from(key[1]) << 64
}

/// Hashes a key by a folded product, as wyhash does: every bit of the key affects the low and the high bits.
fn hash(key: [u64; 2]) -> u64 {
    let product = u128::from(key[0] ^ 0x9E37_79B9_7F4A_7C15) * u128::from(key[1] ^ 0xD1B5_4A32_D192_ED03);
    (product as u64) ^ (product >> 64) as u64
}
