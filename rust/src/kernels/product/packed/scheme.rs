//! Schemes of quantised weights: sizes, packing, and what packed codes mean.

use crate::kernels::product::strip::STRIP;
use crate::{Error, Result};

/// Columns of a group.
pub const GROUP: usize = 32;
/// Size that strips and their scales are filled up to.
const LINE: usize = 64;

/// A scheme of quantised weights, by its name in GGUF files.
///
/// Source: ggml-org/ggml `src/ggml-common.h`, blocks `block_q8_0`, `block_q4_0` and `block_q4_1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `d * q` for q in [-128, 127].
    Q8_0,
    /// `d * (q - 8)` for q in [0, 15].
    Q4_0,
    /// `d * q + m` for q in [0, 15].
    Q4_1,
}

impl Scheme {
    /// All schemes.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// Returns the scheme's name in GGUF files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// Returns the bytes of scale and minimum of a group, half-precision numbers.
    pub(super) const fn scale_bytes(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 => 2,
            Self::Q4_1 => 4,
        }
    }

    /// Returns the bytes of a group's codes.
    pub(super) const fn code_bytes(self) -> usize {
        match self {
            Self::Q8_0 => GROUP,
            Self::Q4_0 | Self::Q4_1 => GROUP / 2,
        }
    }

    /// Returns the bytes of a group in a file: scale and minimum, then codes.
    pub const fn group_bytes(self) -> usize {
        self.scale_bytes() + self.code_bytes()
    }

    /// Returns the bytes of a strip's scales.
    pub(super) fn scales_len(self, cols: usize) -> usize {
        (cols / GROUP * STRIP * self.scale_bytes()).next_multiple_of(LINE)
    }

    /// Returns the bytes of a strip.
    pub(crate) fn strip_bytes(self, cols: usize) -> usize {
        self.scales_len(cols) + cols / GROUP * STRIP * self.code_bytes()
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
        let row_bytes = cols / GROUP * self.group_bytes();
        let has_sizes = cols > 0 && cols.is_multiple_of(GROUP) && blocks.len().is_multiple_of(row_bytes);
        if !has_sizes || packed.len() < self.packed_bytes(first + blocks.len() / row_bytes, cols) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes of {} in rows of {cols} can't be packed into {} bytes from row {first} on",
                blocks.len(),
                self.name(),
                packed.len()
            )));
        }
        for (idx, row) in blocks.chunks_exact(row_bytes).enumerate() {
            let (strip, output) = ((first + idx) / STRIP, (first + idx) % STRIP);
            let strip = &mut packed[strip * self.strip_bytes(cols)..][..self.strip_bytes(cols)];
            if !self.pack_row(row, output, strip.split_at_mut(self.scales_len(cols))) {
                return Err(Error::InvalidArgument(format!("a scale of row {idx} is not a finite number")));
            }
        }
        Ok(())
    }

    /// Packs a row as one output of a strip; returns whether all scales are finite.
    fn pack_row(self, row: &[u8], output: usize, (scales, codes): (&mut [u8], &mut [u8])) -> bool {
        let mut is_finite = true;
        for (group, block) in row.chunks_exact(self.group_bytes()).enumerate() {
            let (numbers, quantised) = block.split_at(self.scale_bytes());
            for (kind, number) in numbers.as_chunks::<2>().0.iter().enumerate() {
                is_finite &= u16::from_le_bytes(*number) & 0x7C00 != 0x7C00;
                let place = (group * self.scale_bytes() + 2 * kind) * STRIP + 2 * output;
                scales[place..place + 2].copy_from_slice(number);
            }
            let codes = &mut codes[group * self.code_bytes() * STRIP..];
            for (block, eight) in quantised.as_chunks::<8>().0.iter().enumerate() {
                let to = &mut codes[block * 8 * STRIP + 8 * output..][..8];
                to.copy_from_slice(eight);
                if self == Self::Q8_0 {
                    // Stored without a sign, as the instructions take them.
                    to.iter_mut().for_each(|code| *code ^= 0x80);
                }
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
        let (scales, codes) = strip.split_at(self.scales_len(cols));
        let output = row % STRIP;
        for (group, values) in to.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            let scales = &scales[group * self.scale_bytes() * STRIP..];
            let half = |kind: usize| {
                let place = 2 * kind * STRIP + 2 * output;
                half_to_f32(u16::from_le_bytes([scales[place], scales[place + 1]]))
            };
            let codes = &codes[group * self.code_bytes() * STRIP..][..self.code_bytes() * STRIP];
            let codes = self.codes(codes, output);
            let scale = half(0);
            match self {
                Self::Q8_0 | Self::Q4_0 => {
                    values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(code) * scale);
                }
                Self::Q4_1 => {
                    let min = half(1);
                    values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(code) * scale + min);
                }
            }
        }
    }
}

impl Scheme {
    /// Returns the codes of one output of a group, with their signs.
    pub(super) fn codes(self, packed: &[u8], output: usize) -> [i16; GROUP] {
        let middle = match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
        };
        let mut found = [0; GROUP];
        for (block, eight) in packed.as_chunks::<{ 8 * STRIP }>().0.iter().enumerate() {
            for (col, code) in eight[8 * output..8 * output + 8].iter().enumerate() {
                let col = 8 * block + col;
                if self == Self::Q8_0 {
                    found[col] = i16::from(*code) - middle;
                } else {
                    found[col] = i16::from(code & 15) - middle;
                    found[col + GROUP / 2] = i16::from(code >> 4) - middle;
                }
            }
        }
        found
    }
}

/// Converts a half-precision number.
pub(crate) fn half_to_f32(half: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(half >> 15) << 31, u32::from(half >> 10) & 31, u32::from(half) & 0x3FF);
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * (1.0 / (1 << 24) as f32)).to_bits()),
        31 => f32::from_bits(sign | 0x7F80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}
