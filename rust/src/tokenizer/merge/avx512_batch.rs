//! Merges up to sixteen short pieces side by side in 512-bit registers, one lane per piece.
//!
//! When `avx512` merges a single piece, half of the time is lost because the processor cannot predict how many symbols
//! the piece has and which of them merge, and because each look-up waits for the one before. Here each step merges once
//! in every piece, has hardly a branch, and issues its look-ups together.

#![expect(unsafe_code, reason = "AVX-512: merging a new piece takes half the time")]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::{Avx512Tables, bounds_of, hashes};
use super::batch::{BATCH_BYTES, MergedPieces};
use super::boundary::ByteBoundary;
use super::registers::{LANES, all, highest_place, load, lowest_bit, numbers, store, transposed};
use super::table::NO_MERGE;
use crate::tokenizer::bits::low_bits;
use crate::tokenizer::tokens::NUM_BYTES;

/// Whether the processor supports the instructions of this module, in addition to those of `avx512`.
pub fn is_supported() -> bool {
    is_x86_feature_detected!("avx512cd") && is_x86_feature_detected!("avx512vbmi")
}

/// The symbols of all pieces: one row per byte of a piece, one lane per piece. A symbol stays in the row of its first
/// byte.
#[repr(C, align(64))]
pub struct Columns {
    ids: [[u32; LANES]; BATCH_BYTES],
    /// Rank and position of the merge of each symbol with the next. The last two rows receive the look-ups of a step.
    queue: [[i32; LANES]; BATCH_BYTES + 2],
    pairs: Pairs,
    /// The rows of bytes; the last two rows have no bytes.
    rows: [Row; BATCH_BYTES + 2],
    bytes: [[u8; BATCH_BYTES]; LANES],
    lens: [u32; LANES],
    /// Number of rows that have symbols.
    num_rows: usize,
}

impl Columns {
    /// Empty columns for a batch of pieces.
    pub fn new() -> Self {
        // SAFETY: all fields are integers, vectors of integers or arrays of these, for which all-zero bits are a valid
        // value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

/// Pairs of symbols that will be looked up together.
#[repr(C, align(64))]
struct Pairs {
    left: [u32; ROOM],
    right: [u32; ROOM],
    /// The slot of the merge table where the search for each pair begins.
    home: [u32; ROOM],
    /// The index in the queue where each result belongs.
    target: [u32; ROOM],
    count: usize,
}

/// The queue row for the merge of each new symbol with the symbol after it; [`WITH_LEFT`] is for the symbol before it.
const WITH_RIGHT: usize = BATCH_BYTES;
const WITH_LEFT: usize = BATCH_BYTES + 1;

/// Capacity for all pairs of neighbours, plus one vector that a store may overwrite.
const ROOM: usize = (BATCH_BYTES + 1) * LANES;

/// The bytes in one row, with their tokens and the boundaries after them.
#[derive(Clone, Copy)]
struct Row {
    bytes: __m512i,
    ids: __m512i,
    /// Rank of the merge with the next byte.
    rank: __m512i,
    /// Bound of the boundary after the byte.
    bound: __m512i,
    /// The pieces that have a next byte, one bit each.
    has_next: u16,
    /// The pieces in which the byte certainly merges with the next byte, one bit each.
    is_sure: u16,
}

impl Row {
    /// A row without bytes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn none() -> Self {
        let none = all(NO_MERGE as usize);
        Self { bytes: all(0), ids: none, rank: none, bound: none, has_next: 0, is_sure: 0 }
    }
}

impl Avx512Tables<'_> {
    /// Merges at most [`LANES`] pieces of 1 to [`BATCH_BYTES`] bytes. `byte_ids` has the token of each byte.
    pub fn merge_batch(
        &self,
        pieces: &[&[u8]],
        byte_ids: &[u8; NUM_BYTES],
        columns: &mut Columns,
        merged: &mut MergedPieces,
    ) {
        // SAFETY: `PieceMerger` calls this function only if it has `batch_ids`, which requires that `is_supported`
        // holds here and in `avx512`, so the processor has every instruction that these functions enable.
        unsafe {
            let live = self.begin_batch(pieces, byte_ids, columns);
            let live = self.finish_batch(columns, live);
            take(columns, live, merged);
        }
    }

    /// Merges every pair of bytes that merges whatever surrounds it, like `begin`, and looks up the pairs that this
    /// creates. Returns the positions of each piece's symbols, one bit each.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn begin_batch(&self, pieces: &[&[u8]], byte_ids: &[u8; NUM_BYTES], columns: &mut Columns) -> __m512i {
        read(pieces, byte_ids, columns);
        let Columns { rows, num_rows, .. } = columns;
        self.look_up_borders(&mut rows[..*num_rows + 1]);
        let mut live = _mm512_setzero_si512();
        for at in 0..columns.num_rows {
            let Row { ids, rank, is_sure, .. } = columns.rows[at];
            let ids = _mm512_mask_add_epi32(ids, is_sure, rank, self.first_id());
            columns.rows[at].ids = ids;
            store(&mut columns.ids[at], ids);
            let before = if at == 0 { 0 } else { columns.rows[at - 1].is_sure };
            let has_symbol = _mm512_cmpgt_epi32_mask(load(&columns.lens), all(at)) & !before;
            live = _mm512_mask_or_epi32(live, has_symbol, live, all(1 << at));
        }
        columns.pairs.count = 0;
        for at in 0..columns.num_rows {
            let [row, next, after] = [0, 1, 2].map(|step| columns.rows[at + step]);
            let before = if at == 0 { 0 } else { columns.rows[at - 1].is_sure };
            // The symbol after a pair is the symbol after its second byte.
            let has_next = !before & (row.has_next & !row.is_sure | next.has_next & row.is_sure);
            let is_changed = has_next & (row.is_sure | next.is_sure);
            let is_known = has_next & !is_changed & _mm512_cmpneq_epi32_mask(row.rank, all(NO_MERGE as usize));
            let known = _mm512_mask_slli_epi32::<6>(all(i32::MAX as usize), is_known, row.rank);
            store(&mut columns.queue[at], known);
            let next_ids = _mm512_mask_mov_epi32(next.ids, row.is_sure, after.ids);
            self.note(&mut columns.pairs, is_changed, [row.ids, next_ids], at);
        }
        self.look_up_pairs(columns);
        live
    }

    /// Looks up the ranks and bounds of all pairs of bytes, and finds the pairs that certainly merge. The last row must
    /// have no bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn look_up_borders(&self, rows: &mut [Row]) {
        let none = all(NO_MERGE as usize);
        let no_rank = all(ByteBoundary::NO_RANK as usize);
        for at in 0..rows.len() - 1 {
            let border = _mm512_or_si512(_mm512_slli_epi32::<8>(rows[at].bytes), rows[at + 1].bytes);
            let row = &mut rows[at];
            // SAFETY: both bytes are below 256, so the index is below NUM_BOUNDARIES, the length of the table.
            let border = unsafe {
                _mm512_mask_i32gather_epi32::<4>(none, row.has_next, border, self.boundaries.as_ptr().cast())
            };
            let rank = _mm512_and_si512(border, no_rank);
            row.is_sure = _mm512_cmpneq_epu32_mask(rank, no_rank);
            row.rank = _mm512_mask_mov_epi32(none, row.is_sure, rank);
            row.bound = _mm512_mask_mov_epi32(none, row.has_next, bounds_of(border));
        }
        let mut before = none;
        for at in 0..rows.len() - 1 {
            let Row { rank, bound, .. } = rows[at];
            let after = rows[at + 1].bound;
            rows[at].is_sure &= _mm512_cmplt_epu32_mask(rank, before) & _mm512_cmple_epu32_mask(rank, after);
            before = bound;
        }
    }

    /// Merges in every piece the pair with the lowest rank, the leftmost of equal ranks, until no pair merges. Takes
    /// and returns the positions of the symbols.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn finish_batch(&self, columns: &mut Columns, mut live: __m512i) -> __m512i {
        let most = all(i32::MAX as usize);
        let mut merge = most;
        for (at, row) in columns.queue[..columns.num_rows].iter_mut().enumerate() {
            let with_place = _mm512_or_si512(load(row), all(at));
            store(row, with_place);
            merge = _mm512_min_epi32(merge, with_place);
        }
        while _mm512_cmpneq_epi32_mask(merge, most) != 0 {
            (merge, live) = self.step(columns, merge, live);
        }
        live
    }

    /// Merges once in every piece that has a `merge`, given as a rank and a position. Returns the next merges and the
    /// positions of the remaining symbols.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn step(&self, columns: &mut Columns, merge: __m512i, live: __m512i) -> (__m512i, __m512i) {
        let (one, most) = (all(1), all(i32::MAX as usize));
        let is_merged = _mm512_cmpneq_epi32_mask(merge, most);
        let id = _mm512_add_epi32(_mm512_srli_epi32::<6>(merge), self.first_id());
        let at = _mm512_and_si512(merge, all(BATCH_BYTES - 1));
        let here = _mm512_maskz_sllv_epi32(is_merged, one, at);
        let below = _mm512_sub_epi32(here, one);
        let after = _mm512_maskz_andnot_epi32(is_merged, _mm512_or_si512(here, below), live);
        let swallowed = lowest_bit(after);
        let live = _mm512_xor_si512(live, swallowed);
        let (after, before) = (_mm512_xor_si512(after, swallowed), _mm512_maskz_and_epi32(is_merged, live, below));
        let (right, left) = (highest_place(lowest_bit(after)), highest_place(before));
        let (has_right, has_left) = (_mm512_test_epi32_mask(after, after), _mm512_test_epi32_mask(before, before));
        // SAFETY: masked-out lanes are not read. In the other lanes `at` is the row of a live symbol, below
        // BATCH_BYTES, so row and lane give an index into `ids`.
        let [right_id, left_id] = [(has_right, right), (has_left, left)].map(|(has, at)| unsafe {
            let at = _mm512_or_si512(_mm512_slli_epi32::<4>(at), numbers());
            _mm512_mask_i32gather_epi32::<4>(most, has, at, columns.ids.as_ptr().cast())
        });
        columns.pairs.count = 0;
        self.note(&mut columns.pairs, has_right, [id, right_id], WITH_RIGHT);
        self.note(&mut columns.pairs, has_left, [left_id, id], WITH_LEFT);
        columns.queue[BATCH_BYTES..].fill([i32::MAX; LANES]);
        self.look_up_pairs(columns);
        let with_right = _mm512_or_si512(load(&columns.queue[WITH_RIGHT]), at);
        let with_left = _mm512_mask_or_epi32(most, has_left, load(&columns.queue[WITH_LEFT]), left);
        let left = _mm512_sllv_epi32(one, left);
        let mut next = most;
        let rows = columns.ids.iter_mut().zip(&mut columns.queue).take(columns.num_rows);
        for (at, (ids, queue)) in rows.enumerate() {
            let bit = all(1 << at);
            let is_here = _mm512_test_epi32_mask(here, bit);
            // SAFETY: a row has the sixteen lanes of the register.
            unsafe { _mm512_mask_store_epi32(ids.as_mut_ptr().cast(), is_here, id) };
            let mut row = _mm512_mask_mov_epi32(load(queue), is_here, with_right);
            row = _mm512_mask_mov_epi32(row, _mm512_test_epi32_mask(left, bit), with_left);
            row = _mm512_mask_mov_epi32(row, _mm512_test_epi32_mask(swallowed, bit), most);
            store(queue, row);
            next = _mm512_min_epi32(next, row);
        }
        (next, live)
    }

    /// Adds to `pairs` the wanted pairs that the filter of the merges admits; their ranks belong in row `row` of the
    /// queue.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn note(&self, pairs: &mut Pairs, wanted: u16, [left, right]: [__m512i; 2], row: usize) {
        let hashes = hashes(left, right);
        let passed = self.passed(hashes, wanted);
        let home = _mm512_and_si512(hashes, all(self.merges.num_slots() - 1));
        let target = _mm512_or_si512(all(row * LANES), numbers());
        let Pairs { left: lefts, right: rights, home: homes, target: targets, count } = pairs;
        for (list, values) in [(lefts, left), (rights, right), (homes, home), (targets, target)] {
            let room = &mut list[*count..*count + LANES];
            // SAFETY: `room` is a slice of LANES numbers, the size of the register.
            unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(passed, values)) };
        }
        *count += passed.count_ones() as usize;
    }

    /// Stores the ranks of the noted pairs in the queue, without a position.
    #[inline(always)]
    fn look_up_pairs(&self, columns: &mut Columns) {
        let Pairs { left, right, home, target, count } = &columns.pairs;
        home[..*count].iter().for_each(|&home| self.merges.fetch(home as usize));
        let queue = columns.queue.as_flattened_mut();
        for (((&left, &right), &home), &target) in left.iter().zip(right).zip(home).zip(target).take(*count) {
            queue[target as usize] = self.merges.place_from(home as usize, left, right);
        }
    }

    /// The id of the merge of rank zero, in all lanes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn first_id(&self) -> __m512i {
        all(self.first_id as usize)
    }
}

/// Reads the bytes of the pieces and the token of each byte.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn read(pieces: &[&[u8]], byte_ids: &[u8; NUM_BYTES], columns: &mut Columns) {
    let Columns { rows, bytes, lens, num_rows, .. } = columns;
    (*lens, *num_rows) = ([0; LANES], 0);
    for ((piece, bytes), len) in pieces.iter().zip(&mut *bytes).zip(&mut *lens) {
        let here = low_bits(piece.len()) as u32;
        // SAFETY: bytes past the end of the piece are masked out and not read, and a row of `bytes` has the 32 bytes
        // of the register.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), _mm256_maskz_loadu_epi8(here, piece.as_ptr().cast())) };
        *len = piece.len() as u32;
        *num_rows = piece.len().max(*num_rows);
    }
    // SAFETY: each slice has the 64 bytes of the register.
    let table: [__m512i; 4] =
        std::array::from_fn(|part| unsafe { _mm512_loadu_si512(byte_ids[64 * part..][..64].as_ptr().cast()) });
    for (part, rows) in rows.chunks_exact_mut(4).enumerate().take(num_rows.div_ceil(4)) {
        let from = bytes.as_flattened()[4 * part..].as_ptr();
        // SAFETY: each lane reads four bytes of its own row of 32: `part` is below 8, as no piece has more than
        // BATCH_BYTES bytes.
        let bytes = unsafe { _mm512_i32gather_epi32::<1>(_mm512_slli_epi32::<5>(numbers()), from.cast()) };
        let low = _mm512_permutex2var_epi8(table[0], bytes, table[1]);
        let high = _mm512_permutex2var_epi8(table[2], bytes, table[3]);
        let ids = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(bytes), high);
        for (index, row) in rows.iter_mut().enumerate() {
            let shift = _mm_cvtsi32_si128(8 * index as i32);
            let [bytes, ids] =
                [bytes, ids].map(|four| _mm512_and_si512(_mm512_srl_epi32(four, shift), all(NUM_BYTES - 1)));
            let has_next = _mm512_cmpgt_epi32_mask(load(lens), all(4 * part + index + 1));
            *row = Row { bytes, ids, has_next, ..Row::none() };
        }
    }
    rows[*num_rows..][..2].fill(Row::none());
}

/// Stores the remaining symbols in the batch, those of each piece one after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vbmi,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn take(columns: &Columns, live: __m512i, merged: &mut MergedPieces) {
    let MergedPieces { ids, counts } = merged;
    let mut lives = [0u32; LANES];
    store(&mut lives, live);
    *counts = [0; LANES];
    for (part, rows) in columns.ids.chunks_exact(LANES).enumerate().take(columns.num_rows.div_ceil(LANES)) {
        let columns = transposed(std::array::from_fn(|at| load(&rows[at])));
        for (((ids, count), live), column) in ids.iter_mut().zip(&mut *counts).zip(lives).zip(columns) {
            let live = (live >> (LANES * part)) as u16;
            let room = &mut ids[*count as usize..][..LANES];
            // SAFETY: `room` is a slice of LANES numbers, the size of the register.
            unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(live, column)) };
            *count += live.count_ones();
        }
    }
}
