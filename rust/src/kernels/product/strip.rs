//! Products of a strip of weights in f32 or bf16, widened to f32: bound by memory for one row of activations, by the
//! multipliers for dozens.

use std::mem::MaybeUninit;

use crate::kernels::simd::{Simd, dispatch, widen};
use crate::prefetch::{far, near};

/// Outputs that are computed together: rows of weights that a worker reads side by side.
pub(crate) const STRIP: usize = 8;
/// Columns that all tiles of a strip process before the next columns: this many columns of six rows of activations and of
/// a strip's weights fit in the first-level cache. A multiple of every set's block.
pub(crate) const CHUNK: usize = 640;
/// Number of sums in the largest tile.
const MAX_TILE: usize = 24;
/// Prefetch distance of weights, in bytes: about the next strip of a small model. The hardware prefetcher cannot follow
/// eight short rows at a time; prefetching raised the bytes read per second by 33 to 50 %.
const PREFETCH_BYTES: usize = 10_240;

/// Neighbouring outputs of a linear layer that are computed together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strip {
    /// First weight row.
    pub first: usize,
    /// Number of weight rows, at most [`STRIP`].
    pub count: usize,
    /// First weight row of the strip that the same worker takes next, to be prefetched.
    pub next: usize,
}

/// Pointers and sizes of one strip's product.
#[derive(Clone, Copy)]
pub(crate) struct StripTask {
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

impl StripTask {
    /// Returns the address of a row of activations.
    #[inline(always)]
    unsafe fn x_row(&self, row: usize) -> *const f32 {
        // SAFETY: the caller promises that `row` is one of the task's rows.
        unsafe { self.x.add(row * self.x_stride) }
    }
}

dispatch! { pub(crate) unsafe fn strip_f32 = run_f32(task: &StripTask) }
dispatch! { pub(crate) unsafe fn strip_bf16 = run_bf16(task: &StripTask) }

#[inline(always)]
unsafe fn run_f32<S: Simd>(task: &StripTask) {
    // SAFETY: the caller promises a valid task with f32 weights, and the instruction set.
    unsafe { run::<S, F32>(task) }
}

#[inline(always)]
unsafe fn run_bf16<S: Simd>(task: &StripTask) {
    // SAFETY: the caller promises a valid task with bf16 weights, and the instruction set.
    unsafe { run::<S, Bf16>(task) }
}

/// A number format of weights, widened to f32 half a block at a time. A block is `2 * LANES` columns.
trait WeightFormat<S: Simd> {
    /// Bytes of a number.
    const SIZE: usize;
    /// Loads the first or second half of the block at column `start`, in the order of prepared activations.
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V;
    /// Loads one column.
    unsafe fn one(w: *const u8, col: usize) -> f32;
}

struct F32;
struct Bf16;

impl<S: Simd> WeightFormat<S> for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V {
        // SAFETY: the caller promises that the block lies within the row.
        unsafe { S::load(w.cast::<f32>().add(start + if SECOND { S::LANES } else { 0 })) }
    }
    #[inline(always)]
    unsafe fn one(w: *const u8, col: usize) -> f32 {
        // SAFETY: the caller promises that the column lies within the row.
        unsafe { *w.cast::<f32>().add(col) }
    }
}

impl<S: Simd> WeightFormat<S> for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V {
        // SAFETY: the caller promises that the block lies within the row.
        unsafe {
            let block = w.cast::<u16>().add(start);
            if SECOND { S::odd_bf16(block) } else { S::even_bf16(block) }
        }
    }
    #[inline(always)]
    unsafe fn one(w: *const u8, col: usize) -> f32 {
        // SAFETY: the caller promises that the column lies within the row.
        unsafe { widen(*w.cast::<u16>().add(col)) }
    }
}

/// Multiplies the first or second half of a block of all rows.
#[inline(always)]
unsafe fn multiply_half<S: Simd, F: WeightFormat<S>, const SECOND: bool, const M: usize, const N: usize>(
    w: &[*const u8; N],
    x: &[*const f32; M],
    start: usize,
    sums: &mut [[S::V; N]; M],
) {
    // SAFETY: the caller promises that the block lies within all rows.
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
unsafe fn run<S: Simd, F: WeightFormat<S>>(task: &StripTask) {
    let num_tiles = task.num_rows.div_ceil(S::TILE_ROWS) * task.count.div_ceil(S::TILE_COLS);
    let mut prefetch = match task.num_rows > S::TILE_ROWS {
        true => NextStrip::of(task, num_tiles * (task.cols / (2 * S::LANES))),
        false => NextStrip::none(task),
    };
    // SAFETY: the caller promises a valid task, and every tile below lies within the task's rows.
    unsafe {
        if task.num_rows == 1 && task.count == STRIP {
            return single_row::<S, F>(task);
        }
        for row in (0..task.num_rows).step_by(S::TILE_ROWS) {
            match S::TILE_ROWS.min(task.num_rows - row) {
                1 => tile_rows::<S, F, 1>(task, row, &mut prefetch),
                2 => tile_rows::<S, F, 2>(task, row, &mut prefetch),
                3 => tile_rows::<S, F, 3>(task, row, &mut prefetch),
                4 => tile_rows::<S, F, 4>(task, row, &mut prefetch),
                5 => tile_rows::<S, F, 5>(task, row, &mut prefetch),
                _ => tile_rows::<S, F, 6>(task, row, &mut prefetch),
            }
        }
    }
}

/// Multiplies one row of activations with a whole strip. Memory is the limit, so all rows of weights are read side by side.
#[inline(always)]
unsafe fn single_row<S: Simd, F: WeightFormat<S>>(task: &StripTask) {
    for start in (0..task.cols).step_by(CHUNK) {
        // SAFETY: the caller promises a valid task of one row and a whole strip.
        unsafe { tile::<S, F, 1, STRIP>(task, 0, 0, start, &mut NextStrip::none(task)) };
    }
}

/// Multiplies `M` rows of activations with a whole strip, a chunk of columns at a time.
#[inline(always)]
unsafe fn tile_rows<S: Simd, F: WeightFormat<S>, const M: usize>(
    task: &StripTask,
    row: usize,
    prefetch: &mut NextStrip,
) {
    for start in (0..task.cols).step_by(CHUNK) {
        let mut first = 0;
        // SAFETY: the caller promises `M` rows from `row` on, and every tile below lies within the strip.
        unsafe {
            // As many rows of weights as keep the multipliers busy with all sums in registers.
            if S::TILE_COLS == 4 || M <= 2 {
                while first + 4 <= task.count {
                    tile::<S, F, M, 4>(task, row, first, start, prefetch);
                    first += 4;
                }
            }
            while first + 2 <= task.count {
                tile::<S, F, M, 2>(task, row, first, start, prefetch);
                first += 2;
            }
            if first < task.count {
                tile::<S, F, M, 1>(task, row, first, start, prefetch);
            }
        }
    }
}

/// Prefetches the weights of the next strip, a few lines with each block: they arrive while the multipliers are busy, and
/// never so many at once that the multipliers wait.
struct NextStrip {
    next: *const u8,
    end: *const u8,
    lines_per_block: usize,
}

impl NextStrip {
    /// Spreads the next strip over the `num_blocks` blocks of this strip's tiles.
    #[inline(always)]
    fn of(task: &StripTask, num_blocks: usize) -> Self {
        let num_bytes = task.count * task.row_bytes;
        let lines_per_block = num_bytes.div_ceil(64).div_ceil(num_blocks.max(1));
        Self { next: task.next, end: task.next.wrapping_add(num_bytes), lines_per_block }
    }

    /// Prefetches nothing: with few rows of activations, a strip prefetches its own weights.
    #[inline(always)]
    fn none(task: &StripTask) -> Self {
        Self { next: task.next, end: task.next, lines_per_block: 0 }
    }

    #[inline(always)]
    fn prefetch_share(&mut self) {
        for _ in 0..self.lines_per_block {
            if self.next < self.end {
                far(self.next);
                self.next = self.next.wrapping_add(64);
            }
        }
    }
}

/// Multiplies a chunk of columns of `M` rows of activations and `N` rows of weights, with one vector of partial sums per
/// output in a register. The first chunk writes its sums to `out`, later chunks add theirs.
#[inline(always)]
unsafe fn tile<S: Simd, F: WeightFormat<S>, const M: usize, const N: usize>(
    task: &StripTask,
    row: usize,
    first: usize,
    start: usize,
    prefetch: &mut NextStrip,
) {
    const { assert!(M * N <= MAX_TILE) };
    let end = task.cols.min(start + CHUNK);
    let tail = end - (end - start) % (2 * S::LANES);
    // SAFETY: the task has `row + M` rows of activations and `first + N` of weights with `cols` numbers each; `out` holds a
    // strip for each row.
    unsafe {
        let x: [_; M] = std::array::from_fn(|m| task.x_row(row + m));
        let w: [_; N] = std::array::from_fn(|n| task.weights.add((first + n) * task.row_bytes));
        let mut sums = [[S::splat(0.0); N]; M];
        for start in (start..tail).step_by(2 * S::LANES) {
            prefetch.prefetch_share();
            // With few rows the weights come straight from memory; otherwise the strip before has prefetched them.
            if task.num_rows <= S::TILE_ROWS && (start * F::SIZE).is_multiple_of(64) {
                for n in 0..N {
                    near(w[n].wrapping_add(start * F::SIZE + PREFETCH_BYTES));
                }
            }
            multiply_half::<S, F, false, M, N>(&w, &x, start, &mut sums);
            multiply_half::<S, F, true, M, N>(&w, &x, start, &mut sums);
        }
        // Sums go through memory: `S::sums` works on 256 bits, which reach only 16 of the 32 registers of AVX-512, and the
        // compiler would then keep all sums in those 16.
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
