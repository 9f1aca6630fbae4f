//! Merges a short piece in 512-bit registers, one lane per symbol: like `table`, but with hardly a branch.
//!
//! Byte by byte, the first step alone takes about six hundred instructions per piece, in loops whose end the processor
//! cannot predict. The merge table is still searched one pair at a time: prefetching the slots of a piece, comparing
//! several slots at once, and look-ups without a branch were all slower.

#![expect(unsafe_code, reason = "AVX-512: text of 532 languages that is new takes a tenth less time")]

use std::arch::x86_64::*;

use super::boundary::{ByteBoundary, NUM_BOUNDARIES};
use super::registers::{LANES, load, numbers, store};
use super::table::{HASH_FACTOR, Merges, NO_MERGE, SHORT_PIECE};
use crate::tokenizer::bits::{low_bits, places};
use crate::tokenizer::tokens::NUM_BYTES;

/// Whether the processor supports the instructions of this module.
pub fn is_supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// The tables that merging reads, for a vocabulary in which the id of a merge is the first id plus the rank.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Tables<'a> {
    /// The boundary of each pair of adjacent bytes.
    pub boundaries: &'a [ByteBoundary; NUM_BOUNDARIES],
    /// The token of each byte.
    pub byte_ids: &'a [u32; NUM_BYTES],
    /// All merges of the vocabulary.
    pub merges: Merges<'a>,
    /// The id of the merge of rank zero.
    pub first_id: u32,
}

/// A piece of at most as many symbols as `V` vectors have lanes, with every pair of bytes merged that merges for
/// certain.
#[repr(C, align(64))]
struct Begun<const V: usize> {
    /// The ids of the symbols.
    ids: [[u32; LANES]; V],
    /// Rank and position of the merge of each symbol with the next, as far as known.
    queue: [[i32; LANES]; V],
    /// The other symbols that may merge with the next, one bit each.
    open: u64,
    /// Number of symbols.
    count: usize,
}

impl<const V: usize> Begun<V> {
    /// The first `W` vectors, which must hold all symbols.
    #[inline(always)]
    fn narrowed<const W: usize>(&self) -> Begun<W> {
        let Self { ids, queue, open, count } = *self;
        Begun { ids: std::array::from_fn(|v| ids[v]), queue: std::array::from_fn(|v| queue[v]), open, count }
    }
}

impl Avx512Tables<'_> {
    /// Merges a piece of 1 to [`SHORT_PIECE`] bytes into `out` and returns the number of tokens. Each byte must be a
    /// token.
    #[inline]
    pub fn merge(&self, piece: &[u8], out: &mut [u32]) -> usize {
        // SAFETY: `PieceMerger` builds these tables only if `is_supported` holds, so the processor has every
        // instruction that these functions enable.
        unsafe {
            match piece.len().div_ceil(LANES) {
                0 | 1 => self.finish(&mut self.begin::<1>(piece), out),
                2 => self.finish_narrowed(&mut self.begin::<2>(piece), out),
                _ => self.finish_narrowed(&mut self.begin::<4>(piece), out),
            }
        }
    }

    /// Merges every pair of bytes that merges whatever surrounds it, as described in `merge`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn begin<const V: usize>(&self, piece: &[u8]) -> Begun<V> {
        let here = low_bits(piece.len());
        let none = _mm512_set1_epi32(NO_MERGE as i32);
        let no_rank = _mm512_set1_epi32(ByteBoundary::NO_RANK as i32);
        let (mut symbols, mut ranks, mut bounds, mut has_rank) = ([none; V], [none; V], [none; V], 0);
        for v in 0..V {
            let [bytes, borders] = self.look_up(piece, here, v);
            symbols[v] = bytes;
            let rank = _mm512_and_si512(borders, no_rank);
            let known = _mm512_cmpneq_epu32_mask(rank, no_rank);
            ranks[v] = _mm512_mask_mov_epi32(none, known, rank);
            has_rank |= u64::from(known) << (LANES * v);
            bounds[v] = bounds_of(borders);
        }
        let mut sure = 0;
        for v in 0..V {
            let before = _mm512_alignr_epi32::<15>(bounds[v], if v == 0 { none } else { bounds[v - 1] });
            let after = following(&bounds, v);
            let is_sure = _mm512_cmplt_epu32_mask(ranks[v], before) & _mm512_cmple_epu32_mask(ranks[v], after);
            sure |= u64::from(is_sure) << (LANES * v);
        }
        sure &= has_rank;
        let kept = here & !(sure << 1);
        let mut ranks_after = ranks;
        for v in 0..V {
            let sure = lanes(sure, v);
            symbols[v] = _mm512_mask_add_epi32(symbols[v], sure, ranks[v], _mm512_set1_epi32(self.first_id as i32));
            // The symbol after a pair is the symbol after its second byte.
            ranks_after[v] = _mm512_mask_mov_epi32(ranks[v], sure, following(&ranks, v));
        }
        let (ids, ranks) = (compressed(&symbols, kept), compressed(&ranks_after, kept));
        let count = kept.count_ones() as usize;
        let is_pair = _pext_u64(sure, kept);
        let changed = (is_pair | is_pair >> 1) & low_bits(count - 1);
        let mut begun = Begun { ids: [[0; LANES]; V], queue: [[0; LANES]; V], open: 0, count };
        for v in 0..V {
            let changed = lanes(changed, v);
            if V == 1 || changed != 0 {
                begun.open |= u64::from(self.passed(hashes(ids[v], following(&ids, v)), changed)) << (LANES * v);
            }
            let known = _mm512_cmpneq_epi32_mask(ranks[v], none) & !changed;
            let places = _mm512_add_epi32(numbers(), _mm512_set1_epi32((LANES * v) as i32));
            let ranks = _mm512_slli_epi32::<6>(ranks[v]);
            let queue = _mm512_mask_or_epi32(_mm512_set1_epi32(i32::MAX), known, ranks, places);
            store(&mut begun.ids[v], ids[v]);
            store(&mut begun.queue[v], queue);
        }
        begun
    }

    /// The tokens of the bytes in vector `v`, and the boundaries after these bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn look_up(&self, piece: &[u8], here: u64, v: usize) -> [__m512i; 2] {
        let none = _mm512_set1_epi32(NO_MERGE as i32);
        let (here, with_next) = (lanes(here, v), lanes(here >> 1, v));
        let from = piece.as_ptr().wrapping_add(LANES * v);
        // SAFETY: masked-out lanes are not read, so no byte past the piece is read. A byte is below 256 and a pair of
        // bytes below NUM_BOUNDARIES, which are the lengths of the two tables.
        unsafe {
            let first = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(here, from.cast()));
            let second = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(with_next, from.wrapping_add(1).cast()));
            let border = _mm512_or_si512(_mm512_slli_epi32::<8>(first), second);
            let bytes = _mm512_mask_i32gather_epi32::<4>(none, here, first, self.byte_ids.as_ptr().cast());
            let borders = _mm512_mask_i32gather_epi32::<4>(none, with_next, border, self.boundaries.as_ptr().cast());
            [bytes, borders]
        }
    }

    /// The pairs in `wanted` that the filter of the merges admits, given the upper halves of their hashes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    pub fn passed(&self, hashes: __m512i, wanted: u16) -> u16 {
        let (filter, shift) = self.merges.filter();
        let at = _mm512_srl_epi32(hashes, _mm_cvtsi32_si128(shift as i32));
        let (word, bit) = (_mm512_srli_epi32::<5>(at), _mm512_and_si512(at, _mm512_set1_epi32(31)));
        // SAFETY: masked-out lanes are not read. In the other lanes the shift leaves the number of a bit of the filter,
        // so `word` is an index into the filter.
        let words =
            unsafe { _mm512_mask_i32gather_epi32::<4>(_mm512_setzero_si512(), wanted, word, filter.as_ptr().cast()) };
        _mm512_test_epi32_mask(words, _mm512_sllv_epi32(_mm512_set1_epi32(1), bit))
    }

    /// Like `finish`, in as few vectors as the remaining symbols need.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn finish_narrowed<const V: usize>(&self, begun: &mut Begun<V>, out: &mut [u32]) -> usize {
        match begun.count.div_ceil(LANES) {
            1 => self.finish(&mut begun.narrowed::<1>(), out),
            2 if V > 2 => self.finish(&mut begun.narrowed::<2>(), out),
            _ => self.finish(begun, out),
        }
    }

    /// Merges the begun piece into `out`: always the lowest rank, the leftmost of equal ranks. Returns the number of
    /// tokens.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
    #[inline]
    fn finish<const V: usize>(&self, begun: &mut Begun<V>, out: &mut [u32]) -> usize {
        let mut queue: [_; V] = std::array::from_fn(|v| load(&begun.queue[v]));
        let mut rows: [_; V] = std::array::from_fn(|v| load(&begun.ids[v]));
        let ids = begun.ids.as_flattened_mut();
        for at in places(begun.open) {
            let place = self.merges.place_of(ids[at], ids[(at + 1) % ids.len()], at);
            set(&mut queue, 1 << at, place);
        }
        let mut live = low_bits(begun.count);
        let mut merge = least(&queue);
        while merge != i32::MAX {
            let at = merge as usize % ids.len();
            let after = live >> at >> 1;
            let swallowed = (after & after.wrapping_neg()) << at << 1;
            live ^= swallowed;
            let id = self.first_id + (merge as u32 >> 6);
            ids[at] = id;
            set(&mut rows, 1 << at, id as i32);
            let (after, before) = (live >> at >> 1, live & low_bits(at));
            let right = (at + 1 + after.trailing_zeros() as usize) % ids.len();
            let left = (63 - (before | 1).leading_zeros() as usize) % ids.len();
            // The minimum of the other pairs is computed while the new pairs are looked up.
            set(&mut queue, swallowed | 1 << at | 1 << left, i32::MAX);
            let others = least(&queue);
            let with_right = if after == 0 { i32::MAX } else { self.merges.place_if_any(id, ids[right], at) };
            let with_left = if before == 0 { i32::MAX } else { self.merges.place_if_any(ids[left], id, left) };
            set(&mut queue, 1 << left, with_left);
            set(&mut queue, 1 << at, with_right);
            merge = others.min(with_left).min(with_right);
        }
        let mut count = 0;
        for (v, &row) in rows.iter().enumerate() {
            let live = lanes(live, v);
            let row = _mm512_maskz_compress_epi32(live, row);
            let left = &mut out[count..][..live.count_ones() as usize];
            // SAFETY: the store writes only the first `left.len()` lanes, and `left` has room for them.
            unsafe { _mm512_mask_storeu_epi32(left.as_mut_ptr().cast(), low_bits(left.len()) as u16, row) };
            count += left.len();
        }
        count
    }
}

/// The bits of the lanes of vector `v`.
#[inline(always)]
fn lanes(bits: u64, v: usize) -> u16 {
    (bits >> (LANES * v)) as u16
}

/// The value after each lane of vector `v`; [`NO_MERGE`] after the last vector.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn following<const V: usize>(rows: &[__m512i; V], v: usize) -> __m512i {
    let next = rows.get(v + 1).copied().unwrap_or(_mm512_set1_epi32(NO_MERGE as i32));
    _mm512_alignr_epi32::<1>(next, rows[v])
}

/// The lanes in `kept`, moved together and followed by [`NO_MERGE`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn compressed<const V: usize>(rows: &[__m512i; V], kept: u64) -> [__m512i; V] {
    let none = _mm512_set1_epi32(NO_MERGE as i32);
    if V == 1 {
        return rows.map(|row| _mm512_mask_compress_epi32(none, kept as u16, row));
    }
    let mut room = [NO_MERGE; SHORT_PIECE + LANES];
    let mut len = 0;
    for (v, &row) in rows.iter().enumerate() {
        let kept = lanes(kept, v);
        let target = &mut room[len..len + LANES];
        // SAFETY: `target` has LANES numbers, the size of the register.
        unsafe { _mm512_storeu_si512(target.as_mut_ptr().cast(), _mm512_mask_compress_epi32(none, kept, row)) };
        len += kept.count_ones() as usize;
    }
    // SAFETY: each slice has LANES numbers, the size of the register, and the load needs no alignment.
    std::array::from_fn(|v| unsafe { _mm512_loadu_si512(room[LANES * v..][..LANES].as_ptr().cast()) })
}

/// The bound of each boundary.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
pub fn bounds_of(borders: __m512i) -> __m512i {
    let mantissa = _mm512_srli_epi32::<{ ByteBoundary::RANK_BITS }>(borders);
    let mantissa = _mm512_and_si512(mantissa, _mm512_set1_epi32(ByteBoundary::LEAST_MANTISSA as i32 - 1));
    let exponent = _mm512_srli_epi32::<{ ByteBoundary::RANK_BITS + ByteBoundary::MANTISSA_BITS }>(borders);
    let least = _mm512_set1_epi32(ByteBoundary::LEAST_MANTISSA as i32);
    _mm512_sub_epi32(_mm512_sllv_epi32(_mm512_or_si512(mantissa, least), exponent), least)
}

/// The upper half of the hash of each pair.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
pub fn hashes(left: __m512i, right: __m512i) -> __m512i {
    let low = [_mm512_castsi512_si256(left), _mm512_castsi512_si256(right)];
    let high = [_mm512_extracti64x4_epi64::<1>(left), _mm512_extracti64x4_epi64::<1>(right)];
    let [low, high] = [low, high].map(|[left, right]| {
        let (left, right) = (_mm512_cvtepu32_epi64(left), _mm512_cvtepu32_epi64(right));
        let pair = _mm512_or_si512(_mm512_slli_epi64::<43>(left), _mm512_slli_epi64::<22>(right));
        let mixed = _mm512_xor_si512(pair, _mm512_srli_epi64::<32>(pair));
        let hash = _mm512_mullo_epi64(mixed, _mm512_set1_epi64(HASH_FACTOR as i64));
        _mm512_cvtepi64_epi32(_mm512_srli_epi64::<32>(hash))
    });
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// Sets the lanes in `bits` to `value`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn set<const V: usize>(rows: &mut [__m512i; V], bits: u64, value: i32) {
    for (v, row) in rows.iter_mut().enumerate() {
        *row = _mm512_mask_set1_epi32(*row, lanes(bits, v), value);
    }
}

/// The minimum of all lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt")]
#[inline]
fn least<const V: usize>(rows: &[__m512i; V]) -> i32 {
    let mut least = rows[0];
    rows[1..].iter().for_each(|&row| least = _mm512_min_epi32(least, row));
    _mm512_reduce_min_epi32(least)
}
