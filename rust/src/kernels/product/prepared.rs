//! Activations laid out for a product. Each format of weights has its own order.

use super::packed::activations::{Group, quantise};
use super::packed::scheme::GROUP;
use super::strip::STRIP;
#[cfg(target_arch = "x86_64")]
use super::{
    bf16_pairs::{self, QUAD},
    tiles,
};
use crate::kernels::memory::{Dtype, Format, SharedBuffer};
use crate::kernels::simd::Isa;

/// The distance between rows is a multiple of this many f32, so that eight columns of bf16 always fit.
pub(crate) const ALIGN: usize = 4;

/// How activations are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// For weights of this type.
    Plain(Dtype),
    /// Quantised, for weights of any scheme.
    Groups,
}

impl Layout {
    pub fn of(format: Format) -> Self {
        match format {
            Format::Plain(dtype) => Self::Plain(dtype),
            Format::Packed => Self::Groups,
        }
    }
}

/// Rows of activations, laid out for weights of one format.
///
/// For bf16 weights, the even columns of a block precede the odd ones, since pairs of bf16 are widened that way at the
/// lowest cost. If the machine multiplies bf16 itself, rows are rounded to bf16 and the rows of a tile interleaved, eight
/// columns of each or, for AMX, two.
/// For packed weights, rows are quantised and follow each other without gaps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prepared<'a> {
    /// Instruction set of the product.
    pub isa: Isa,
    /// Layout for the product's weights.
    pub layout: Layout,
    pub data: SharedBuffer,
    /// Distance between rows in f32, a multiple of [`ALIGN`].
    pub stride: usize,
    pub num_rows: usize,
    /// Numbers per row.
    pub cols: usize,
    /// The number that comes first, second …, for packed weights whose columns lie in another order.
    pub order: Option<&'a [u32]>,
}

impl Prepared<'_> {
    /// Lays out a row.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses this row.
    pub unsafe fn write(&self, row: usize, from: &[f32]) {
        assert!(row < self.num_rows && from.len() == self.cols, "{} numbers for row {row}", from.len());
        // SAFETY: the row exists and has room for `cols` numbers, and the caller promises that nobody else uses the row.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.has_bf16_products() {
                let pieces = self.pieces(row);
                return match pieces.len {
                    QUAD => bf16_pairs::round(from, pieces.first, pieces.step),
                    _ => tiles::round(from, pieces.first.cast(), pieces.step / pieces.len),
                };
            }
            if self.layout == Layout::Groups {
                let groups = self.groups().add(row * (self.cols / GROUP));
                let Some(order) = self.order else { return quantise(self.isa, from, groups) };
                for (idx, places) in order.as_chunks::<GROUP>().0.iter().enumerate() {
                    quantise(self.isa, &places.map(|place| from[place as usize]), groups.add(idx));
                }
                return;
            }
            self.write_from(row, 0, from);
        }
    }

    /// Quantises columns `first..first + GROUP` of all rows from `[num_rows, GROUP]`.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses these columns.
    pub unsafe fn write_group(&self, first: usize, from: &[f32]) {
        assert!(self.order.is_none(), "a group of columns in another order");
        assert!(self.layout == Layout::Groups && first.is_multiple_of(GROUP) && first + GROUP <= self.cols);
        for (row, from) in from.as_chunks::<GROUP>().0[..self.num_rows].iter().enumerate() {
            // SAFETY: the group lies within the row, and the caller promises that nobody else uses these columns.
            unsafe { quantise(self.isa, from, self.groups().add((row * self.cols + first) / GROUP)) };
        }
    }

    /// Returns the address of the first row's groups, which take less room than the same columns in f32.
    pub fn groups(&self) -> *mut Group {
        self.data.address(self.num_rows * self.stride).cast()
    }

    /// Lays out columns `first..first + count` of all rows from a strip, `[num_rows, STRIP]`; not in groups.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses these columns.
    pub unsafe fn write_columns(&self, first: usize, count: usize, from: &[f32]) {
        assert!(first.is_multiple_of(STRIP) && first + count <= self.cols && from.len() >= self.num_rows * STRIP);
        assert_ne!(self.layout, Layout::Groups, "a strip is no whole group");
        // SAFETY: the columns lie within all rows, and the caller promises that nobody else uses these columns.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.has_bf16_products() {
                let size = self.tile_rows();
                for (tile, from) in from[..self.num_rows * STRIP].chunks(size * STRIP).enumerate() {
                    let pieces = self.pieces(tile * size);
                    let to = pieces.first.add(first / pieces.len * pieces.step);
                    match pieces.len {
                        // A strip is as wide as a quad, so the quads of a tile lie side by side.
                        QUAD => bf16_pairs::round(from, to, QUAD),
                        _ => tiles::round_strip(from, count, to.cast()),
                    }
                }
                return;
            }
            for (row, from) in from.as_chunks::<STRIP>().0[..self.num_rows].iter().enumerate() {
                self.write_from(row, first, &from[..count]);
            }
        }
    }

    /// Lays out the columns of one row from `start` on, for weights that are widened.
    ///
    /// # Safety
    ///
    /// The columns lie within the row, and until the next barrier nobody else uses them.
    unsafe fn write_from(&self, row: usize, start: usize, from: &[f32]) {
        // SAFETY: the row lies within the buffer; the caller promises columns within the row that nobody else uses.
        unsafe {
            let to = self.data.address(self.num_rows * self.stride).add(row * self.stride);
            match self.layout {
                Layout::Plain(Dtype::Bf16) => deinterleave(lanes_of(self.isa), start, self.cols, from, to),
                Layout::Plain(Dtype::F32) | Layout::Groups => {
                    to.add(start).copy_from_nonoverlapping(from.as_ptr(), from.len());
                }
            }
        }
    }

    /// Copies a row of `other`, which was laid out for the same format.
    ///
    /// # Safety
    ///
    /// Until the next barrier nobody else uses this row, and nobody writes to `other`.
    pub unsafe fn copy(&self, row: usize, other: &Self, other_row: usize) {
        assert!(row < self.num_rows && other_row < other.num_rows && self.cols == other.cols);
        assert_eq!((self.isa, self.layout), (other.isa, other.layout), "rows laid out differently");
        if self.layout == Layout::Groups {
            let num_groups = self.cols / GROUP;
            // SAFETY: both rows exist and have as many groups; the caller promises that nobody else uses the one or writes
            // the other.
            return unsafe {
                let from = other.groups().add(other_row * num_groups).cast_const();
                self.groups().add(row * num_groups).copy_from_nonoverlapping(from, num_groups);
            };
        }
        let (to, from) =
            (self.data.address(self.num_rows * self.stride), other.data.address(other.num_rows * other.stride));
        // SAFETY: both rows exist and are `cols` wide; the caller promises that nobody else uses the one or writes the other.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.has_bf16_products() {
                let (to, from) = (self.pieces(row), other.pieces(other_row));
                for piece in 0..self.cols.div_ceil(to.len) {
                    let source = from.first.add(piece * from.step);
                    to.first.add(piece * to.step).copy_from_nonoverlapping(source, to.len);
                }
                return;
            }
            to.add(row * self.stride).copy_from_nonoverlapping(from.add(other_row * other.stride), self.cols);
        }
    }

    /// Returns whether rows are rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    fn has_bf16_products(&self) -> bool {
        self.layout == Layout::Plain(Dtype::Bf16) && self.isa.has_bf16_products()
    }

    /// Returns the rows of each tile but the last.
    #[cfg(target_arch = "x86_64")]
    fn tile_rows(&self) -> usize {
        match self.isa {
            Isa::Amx => tiles::block_rows(self.num_rows),
            _ => bf16_pairs::tile_rows(self.num_rows),
        }
    }

    /// Returns where the pieces of a row lie.
    #[cfg(target_arch = "x86_64")]
    fn pieces(&self, row: usize) -> Pieces {
        let size = self.tile_rows();
        let first = row - row % size;
        let num_rows = size.min(self.num_rows - first);
        let len = if self.isa == Isa::Amx { tiles::PAIR } else { QUAD };
        let tile = self.data.address(self.num_rows * self.stride);
        // SAFETY: `address` checks that all rows lie within the buffer.
        let piece = unsafe { tile.add(first * self.stride).cast::<u16>().add((row - first) * len) };
        Pieces { first: piece, len, step: num_rows * len }
    }
}

/// The places of a row's pieces: columns in bf16, interleaved with those of the tile's other rows.
#[cfg(target_arch = "x86_64")]
struct Pieces {
    first: *mut u16,
    /// Columns of a piece.
    len: usize,
    /// Distance between two pieces of the row, in numbers.
    step: usize,
}

/// Writes the columns of a row of `cols` from `start` on, an even number: of each block of `2 * lanes` columns the even
/// ones, then the odd ones. Columns after the last whole block keep their order.
///
/// # Safety
///
/// `to` is a row of `cols` numbers, and nobody else uses the columns given.
unsafe fn deinterleave(lanes: usize, start: usize, cols: usize, mut from: &[f32], to: *mut f32) {
    let mut col = start;
    while !from.is_empty() {
        let within = col % (2 * lanes);
        let (piece, rest) = from.split_at(from.len().min(2 * lanes - within));
        // SAFETY: a block's columns are permuted within the block, so only places of the columns given are written.
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

/// Returns the number of f32 in a vector.
fn lanes_of(isa: Isa) -> usize {
    match isa {
        Isa::Portable | Isa::Avx2 => 8,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => 16,
    }
}
