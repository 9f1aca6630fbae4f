//! Products of a strip of bf16 weights by the bf16 pair instructions of AVX-512-BF16.
//!
//! A vector of weights holds eight columns of four outputs, one output in each 128-bit lane. A multiplication combines the
//! vector with eight columns of a row of activations, repeated in all lanes. An output thus has 4 partial sums instead of
//! the 16 of a vector that holds a single row, and summing them costs a quarter; rows of small models have only about 18
//! vectors.
//!
//! The strip's first tile assembles these vectors from rows of weights and keeps them in the first-level cache for the
//! other tiles. Activations lie in order of use: eight columns of each row of a tile, then the next eight.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::strip::{CHUNK, STRIP, StripTask};
use crate::kernels::simd::narrow;
use crate::prefetch;

/// Rows of activations in the largest tile: with two vectors of weights, the sums take 24 registers.
const MAX_TILE_ROWS: usize = 12;
/// Columns in a 128-bit lane.
pub(crate) const QUAD: usize = 8;
/// Vectors in a chunk of a strip.
const MAX_KEPT: usize = 2 * CHUNK / QUAD;

/// Returns the rows of each tile but the last; all tiles have about the same number.
pub(crate) fn tile_rows(num_rows: usize) -> usize {
    num_rows.div_ceil(num_rows.div_ceil(MAX_TILE_ROWS).max(1)).max(1)
}

/// Rounds numbers to the nearest bf16, ties to even, and writes them in quads of eight, `step` numbers apart. The last quad
/// is filled up with 0.
///
/// # Safety
///
/// The machine has AVX-512-BF16, and `to` has room for all quads.
#[target_feature(enable = "avx512f,avx512bf16,avx2")]
pub(crate) unsafe fn round(from: &[f32], to: *mut u16, step: usize) {
    let (vectors, rest) = from.as_chunks::<{ 2 * QUAD }>();
    for (idx, vector) in vectors.iter().enumerate() {
        // SAFETY: the caller promises room for all quads; both vector types are 32 bytes of plain data.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(vector.as_ptr()));
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm_storeu_si128(to.add(2 * idx * step).cast(), _mm256_castsi256_si128(rounded));
            _mm_storeu_si128(to.add((2 * idx + 1) * step).cast(), _mm256_extracti128_si256::<1>(rounded));
        }
    }
    for (idx, numbers) in rest.chunks(QUAD).enumerate() {
        let quad: [u16; QUAD] = std::array::from_fn(|place| numbers.get(place).map_or(0, |value| narrow(*value)));
        // SAFETY: the caller promises room for all quads, the last one included.
        unsafe { to.add((2 * vectors.len() + idx) * step).cast::<[u16; QUAD]>().write_unaligned(quad) };
    }
}

/// Computes a whole strip.
///
/// # Safety
///
/// The machine has AVX-512-BF16, and the task's pointers are valid for its sizes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(crate) unsafe fn multiply_strip(task: &StripTask) {
    let mut kept = [MaybeUninit::<__m512i>::uninit(); MAX_KEPT];
    let size = tile_rows(task.num_rows);
    let num_tiles = task.num_rows.div_ceil(size);
    for start in (0..task.cols).step_by(CHUNK) {
        for idx in 0..num_tiles {
            let tile = Tile {
                row: idx * size,
                num_rows: size.min(task.num_rows - idx * size),
                prefetch_from: task.count * idx / num_tiles,
                prefetch_to: task.count * (idx + 1) / num_tiles,
            };
            let kept = kept.as_mut_ptr().cast();
            // SAFETY: the caller promises a valid task; the tiles divide its rows, and the first tile fills `kept` before
            // any other reads it.
            unsafe {
                match (idx, num_tiles) {
                    (0, 1) => run_tile::<Assembled>(task, &tile, start, kept),
                    (0, _) => run_tile::<Keeping>(task, &tile, start, kept),
                    _ => run_tile::<Kept>(task, &tile, start, kept),
                }
            }
        }
    }
}

/// A tile's rows of activations, and its share of the next strip's rows to prefetch.
struct Tile {
    row: usize,
    num_rows: usize,
    prefetch_from: usize,
    prefetch_to: usize,
}

/// A source of the two vectors that hold a quad of columns of all eight outputs.
trait Source {
    /// # Safety
    ///
    /// The machine has AVX-512; columns under the mask lie within the rows, and `kept` has room for two vectors.
    unsafe fn quad(weights: &[*const u8; STRIP], col: usize, mask: __mmask8, kept: *mut __m512i) -> [__m512i; 2];
}

/// Assembles vectors from rows of weights.
struct Assembled;
/// Assembles vectors from rows of weights and keeps them.
struct Keeping;
/// Loads vectors that an earlier tile kept.
struct Kept;

/// Loads eight columns of four rows.
#[inline(always)]
unsafe fn four(rows: [*const u8; 4], col: usize, mask: __mmask8) -> __m512i {
    // SAFETY: the caller promises that columns under the mask lie within the rows.
    unsafe {
        let [a, b, c, d] = [
            eight(rows[0], col, mask),
            eight(rows[1], col, mask),
            eight(rows[2], col, mask),
            eight(rows[3], col, mask),
        ];
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
        let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// Loads eight columns of a row; columns not under the mask are 0.
#[inline(always)]
unsafe fn eight(row: *const u8, col: usize, mask: __mmask8) -> __m128i {
    // SAFETY: the caller promises that columns under the mask lie within the row.
    unsafe {
        match mask {
            0xFF => _mm_loadu_si128(row.cast::<u16>().add(col).cast()),
            mask => _mm_maskz_loadu_epi16(mask, row.cast::<i16>().add(col)),
        }
    }
}

impl Source for Assembled {
    #[inline(always)]
    unsafe fn quad(weights: &[*const u8; STRIP], col: usize, mask: __mmask8, _: *mut __m512i) -> [__m512i; 2] {
        // SAFETY: the caller promises that columns under the mask lie within the rows.
        unsafe {
            [
                four([weights[0], weights[1], weights[2], weights[3]], col, mask),
                four([weights[4], weights[5], weights[6], weights[7]], col, mask),
            ]
        }
    }
}

impl Source for Keeping {
    #[inline(always)]
    unsafe fn quad(weights: &[*const u8; STRIP], col: usize, mask: __mmask8, kept: *mut __m512i) -> [__m512i; 2] {
        // SAFETY: the caller promises columns within the rows, and room for two vectors in `kept`.
        unsafe {
            let quad = Assembled::quad(weights, col, mask, kept);
            _mm512_storeu_si512(kept, quad[0]);
            _mm512_storeu_si512(kept.add(1), quad[1]);
            quad
        }
    }
}

impl Source for Kept {
    #[inline(always)]
    unsafe fn quad(_: &[*const u8; STRIP], _: usize, _: __mmask8, kept: *mut __m512i) -> [__m512i; 2] {
        // SAFETY: an earlier tile wrote both vectors (`Keeping`).
        unsafe { [_mm512_loadu_si512(kept), _mm512_loadu_si512(kept.add(1))] }
    }
}

/// Runs a tile by the version compiled for its number of rows.
#[inline(always)]
unsafe fn run_tile<W: Source>(task: &StripTask, tile: &Tile, start: usize, kept: *mut __m512i) {
    macro_rules! of {
        ($($count:literal)*) => {
            match tile.num_rows {
                // SAFETY: the caller promises a valid task and a tile within its rows.
                $($count => unsafe { multiply_tile::<W, $count>(task, tile, start, kept) },)*
                num_rows => unreachable!("a tile of {num_rows} rows"),
            }
        };
    }
    of! { 1 2 3 4 5 6 7 8 9 10 11 12 }
}

/// Multiplies a chunk of columns of `M` rows of activations with the strip, with all sums in registers. The first chunk
/// writes its sums to `out`, later chunks add theirs.
#[inline(always)]
unsafe fn multiply_tile<W: Source, const M: usize>(
    task: &StripTask,
    tile: &Tile,
    start: usize,
    mut kept: *mut __m512i,
) {
    let row = tile.row;
    let end = task.cols.min(start + CHUNK);
    // SAFETY: the task has `row + M` rows of activations in whole quads and `count` rows of weights, with `cols` numbers
    // each; `out` holds a strip for each row.
    unsafe {
        // Outputs past the last repeat the last row, and nobody reads them.
        let weights: [_; STRIP] = std::array::from_fn(|n| task.weights.add(n.min(task.count - 1) * task.row_bytes));
        let mut x = task.x.add(row * task.x_stride).cast::<u16>().add(start * M);
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        macro_rules! quad {
            ($col:expr, $mask:expr) => {{
                let vectors = W::quad(&weights, $col, $mask, kept);
                let vectors = [pairs(vectors[0]), pairs(vectors[1])];
                for m in 0..M {
                    let value = pairs(_mm512_broadcast_i32x4(_mm_loadu_si128(x.add(m * QUAD).cast())));
                    sums[m][0] = _mm512_dpbf16_ps(sums[m][0], vectors[0], value);
                    sums[m][1] = _mm512_dpbf16_ps(sums[m][1], vectors[1], value);
                }
                x = x.add(M * QUAD);
                kept = kept.wrapping_add(2);
            }};
        }
        let mut col = start;
        while col + 4 * QUAD <= end {
            // Each tile prefetches the same columns of its share of the next strip's rows: they arrive while the multipliers
            // are busy, never so many at once that the multipliers wait, and a whole strip ahead of their use.
            for n in tile.prefetch_from..tile.prefetch_to {
                prefetch::far(task.next.wrapping_add(n * task.row_bytes + 2 * col));
            }
            quad!(col, 0xFF);
            quad!(col + QUAD, 0xFF);
            quad!(col + 2 * QUAD, 0xFF);
            quad!(col + 3 * QUAD, 0xFF);
            col += 4 * QUAD;
        }
        while col < end {
            let mask = if end - col < QUAD { (1 << (end - col)) - 1 } else { 0xFF };
            quad!(col, mask);
            col += QUAD;
        }
        for m in (0..M).step_by(2) {
            let second = if m + 1 < M { sums[m + 1] } else { [_mm512_setzero_ps(); 2] };
            let mask = if m + 1 < M { 0xFFFF } else { 0x00FF };
            let out = task.out.add((row + m) * STRIP);
            let before = if start == 0 { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, out) };
            _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(totals(sums[m], second), before));
        }
    }
}

/// Returns the eight outputs of two rows.
#[inline(always)]
unsafe fn totals([a, b]: [__m512; 2], [c, d]: [__m512; 2]) -> __m512 {
    // SAFETY: the caller's machine has AVX-512, and no pointer is used.
    unsafe {
        // Each lane: first a + third a, first b + third b, second a + fourth a, second b + fourth b.
        let ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        // Each lane: one output of a, b, c and d.
        let lanes = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_ps(order, lanes)
    }
}

/// Reinterprets a vector as pairs of bf16.
#[inline(always)]
fn pairs(vector: __m512i) -> __m512bh {
    // SAFETY: both vector types are 64 bytes of plain data.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(vector) }
}
