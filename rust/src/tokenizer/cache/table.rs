//! Remembers the tokens of pieces, in bounded memory.
//!
//! What counts is how little memory the pieces of a text touch, and that it is asked for before it is needed: a look-up
//! in the processor's second cache costs 5 ns, in the third 20, beyond it over 100. So entries are dense, a table grows
//! only as it fills, and a key is separate from the look-up so that the lines of many can be asked for at once.

use std::hint::{black_box, select_unpredictable};

use bytemuck::{cast_slice, cast_slice_mut};

use super::key::{Key, MEDIUM_BYTES, is_small, key_hash};
use crate::prefetch;
use crate::tokenizer::memory::LargeSlice;

/// Pieces longer than this are rarely there twice, and are not kept.
pub const LONG_BYTES: usize = 256;

/// Lines of small pieces at first and at most: 4 and 8 MB.
const SMALL_LINES: [usize; 2] = [1 << 16, 1 << 17];

/// Lines of other pieces at first and at most: 8 and 16 MB.
const LARGER_LINES: [usize; 2] = [1 << 17, 1 << 18];

/// Lines that an entry may be put away from its own. Hardly any is, but for pieces made to share one: those are forgotten
/// rather than looked for at length.
const MAX_WAY: usize = 32;

/// Limit of the words that entries hold elsewhere; where it is reached all entries are forgotten.
const MAX_POOL_WORDS: usize = 1 << 21;

/// Up to three tokens of 20 bits, from the lowest bits on, their number and a bit that is always set; zero is none.
pub type Triple = u64;

/// Ids from this one on go to the pool.
const MAX_TOKENS: u32 = 1 << TOKEN_BITS;
const TOKEN_BITS: u32 = 20;
const COUNT_BITS: u32 = 3 * TOKEN_BITS;
const IS_TRIPLE: Triple = 1 << 63;

/// One to three tokens as a triple; zero if there are more or none, or one with too high an id.
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

/// The tokens of a triple, and how many there are; the others are without meaning.
#[inline(always)]
pub fn tokens_of(triple: Triple) -> ([u32; 3], usize) {
    let tokens = [0, 1, 2].map(|index| (triple >> (index * TOKEN_BITS)) as u32 & (MAX_TOKENS - 1));
    (tokens, (triple >> COUNT_BITS) as usize & 3)
}

/// What is known of a piece: a triple and, for a piece that is not small, a second one or zero. Or where its tokens are
/// in the pool, and how many. Zeros if nothing is known.
pub type Words = [u64; 2];

const IS_POOLED: u64 = 1 << 62;

/// Whether the tokens are in the words themselves.
#[inline(always)]
pub fn is_inline(first: u64) -> bool {
    first & IS_TRIPLE != 0
}

/// A cache line of entries: four words of keys, then four words of tokens. Four small pieces, or two others.
type Line = [u64; 8];

/// Tokens of pieces: a table of small ones and one of the others.
pub struct PieceCache {
    /// Of both tables, each as large as it may get: memory is used when it is first written to.
    lines: LargeSlice<Line>,
    small: Table,
    larger: Table,
    /// The tokens that fit no entry, and before those of a long piece its bytes.
    pool: Vec<u32>,
}

/// One of the two tables in the lines. An entry is in the line where it belongs or, if that is full, in the next that is
/// not; a table is never so full that those are far.
#[derive(Clone, Copy)]
struct Table {
    first: usize,
    num_lines: usize,
    max_lines: usize,
    /// Entries of a line.
    per_line: usize,
    /// Entries of the table, and how many make it full: more would make ways too long.
    num_entries: usize,
    max_entries: usize,
}

impl Table {
    /// The line where a hash belongs.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        self.first + (hash as usize & (self.num_lines - 1))
    }

    /// The line after this one.
    #[inline(always)]
    fn after(&self, line: usize) -> usize {
        self.first + ((line - self.first + 1) & (self.num_lines - 1))
    }

    /// A table without entries. Where a line has more of them, more lines may be full.
    fn of(first: usize, num_lines: usize, max_lines: usize, per_line: usize) -> Self {
        let percent = if per_line == 4 { 75 } else { 60 };
        let max_entries = (percent * per_line * num_lines).div_ceil(100);
        Self { first, num_lines, max_lines, per_line, num_entries: 0, max_entries }
    }

    fn is_full(&self) -> bool {
        self.num_entries >= self.max_entries
    }
}

/// A cache, for look-ups one after the other.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    lines: &'a [Line],
    small: Table,
    larger: Table,
    pool: &'a [u32],
}

impl Look<'_> {
    /// The line where the key belongs.
    #[inline(always)]
    pub fn home(&self, key: Key) -> usize {
        let hash = key_hash(key);
        select_unpredictable(is_small(key), self.small.home(hash), self.larger.home(hash))
    }

    /// Has a line brought near, without waiting for it.
    #[inline(always)]
    pub fn fetch(&self, line: usize) {
        prefetch::near(&raw const self.lines[line]);
    }

    /// What is known of the piece with this key, if it is in this line. Without a branch: which entry it is can't be
    /// foreseen.
    #[inline(always)]
    pub fn get(&self, key: Key, line: usize) -> Words {
        let line = &self.lines[line];
        let is_small = is_small(key);
        let keys = [key[0], select_unpredictable(is_small, key[0], key[1])];
        let equal: u32 = (0..4).map(|at| u32::from(line[at] == keys[at % 2]) << at).sum();
        // Of a larger piece two neighbours must be equal, from an even place on.
        let found = equal & select_unpredictable(is_small, 0b1111, equal >> 1 & 0b0101);
        let at = found.trailing_zeros() as usize;
        let first = select_unpredictable(found != 0, line[4 + at % 4], 0);
        let second = select_unpredictable(is_small | (found == 0), 0, line[4 + (at + 1) % 4]);
        [first, second]
    }

    /// Has the tokens of words that don't have them brought near.
    #[inline(always)]
    pub fn fetch_pooled(&self, [first, _]: Words) {
        let is_pooled = first & (IS_TRIPLE | IS_POOLED) == IS_POOLED;
        prefetch::near(self.pool.as_ptr().wrapping_add(select_unpredictable(is_pooled, first as u32 as usize, 0)));
    }

    /// What is known of the piece with this key.
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

/// Whether a line has all its entries: the last has a key.
#[inline(always)]
fn is_full(line: &Line) -> bool {
    line[3] != 0
}

impl PieceCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::with_lines(SMALL_LINES, LARGER_LINES)
    }

    /// An empty cache with so many lines at first and at most: powers of two, not one, which could get full.
    fn with_lines(small: [usize; 2], larger: [usize; 2]) -> Self {
        let mut lines = LargeSlice::new(small[1] + larger[1]);
        let (small, larger) = (Table::of(0, small[0], small[1], 4), Table::of(small[1], larger[0], larger[1], 2));
        for table in [small, larger] {
            // Has the system give the memory now: the first text would wait for each page.
            black_box(&mut lines.get_mut()[table.first..][..table.num_lines]).fill([0; 8]);
        }
        Self { lines, small, larger, pool: Vec::new() }
    }

    /// Forgets all where the pool has become too large. Words that were found before are without meaning then.
    pub fn bound(&mut self) {
        if self.pool.len() > MAX_POOL_WORDS {
            self.pool.clear();
            for table in [&mut self.small, &mut self.larger] {
                self.lines.get_mut()[table.first..][..table.num_lines].fill([0; 8]);
                table.num_entries = 0;
            }
        }
    }

    /// The cache as it is, to look up from.
    #[inline(always)]
    pub fn look(&self) -> Look<'_> {
        Look { lines: self.lines.get(), small: self.small, larger: self.larger, pool: &self.pool }
    }

    /// The tokens of a piece whose words are not [`is_inline`].
    #[inline]
    pub fn pooled(&self, [first, _]: Words) -> &[u32] {
        &self.pool[first as u32 as usize..][..(first >> 32) as u16 as usize]
    }

    /// Keeps the tokens of the piece with this key, which are not there. Returns its words: zeros for one that can't be
    /// kept.
    #[inline]
    pub fn insert(&mut self, key: Key, piece: &[u8], ids: &[u32]) -> Words {
        // A key of zeros, of eight bytes of zero, is what a gap has.
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

    /// Whether the words of a long piece are those of this one: two may have one hash, so the bytes decide.
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

    /// Puts an entry into the first gap on its way; where there may be no more, in place of another one.
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

    /// Puts an entry into the first gap of a line that is not full.
    #[inline]
    fn add(&mut self, line: usize, key: Key, words: Words) {
        let table = self.table(key);
        table.num_entries += 1;
        let per_line = table.per_line;
        self.write(line, gap(&self.lines.get()[line], per_line), key, words);
    }

    /// Puts an entry in place of one in the line where it belongs, which one is without system: what is needed again comes
    /// back soon. An empty line stays empty, for no look-up ends where all lines are full.
    fn replace(&mut self, key: Key, words: Words) {
        let (home, per_line) = (self.look().home(key), self.table(key).per_line);
        let num_there = gap(&self.lines.get()[home], per_line);
        if num_there > 0 {
            self.write(home, words[0] as usize % num_there, key, words);
        }
    }

    /// Writes an entry.
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

    /// Doubles a table in place: an entry stays or moves as many lines on as there were. Begins after a gap, so what
    /// stays has nothing before it that is still to move.
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

/// The number of a line's entries, and so where the next one goes.
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

    /// The ids that the cache has for a piece, as an encoder reads them.
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

    /// Pieces of text of every kind of key, and ids of every kind of words.
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
                // Eight zeros are what a gap looks like, and are not kept.
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

    /// The ids of a piece made for a number.
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
        let mut cache = PieceCache::new();
        let ids: Vec<u32> = (0..250).collect();
        let mut number = 0;
        while cache.pool.len() <= MAX_POOL_WORDS {
            insert(&mut cache, &format!("{number:0200}"), &ids);
            number += 1;
        }
        insert(&mut cache, "a", &[97]);
        cache.bound();
        assert_eq!(known(&cache, &format!("{:0200}", 0)), None);
        assert_eq!(known(&cache, "a"), None);
        insert(&mut cache, "a", &[97]);
        assert_eq!(known(&cache, "a"), Some(vec![97]));
    }
}
