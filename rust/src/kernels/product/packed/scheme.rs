//! Schemes of quantised weights: how each is laid out, sizes, packing and unpacking.

use super::cell::{Cell, Places};
pub use super::layout::GROUP;
use super::layout::{Layout, Scales, Width};
use super::{blocks_of_32, blocks_of_256};
use crate::kernels::product::strip::STRIP;
use crate::{Error, Result};

/// Size that strips and their heads are filled up to.
const LINE: usize = 64;

/// Bytes of a file that are worth a thread.
const THREAD_BYTES: usize = 1 << 18;

/// A scheme of quantised weights, by its name in GGUF files; `Z4` and `Z8` hold what GPTQ, AWQ and compressed-tensors write.
///
/// Source: ggml-org/ggml `src/ggml-common.h`, the block of each name.
#[expect(non_camel_case_types, reason = "names as in GGUF files")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `d * q` for q in [-128, 127].
    Q8_0,
    /// `d * (q - 8)` for q in [0, 15].
    Q4_0,
    /// `d * q + m` for q in [0, 15].
    Q4_1,
    /// `d * (q - 16)` for q in [0, 31].
    Q5_0,
    /// `d * q + m` for q in [0, 31].
    Q5_1,
    /// `d * s * q - m * t` for q in [0, 15], with s and t in [0, 63] for 32 columns, d and m for 256.
    Q4_K,
    /// As Q4_K, for q in [0, 31].
    Q5_K,
    /// `d * s * (q - 32)` for q in [0, 63], with s in [-128, 127] for 16 columns, d for 256.
    Q6_K,
    /// `d * q` for q twice a float of four bits; d is a power of two, in half precision when packed: 2^-24 to 2^15.
    MXFP4,
    /// `d * (q - z)` for q in [0, 15]. A block is d, z, both in half precision, and codes as Q4_1's; z is a whole number.
    Z4,
    /// `d * (q - z)` for q in [-128, 127]. A block is d, z, both in half precision, and codes as Q8_0's; z is a whole number.
    Z8,
}

impl Scheme {
    /// Schemes of GGUF files.
    pub const OF_GGUF: [Self; 9] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q4_K, Self::Q5_K, Self::Q6_K, Self::MXFP4];
    /// All schemes.
    pub const ALL: [Self; 11] = {
        let [a, b, c, d, e, f, g, h, i] = Self::OF_GGUF;
        [a, b, c, d, e, f, g, h, i, Self::Z4, Self::Z8]
    };

    /// Returns the scheme's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::MXFP4 => "MXFP4",
            Self::Z4 => "Z4",
            Self::Z8 => "Z8",
        }
    }

    #[inline(always)]
    pub(super) const fn layout(self) -> Layout {
        match self {
            Self::Q8_0 => Layout::of(Width::Eight, Scales::One, 128, 34),
            Self::Q4_0 => Layout::of(Width::Four, Scales::One, 8, 18),
            Self::Q4_1 => Layout::of(Width::Four, Scales::WithMin, 0, 20),
            Self::Q5_0 => Layout::of(Width::Five, Scales::One, 16, 22),
            Self::Q5_1 => Layout::of(Width::Five, Scales::WithMin, 0, 24),
            Self::Q4_K => Layout::of(Width::Four, Scales::Multiples, 0, 144),
            Self::Q5_K => Layout::of(Width::Five, Scales::Multiples, 0, 176),
            Self::Q6_K => Layout::of(Width::Six, Scales::PerHalf, 32, 210),
            Self::MXFP4 => Layout::of(Width::Float, Scales::One, 16, 17),
            Self::Z4 => Layout::of(Width::Four, Scales::WithZero, 0, 20),
            Self::Z8 => Layout::of(Width::Eight, Scales::WithZero, 128, 36),
        }
    }

    /// Packs group `idx` of a block in a file; returns whether its scales are finite.
    #[inline(always)]
    fn pack_group(self, block: &[u8], idx: usize, to: Places, (head, codes): (&mut [u8], &mut [u8])) -> bool {
        let layout = self.layout();
        let cell = match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::MXFP4 | Self::Z4 => {
                return blocks_of_32::move_codes(layout, block, to, head, codes);
            }
            Self::Q8_0 | Self::Z8 => blocks_of_32::cell_of_eight_bits(layout, block),
            Self::Q4_K | Self::Q5_K => blocks_of_256::cell_with_min(layout, block, idx),
            Self::Q6_K => blocks_of_256::cell_of_six_bits(block, idx),
        };
        cell.write(to, head, codes);
        cell.halves.iter().all(|half| half & 0x7C00 != 0x7C00)
    }

    /// Returns the columns of a block in a file; rows are whole blocks.
    pub fn block_cols(self) -> usize {
        self.layout().groups() * GROUP
    }

    /// Returns the bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    /// Returns the bytes of a strip's head: scales, minima and fifth bits.
    pub(super) fn head_len(self, cols: usize) -> usize {
        (cols / self.block_cols() * STRIP * self.layout().block_head()).next_multiple_of(LINE)
    }

    /// Returns the bytes of a strip.
    pub(crate) fn strip_bytes(self, cols: usize) -> usize {
        self.head_len(cols) + cols / GROUP * STRIP * self.layout().code_bytes()
    }

    /// Returns the number of rows that are packed together.
    pub fn rows_per_strip(self) -> usize {
        STRIP
    }

    /// Returns the bytes of a packed matrix.
    pub fn packed_bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(STRIP) * self.strip_bytes(cols)
    }

    /// Packs rows of a file's blocks as rows `first..` of a packed matrix; rows that nobody packs must be zero.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the sizes contradict each other, or a scale or minimum is not a finite number.
    pub fn pack(self, blocks: &[u8], cols: usize, packed: &mut [u8], first: usize) -> Result<()> {
        let row_bytes = cols / self.block_cols() * self.block_bytes();
        let has_sizes = cols > 0 && cols.is_multiple_of(self.block_cols()) && blocks.len().is_multiple_of(row_bytes);
        if !has_sizes || packed.len() < self.packed_bytes(first + blocks.len() / row_bytes, cols) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes of {} in rows of {cols} can't be packed into {} bytes from row {first} on",
                blocks.len(),
                self.name(),
                packed.len()
            )));
        }
        let start = first / STRIP * self.strip_bytes(cols);
        match self.pack_strips(blocks, cols, &mut packed[start..], first % STRIP) {
            Some(row) => Err(Error::InvalidArgument(format!("a scale of row {row} is not a finite number"))),
            None => Ok(()),
        }
    }

    /// Packs rows from output `first` of the first strip on, many of them in several threads; returns the first row whose
    /// scales are not all finite.
    fn pack_strips(self, blocks: &[u8], cols: usize, strips: &mut [u8], first: usize) -> Option<usize> {
        let row_bytes = cols / self.block_cols() * self.block_bytes();
        let num_strips = (first + blocks.len() / row_bytes).div_ceil(STRIP);
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let size = num_strips.div_ceil(num_threads).max(THREAD_BYTES.div_ceil(STRIP * row_bytes));
        // The first piece has fewer rows if it begins within a strip.
        let cut = (size * STRIP - first) * row_bytes;
        if blocks.len() <= cut {
            return self.pack_piece(blocks, cols, strips, first);
        }
        let (own, rest) = blocks.split_at(cut);
        let (own_strips, rest_strips) = strips.split_at_mut(size * self.strip_bytes(cols));
        let pieces = rest.chunks(size * STRIP * row_bytes).zip(rest_strips.chunks_mut(size * self.strip_bytes(cols)));
        let start = size * STRIP - first;
        std::thread::scope(|scope| {
            let others: Vec<_> =
                pieces.map(|(blocks, strips)| scope.spawn(move || self.pack_piece(blocks, cols, strips, 0))).collect();
            let found = self.pack_piece(own, cols, own_strips, first);
            let of_others = others.into_iter().enumerate().filter_map(|(idx, thread)| {
                thread.join().expect("packing doesn't panic").map(|row| start + idx * size * STRIP + row)
            });
            found.into_iter().chain(of_others).min()
        })
    }

    /// Packs rows in this thread; see [`Self::pack_strips`].
    fn pack_piece(self, blocks: &[u8], cols: usize, strips: &mut [u8], first: usize) -> Option<usize> {
        let row_bytes = cols / self.block_cols() * self.block_bytes();
        for (idx, row) in blocks.chunks_exact(row_bytes).enumerate() {
            let (strip, output) = ((first + idx) / STRIP, (first + idx) % STRIP);
            let strip = &mut strips[strip * self.strip_bytes(cols)..][..self.strip_bytes(cols)];
            if !self.pack_row(row, output, strip.split_at_mut(self.head_len(cols))) {
                return Some(idx);
            }
        }
        None
    }

    /// Packs a row as one output of a strip; returns whether all scales are finite. Compiled for each scheme.
    fn pack_row(self, row: &[u8], output: usize, strip: (&mut [u8], &mut [u8])) -> bool {
        macro_rules! with {
            ($($name:ident)*) => {
                match self {
                    $(Self::$name => Self::$name.pack_row_as(row, output, strip),)*
                }
            };
        }
        with! { Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K MXFP4 Z4 Z8 }
    }

    /// Packs a row; see [`Self::pack_row`].
    #[inline(always)]
    fn pack_row_as(self, row: &[u8], output: usize, (head, codes): (&mut [u8], &mut [u8])) -> bool {
        let layout = self.layout();
        let mut is_finite = true;
        for (block_idx, block) in row.chunks_exact(layout.block_bytes).enumerate() {
            for idx in 0..layout.groups() {
                let to = Places::of(layout, block_idx * layout.groups() + idx, output);
                is_finite &= self.pack_group(block, idx, to, (&mut *head, &mut *codes));
            }
        }
        is_finite
    }

    /// Computes the values of row `row` of a packed matrix into `to`, a row's length; the bits are those of the file's
    /// own definition in f32.
    ///
    /// # Panics
    ///
    /// If `packed` has no such row of this length.
    pub fn unpack_row(self, packed: &[u8], row: usize, to: &mut [f32]) {
        let cols = to.len();
        let strip = &packed[row / STRIP * self.strip_bytes(cols)..][..self.strip_bytes(cols)];
        let (head, codes) = strip.split_at(self.head_len(cols));
        for (group, values) in to.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let layout = self.layout();
            Cell::read(Places::of(layout, group, row % STRIP), head, codes).values(layout, values);
        }
    }
}
