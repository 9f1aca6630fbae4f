//! `x · Wᵀ` for a few rows of x: at the memory's speed for one, at the multipliers' for dozens.
//!
//! Weights stay where PyTorch has them, row after row. Each output is one dot product, summed along its row in an order
//! that depends on nothing else: a row of activations gives the same bits whatever rows run beside it.

use super::memory::{Dtype, Matrix, SharedMut};
use super::simd::{Isa, Simd, dispatch, narrow, widen};

/// Outputs that are computed together; rows of weights a member reads side by side.
pub(super) const STRIP: usize = 8;
/// Rows of weights in a tile of several rows of activations.
const TILE: usize = 4;
/// From so many rows on, bf16 weights are widened once for all of them.
const WIDEN_FROM: usize = 6;
/// How far ahead of a single row's products weights are asked for, in bytes: about the next strip of a small model.
/// The machine's own prefetcher loses eight short rows at a time; this gave a third to a half more bytes a second.
const AHEAD: usize = 10_240;

/// Rows of activations, laid out for weights of one format: see [`prepare`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    pub data: SharedMut,
    /// f32 from a row to the next.
    pub stride: usize,
    pub num_rows: usize,
}

/// Lays out one row for weights of `dtype`: `to` gets `from.len()` numbers.
///
/// For bf16 weights the even numbers of a block go before its odd ones, since that is how pairs of bf16 are widened
/// cheapest; where the machine multiplies bf16 itself, the row is rounded to bf16.
pub(super) fn prepare(isa: Isa, dtype: Dtype, from: &[f32], to: &mut [f32]) {
    assert!(from.len() <= to.len(), "a row of {} doesn't fit {}", from.len(), to.len());
    match (dtype, isa) {
        (Dtype::F32, _) => to[..from.len()].copy_from_slice(from),
        (Dtype::Bf16, Isa::Avx512Bf16) => {
            let to = to.as_mut_ptr().cast::<u16>();
            for (place, &value) in from.iter().enumerate() {
                // SAFETY: `to` has room for twice as many bf16.
                unsafe { to.add(place).write(narrow(value)) };
            }
        }
        (Dtype::Bf16, _) => {
            let lanes = lanes_of(isa);
            let (blocks, rest) = (from.chunks_exact(2 * lanes), from.len() % (2 * lanes));
            for (block, to) in blocks.zip(to.chunks_exact_mut(2 * lanes)) {
                let (evens, odds) = to.split_at_mut(lanes);
                for (pair, (even, odd)) in block.chunks_exact(2).zip(evens.iter_mut().zip(odds)) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
            }
            let tail = from.len() - rest;
            to[tail..from.len()].copy_from_slice(&from[tail..]);
        }
    }
}

/// Columns that [`prepare`] can lay out apart from their neighbours.
pub(super) fn block_of(isa: Isa) -> usize {
    2 * lanes_of(isa)
}

fn lanes_of(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
    }
}

/// f32 of scratch that [`strip`] needs for rows of `cols` weights.
pub(super) fn scratch_len(cols: usize) -> usize {
    TILE * cols
}

/// Multiplies all rows of `x` with weight rows `first..first + count`, at most [`STRIP`].
///
/// `out` gets `[x.num_rows, STRIP]`; `scratch` holds [`scratch_len`] numbers that nobody else uses.
///
/// # Safety
///
/// `x` is prepared for these weights and isn't written meanwhile.
pub(super) unsafe fn strip(
    isa: Isa,
    weights: &Matrix,
    (first, count): (usize, usize),
    x: &Prepared,
    out: &mut [f32],
    scratch: &mut [f32],
) {
    assert!(count <= STRIP && first + count <= weights.rows && out.len() >= x.num_rows * STRIP);
    assert!(x.stride >= weights.cols && scratch.len() >= scratch_len(weights.cols));
    let task = Task {
        weights: weights.row(first),
        row_bytes: weights.cols * weights.dtype.size(),
        count,
        x: x.data.slice_start(x.num_rows * x.stride),
        x_stride: x.stride,
        num_rows: x.num_rows,
        cols: weights.cols,
        out: out.as_mut_ptr(),
        scratch: scratch.as_mut_ptr(),
        is_far: true,
    };
    // SAFETY: sizes are checked above; the rest is the caller's promise.
    unsafe {
        match (weights.dtype, isa) {
            (Dtype::F32, _) => strip_f32(isa, &task),
            #[cfg(target_arch = "x86_64")]
            (Dtype::Bf16, Isa::Avx512Bf16) => pairs::strip(&task),
            (Dtype::Bf16, _) => strip_bf16(isa, &task),
        }
    }
}

/// A strip's pointers and sizes.
#[derive(Clone, Copy)]
struct Task {
    weights: *const u8,
    row_bytes: usize,
    count: usize,
    x: *const f32,
    x_stride: usize,
    num_rows: usize,
    cols: usize,
    out: *mut f32,
    scratch: *mut f32,
    /// Whether the weights come from memory.
    is_far: bool,
}

dispatch! { unsafe fn strip_f32 = run_f32(task: &Task) }
dispatch! { unsafe fn strip_bf16 = run_bf16(task: &Task) }

#[inline(always)]
unsafe fn run_f32<S: Simd>(task: &Task) {
    // SAFETY: passed on.
    unsafe { run::<S, F32>(task) }
}

#[inline(always)]
unsafe fn run_bf16<S: Simd>(task: &Task) {
    if task.num_rows < WIDEN_FROM {
        // SAFETY: passed on.
        return unsafe { run::<S, Bf16>(task) };
    }
    for first in (0..task.count).step_by(TILE) {
        let count = TILE.min(task.count - first);
        // SAFETY: the scratch holds TILE rows; `out` is shifted within a strip's row.
        unsafe {
            for row in 0..count {
                let from = task.weights.add((first + row) * task.row_bytes);
                widen_row::<S>(from.cast(), task.scratch.add(row * task.cols), task.cols);
            }
            let (row_bytes, weights) = (4 * task.cols, task.scratch.cast_const().cast());
            run::<S, F32>(&Task { weights, row_bytes, count, out: task.out.add(first), is_far: false, ..*task });
        }
    }
}

/// bf16 weights as f32, in the order of prepared activations.
#[inline(always)]
unsafe fn widen_row<S: Simd>(from: *const u16, to: *mut f32, cols: usize) {
    let block = 2 * S::LANES;
    let tail = cols - cols % block;
    // SAFETY: `cols` numbers each.
    unsafe {
        for start in (0..tail).step_by(block) {
            if start.is_multiple_of(32) {
                S::prefetch(from.wrapping_add(start + AHEAD / 2).cast());
            }
            S::store(to.add(start), S::even_bf16(from.add(start)));
            S::store(to.add(start + S::LANES), S::odd_bf16(from.add(start)));
        }
        for col in tail..cols {
            *to.add(col) = widen(*from.add(col));
        }
    }
}

/// How a format's weights become f32.
trait Format<S: Simd> {
    const SIZE: usize;
    /// Rows of activations in a tile: widening needs registers too.
    const TILE_ROWS: usize;
    /// The first or second vector of block `start..start + 2 * LANES`, in the order of prepared activations.
    unsafe fn half<const SECOND: bool>(row: *const u8, start: usize) -> S::V;
    unsafe fn one(row: *const u8, col: usize) -> f32;
}

struct F32;
struct Bf16;

impl<S: Simd> Format<S> for F32 {
    const SIZE: usize = 4;
    const TILE_ROWS: usize = S::TILE_ROWS;
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(row: *const u8, start: usize) -> S::V {
        // SAFETY: the block is within the row.
        unsafe { S::load(row.cast::<f32>().add(start + if SECOND { S::LANES } else { 0 })) }
    }
    #[inline(always)]
    unsafe fn one(row: *const u8, col: usize) -> f32 {
        // SAFETY: `col` is within the row.
        unsafe { *row.cast::<f32>().add(col) }
    }
}

impl<S: Simd> Format<S> for Bf16 {
    const SIZE: usize = 2;
    const TILE_ROWS: usize = if S::TILE_ROWS > 1 { S::TILE_ROWS - 1 } else { 1 };
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(row: *const u8, start: usize) -> S::V {
        // SAFETY: the block is within the row.
        unsafe {
            let block = row.cast::<u16>().add(start);
            if SECOND { S::odd_bf16(block) } else { S::even_bf16(block) }
        }
    }
    #[inline(always)]
    unsafe fn one(row: *const u8, col: usize) -> f32 {
        // SAFETY: `col` is within the row.
        unsafe { widen(*row.cast::<u16>().add(col)) }
    }
}

#[inline(always)]
unsafe fn run<S: Simd, F: Format<S>>(task: &Task) {
    // SAFETY: passed on; every tile lies within the task.
    unsafe {
        if task.num_rows == 1 && task.count == STRIP {
            return tile::<S, F, 1, STRIP>(task, 0, 0);
        }
        let mut first = 0;
        while first + TILE <= task.count {
            columns::<S, F, TILE>(task, first);
            first += TILE;
        }
        for first in first..task.count {
            columns::<S, F, 1>(task, first);
        }
    }
}

/// All rows of activations with `N` rows of weights, which stay in the first cache meanwhile.
#[inline(always)]
unsafe fn columns<S: Simd, F: Format<S>, const N: usize>(task: &Task, first: usize) {
    let mut row = 0;
    while row < task.num_rows {
        let count = F::TILE_ROWS.min(task.num_rows - row);
        // SAFETY: passed on.
        unsafe {
            match count {
                1 => tile::<S, F, 1, N>(task, row, first),
                2 => tile::<S, F, 2, N>(task, row, first),
                3 => tile::<S, F, 3, N>(task, row, first),
                4 => tile::<S, F, 4, N>(task, row, first),
                5 => tile::<S, F, 5, N>(task, row, first),
                _ => tile::<S, F, 6, N>(task, row, first),
            }
        }
        row += count;
    }
}

/// `M` rows of activations with `N` rows of weights: one vector of partial sums each, all in registers.
#[inline(always)]
unsafe fn tile<S: Simd, F: Format<S>, const M: usize, const N: usize>(task: &Task, row: usize, first: usize) {
    let block = 2 * S::LANES;
    let tail = task.cols - task.cols % block;
    // SAFETY: `row + M` rows of activations, `first + N` of weights, `cols` numbers each.
    unsafe {
        let x: [*const f32; M] = std::array::from_fn(|m| task.x.add((row + m) * task.x_stride));
        let w: [*const u8; N] = std::array::from_fn(|n| task.weights.add((first + n) * task.row_bytes));
        // The first rows bring the weights from memory, the others find them in the first cache.
        let is_first = row == 0 && task.is_far;
        let mut sums = [[S::splat(0.0); M]; N];
        for start in (0..tail).step_by(block) {
            let even: [S::V; M] = std::array::from_fn(|m| S::load(x[m].add(start)));
            for n in 0..N {
                if is_first && (start * F::SIZE).is_multiple_of(64) {
                    S::prefetch(w[n].wrapping_add(start * F::SIZE + AHEAD));
                }
                let weights = F::half::<false>(w[n], start);
                for m in 0..M {
                    sums[n][m] = S::fma(weights, even[m], sums[n][m]);
                }
            }
            let odd: [S::V; M] = std::array::from_fn(|m| S::load(x[m].add(start + S::LANES)));
            for n in 0..N {
                let weights = F::half::<true>(w[n], start);
                for m in 0..M {
                    sums[n][m] = S::fma(weights, odd[m], sums[n][m]);
                }
            }
        }
        for n in 0..N {
            for m in 0..M {
                let mut sum = S::sum(sums[n][m]);
                for col in tail..task.cols {
                    sum += F::one(w[n], col) * *x[m].add(col);
                }
                *task.out.add((row + m) * STRIP + first + n) = sum;
            }
        }
    }
}

/// Products of bf16 pairs, which only AVX-512-BF16 has.
#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::*;

    use super::{STRIP, TILE, Task, widen};

    const BLOCK: usize = 32;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
    pub(super) unsafe fn strip(task: &Task) {
        // SAFETY: passed on; every tile lies within the task.
        unsafe {
            if task.num_rows == 1 && task.count == STRIP {
                return tile::<1, STRIP>(task, 0, 0);
            }
            let mut first = 0;
            while first + TILE <= task.count {
                columns::<TILE>(task, first);
                first += TILE;
            }
            for first in first..task.count {
                columns::<1>(task, first);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
    unsafe fn columns<const N: usize>(task: &Task, first: usize) {
        let mut row = 0;
        while row < task.num_rows {
            let count = 6.min(task.num_rows - row);
            // SAFETY: passed on.
            unsafe {
                match count {
                    1 => tile::<1, N>(task, row, first),
                    2 => tile::<2, N>(task, row, first),
                    3 => tile::<3, N>(task, row, first),
                    4 => tile::<4, N>(task, row, first),
                    5 => tile::<5, N>(task, row, first),
                    _ => tile::<6, N>(task, row, first),
                }
            }
            row += count;
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
    unsafe fn tile<const M: usize, const N: usize>(task: &Task, row: usize, first: usize) {
        let tail = task.cols - task.cols % BLOCK;
        // SAFETY: `row + M` rows of activations, `first + N` of weights, `cols` numbers each.
        unsafe {
            let x: [*const u16; M] = std::array::from_fn(|m| task.x.add((row + m) * task.x_stride).cast());
            let w: [*const u16; N] = std::array::from_fn(|n| task.weights.add((first + n) * task.row_bytes).cast());
            let mut sums = [[_mm512_setzero_ps(); M]; N];
            for start in (0..tail).step_by(BLOCK) {
                let rows: [__m512bh; M] = std::array::from_fn(|m| load(x[m].add(start)));
                for n in 0..N {
                    let weights = load(w[n].add(start));
                    for m in 0..M {
                        sums[n][m] = _mm512_dpbf16_ps(sums[n][m], weights, rows[m]);
                    }
                }
            }
            for n in 0..N {
                for m in 0..M {
                    let mut sum = _mm512_reduce_add_ps(sums[n][m]);
                    for col in tail..task.cols {
                        sum += widen(*w[n].add(col)) * widen(*x[m].add(col));
                    }
                    *task.out.add((row + m) * STRIP + first + n) = sum;
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn load(from: *const u16) -> __m512bh {
        // SAFETY: 32 numbers; both types are 64 bytes without meaning of their own.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }
}
