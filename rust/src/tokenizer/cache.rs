//! Remembers the tokens of pieces, in bounded memory.
//!
//! What counts is how little memory the pieces of a text touch: a look-up in the processor's second cache costs 5 ns, in
//! the third 20, beyond it over 100. So tables are dense, and grow only as they fill.

use std::hint::{black_box, select_unpredictable};

/// Pieces up to this many bytes with up to three tokens take 16 bytes in a table of their own: most of any text.
pub const SMALL_BYTES: usize = 8;

/// Pieces up to this many bytes are their own key; with their length they fill 16 bytes.
pub const MEDIUM_BYTES: usize = 15;

/// Pieces longer than this are rarely there twice, and are not kept.
pub const LONG_BYTES: usize = 256;

/// Sets of a table at first and at most: 512 KB and 8 MB.
const MIN_SETS: usize = 1 << 13;
const MAX_SETS: usize = 1 << 17;

/// Limit of what entries hold elsewhere; where it is reached all of them are forgotten.
const MAX_OVERFLOW_IDS: usize = 1 << 20;
const MAX_OVERFLOW_BYTES: usize = 1 << 21;

/// Up to three tokens of 21 bits, from the lowest bits on, and a bit that is always set; [`NO_TOKEN`] where there is none.
pub type Triple = u64;

/// Stands for no token; one with this id or a higher one is not kept.
const NO_TOKEN: u32 = (1 << TOKEN_BITS) - 1;
const TOKEN_BITS: u32 = 21;
const IS_TRIPLE: Triple = 1 << 63;

/// One to three tokens as a triple; zero if there are more or none, or one with too high an id.
pub fn triple(ids: &[u32]) -> Triple {
    let mut tokens = [NO_TOKEN; 3];
    if !(1..=3).contains(&ids.len()) || ids.iter().any(|&id| id >= NO_TOKEN) {
        return 0;
    }
    tokens[..ids.len()].copy_from_slice(ids);
    let [a, b, c] = tokens.map(u64::from);
    IS_TRIPLE | a | b << TOKEN_BITS | c << (2 * TOKEN_BITS)
}

/// The tokens of a triple, and how many there are; the others are without meaning.
#[inline(always)]
pub fn tokens_of(triple: Triple) -> ([u32; 3], usize) {
    let tokens = [0, 1, 2].map(|index| (triple >> (index * TOKEN_BITS)) as u32 & NO_TOKEN);
    (tokens, 1 + usize::from(tokens[1] != NO_TOKEN) + usize::from(tokens[2] != NO_TOKEN))
}

/// Four entries in a cache line: four keys, then four triples.
type SmallSet = [u64; 8];

/// Tokens of small pieces by [`small_key`]: four-way associative, so of many pieces with one hash four are kept.
pub struct SmallTable {
    sets: Vec<SmallSet>,
    shift: u32,
    num_entries: usize,
}

impl SmallTable {
    /// An empty table.
    pub fn new() -> Self {
        let mut table = Self::with_sets(MIN_SETS);
        touch(&mut table.sets);
        table
    }

    fn with_sets(num_sets: usize) -> Self {
        Self { sets: vec![[0; 8]; num_sets], shift: 64 - num_sets.trailing_zeros(), num_entries: 0 }
    }

    #[inline(always)]
    fn place(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize
    }

    /// The tokens of the piece with this key; zero if they are not in its own set.
    #[inline(always)]
    pub fn get(&self, key: u64) -> Triple {
        find_small(&self.sets[self.place(key)], key)
    }

    /// The tokens of the piece with this key if its own set had no room for it; else zero.
    #[inline(always)]
    pub fn get_next_door(&self, key: u64) -> Triple {
        let home = self.place(key);
        if self.sets[home][7] == 0 { 0 } else { find_small(&self.sets[home ^ 1], key) }
    }

    /// Keeps the tokens of the piece with this key, which are not there.
    pub fn insert(&mut self, key: u64, triple: Triple) {
        let home = self.place(key);
        let place = if self.sets[home][7] != 0 && self.sets[home ^ 1][7] == 0 { home ^ 1 } else { home };
        let [a, b, c, d, first, second, third, fourth] = self.sets[place];
        // First in, first out: what is evicted and needed again comes back soon.
        self.sets[place] = [key, a, b, c, triple, first, second, third];
        self.num_entries += usize::from(fourth == 0);
        if fourth != 0 && may_grow(self.num_entries, 4 * self.sets.len(), self.sets.len()) {
            let mut larger = Self::with_sets(2 * self.sets.len());
            larger.insert(d, fourth);
            for [keys @ .., a, b, c, d] in std::mem::take(&mut self.sets) {
                let entries = keys.into_iter().zip([a, b, c, d]);
                entries.filter(|entry| entry.1 != 0).for_each(|(key, triple)| larger.insert(key, triple));
            }
            *self = larger;
        }
    }
}

/// The triple of a key, or zero. Without a branch, for which of the four it is can't be foreseen.
#[inline(always)]
fn find_small(&[k0, k1, k2, k3, p0, p1, p2, p3]: &SmallSet, key: u64) -> Triple {
    let found = select_unpredictable(k3 == key, p3, 0);
    let found = select_unpredictable(k2 == key, p2, found);
    let found = select_unpredictable(k1 == key, p1, found);
    select_unpredictable(k0 == key, p0, found)
}

/// Has the system give the memory now: the first text would wait for each page.
fn touch(sets: &mut [[u64; 8]]) {
    black_box(sets).fill([0; 8]);
}

/// Whether a table that just lost an entry is full enough for one of twice the size.
fn may_grow(num_entries: usize, num_places: usize, num_sets: usize) -> bool {
    2 * num_entries > num_places && num_sets < MAX_SETS
}

/// A larger piece as it is looked up: bytes and length of a medium one, hash and length of a long one.
pub type Key = [u64; 2];

/// Two entries in a cache line: two keys of two words, then two words of tokens of each.
type Set = [u64; 8];

/// The words of a piece's tokens: two triples, the second zero if it is not needed. If neither holds them: where they are
/// in `ids` and how many there are, and where the piece is in `bytes`.
type Words = [u64; 2];

/// Tokens of the pieces that a [`SmallTable`] does not take: two-way associative.
pub struct PieceTable {
    sets: Vec<Set>,
    shift: u32,
    num_entries: usize,
    ids: Vec<u32>,
    bytes: Vec<u8>,
}

/// What is known of a medium piece.
pub enum Found<'a> {
    /// Up to six tokens: two triples, the second zero if it is not needed.
    Triples(Triple, Triple),
    /// More.
    Many(&'a [u32]),
}

impl PieceTable {
    /// An empty table.
    pub fn new() -> Self {
        let (mut sets, shift) = (vec![[0; 8]; MIN_SETS], 64 - MIN_SETS.trailing_zeros());
        touch(&mut sets);
        Self { sets, shift, num_entries: 0, ids: Vec::new(), bytes: Vec::new() }
    }

    #[inline(always)]
    fn place(&self, key: Key) -> usize {
        (mix(key[0], key[1]) >> self.shift) as usize
    }

    /// Has the set of a key brought near, without waiting for it.
    #[inline(always)]
    pub fn fetch(&self, key: Key) {
        black_box(self.sets[self.place(key)][0]);
    }

    /// The tokens of the medium piece with this key.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<Found<'_>> {
        let home = self.place(key);
        let mut words = find(&self.sets[home], key, |_| true);
        if words.is_none() && is_full(&self.sets[home]) {
            words = find(&self.sets[home ^ 1], key, |_| true);
        }
        let [low, high] = words?;
        if low & IS_TRIPLE != 0 {
            return Some(Found::Triples(low, high));
        }
        Some(Found::Many(self.stored(low)))
    }

    /// The tokens of a long piece.
    pub fn get_long(&self, piece: &[u8]) -> Option<&[u32]> {
        let key = long_key(piece);
        let home = self.place(key);
        // Two pieces may have one hash, so the bytes decide.
        let is_piece = |[_, first_byte]: Words| self.bytes[first_byte as usize..].starts_with(piece);
        let [low, _] = [home, home ^ 1].into_iter().find_map(|place| find(&self.sets[place], key, is_piece))?;
        Some(self.stored(low))
    }

    fn stored(&self, word: u64) -> &[u32] {
        &self.ids[word as u32 as usize..][..(word >> 32) as usize]
    }

    /// Keeps the tokens of the medium piece with this key, which are not there.
    pub fn insert(&mut self, key: Key, ids: &[u32]) {
        let (first, rest) = ids.split_at(ids.len().min(3));
        let [low, high] = [first, rest].map(triple);
        let words = if low != 0 && (high != 0 || rest.is_empty()) { [low, high] } else { self.store(ids, &[]) };
        self.put(key, words);
    }

    /// Keeps the tokens of a long piece, which are not there.
    pub fn insert_long(&mut self, piece: &[u8], ids: &[u32]) {
        let words = self.store(ids, piece);
        self.put(long_key(piece), words);
    }

    fn store(&mut self, ids: &[u32], piece: &[u8]) -> Words {
        if self.ids.len() + ids.len() > MAX_OVERFLOW_IDS || self.bytes.len() + piece.len() > MAX_OVERFLOW_BYTES {
            *self = Self::new();
        }
        let words = [(ids.len() as u64) << 32 | self.ids.len() as u64, self.bytes.len() as u64];
        self.ids.extend_from_slice(ids);
        self.bytes.extend_from_slice(piece);
        words
    }

    /// Puts an entry first into its set, or into the one next door if that has room.
    fn put(&mut self, [key, rest]: Key, [low, high]: Words) {
        let home = self.place([key, rest]);
        let place = if is_full(&self.sets[home]) && !is_full(&self.sets[home ^ 1]) { home ^ 1 } else { home };
        let [a, b, c, d, e, f, g, h] = self.sets[place];
        self.sets[place] = [key, rest, a, b, low, high, e, f];
        self.num_entries += usize::from(d == 0);
        if d != 0 && may_grow(self.num_entries, 2 * self.sets.len(), self.sets.len()) {
            let larger = vec![[0; 8]; 2 * self.sets.len()];
            let sets = std::mem::replace(&mut self.sets, larger);
            (self.shift, self.num_entries) = (self.shift - 1, 0);
            self.put([c, d], [g, h]);
            for [a, b, c, d, e, f, g, h] in sets {
                let entries = [([c, d], [g, h]), ([a, b], [e, f])];
                entries.into_iter().filter(|(key, _)| key[1] != 0).for_each(|(key, words)| self.put(key, words));
            }
        }
    }
}

/// Whether a set has both its entries; the second word of a key has its length, so it is never zero.
#[inline(always)]
fn is_full(set: &Set) -> bool {
    set[3] != 0
}

/// The words of a key whose words are the right ones.
#[inline(always)]
fn find(&[a, b, c, d, e, f, g, h]: &Set, key: Key, is_right: impl Fn(Words) -> bool) -> Option<Words> {
    match key {
        _ if key == [a, b] && is_right([e, f]) => Some([e, f]),
        _ if key == [c, d] && is_right([g, h]) => Some([g, h]),
        _ => None,
    }
}

/// The bytes of a word that belong to a piece, by its length.
const KEPT: [u64; SMALL_BYTES + 1] = {
    let mut kept = [u64::MAX; SMALL_BYTES + 1];
    let mut len = 0;
    while len < SMALL_BYTES {
        kept[len] = (1 << (8 * len)) - 1;
        len += 1;
    }
    kept
};

/// What tells the length of a piece of less than eight bytes: no UTF-8 ends in such a byte.
const LENGTHS: [u64; SMALL_BYTES + 1] = {
    let mut lengths = [0; SMALL_BYTES + 1];
    let mut len = 0;
    while len < SMALL_BYTES {
        lengths[len] = (0xF8 | len as u64) << 56;
        len += 1;
    }
    lengths
};

/// The key of the small piece of `len` bytes that starts at `start`; text alone, so that it ends as UTF-8 does.
#[inline(always)]
pub fn small_key(text: &[u8], start: usize, len: usize) -> u64 {
    let word = match text[start..].first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => last_words(&text[start..])[0],
    };
    word & KEPT[len] | LENGTHS[len]
}

/// The key of the medium piece of `len` bytes that starts at `start`.
#[inline(always)]
pub fn medium_key(text: &[u8], start: usize, len: usize) -> Key {
    let [low, high] = match text[start..].first_chunk::<16>() {
        Some(bytes) => words(bytes),
        None => last_words(&text[start..]),
    };
    let kept = [len.min(SMALL_BYTES), len.saturating_sub(SMALL_BYTES)].map(|len| KEPT[len]);
    [low & kept[0], high & kept[1] | (len as u64) << 56]
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let [low, high] = [0, 8].map(|at| std::array::from_fn(|index| bytes[at + index]));
    [u64::from_le_bytes(low), u64::from_le_bytes(high)]
}

/// The last bytes of a text, and zeros.
#[cold]
fn last_words(rest: &[u8]) -> [u64; 2] {
    let mut bytes = [0; 16];
    let len = rest.len().min(16);
    bytes[..len].copy_from_slice(&rest[..len]);
    words(&bytes)
}

fn long_key(piece: &[u8]) -> Key {
    [hash(piece), u64::MAX << 32 | piece.len() as u64]
}

/// A hash of any bytes.
pub fn hash(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<16>();
    let state = chunks.iter().fold(bytes.len() as u64, |state, chunk| {
        let [low, high] = words(chunk);
        mix(low ^ state, high)
    });
    let [low, high] = last_words(rest);
    mix(low ^ state, high)
}

/// Both halves of the product of two words: every bit of the result depends on every bit of both.
#[inline(always)]
fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one ^ 0x9E37_79B9_7F4A_7C15) * u128::from(other ^ 0xD1B5_4A32_D192_ED03);
    (product >> 64) as u64 ^ product as u64
}
