//! Caches the tokens of pieces, in bounded memory.
//!
//! Speed depends on how little memory the pieces of a text touch, and on requesting it before it is needed: a look-up
//! takes 5 ns in the processor's second-level cache, 20 ns in the third and over 100 ns beyond it. Entries are
//! therefore dense, a table grows only as it fills, and computing a key is separate from looking it up, so that the
//! lines of many keys can be requested at once.

use std::hint::{black_box, select_unpredictable};

use bytemuck::{cast_slice, cast_slice_mut};

use super::key::{Key, MEDIUM_BYTES, is_small, key_hash};
use crate::prefetch;
use crate::tokenizer::memory::LargeSlice;

/// Maximum number of bytes of a cached piece; longer pieces rarely occur twice.
pub const LONG_BYTES: usize = 256;

/// Initial and maximum number of lines for small pieces: 4 and 8 MB.
const SMALL_LINES: [usize; 2] = [1 << 16, 1 << 17];

/// Initial and maximum number of lines for other pieces: 8 and 16 MB.
const LARGER_LINES: [usize; 2] = [1 << 17, 1 << 18];

/// Number of lines, from its home line on, where an entry may be stored. Hardly any entry leaves its home line, except
/// pieces made to share a line: those are forgotten rather than searched for at length.
const MAX_WAY: usize = 32;

/// Limit of the pool in words; when the pool exceeds it, all entries are forgotten.
const MAX_POOL_WORDS: usize = 1 << 21;

/// Initial and maximum number of lines of both tables of a compact cache, 192 KB together, and its limit of the pool.
const COMPACT_LINES: [[usize; 2]; 2] = [[1 << 10; 2], [1 << 11; 2]];
const COMPACT_POOL_WORDS: usize = 1 << 14;

/// Up to three tokens of 20 bits, from the lowest bits up, then their number and a bit that is always set; zero means
/// none.
pub type Triple = u64;

/// Ids from this one on do not fit in a triple and go to the pool.
const MAX_TOKENS: u32 = 1 << TOKEN_BITS;
const TOKEN_BITS: u32 = 20;
const COUNT_BITS: u32 = 3 * TOKEN_BITS;
const IS_TRIPLE: Triple = 1 << 63;

/// Packs one to three tokens into a triple; zero if there are none, more than three, or one with too high an id.
#[inline]
fn triple(ids: &[u32]) -> Triple {
    let [one, two, three] = match *ids {
        [one] => [one, 0, 0],
        [one, two] => [one, two, 0],
        [one, two, three] => [one, two, three],
        _ => return 0,
    };
    if (one | two | three) >= MAX_TOKENS {
        return 0;
    }
    let tokens = u64::from(three) << (2 * TOKEN_BITS) | u64::from(two) << TOKEN_BITS | u64::from(one);
    IS_TRIPLE | (ids.len() as u64) << COUNT_BITS | tokens
}

/// Unpacks the tokens of a triple and their number; tokens past that number have no meaning.
#[inline(always)]
pub fn tokens_of(triple: Triple) -> ([u32; 3], usize) {
    let tokens = [0, 1, 2].map(|index| (triple >> (index * TOKEN_BITS)) as u32 & (MAX_TOKENS - 1));
    (tokens, (triple >> COUNT_BITS) as usize & 3)
}

/// The cache words of a piece: a triple and, for a piece that is not small, a second triple or zero; or the position
/// and number of its tokens in the pool. Zeros mean that the piece is not cached.
pub type Words = [u64; 2];

const IS_POOLED: u64 = 1 << 62;

/// Whether the cache words of a piece hold its tokens, given the first word.
#[inline(always)]
pub fn is_inline(first: u64) -> bool {
    first & IS_TRIPLE != 0
}

/// A cache line of entries: four words of keys, then four words of tokens. A line holds four small pieces or two
/// others.
type Line = [u64; 8];

/// The cached tokens of pieces: one table of small pieces and one of the others.
pub struct PieceCache {
    /// The lines of both tables, at their maximum size; memory is used only when it is first written.
    lines: LargeSlice<Line>,
    small: Table,
    larger: Table,
    /// Tokens that fit in no entry; the bytes of a long piece come before its tokens.
    pool: Vec<u32>,
    /// Number of words of the pool above which all entries are forgotten.
    max_pool_words: usize,
}

/// One of the two tables in the lines. An entry is in its home line or, if that line is full, in the next line that is
/// not full; a table is never so full that this line is far away.
#[derive(Clone, Copy)]
struct Table {
    first: usize,
    num_lines: usize,
    max_lines: usize,
    /// Number of entries per line.
    per_line: usize,
    /// Number of entries in the table; at `max_entries` the table is full, because more would make searches too long.
    num_entries: usize,
    max_entries: usize,
}

impl Table {
    /// The home line of a hash.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        self.first + (hash as usize & (self.num_lines - 1))
    }

    /// The line after this one, or the first line after the last.
    #[inline(always)]
    fn after(&self, line: usize) -> usize {
        self.first + ((line - self.first + 1) & (self.num_lines - 1))
    }

    /// An empty table. A table with more entries per line may have more full lines.
    fn of(first: usize, num_lines: usize, max_lines: usize, per_line: usize) -> Self {
        let percent = if per_line == 4 { 75 } else { 60 };
        let max_entries = (percent * per_line * num_lines).div_ceil(100);
        Self { first, num_lines, max_lines, per_line, num_entries: 0, max_entries }
    }

    fn is_full(&self) -> bool {
        self.num_entries >= self.max_entries
    }
}

/// A view of a cache for a series of look-ups.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    lines: &'a [Line],
    small: Table,
    larger: Table,
    pool: &'a [u32],
}

impl Look<'_> {
    /// The home line of a key.
    #[inline(always)]
    pub fn home(&self, key: Key) -> usize {
        let hash = key_hash(key);
        select_unpredictable(is_small(key), self.small.home(hash), self.larger.home(hash))
    }

    /// Prefetches a line, without waiting for it.
    #[inline(always)]
    pub fn fetch(&self, line: usize) {
        prefetch::near(&raw const self.lines[line]);
    }

    /// The cache words of the piece with this key, if this line has them. Has no branch, because the processor cannot
    /// predict which entry matches.
    #[inline(always)]
    pub fn get(&self, key: Key, line: usize) -> Words {
        let line = &self.lines[line];
        let is_small = is_small(key);
        let keys = [key[0], select_unpredictable(is_small, key[0], key[1])];
        let equal: u32 = (0..4).map(|at| u32::from(line[at] == keys[at % 2]) << at).sum();
        // A larger piece must match two adjacent words, from an even position on.
        let found = equal & select_unpredictable(is_small, 0b1111, equal >> 1 & 0b0101);
        let at = found.trailing_zeros() as usize;
        let first = select_unpredictable(found != 0, line[4 + at % 4], 0);
        let second = select_unpredictable(is_small | (found == 0), 0, line[4 + (at + 1) % 4]);
        [first, second]
    }

    /// Prefetches the tokens of a piece whose cache words point into the pool.
    #[inline(always)]
    pub fn fetch_pooled(&self, [first, _]: Words) {
        let is_pooled = first & (IS_TRIPLE | IS_POOLED) == IS_POOLED;
        prefetch::near(self.pool.as_ptr().wrapping_add(select_unpredictable(is_pooled, first as u32 as usize, 0)));
    }

    /// The cache words of the piece with this key, or zeros if the piece is not cached.
    #[inline]
    pub fn find(&self, key: Key) -> Words {
        let table = if is_small(key) { &self.small } else { &self.larger };
        let mut line = self.home(key);
        for _ in 0..MAX_WAY {
            let words = self.get(key, line);
            if words[0] != 0 || !is_full(&self.lines[line]) {
                return words;
            }
            line = table.after(line);
        }
        [0; 2]
    }
}

/// Whether a line has all its entries: its last entry has a key.
#[inline(always)]
fn is_full(line: &Line) -> bool {
    line[3] != 0
}

impl PieceCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::with_lines(SMALL_LINES, LARGER_LINES)
    }

    /// An empty cache of a hundredth of the memory, which it never exceeds.
    pub fn compact() -> Self {
        let [small, larger] = COMPACT_LINES;
        Self { max_pool_words: COMPACT_POOL_WORDS, ..Self::with_lines(small, larger) }
    }

    /// An empty cache with these initial and maximum numbers of lines. Each must be a power of two above one, because a
    /// single line could become full.
    fn with_lines(small: [usize; 2], larger: [usize; 2]) -> Self {
        let mut lines = LargeSlice::new(small[1] + larger[1]);
        let (small, larger) = (Table::of(0, small[0], small[1], 4), Table::of(small[1], larger[0], larger[1], 2));
        for table in [small, larger] {
            // Make the system provide the memory now; otherwise the first text would wait for each page.
            black_box(&mut lines.get_mut()[table.first..][..table.num_lines]).fill([0; 8]);
        }
        Self { lines, small, larger, pool: Vec::new(), max_pool_words: MAX_POOL_WORDS }
    }

    /// Forgets all entries if the pool has become too large. Cache words found before then lose their meaning.
    pub fn bound(&mut self) {
        if self.pool.len() > self.max_pool_words {
            self.pool.clear();
            for table in [&mut self.small, &mut self.larger] {
                self.lines.get_mut()[table.first..][..table.num_lines].fill([0; 8]);
                table.num_entries = 0;
            }
        }
    }

    /// A view of the cache for a series of look-ups.
    #[inline(always)]
    pub fn look(&self) -> Look<'_> {
        Look { lines: self.lines.get(), small: self.small, larger: self.larger, pool: &self.pool }
    }

    /// The tokens of a piece whose cache words are not [`is_inline`].
    #[inline]
    pub fn pooled(&self, [first, _]: Words) -> &[u32] {
        &self.pool[first as u32 as usize..][..(first >> 32) as u16 as usize]
    }

    /// Caches the tokens of the piece with this key, which must not be cached yet. Returns its cache words, or zeros if
    /// the piece cannot be cached.
    #[inline]
    pub fn insert(&mut self, key: Key, piece: &[u8], ids: &[u32]) -> Words {
        // A key of zeros, which a piece of eight zero bytes has, marks a free place.
        if key[0] == 0 && is_small(key) {
            return [0; 2];
        }
        let (first, rest) = ids.split_at(ids.len().min(3));
        let (low, high) = (triple(first), triple(rest));
        let is_long = piece.len() > MEDIUM_BYTES;
        let fits = low != 0 && (rest.is_empty() || high != 0 && !is_small(key)) && !is_long;
        let words = if fits { [low, high] } else { self.store(if is_long { piece } else { &[] }, ids) };
        let home = self.look().home(key);
        if self.table(key).is_full() || is_full(&self.lines.get()[home]) {
            self.put(key, words);
        } else {
            self.add(home, key, words);
        }
        words
    }

    fn store(&mut self, piece: &[u8], ids: &[u32]) -> Words {
        let bytes_start = self.pool.len();
        self.pool.resize(bytes_start + piece.len().div_ceil(4), 0);
        cast_slice_mut(&mut self.pool[bytes_start..])[..piece.len()].copy_from_slice(piece);
        let words = [IS_POOLED | (ids.len() as u64) << 32 | self.pool.len() as u64, 0];
        self.pool.extend_from_slice(ids);
        words
    }

    /// Whether the cache words belong to this long piece. Two pieces may have the same hash, so the bytes decide.
    #[inline]
    pub fn is_of(&self, [first, _]: Words, piece: &[u8]) -> bool {
        let ids_start = first as u32 as usize;
        let stored = &self.pool[ids_start - piece.len().div_ceil(4)..ids_start];
        cast_slice::<u32, u8>(stored)[..piece.len()] == *piece
    }

    #[inline]
    fn table(&mut self, key: Key) -> &mut Table {
        if is_small(key) { &mut self.small } else { &mut self.larger }
    }

    /// Stores an entry in the first free place from its home line on; replaces another entry if no more may be added.
    fn put(&mut self, key: Key, words: Words) {
        if self.table(key).is_full() {
            if self.table(key).num_lines == self.table(key).max_lines {
                return self.replace(key, words);
            }
            self.grow(is_small(key));
        }
        let table = *self.table(key);
        let mut line = self.look().home(key);
        for _ in 0..MAX_WAY {
            if !is_full(&self.lines.get()[line]) {
                return self.add(line, key, words);
            }
            line = table.after(line);
        }
        self.replace(key, words);
    }

    /// Stores an entry in the first free place of a line that is not full.
    #[inline]
    fn add(&mut self, line: usize, key: Key, words: Words) {
        let table = self.table(key);
        table.num_entries += 1;
        let per_line = table.per_line;
        self.write(line, gap(&self.lines.get()[line], per_line), key, words);
    }

    /// Stores an entry in place of an arbitrary one in its home line; an entry that is needed again soon returns. An
    /// empty line stays empty, because no search ends where all lines are full.
    fn replace(&mut self, key: Key, words: Words) {
        let (home, per_line) = (self.look().home(key), self.table(key).per_line);
        let num_there = gap(&self.lines.get()[home], per_line);
        if num_there > 0 {
            self.write(home, words[0] as usize % num_there, key, words);
        }
    }

    /// Writes an entry to a place of a line.
    #[inline]
    fn write(&mut self, line: usize, entry: usize, key: Key, words: Words) {
        let line = &mut self.lines.get_mut()[line];
        if is_small(key) {
            (line[entry], line[4 + entry]) = (key[0], words[0]);
        } else {
            line[2 * entry..][..2].copy_from_slice(&key);
            line[4 + 2 * entry..][..2].copy_from_slice(&words);
        }
    }

    /// Doubles a table in place: each entry stays in its line or moves on by the old number of lines. Begins after a
    /// line that is not full, so no entry that stays comes after one that still has to move.
    fn grow(&mut self, is_small: bool) {
        let table = if is_small { &mut self.small } else { &mut self.larger };
        let old = *table;
        *table = Table::of(old.first, 2 * old.num_lines, old.max_lines, old.per_line);
        let mut line = old.first;
        while is_full(&self.lines.get()[line]) {
            line = old.after(line);
        }
        for _ in 0..old.num_lines {
            line = old.after(line);
            let there = std::mem::take(&mut self.lines.get_mut()[line]);
            for entry in 0..gap(&there, old.per_line) {
                match is_small {
                    true => self.put([there[entry], 0], [there[4 + entry], 0]),
                    false => {
                        self.put([there[2 * entry], there[2 * entry + 1]], [there[4 + 2 * entry], there[5 + 2 * entry]])
                    }
                }
            }
        }
    }
}

/// Number of entries of a line, and so the place of the next entry.
#[inline]
fn gap(line: &Line, per_line: usize) -> usize {
    let is_there = |at: usize| usize::from(line[4 + at] != 0);
    let of_two = is_there(0) + is_there(2);
    select_unpredictable(per_line == 4, of_two + is_there(1) + is_there(3), of_two)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustc_hash::FxHashMap;

    use super::*;
    use crate::tokenizer::cache::key::piece_key;

    /// The ids that the cache has for a piece, read as an encoder reads them.
    fn known(cache: &PieceCache, piece: &str) -> Option<Vec<u32>> {
        let words = cache.look().find(piece_key(piece.as_bytes(), 0, piece.len()));
        if is_inline(words[0]) {
            let tokens = words.into_iter().flat_map(|word| {
                let (tokens, count) = tokens_of(word);
                tokens.into_iter().take(count)
            });
            return Some(tokens.collect());
        }
        let is_found = words[0] != 0 && (piece.len() <= MEDIUM_BYTES || cache.is_of(words, piece.as_bytes()));
        is_found.then(|| cache.pooled(words).to_vec())
    }

    fn insert(cache: &mut PieceCache, piece: &str, ids: &[u32]) {
        let key = piece_key(piece.as_bytes(), 0, piece.len());
        cache.insert(key, piece.as_bytes(), ids);
    }

    /// Pieces with every kind of key, and ids with every kind of cache words.
    fn entries() -> impl Strategy<Value = FxHashMap<String, Vec<u32>>> {
        let id = prop_oneof![0..MAX_TOKENS, MAX_TOKENS - 1..1 << 24];
        let piece = prop_oneof!["[a-c\\x00\\x09-\\x0f]{1,20}", "\\PC{1,60}"];
        proptest::collection::hash_map(piece, proptest::collection::vec(id, 0..9), 1..60)
            .prop_map(|entries| entries.into_iter().filter(|(piece, _)| piece.len() <= LONG_BYTES).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_kept_is_found_and_nothing_else(entries in entries(), others in entries()) {
            let mut cache = PieceCache::new();
            for (piece, ids) in &entries {
                insert(&mut cache, piece, ids);
            }
            for (piece, ids) in &entries {
                // Eight zero bytes look like a free place and are not cached.
                let expected = (piece != "\0\0\0\0\0\0\0\0").then(|| ids.clone());
                prop_assert_eq!(known(&cache, piece), expected);
            }
            for piece in others.keys().filter(|piece| !entries.contains_key(*piece)) {
                prop_assert_eq!(known(&cache, piece), None);
            }
        }

        #[test]
        fn a_key_is_the_same_wherever_the_piece_stands(piece in "\\PC{1,60}", before in "\\PC{0,20}", after in "\\PC{0,20}") {
            let text = format!("{before}{piece}{after}");
            let key = piece_key(text.as_bytes(), before.len(), before.len() + piece.len());
            prop_assert_eq!(key, piece_key(piece.as_bytes(), 0, piece.len()));
        }
    }

    #[test]
    fn two_pieces_that_fill_their_words_alike_have_two_keys() {
        let (small, medium) = ("abcdefg\x0f", "abcdefg\x0fabcdefg");
        let mut cache = PieceCache::new();
        insert(&mut cache, small, &[1]);
        insert(&mut cache, medium, &[2]);
        assert_eq!(known(&cache, small), Some(vec![1]));
        assert_eq!(known(&cache, medium), Some(vec![2]));
    }

    /// The ids of the piece made from a number.
    fn ids_of(number: u32) -> [u32; 2] {
        [number % 1_000, number / 1_000]
    }

    #[test]
    fn a_table_grows_without_a_loss_and_when_it_is_full_only_forgets() {
        for (width, places_per_line) in [(6, 4), (12, 2), (20, 2)] {
            let piece = |number: u32| format!("{number:0width$}");
            for max_lines in [2, 4, 16, 128] {
                let mut cache = PieceCache::with_lines([2, max_lines], [2, max_lines]);
                let num_places = (places_per_line * max_lines) as u32;
                let num_kept = if places_per_line == 4 { num_places * 3 / 4 } else { (num_places * 3).div_ceil(5) };
                for number in 0..20 * num_places {
                    insert(&mut cache, &piece(number), &ids_of(number));
                    let oldest = if number < num_kept { 0 } else { number };
                    for asked in oldest..=number.min(oldest + 50) {
                        let is_right = known(&cache, &piece(asked)).is_none_or(|ids| ids == ids_of(asked));
                        assert!(is_right && (number >= num_kept || known(&cache, &piece(asked)).is_some()));
                    }
                    assert_eq!(known(&cache, &piece(number + 1)), None);
                }
                let num_found = (0..20 * num_places).filter(|&number| known(&cache, &piece(number)).is_some()).count();
                assert!(
                    num_found >= num_kept as usize / 2 && num_found <= num_kept as usize,
                    "{num_found} of {num_kept}"
                );
            }
        }
    }

    #[test]
    fn pieces_that_share_a_line_are_forgotten_before_they_are_far_away() {
        let mut cache = PieceCache::with_lines([128, 128], [128, 128]);
        let home = |cache: &PieceCache, piece: &str| cache.look().home(piece_key(piece.as_bytes(), 0, piece.len()));
        let there = home(&cache, "000000");
        let pieces: Vec<String> =
            (0..).map(|number| format!("{number:06}")).filter(|piece| home(&cache, piece) == there).take(380).collect();
        for (piece, number) in pieces.iter().zip(0..) {
            insert(&mut cache, piece, &ids_of(number));
            assert_eq!(known(&cache, piece), Some(ids_of(number).to_vec()));
        }
        let found: Vec<u32> = pieces
            .iter()
            .zip(0..)
            .filter(|(piece, _)| known(&cache, piece).is_some())
            .map(|(_, number)| number)
            .collect();
        assert!(found.iter().all(|&number| known(&cache, &pieces[number as usize]) == Some(ids_of(number).to_vec())));
        assert_eq!(found.len(), 4 * MAX_WAY);
    }

    #[test]
    fn a_full_pool_is_emptied_with_all_that_points_into_it() {
        let ids: Vec<u32> = (0..250).collect();
        for (mut cache, max_pool_words) in
            [(PieceCache::new(), MAX_POOL_WORDS), (PieceCache::compact(), COMPACT_POOL_WORDS)]
        {
            let mut number = 0;
            while cache.pool.len() <= max_pool_words {
                insert(&mut cache, &format!("{number:0200}"), &ids);
                number += 1;
            }
            insert(&mut cache, "a", &[97]);
            cache.bound();
            assert_eq!(known(&cache, &format!("{:0200}", number - 1)), None);
            assert_eq!(known(&cache, "a"), None);
            insert(&mut cache, "a", &[97]);
            assert_eq!(known(&cache, "a"), Some(vec![97]));
        }
    }

    #[test]
    fn two_long_pieces_with_one_key_are_told_apart_by_their_bytes() {
        let (piece, other) = ("a".repeat(40), "b".repeat(40));
        let mut cache = PieceCache::new();
        let words = cache.insert(piece_key(piece.as_bytes(), 0, piece.len()), piece.as_bytes(), &[1]);
        assert_eq!((cache.is_of(words, piece.as_bytes()), cache.is_of(words, other.as_bytes())), (true, false));
    }

    #[test]
    fn a_compact_cache_may_use_a_hundredth_of_the_memory() {
        let num_bytes = |cache: &PieceCache| size_of_val(cache.lines.get()) + size_of::<u32>() * cache.max_pool_words;
        assert!(100 * num_bytes(&PieceCache::compact()) <= num_bytes(&PieceCache::new()));
    }
}
