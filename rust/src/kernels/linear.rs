//! `x · Wᵀ` for a few rows of x: at the memory's speed for one, at the multipliers' for dozens.
//!
//! Weights stay where PyTorch has them, row after row. Each output is one dot product, summed along its row in an order
//! that depends on nothing else: a row of activations gives the same bits whatever rows run beside it.

use std::mem::MaybeUninit;

use super::decoder::Linear;
use super::memory::{Dtype, Matrix};
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::prepared::Prepared;
use super::simd::{Isa, Simd, dispatch, widen};
use crate::prefetch;

/// Outputs that are computed together; rows of weights a member reads side by side.
pub(super) const STRIP: usize = 8;
/// Columns that a strip's tiles go through before the next: so many of six rows and of a strip's weights stay in the
/// first cache. A multiple of every set's block.
const CHUNK: usize = 640;
/// Sums of the largest tile.
const MAX_TILE: usize = 24;
/// How far ahead of their first use weights are asked for, in bytes: about the next strip of a small model. The machine's
/// own prefetcher loses eight short rows at a time; this gave a third to a half more bytes a second.
const AHEAD: usize = 10_240;

impl Linear {
    /// [`strip`] with these weights, and the bias added.
    ///
    /// # Safety
    ///
    /// As for [`strip`].
    pub(super) unsafe fn strip(
        &self,
        isa: Isa,
        (first, count, next): (usize, usize, usize),
        x: &Prepared,
        out: &mut [f32],
    ) {
        // SAFETY: passed on.
        unsafe { strip(isa, &self.weight, (first, count, next), x, out) };
        if let Some(bias) = &self.bias {
            for values in out.as_chunks_mut::<STRIP>().0 {
                values.iter_mut().zip(&bias[first..first + count]).for_each(|(value, bias)| *value += bias);
            }
        }
    }
}

/// Multiplies all rows of `x` with weight rows `first..first + count`, at most [`STRIP`]; those from `next` on, which are
/// wanted after them, are asked for meanwhile.
///
/// `out` gets `[x.num_rows, STRIP]`.
///
/// # Safety
///
/// `x` is prepared for these weights and isn't written meanwhile.
pub(super) unsafe fn strip(
    isa: Isa,
    weights: &Matrix,
    (first, count, next): (usize, usize, usize),
    x: &Prepared,
    out: &mut [f32],
) {
    assert!(count <= STRIP && first + count <= weights.rows && out.len() >= x.num_rows * STRIP);
    assert!(x.stride >= weights.cols && x.cols == weights.cols, "rows of {} for weights of {}", x.cols, weights.cols);
    let task = Task {
        weights: weights.row(first),
        row_bytes: weights.cols * weights.dtype.size(),
        next: weights.row(0).wrapping_add(next * weights.cols * weights.dtype.size()),
        count,
        x: x.data.address(x.num_rows * x.stride),
        x_stride: x.stride,
        num_rows: x.num_rows,
        cols: weights.cols,
        out: out.as_mut_ptr(),
    };
    // SAFETY: sizes are checked above; the rest is the caller's promise.
    unsafe {
        match (weights.dtype, isa) {
            #[cfg(target_arch = "x86_64")]
            (Dtype::Bf16, Isa::Avx512Bf16) => pairs::strip(&task),
            (Dtype::Bf16, _) => strip_bf16(isa, &task),
            (Dtype::F32, _) => strip_f32(isa, &task),
        }
    }
}

/// A strip's pointers and sizes.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub weights: *const u8,
    pub row_bytes: usize,
    pub next: *const u8,
    pub count: usize,
    pub x: *const f32,
    pub x_stride: usize,
    pub num_rows: usize,
    pub cols: usize,
    pub out: *mut f32,
}

impl Task {
    /// A row of activations.
    #[inline(always)]
    unsafe fn x_row(&self, row: usize) -> *const f32 {
        // SAFETY: `row` is one of the task's.
        unsafe { self.x.add(row * self.x_stride) }
    }
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
    // SAFETY: passed on.
    unsafe { run::<S, Bf16>(task) }
}

/// A format whose numbers are widened to f32, half a block at a time.
trait Format<S: Simd> {
    const SIZE: usize;
    /// The first or second vector of block `start..start + 2 * LANES`, in the order of prepared activations.
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V;
    unsafe fn one(w: *const u8, col: usize) -> f32;
}

struct F32;
struct Bf16;

impl<S: Simd> Format<S> for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V {
        // SAFETY: the block is within the row.
        unsafe { S::load(w.cast::<f32>().add(start + if SECOND { S::LANES } else { 0 })) }
    }
    #[inline(always)]
    unsafe fn one(w: *const u8, col: usize) -> f32 {
        // SAFETY: `col` is within the row.
        unsafe { *w.cast::<f32>().add(col) }
    }
}

impl<S: Simd> Format<S> for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V {
        // SAFETY: the block is within the row.
        unsafe {
            let block = w.cast::<u16>().add(start);
            if SECOND { S::odd_bf16(block) } else { S::even_bf16(block) }
        }
    }
    #[inline(always)]
    unsafe fn one(w: *const u8, col: usize) -> f32 {
        // SAFETY: `col` is within the row.
        unsafe { widen(*w.cast::<u16>().add(col)) }
    }
}

/// The first or second half of a block.
#[inline(always)]
unsafe fn half<S: Simd, F: Format<S>, const SECOND: bool, const M: usize, const N: usize>(
    w: &[*const u8; N],
    x: &[*const f32; M],
    start: usize,
    sums: &mut [[S::V; N]; M],
) {
    // SAFETY: the block is within all rows.
    unsafe {
        let mut weights = [S::splat(0.0); N];
        for n in 0..N {
            weights[n] = F::half::<SECOND>(w[n], start);
        }
        for m in 0..M {
            let value = S::load(x[m].add(start + if SECOND { S::LANES } else { 0 }));
            for n in 0..N {
                sums[m][n] = S::fma(weights[n], value, sums[m][n]);
            }
        }
    }
}

#[inline(always)]
unsafe fn run<S: Simd, F: Format<S>>(task: &Task) {
    let num_tiles = task.num_rows.div_ceil(S::TILE_ROWS) * task.count.div_ceil(S::TILE_COLS);
    let mut ahead = match task.num_rows > S::TILE_ROWS {
        true => Ahead::of(task, num_tiles * (task.cols / (2 * S::LANES))),
        false => Ahead::nothing(task),
    };
    // SAFETY: passed on; every tile lies within the task.
    unsafe {
        if task.num_rows == 1 && task.count == STRIP {
            return single::<S, F>(task);
        }
        for row in (0..task.num_rows).step_by(S::TILE_ROWS) {
            match S::TILE_ROWS.min(task.num_rows - row) {
                1 => rows::<S, F, 1>(task, row, &mut ahead),
                2 => rows::<S, F, 2>(task, row, &mut ahead),
                3 => rows::<S, F, 3>(task, row, &mut ahead),
                4 => rows::<S, F, 4>(task, row, &mut ahead),
                5 => rows::<S, F, 5>(task, row, &mut ahead),
                _ => rows::<S, F, 6>(task, row, &mut ahead),
            }
        }
    }
}

/// One row of activations with a whole strip: bound by memory, so all rows of weights are read side by side.
#[inline(always)]
unsafe fn single<S: Simd, F: Format<S>>(task: &Task) {
    for start in (0..task.cols).step_by(CHUNK) {
        // SAFETY: passed on.
        unsafe { tile::<S, F, 1, STRIP>(task, (0, 0), start, &mut Ahead::nothing(task)) };
    }
}

/// `M` rows of activations with a whole strip, a chunk of columns at a time.
#[inline(always)]
unsafe fn rows<S: Simd, F: Format<S>, const M: usize>(task: &Task, row: usize, ahead: &mut Ahead) {
    for start in (0..task.cols).step_by(CHUNK) {
        let mut first = 0;
        // SAFETY: passed on.
        unsafe {
            // As many rows of weights as keep the multipliers busy and their sums in registers.
            if S::TILE_COLS == 4 || M <= 2 {
                while first + 4 <= task.count {
                    tile::<S, F, M, 4>(task, (row, first), start, ahead);
                    first += 4;
                }
            }
            while first + 2 <= task.count {
                tile::<S, F, M, 2>(task, (row, first), start, ahead);
                first += 2;
            }
            if first < task.count {
                tile::<S, F, M, 1>(task, (row, first), start, ahead);
            }
        }
    }
}

/// The weights of the next strip, of which each tile asks for its share, a little with each block: so they come while
/// the multipliers are busy, and never so many at once that these wait.
struct Ahead {
    next: *const u8,
    end: *const u8,
    lines_per_block: usize,
}

impl Ahead {
    /// For a strip whose tiles go through `num_blocks` blocks in all.
    #[inline(always)]
    fn of(task: &Task, num_blocks: usize) -> Self {
        let num_bytes = task.count * task.row_bytes;
        let lines_per_block = num_bytes.div_ceil(64).div_ceil(num_blocks.max(1));
        Self { next: task.next, end: task.next.wrapping_add(num_bytes), lines_per_block }
    }

    /// For a strip that asks for its weights itself.
    #[inline(always)]
    fn nothing(task: &Task) -> Self {
        Self { next: task.next, end: task.next, lines_per_block: 0 }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self) {
        for _ in 0..self.lines_per_block {
            if self.next < self.end {
                prefetch::far(self.next);
                self.next = self.next.wrapping_add(64);
            }
        }
    }
}

/// Multiplies a chunk of `M` rows of activations with one of `N` rows of weights: a vector of partial sums each, all in
/// registers. The first chunk's sums go to `out`, the others' are added there.
#[inline(always)]
unsafe fn tile<S: Simd, F: Format<S>, const M: usize, const N: usize>(
    task: &Task,
    (row, first): (usize, usize),
    start: usize,
    ahead: &mut Ahead,
) {
    const { assert!(M * N <= MAX_TILE) };
    let end = task.cols.min(start + CHUNK);
    let tail = end - (end - start) % (2 * S::LANES);
    // SAFETY: `row + M` rows of activations, `first + N` of weights, `cols` numbers each; `out` holds a strip for each row.
    unsafe {
        let (mut x, mut w) = ([task.x_row(row); M], [task.weights; N]);
        for m in 0..M {
            x[m] = task.x_row(row + m);
        }
        for n in 0..N {
            w[n] = task.weights.add((first + n) * task.row_bytes);
        }
        let mut sums = [[S::splat(0.0); N]; M];
        for start in (start..tail).step_by(2 * S::LANES) {
            ahead.ask::<S>();
            // The first rows bring the weights from memory, the others find them in the first cache.
            if task.num_rows <= S::TILE_ROWS && (start * F::SIZE).is_multiple_of(64) {
                for n in 0..N {
                    prefetch::near(w[n].wrapping_add(start * F::SIZE + AHEAD));
                }
            }
            half::<S, F, false, M, N>(&w, &x, start, &mut sums);
            half::<S, F, true, M, N>(&w, &x, start, &mut sums);
        }
        // Through memory: 256-bit instructions reach 16 registers, and the compiler would keep the sums in those alone.
        let mut vectors: MaybeUninit<[S::V; MAX_TILE]> = MaybeUninit::uninit();
        let vectors = vectors.as_mut_ptr().cast::<S::V>();
        for m in 0..M {
            for n in 0..N {
                vectors.add(m * N + n).write(sums[m][n]);
            }
        }
        for idx in M * N..(M * N).next_multiple_of(4) {
            vectors.add(idx).write(S::splat(0.0));
        }
        let vectors = std::hint::black_box(vectors);
        for four in (0..M * N).step_by(4) {
            let values = S::sums(*vectors.add(four).cast::<[S::V; 4]>());
            for idx in four..(four + 4).min(M * N) {
                let out = task.out.add((row + idx / N) * STRIP + first + idx % N);
                *out = values[idx - four] + if start == 0 { 0.0 } else { *out };
            }
        }
        if tail < end {
            for (m, n) in (0..M).flat_map(|m| (0..N).map(move |n| (m, n))) {
                for col in tail..end {
                    *task.out.add((row + m) * STRIP + first + n) += F::one(w[n], col) * *x[m].add(col);
                }
            }
        }
    }
}
