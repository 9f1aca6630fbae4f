//! `x · Wᵀ` for a few rows of x: at the memory's speed for one, at the multipliers' for dozens.
//!
//! Weights stay where PyTorch has them, row after row. Each output is one dot product, summed along its row in an order
//! that depends on nothing else: a row of activations gives the same bits whatever rows run beside it.

use std::mem::MaybeUninit;

use super::memory::{Dtype, Matrix, SharedMut};
use super::simd::{Isa, Simd, dispatch, widen};

/// Outputs that are computed together; rows of weights a member reads side by side.
pub(super) const STRIP: usize = 8;
/// Bytes of a row of activations that a strip's tiles go through before the next: so many of six rows and of a strip's
/// weights stay in the first cache. A multiple of every set's block.
const CHUNK_BYTES: usize = 2560;
/// Sums of the largest tile.
const MAX_TILE: usize = 24;
/// How far ahead of their first use weights are asked for, in bytes: about the next strip of a small model. The machine's
/// own prefetcher loses eight short rows at a time; this gave a third to a half more bytes a second.
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
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `to` has room for twice as many bf16, and the machine has the instructions.
        (Dtype::Bf16, Isa::Avx512Bf16) => unsafe { pairs::round(from, to.as_mut_ptr().cast()) },
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
    assert!(x.stride >= weights.cols, "rows of {} for weights of {}", x.stride, weights.cols);
    let task = Task {
        weights: weights.row(first),
        row_bytes: weights.cols * weights.dtype.size(),
        next: weights.row(0).wrapping_add(next * weights.cols * weights.dtype.size()),
        count,
        x: x.data.slice_start(x.num_rows * x.stride),
        x_stride: x.stride,
        num_rows: x.num_rows,
        cols: weights.cols,
        out: out.as_mut_ptr(),
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
    next: *const u8,
    count: usize,
    x: *const f32,
    x_stride: usize,
    num_rows: usize,
    cols: usize,
    out: *mut f32,
}

impl Task {
    /// A row of activations.
    #[inline(always)]
    unsafe fn x_row(&self, row: usize) -> *const u8 {
        // SAFETY: `row` is one of the task's.
        unsafe { self.x.add(row * self.x_stride).cast() }
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

/// How numbers of a format are multiplied with prepared activations.
trait Format<S: Simd> {
    /// Bytes of a weight.
    const SIZE: usize;
    /// Bytes of an activation.
    const X_SIZE: usize;
    /// Adds the products of columns `start..start + 2 * LANES` to the sums of `M` rows of activations with `N` of weights.
    unsafe fn block<const M: usize, const N: usize>(
        w: &[*const u8; N],
        x: &[*const u8; M],
        start: usize,
        sums: &mut [[S::V; N]; M],
    );
    /// The product of one column.
    unsafe fn one(w: *const u8, x: *const u8, col: usize) -> f32;
}

/// A format whose numbers are widened to f32, half a block at a time.
trait Widened<S: Simd> {
    const SIZE: usize;
    /// The first or second vector of block `start..start + 2 * LANES`, in the order of prepared activations.
    unsafe fn half<const SECOND: bool>(w: *const u8, start: usize) -> S::V;
    unsafe fn one(w: *const u8, col: usize) -> f32;
}

struct F32;
struct Bf16;

impl<S: Simd> Widened<S> for F32 {
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

impl<S: Simd> Widened<S> for Bf16 {
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

impl<S: Simd, F: Widened<S>> Format<S> for F {
    const SIZE: usize = F::SIZE;
    const X_SIZE: usize = 4;
    #[inline(always)]
    unsafe fn block<const M: usize, const N: usize>(
        w: &[*const u8; N],
        x: &[*const u8; M],
        start: usize,
        sums: &mut [[S::V; N]; M],
    ) {
        // SAFETY: passed on.
        unsafe {
            half::<S, F, false, M, N>(w, x, start, sums);
            half::<S, F, true, M, N>(w, x, start, sums);
        }
    }
    #[inline(always)]
    unsafe fn one(w: *const u8, x: *const u8, col: usize) -> f32 {
        // SAFETY: `col` is within both rows.
        unsafe { F::one(w, col) * *x.cast::<f32>().add(col) }
    }
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::*;

    use super::super::simd::{Avx512, Simd, narrow};
    use super::{Format, Task, run, widen};

    /// Products of bf16 pairs, which only AVX-512-BF16 has.
    struct Pairs;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma")]
    pub(super) unsafe fn strip(task: &Task) {
        // SAFETY: passed on.
        unsafe { run::<Avx512, Pairs>(task) }
    }

    impl Format<Avx512> for Pairs {
        const SIZE: usize = 2;
        const X_SIZE: usize = 2;
        #[inline(always)]
        unsafe fn block<const M: usize, const N: usize>(
            w: &[*const u8; N],
            x: &[*const u8; M],
            start: usize,
            sums: &mut [[<Avx512 as Simd>::V; N]; M],
        ) {
            // SAFETY: the block is within all rows.
            unsafe {
                let mut weights = [load(w[0], start); N];
                for n in 1..N {
                    weights[n] = load(w[n], start);
                }
                for m in 0..M {
                    let value = load(x[m], start);
                    for n in 0..N {
                        sums[m][n] = _mm512_dpbf16_ps(sums[m][n], weights[n], value);
                    }
                }
            }
        }
        #[inline(always)]
        unsafe fn one(w: *const u8, x: *const u8, col: usize) -> f32 {
            // SAFETY: `col` is within both rows.
            unsafe { widen(*w.cast::<u16>().add(col)) * widen(*x.cast::<u16>().add(col)) }
        }
    }

    /// Rounds numbers to bf16, to the nearest, of two the even one.
    #[target_feature(enable = "avx512f,avx512bf16,avx2")]
    pub(super) unsafe fn round(from: &[f32], to: *mut u16) {
        let (vectors, rest) = from.as_chunks::<16>();
        for (idx, vector) in vectors.iter().enumerate() {
            // SAFETY: `to` has room for as many numbers; both types are 32 bytes without meaning of their own.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(vector.as_ptr()));
                _mm256_storeu_si256(to.add(16 * idx).cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
            }
        }
        for (idx, &value) in rest.iter().enumerate() {
            // SAFETY: as above.
            unsafe { to.add(16 * vectors.len() + idx).write(narrow(value)) };
        }
    }

    #[inline(always)]
    unsafe fn load(row: *const u8, start: usize) -> __m512bh {
        // SAFETY: 32 numbers; both types are 64 bytes without meaning of their own.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(row.cast::<u16>().add(start).cast())) }
    }
}

/// The first or second half of a block.
#[inline(always)]
unsafe fn half<S: Simd, F: Widened<S>, const SECOND: bool, const M: usize, const N: usize>(
    w: &[*const u8; N],
    x: &[*const u8; M],
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
            let value = S::load(x[m].cast::<f32>().add(start + if SECOND { S::LANES } else { 0 }));
            for n in 0..N {
                sums[m][n] = S::fma(weights[n], value, sums[m][n]);
            }
        }
    }
}

#[inline(always)]
unsafe fn run<S: Simd, F: Format<S>>(task: &Task) {
    // SAFETY: passed on; every tile lies within the task.
    unsafe {
        if task.num_rows == 1 && task.count == STRIP {
            return single::<S, F>(task);
        }
        for row in (0..task.num_rows).step_by(S::TILE_ROWS) {
            match S::TILE_ROWS.min(task.num_rows - row) {
                1 => rows::<S, F, 1>(task, row),
                2 => rows::<S, F, 2>(task, row),
                3 => rows::<S, F, 3>(task, row),
                4 => rows::<S, F, 4>(task, row),
                5 => rows::<S, F, 5>(task, row),
                _ => rows::<S, F, 6>(task, row),
            }
        }
    }
}

/// One row of activations with a whole strip: bound by memory, so all rows of weights are read side by side.
#[inline(always)]
unsafe fn single<S: Simd, F: Format<S>>(task: &Task) {
    for start in (0..task.cols).step_by(CHUNK_BYTES / F::X_SIZE) {
        // SAFETY: passed on.
        unsafe { tile::<S, F, 1, STRIP>(task, (0, 0), start, &mut Ahead::of::<S>(task, 0)) };
    }
}

/// `M` rows of activations with a whole strip, a chunk of columns at a time.
#[inline(always)]
unsafe fn rows<S: Simd, F: Format<S>, const M: usize>(task: &Task, row: usize) {
    let mut ahead = Ahead::of::<S>(task, row);
    for start in (0..task.cols).step_by(CHUNK_BYTES / F::X_SIZE) {
        let mut first = 0;
        // SAFETY: passed on.
        unsafe {
            // As many rows of weights as keep the multipliers busy and their sums in registers.
            if S::TILE_COLS == 4 || M <= 2 {
                while first + 4 <= task.count {
                    tile::<S, F, M, 4>(task, (row, first), start, &mut ahead);
                    first += 4;
                }
            }
            while first + 2 <= task.count {
                tile::<S, F, M, 2>(task, (row, first), start, &mut ahead);
                first += 2;
            }
            if first < task.count {
                tile::<S, F, M, 1>(task, (row, first), start, &mut ahead);
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
    #[inline(always)]
    fn of<S: Simd>(task: &Task, row: usize) -> Self {
        let tiles = task.num_rows.div_ceil(S::TILE_ROWS);
        let strip = task.count * task.row_bytes;
        let share = strip.div_ceil(tiles).next_multiple_of(64);
        let (start, end) = (share * (row / S::TILE_ROWS), (share * (row / S::TILE_ROWS + 1)).min(strip));
        let blocks = task.count.div_ceil(S::TILE_COLS) * (task.cols / (2 * S::LANES)).max(1);
        // Few rows ask for their weights themselves.
        let end = if tiles > 1 { end } else { start };
        let lines_per_block = (share / 64).div_ceil(blocks);
        Self { next: task.next.wrapping_add(start), end: task.next.wrapping_add(end), lines_per_block }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self) {
        for _ in 0..self.lines_per_block {
            if self.next < self.end {
                S::prefetch_far(self.next);
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
    let end = task.cols.min(start + CHUNK_BYTES / F::X_SIZE);
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
                    S::prefetch(w[n].wrapping_add(start * F::SIZE + AHEAD));
                }
            }
            F::block(&w, &x, start, &mut sums);
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
                    *task.out.add((row + m) * STRIP + first + n) += F::one(w[n], x[m], col);
                }
            }
        }
    }
}
