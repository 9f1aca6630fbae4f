//! Products of bf16 pairs, which AVX-512-BF16 has.
//!
//! A vector of weights holds eight columns of four outputs, one output in each 128-bit lane, and meets eight columns of a
//! row of activations, the same in all lanes. So an output has four partial sums, where a vector of a single row has
//! sixteen, and adding them up costs a quarter: small models have rows of some 18 vectors.
//!
//! The vectors are put together from rows of weights by the strip's first tile, which leaves them to the others in the
//! first cache. Activations lie in the order of use: eight columns of each of a tile's rows, then the next eight.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::linear::{STRIP, Task};
use super::simd::narrow;
use crate::prefetch;

/// Rows of activations of the largest tile: with the strip's two vectors their sums take 24 registers.
const MAX_TILE_ROWS: usize = 12;
/// Columns of a lane.
pub(super) const QUAD: usize = 8;
/// Columns that all tiles go through before the next: so many of a tile and of a strip stay in the first cache.
const CHUNK: usize = 640;
/// Vectors of a strip's chunk.
const MAX_KEPT: usize = 2 * CHUNK / QUAD;

/// Rows of each tile but the last, about the same in all.
pub(super) fn tile_rows(num_rows: usize) -> usize {
    num_rows.div_ceil(num_rows.div_ceil(MAX_TILE_ROWS).max(1)).max(1)
}

/// Rounds numbers to bf16, to the nearest, of two the even one, and puts eight at a time `step` numbers apart; what is
/// missing in the last eight is 0.
#[target_feature(enable = "avx512f,avx512bf16,avx2")]
pub(super) unsafe fn round(from: &[f32], to: *mut u16, step: usize) {
    let (vectors, rest) = from.as_chunks::<{ 2 * QUAD }>();
    for (idx, vector) in vectors.iter().enumerate() {
        // SAFETY: `to` has room for the numbers; both types are 32 bytes without meaning of their own.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(vector.as_ptr()));
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm_storeu_si128(to.add(2 * idx * step).cast(), _mm256_castsi256_si128(rounded));
            _mm_storeu_si128(to.add((2 * idx + 1) * step).cast(), _mm256_extracti128_si256::<1>(rounded));
        }
    }
    for (idx, numbers) in rest.chunks(QUAD).enumerate() {
        let quad: [u16; QUAD] = std::array::from_fn(|place| numbers.get(place).map_or(0, |value| narrow(*value)));
        // SAFETY: as above.
        unsafe { to.add((2 * vectors.len() + idx) * step).cast::<[u16; QUAD]>().write_unaligned(quad) };
    }
}

/// Multiplies all of a task.
///
/// # Safety
///
/// The machine has AVX-512-BF16; the rest as for [`super::linear::strip`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn strip(task: &Task) {
    let mut kept = [MaybeUninit::<__m512i>::uninit(); MAX_KEPT];
    let size = tile_rows(task.num_rows);
    let num_tiles = task.num_rows.div_ceil(size);
    for start in (0..task.cols).step_by(CHUNK) {
        for idx in 0..num_tiles {
            let rows = (idx * size, size.min(task.num_rows - idx * size));
            let share = (task.count * idx / num_tiles, task.count * (idx + 1) / num_tiles);
            let kept = kept.as_mut_ptr().cast();
            // SAFETY: passed on; the first tile keeps what the others find.
            unsafe {
                match (idx, num_tiles) {
                    (0, 1) => tile_of::<Assembled>(task, rows, start, kept, share),
                    (0, _) => tile_of::<Keeping>(task, rows, start, kept, share),
                    _ => tile_of::<Kept>(task, rows, start, kept, share),
                }
            }
        }
    }
}

/// Where the two vectors of a quad of columns come from.
trait Source {
    unsafe fn quad(weights: &[*const u8; STRIP], col: usize, mask: __mmask8, kept: *mut __m512i) -> [__m512i; 2];
}

/// From the rows of weights.
struct Assembled;
/// From the rows of weights, and kept.
struct Keeping;
/// As an earlier tile kept them.
struct Kept;

/// Eight columns of four rows.
#[inline(always)]
unsafe fn four(rows: [*const u8; 4], col: usize, mask: __mmask8) -> __m512i {
    // SAFETY: numbers under the mask are within the rows.
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

#[inline(always)]
unsafe fn eight(row: *const u8, col: usize, mask: __mmask8) -> __m128i {
    // SAFETY: numbers under the mask are within the row.
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
        // SAFETY: numbers under the mask are within the rows.
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
        // SAFETY: passed on; `kept` has room for both.
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
        // SAFETY: written by an earlier tile.
        unsafe { [_mm512_loadu_si512(kept), _mm512_loadu_si512(kept.add(1))] }
    }
}

#[inline(always)]
unsafe fn tile_of<W: Source>(
    task: &Task,
    (row, num_rows): (usize, usize),
    start: usize,
    kept: *mut __m512i,
    share: (usize, usize),
) {
    macro_rules! of {
        ($($count:literal)*) => {
            match num_rows {
                // SAFETY: passed on.
                $($count => unsafe { tile::<W, $count>(task, row, start, kept, share) },)*
                _ => unreachable!("a tile of {num_rows} rows"),
            }
        };
    }
    of! { 1 2 3 4 5 6 7 8 9 10 11 12 }
}

/// Multiplies a chunk of `M` rows of activations with the strip, all sums in registers. The first chunk's sums go to
/// `out`, the others' are added there.
#[inline(always)]
unsafe fn tile<W: Source, const M: usize>(
    task: &Task,
    row: usize,
    start: usize,
    mut kept: *mut __m512i,
    share: (usize, usize),
) {
    let end = task.cols.min(start + CHUNK);
    // SAFETY: `row + M` rows of activations, `count` of weights, `cols` numbers each, whole quads of activations; `out`
    // holds a strip for each row.
    unsafe {
        // Outputs past the last are another's, and nobody reads them.
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
            // The same columns of the next strip, each tile its share of the rows: so they come while the multipliers are
            // busy, never so many at once that these wait, and all of them a strip ahead of their use.
            for n in share.0..share.1 {
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

/// The eight outputs of two rows.
#[inline(always)]
unsafe fn totals([a, b]: [__m512; 2], [c, d]: [__m512; 2]) -> __m512 {
    // SAFETY: the machine has AVX-512.
    unsafe {
        // Each lane: first a + third a, first b + third b, second a + fourth a, second b + fourth b.
        let ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        // Each lane: its output of a, b, c and d.
        let lanes = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_ps(order, lanes)
    }
}

#[inline(always)]
fn pairs(vector: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes without meaning of their own.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(vector) }
}
