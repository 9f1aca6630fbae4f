//! Remembers the tokens of pieces, in bounded memory.

use super::memory::LargeSlice;

/// Pieces up to this many bytes with one or two tokens take 16 bytes in a table of their own: most of any text.
pub const SMALL_BYTES: usize = 8;

/// Pieces up to this many bytes are their own key; with their length they fill 16 bytes.
pub const MEDIUM_BYTES: usize = 15;

/// Pieces longer than this are rarely there twice, and are not kept.
pub const LONG_BYTES: usize = 256;

/// Four entries in a cache line: four keys, then the tokens of each.
pub type SmallSet = [u64; 8];

/// The first table: four-way associative, so of many pieces with one hash four are kept. 4 MB that are used as they
/// fill.
pub type SmallTable = [SmallSet; SMALL_SETS];

/// Two entries in a cache line: two keys of two words, then four tokens of each.
type MediumSet = [u64; 8];

pub const SMALL_SETS: usize = 1 << 16;
const MEDIUM_SETS: usize = 1 << 16;

/// Tokens that an entry of the second table holds itself.
const INLINE_TOKENS: usize = 4;

/// Limit of what entries hold elsewhere; where it is reached everything is forgotten.
const MAX_OVERFLOW_IDS: usize = 1 << 20;
const MAX_OVERFLOW_BYTES: usize = 1 << 21;

/// What the first token of an entry says in its high byte: the number of tokens, or that they are elsewhere.
const COUNT_SHIFT: u32 = 24;
const ELSEWHERE: u32 = 0xFF << COUNT_SHIFT;
const ID_MASK: u32 = (1 << COUNT_SHIFT) - 1;

/// A piece as it is looked up in the second table: bytes and length of a medium one, hash and length of a long one.
pub type Key = [u64; 2];

/// Tokens of pieces that are no small ones: two-way associative, so of many pieces with one hash two are kept.
///
/// Memory: 4 MB that are used as they fill, and at most 6 MB elsewhere.
pub struct PieceCache {
    medium: LargeSlice<MediumSet>,
    ids: Vec<u32>,
    bytes: Vec<u8>,
}

/// One or two tokens: the second in the high half, where [`ONE_TOKEN`] says that there is none. Never zero.
pub type Pair = u64;

/// There is no second token.
pub const ONE_TOKEN: Pair = 1 << 63;

/// What is known of a medium piece.
pub enum Found<'a> {
    /// Up to four tokens, and how many; the rest is without meaning.
    Inline([u32; INLINE_TOKENS], usize),
    /// More.
    Many(&'a [u32]),
}

impl PieceCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self { medium: LargeSlice::new(MEDIUM_SETS), ids: Vec::new(), bytes: Vec::new() }
    }

    /// The tokens of the medium piece with this key.
    #[inline(always)]
    pub fn get(&mut self, key: Key) -> Option<Found<'_>> {
        let set = &self.medium.get()[place(key)];
        let [first, second] = [0, 2].map(|at| set[at] == key[0] && set[at + 1] == key[1]);
        let way = usize::from(!first);
        if !(first | second) {
            return None;
        }
        let mut tokens = tokens(set, way);
        let count = tokens[0] >> COUNT_SHIFT;
        if count as usize <= INLINE_TOKENS {
            tokens[0] &= ID_MASK;
            return Some(Found::Inline(tokens, count as usize));
        }
        Some(Found::Many(&self.ids[tokens[1] as usize..][..tokens[2] as usize]))
    }

    /// The tokens of a long piece.
    pub fn get_long(&mut self, piece: &[u8]) -> Option<&[u32]> {
        let key = long_key(piece);
        let set = &self.medium.get()[place(key)];
        // Two pieces may have one hash, so the bytes decide.
        let [_, start, count, _] = (0..2)
            .filter(|way| set[2 * way..2 * way + 2] == key)
            .map(|way| tokens(set, way))
            .find(|&[.., first_byte]| self.bytes[first_byte as usize..].starts_with(piece))?;
        Some(&self.ids[start as usize..][..count as usize])
    }

    /// Keeps the tokens of the medium piece with this key.
    pub fn insert(&mut self, key: Key, ids: &[u32]) {
        let mut tokens = [0; INLINE_TOKENS];
        if ids.len() <= INLINE_TOKENS {
            tokens[..ids.len()].copy_from_slice(ids);
            tokens[0] |= (ids.len() as u32) << COUNT_SHIFT;
        } else {
            tokens = self.store(ids, &[]);
        }
        self.put(key, tokens);
    }

    /// Keeps the tokens of a long piece.
    pub fn insert_long(&mut self, piece: &[u8], ids: &[u32]) {
        let tokens = self.store(ids, piece);
        self.put(long_key(piece), tokens);
    }

    fn store(&mut self, ids: &[u32], piece: &[u8]) -> [u32; INLINE_TOKENS] {
        if self.ids.len() + ids.len() > MAX_OVERFLOW_IDS || self.bytes.len() + piece.len() > MAX_OVERFLOW_BYTES {
            self.medium.get_mut().fill([0; 8]);
            self.ids.clear();
            self.bytes.clear();
        }
        let (first_id, first_byte) = (self.ids.len() as u32, self.bytes.len() as u32);
        self.ids.extend_from_slice(ids);
        self.bytes.extend_from_slice(piece);
        [ELSEWHERE, first_id, ids.len() as u32, first_byte]
    }

    fn put(&mut self, key: Key, tokens: [u32; INLINE_TOKENS]) {
        let set = &mut self.medium.get_mut()[place(key)];
        let [first, second] = [set[0], set[1]];
        let [low, high] = [set[4], set[5]];
        let [a, b, c, d] = tokens.map(u64::from);
        // First in, first out.
        *set = [key[0], key[1], first, second, a | b << 32, c | d << 32, low, high];
    }
}

#[inline(always)]
fn tokens(set: &MediumSet, way: usize) -> [u32; INLINE_TOKENS] {
    let [low, high] = [set[4 + 2 * way], set[5 + 2 * way]];
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

/// Keeps one or two tokens of a small piece; false if these can't be kept here.
pub fn insert_small(table: &mut SmallTable, key: u64, ids: &[u32]) -> bool {
    let pair = match *ids {
        [one] => u64::from(one) | ONE_TOKEN,
        [one, two] => u64::from(one) | u64::from(two) << 32,
        _ => 0,
    };
    let set = &mut table[small_place(key)];
    if pair != 0 {
        // First in, first out: what is evicted and needed again comes back soon.
        let [a, b, c, _, first, second, third, _] = *set;
        *set = [key, a, b, c, pair, first, second, third];
    }
    pair != 0
}

/// The tokens of the small piece with this key; zero if they are not there.
#[inline(always)]
pub fn look_up_small(table: &SmallTable, key: u64) -> Pair {
    let [keys @ .., a, b, c, d] = table[small_place(key)];
    // Chosen without a branch: which of them it is can't be foreseen.
    [a, b, c, d].into_iter().zip(keys).fold(0, |found, (pair, other)| if other == key { pair } else { found })
}

#[inline(always)]
fn small_place(key: u64) -> usize {
    (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SMALL_SETS.trailing_zeros())) as usize
}

#[inline(always)]
fn place(key: Key) -> usize {
    (mix(key[0], key[1]) >> (64 - MEDIUM_SETS.trailing_zeros())) as usize
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

/// The key of the small piece of `len` bytes that starts at `start`.
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
