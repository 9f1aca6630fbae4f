//! Rows of activations as products want them, each format of weights its own order.

use super::linear::STRIP;
use super::memory::{Dtype, SharedMut};
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::simd::Isa;

/// Rows of activations lie so many f32, or a multiple, from each other: eight columns of bf16 fit at least.
pub(super) const ALIGN: usize = 4;

/// Rows of activations, laid out for weights of one format.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared {
    pub data: SharedMut,
    /// f32 from a row to the next, a multiple of [`ALIGN`].
    pub stride: usize,
    pub num_rows: usize,
    /// Numbers of a row.
    pub cols: usize,
}

impl Prepared {
    /// Lays out a row for weights of `dtype`.
    ///
    /// For bf16 weights the even numbers of a block go before its odd ones, since that is how pairs of bf16 are widened
    /// cheapest; where the machine multiplies bf16 itself, rows are rounded to bf16 and those of a tile interleaved.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses this row.
    pub unsafe fn write(&self, isa: Isa, dtype: Dtype, row: usize, from: &[f32]) {
        assert!(row < self.num_rows && from.len() == self.cols, "{} numbers for row {row}", from.len());
        // SAFETY: passed on.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if is_pairs(isa, dtype) {
                let (to, step) = self.quads(row);
                return pairs::round(from, to, step);
            }
            self.lay(isa, dtype, row, 0, from);
        }
    }

    /// Lays out columns `first..first + count` of all rows, a strip `[num_rows, STRIP]`.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses these columns.
    pub unsafe fn write_columns(&self, isa: Isa, dtype: Dtype, (first, count): (usize, usize), from: &[f32]) {
        assert!(first.is_multiple_of(STRIP) && first + count <= self.cols && from.len() >= self.num_rows * STRIP);
        // SAFETY: passed on.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if is_pairs(isa, dtype) {
                // A strip is as wide as a quad, so a tile's lie side by side.
                let size = pairs::tile_rows(self.num_rows);
                for (tile, from) in from[..self.num_rows * STRIP].chunks(size * STRIP).enumerate() {
                    let (to, step) = self.quads(tile * size);
                    pairs::round(from, to.add(first / pairs::QUAD * step), pairs::QUAD);
                }
                return;
            }
            for (row, from) in from.as_chunks::<STRIP>().0[..self.num_rows].iter().enumerate() {
                self.lay(isa, dtype, row, first, &from[..count]);
            }
        }
    }

    /// Lays out columns from `start` on of one row, for weights that are widened.
    unsafe fn lay(&self, isa: Isa, dtype: Dtype, row: usize, start: usize, from: &[f32]) {
        // SAFETY: within the row; all columns from `start` on as many as are given are the caller's.
        unsafe {
            let to = self.data.address(self.num_rows * self.stride).add(row * self.stride);
            match dtype {
                Dtype::F32 => to.add(start).copy_from_nonoverlapping(from.as_ptr(), from.len()),
                Dtype::Bf16 => part_evens(lanes_of(isa), (start, self.cols), from, to),
            }
        }
    }

    /// Copies a row from one of another that was laid out for weights of the same format.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses this row, and nobody writes to the other.
    pub unsafe fn copy(&self, isa: Isa, dtype: Dtype, row: usize, other: &Self, other_row: usize) {
        assert!(row < self.num_rows && other_row < other.num_rows && self.cols == other.cols);
        let (to, from) =
            (self.data.address(self.num_rows * self.stride), other.data.address(other.num_rows * other.stride));
        // SAFETY: within the rows.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if is_pairs(isa, dtype) {
                let ((to, step), (from, other_step)) = (self.quads(row), other.quads(other_row));
                for quad in 0..self.cols.div_ceil(pairs::QUAD) {
                    to.add(quad * step).copy_from_nonoverlapping(from.add(quad * other_step), pairs::QUAD);
                }
                return;
            }
            let _ = (isa, dtype);
            to.add(row * self.stride).copy_from_nonoverlapping(from.add(other_row * other.stride), self.cols);
        }
    }

    /// The first eight bf16 of a row, and how many numbers later the next eight lie.
    #[cfg(target_arch = "x86_64")]
    unsafe fn quads(&self, row: usize) -> (*mut u16, usize) {
        let size = pairs::tile_rows(self.num_rows);
        let first = row - row % size;
        let num_rows = size.min(self.num_rows - first);
        let tile = self.data.address(self.num_rows * self.stride);
        // SAFETY: within the rows.
        let quad = unsafe { tile.add(first * self.stride).cast::<u16>().add((row - first) * pairs::QUAD) };
        (quad, num_rows * pairs::QUAD)
    }
}

/// Whether products are of bf16 pairs.
fn is_pairs(isa: Isa, dtype: Dtype) -> bool {
    (isa, dtype) == (Isa::Avx512Bf16, Dtype::Bf16)
}

/// Puts columns from `start` on of a row of `cols` in their places: the even numbers of each block of `2 * lanes`, then
/// its odd ones; what fills no block as it is. Columns begin with an even one.
unsafe fn part_evens(lanes: usize, (start, cols): (usize, usize), mut from: &[f32], to: *mut f32) {
    let mut col = start;
    while !from.is_empty() {
        let within = col % (2 * lanes);
        let (piece, rest) = from.split_at(from.len().min(2 * lanes - within));
        // SAFETY: within the row, and only places of the columns given, which no other thread's are.
        unsafe {
            if col - within + 2 * lanes <= cols {
                let evens = to.add(col - within / 2);
                for (idx, pair) in piece.as_chunks::<2>().0.iter().enumerate() {
                    evens.add(idx).write(pair[0]);
                    evens.add(lanes + idx).write(pair[1]);
                }
            } else {
                to.add(col).copy_from_nonoverlapping(piece.as_ptr(), piece.len());
            }
        }
        (col, from) = (col + piece.len(), rest);
    }
}

fn lanes_of(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Avx512Bf16 => 16,
    }
}
