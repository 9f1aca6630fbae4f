//! Products of a strip of bf16 weights by the tiles of AMX.
//!
//! A tile of weights holds 32 columns of the strip's outputs, loaded from their rows in place. A tile of activations holds
//! the same columns of a block of up to 16 rows, pair after pair of columns. `tdpbf16ps` multiplies both into a tile of
//! sums, `[outputs, rows]`.
//!
//! An output sums even and odd tiles of columns apart, so that a multiplication never waits for the one before. The
//! instruction adds a tile's even and odd columns in f32, in order, then both to the sum; denormal numbers count as 0.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS; volume 1, chapter 18.
//! Rust has no stable intrinsics for tiles, so they are written in assembly.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;

use super::strip::{STRIP, StripTask};
use crate::kernels::simd::narrow;
use crate::prefetch;

/// Rows of activations that a tile holds.
const TILE_ROWS: usize = 16;
/// Columns that a tile holds.
const TILE_COLS: usize = 32;
/// Columns of a row that lie beside each other.
pub(crate) const PAIR: usize = 2;
/// Blocks of rows that are multiplied side by side.
const BLOCKS: usize = 2;

/// Returns the rows of each block but the last. Blocks come in twos, so that two workers write to no cache line together.
pub(crate) fn block_rows(num_rows: usize) -> usize {
    match num_rows {
        0..=2 => num_rows.max(1),
        _ => num_rows.div_ceil(BLOCKS * num_rows.div_ceil(BLOCKS * TILE_ROWS)),
    }
}

/// Rounds a row to the nearest bf16, ties to even, and writes it in pairs, `step` pairs apart.
///
/// # Safety
///
/// The machine has AVX-512-BF16, and `to` has room for all pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
pub(crate) unsafe fn round(from: &[f32], to: *mut u32, step: usize) {
    let places = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(step as i32),
    );
    let (vectors, rest) = from.as_chunks::<TILE_COLS>();
    for (idx, vector) in vectors.iter().enumerate() {
        // SAFETY: the caller promises room for all pairs; both vector types are 64 bytes of plain data.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(vector.as_ptr()), _mm512_loadu_ps(vector.as_ptr().add(16)));
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_i32scatter_epi32::<4>(to.add(idx * (TILE_COLS / PAIR) * step).cast(), places, rounded);
        }
    }
    for (idx, numbers) in rest.chunks(PAIR).enumerate() {
        let pair: [u16; PAIR] = std::array::from_fn(|place| numbers.get(place).map_or(0, |value| narrow(*value)));
        let place = vectors.len() * (TILE_COLS / PAIR) + idx;
        // SAFETY: the caller promises room for all pairs, the last one included.
        unsafe { to.add(place * step).write(u32::from(pair[0]) | u32::from(pair[1]) << 16) };
    }
}

/// Rounds the outputs of a strip for all rows of a block, `[num_rows, STRIP]`, and writes their pairs, `num_rows` apart.
///
/// # Safety
///
/// The machine has AVX-512-BF16, and `to` has room for the block's rows of the strip's first `count` outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2")]
pub(crate) unsafe fn round_strip(from: &[f32], count: usize, to: *mut u32) {
    let (rows, _) = from.as_chunks::<STRIP>();
    let num_rows = rows.len();
    if count < STRIP {
        for (row, outputs) in rows.iter().enumerate() {
            // SAFETY: the caller promises room for these outputs of all rows.
            unsafe { round(&outputs[..count], to.add(row), num_rows) };
        }
        return;
    }
    let pairs_of = |row: &[f32; STRIP]| {
        // SAFETY: the row has as many numbers as the vector; both vector types are 16 bytes of plain data.
        unsafe { std::mem::transmute::<__m128bh, __m128i>(_mm256_cvtneps_pbh(_mm256_loadu_ps(row.as_ptr()))) }
    };
    let (fours, rest) = rows.as_chunks::<4>();
    for (idx, four) in fours.iter().enumerate() {
        let [a, b, c, d] = [pairs_of(&four[0]), pairs_of(&four[1]), pairs_of(&four[2]), pairs_of(&four[3])];
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        let columns = [
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ];
        for (pair, rows) in columns.into_iter().enumerate() {
            // SAFETY: the caller promises room for the strip's pairs of all rows.
            unsafe { _mm_storeu_si128(to.add(pair * num_rows + 4 * idx).cast(), rows) };
        }
    }
    for (idx, row) in rest.iter().enumerate() {
        // SAFETY: the caller promises room for the strip's pairs of all rows.
        unsafe { round(row, to.add(4 * fours.len() + idx), num_rows) };
    }
}

thread_local! {
    /// The shapes that this thread's tiles have within a [`Span`]; 0 for none.
    static SHAPES: Cell<u32> = const { Cell::new(OUTSIDE) };
}

/// Outside of a span, each strip sets its shapes and releases its tiles.
const OUTSIDE: u32 = u32::MAX;

/// A time in which nobody else uses this thread's tiles, so that strips of the same shapes set them once: that takes as long
/// as a third of a short strip.
pub(crate) struct Span(());

impl Span {
    pub fn begin() -> Self {
        SHAPES.set(0);
        Self(())
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if SHAPES.replace(OUTSIDE) != 0 {
            // SAFETY: tiles have been used, so the machine has them.
            unsafe { release() };
        }
    }
}

/// Ends the use of tiles, so that the system need not save them.
#[inline(always)]
unsafe fn release() {
    // SAFETY: the caller promises AMX.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// What the processor is told of its eight tiles: bytes of a row, and rows.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Tiles 0 and 1 sum even tiles of columns for each block, 2 and 3 odd ones; 4 and 7 hold weights, 5 and 6 activations.
    fn of(num_outputs: usize, num_pairs: usize, block_rows: [usize; BLOCKS]) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let [first, second] = block_rows.map(|rows| 4 * rows);
        let of_pairs = 4 * num_pairs;
        let tiles = [
            (num_outputs, first),
            (num_outputs, second),
            (num_outputs, first),
            (num_outputs, second),
            (num_outputs, of_pairs),
            (num_pairs, first),
            (num_pairs, second),
            (num_outputs, of_pairs),
        ];
        for (tile, (rows, row_bytes)) in tiles.into_iter().enumerate() {
            (shapes.rows[tile], shapes.row_bytes[tile]) = (rows as u8, row_bytes as u16);
        }
        shapes
    }

    /// Sets the tiles' shapes, unless they are set, and the sums to 0.
    ///
    /// # Safety
    ///
    /// The machine has AMX, and the system lets this process use it.
    #[inline(always)]
    unsafe fn set(num_outputs: usize, num_pairs: usize, [first, second]: [usize; BLOCKS]) {
        let key = (num_outputs | num_pairs << 8 | first << 16 | second << 24) as u32;
        let before = SHAPES.get();
        // SAFETY: the caller promises AMX; the shapes are valid: at most 16 rows of at most 64 bytes each.
        unsafe {
            if before != key {
                let shapes = Self::of(num_outputs, num_pairs, [first, second]);
                asm!("ldtilecfg [{}]", in(reg) &shapes, options(readonly, nostack, preserves_flags));
                if before != OUTSIDE {
                    SHAPES.set(key);
                }
            }
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Multiplies two blocks, or one, with a tile of weights into the tiles of sums given.
macro_rules! multiply_tiles {
    ($weights:literal, $first:literal, $second:literal; $from:expr, $row_bytes:expr, $x:expr, $steps:expr, $has_two:expr) => {{
        asm!(
            concat!("tileloadd tmm", $weights, ", [{from} + {row_bytes}]"),
            "tileloadd tmm5, [{x} + {step}]",
            concat!("tdpbf16ps tmm", $first, ", tmm", $weights, ", tmm5"),
            from = in(reg) $from,
            row_bytes = in(reg) $row_bytes,
            x = in(reg) $x[0],
            step = in(reg) $steps[0],
            options(readonly, nostack, preserves_flags)
        );
        if $has_two {
            asm!(
                "tileloadd tmm6, [{x} + {step}]",
                concat!("tdpbf16ps tmm", $second, ", tmm", $weights, ", tmm6"),
                x = in(reg) $x[1],
                step = in(reg) $steps[1],
                options(readonly, nostack, preserves_flags)
            );
        }
    }};
}

/// Sums of a tile, `[outputs, rows]`.
type Sums = [[f32; TILE_ROWS]; STRIP];

macro_rules! store_tile {
    ($tile:literal, $sums:expr) => {
        asm!(
            concat!("tilestored [{sums} + {step}], tmm", $tile),
            sums = in(reg) $sums.as_mut_ptr(),
            step = in(reg) size_of::<[f32; TILE_ROWS]>(),
            options(nostack, preserves_flags)
        )
    };
}

/// Computes a whole strip.
///
/// # Safety
///
/// The machine has AMX with bf16 and AVX-512, the system lets this process use tiles, and the task's pointers are valid for
/// its sizes; rows of activations lie in blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(crate) unsafe fn multiply_strip(task: &StripTask) {
    let size = block_rows(task.num_rows);
    for row in (0..task.num_rows).step_by(BLOCKS * size) {
        let rest = task.num_rows - row;
        let rows = [size.min(rest), size.min(rest - size.min(rest))];
        // SAFETY: the caller promises a valid task; the blocks divide its rows.
        unsafe {
            multiply_blocks(task, row, rows, row == 0);
            if !task.cols.is_multiple_of(TILE_COLS) {
                add_last_columns(task, row, rows);
            }
        }
    }
    if SHAPES.get() == OUTSIDE {
        // SAFETY: the caller promises AMX.
        unsafe { release() };
    }
}

/// Multiplies two blocks of rows, the second of which may be empty, with all whole tiles of columns.
///
/// # Safety
///
/// As for [`multiply_strip`]; the blocks are the task's from `row` on.
#[inline(always)]
unsafe fn multiply_blocks(task: &StripTask, row: usize, rows: [usize; BLOCKS], has_prefetch: bool) {
    // SAFETY: the caller promises a valid task; tiles of whole columns lie within all rows, and a block's pairs beside each
    // other.
    unsafe {
        let has_two = rows[1] > 0;
        Shapes::set(task.count, TILE_COLS / PAIR, [rows[0], rows[1].max(1)]);
        let first = task.x.add(row * task.x_stride).cast::<u32>();
        let mut x = [first, first.add(rows[0] * task.x_stride)];
        let steps = rows.map(|rows| 4 * rows);
        let num_tiles = task.cols / TILE_COLS;
        for tile in 0..num_tiles {
            let col = 2 * TILE_COLS * tile;
            if has_prefetch {
                for output in 0..task.count {
                    prefetch::far(task.next.wrapping_add(output * task.row_bytes + col));
                }
            }
            let from = task.weights.add(col);
            if tile.is_multiple_of(2) {
                multiply_tiles!(4, 0, 1; from, task.row_bytes, x, steps, has_two);
            } else {
                multiply_tiles!(7, 2, 3; from, task.row_bytes, x, steps, has_two);
            }
            x = [x[0].add(TILE_COLS / PAIR * rows[0]), x[1].wrapping_add(TILE_COLS / PAIR * rows[1])];
        }
        let (mut even, mut odd): (Sums, Sums) = ([[0.0; TILE_ROWS]; STRIP], [[0.0; TILE_ROWS]; STRIP]);
        store_tile!(0, even);
        store_tile!(2, odd);
        put(&even, &odd, rows[0], task.out.add(row * STRIP));
        if has_two {
            store_tile!(1, even);
            store_tile!(3, odd);
            put(&even, &odd, rows[1], task.out.add((row + rows[0]) * STRIP));
        }
    }
}

/// Adds the columns after the last whole tile. Weights are copied, since what follows a row is another row or nothing.
///
/// # Safety
///
/// As for [`multiply_blocks`], which has run.
unsafe fn add_last_columns(task: &StripTask, row: usize, rows: [usize; BLOCKS]) {
    let first_col = task.cols - task.cols % TILE_COLS;
    let num_pairs = (task.cols - first_col).div_ceil(PAIR);
    let mut weights = [[0_u16; TILE_COLS]; STRIP];
    // SAFETY: the caller promises a valid task; all columns lie within the rows, and pairs are filled up with 0.
    unsafe {
        for (output, to) in weights.iter_mut().enumerate().take(task.count) {
            let from = task.weights.add(output * task.row_bytes).cast::<u16>().add(first_col);
            to.as_mut_ptr().copy_from_nonoverlapping(from, task.cols - first_col);
        }
        for (block, rows_before) in [(0, 0), (1, rows[0])] {
            let num_rows = rows[block];
            if num_rows == 0 {
                continue;
            }
            Shapes::set(task.count, num_pairs, [num_rows, 1]);
            let x = task.x.add((row + rows_before) * task.x_stride).cast::<u32>().add(first_col / PAIR * num_rows);
            let (x, steps) = ([x, x], [4 * num_rows, 0]);
            multiply_tiles!(4, 0, 1; weights.as_ptr(), size_of::<[u16; TILE_COLS]>(), x, steps, false);
            let mut sums: Sums = [[0.0; TILE_ROWS]; STRIP];
            store_tile!(0, sums);
            for place in 0..num_rows {
                for output in 0..task.count {
                    *task.out.add((row + rows_before + place) * STRIP + output) += sums[output][place];
                }
            }
        }
    }
}

/// Adds even and odd sums and writes them as `[num_rows, STRIP]`.
///
/// # Safety
///
/// The machine has AVX-512, and `out` has room for all rows.
#[inline(always)]
unsafe fn put(even: &Sums, odd: &Sums, num_rows: usize, out: *mut f32) {
    // SAFETY: the caller promises AVX-512 and room for the rows; both sums have a vector for each output.
    unsafe {
        let sums: [__m512; STRIP] = std::array::from_fn(|output| {
            _mm512_add_ps(_mm512_loadu_ps(even[output].as_ptr()), _mm512_loadu_ps(odd[output].as_ptr()))
        });
        if num_rows == 1 {
            // The first numbers of all outputs.
            let sums = sums.map(|sum| _mm_cvtss_f32(_mm512_castps512_ps128(sum)));
            return out.cast::<[f32; STRIP]>().write_unaligned(sums);
        }
        let [first, second] =
            [transposed([sums[0], sums[1], sums[2], sums[3]]), transposed([sums[4], sums[5], sums[6], sums[7]])];
        let low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for place in 0..4 {
            // Rows `place`, `place + 4`, `place + 8` and `place + 12`.
            let halves = [low, high].map(|order| _mm512_permutex2var_ps(first[place], order, second[place]));
            for (half, rows) in halves.into_iter().enumerate() {
                let row = place + 8 * half;
                if row < num_rows {
                    _mm256_storeu_ps(out.add(row * STRIP), _mm512_castps512_ps256(rows));
                }
                if row + 4 < num_rows {
                    _mm256_storeu_ps(out.add((row + 4) * STRIP), _mm512_extractf32x8_ps::<1>(rows));
                }
            }
        }
    }
}

/// Transposes the numbers of four outputs within each lane: vector `j` has those of row `4 lane + j`.
#[inline(always)]
unsafe fn transposed([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller's machine has AVX-512, and no pointer is used.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        let joined = |low, high, is_high: bool| {
            let (low, high) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
            _mm512_castpd_ps(if is_high { _mm512_unpackhi_pd(low, high) } else { _mm512_unpacklo_pd(low, high) })
        };
        [joined(ab, cd, false), joined(ab, cd, true), joined(ab_high, cd_high, false), joined(ab_high, cd_high, true)]
    }
}
