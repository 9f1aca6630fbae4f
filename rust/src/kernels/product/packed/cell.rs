//! A group of one output, between a file's block and its places in a strip.

use super::activations::Group;
use super::layout::{FLOATS, GROUP, Layout, Scales, Width};
use crate::kernels::product::strip::STRIP;

/// Bytes between two blocks of eight columns of a strip's codes.
const BLOCK: usize = 8 * STRIP;

/// One in each byte.
pub(super) const IN_EACH: u64 = u64::from_le_bytes([1; 8]);
/// The two lower bits of each byte.
pub(super) const TWO_IN_EACH: u64 = u64::from_le_bytes([3; 8]);
/// The four lower bits of each byte.
pub(super) const FOUR_IN_EACH: u64 = u64::from_le_bytes([15; 8]);

/// Returns bytes `8 * idx` to `8 * idx + 7`, the first as the lowest.
#[inline(always)]
pub(super) fn eight(bytes: &[u8], idx: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * idx..][..8][byte]))
}

/// A group of one output.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// Scale and minimum in half precision; 0 where the scheme has none.
    pub halves: [u16; 2],
    /// Multiples of scale and minimum, or of the scale for each half of the group.
    pub multiples: [u8; 2],
    /// Codes as high as they are stored.
    pub codes: [u8; GROUP],
}

/// Where a strip holds a group of one output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    layout: Layout,
    output: usize,
    /// Half-precision numbers in the head.
    halves: usize,
    /// Multiples in the head, then fifth bits.
    multiples: usize,
    codes: usize,
}

impl Places {
    #[inline(always)]
    pub fn of(layout: Layout, group: usize, output: usize) -> Self {
        let halves = group / layout.groups() * STRIP * layout.block_head();
        let before = 2 * layout.num_halves() + group % layout.groups() * layout.group_head();
        let (multiples, codes) = (halves + STRIP * before, group * STRIP * layout.code_bytes());
        Self { layout, output, halves, multiples, codes }
    }

    #[inline(always)]
    pub fn half(&self, kind: usize) -> usize {
        self.halves + 2 * (kind * STRIP + self.output)
    }

    #[inline(always)]
    fn multiple(&self, kind: usize) -> usize {
        self.multiples + kind * STRIP + self.output
    }

    /// Fifth bits of eight columns.
    #[inline(always)]
    pub fn bits(&self, block: usize) -> usize {
        self.multiple(self.layout.num_multiples() + block)
    }

    /// Codes of eight columns; after those of 32 columns in four bits, higher bits of all.
    #[inline(always)]
    pub fn codes(&self, block: usize) -> usize {
        self.codes + block * BLOCK + 8 * self.output
    }
}

impl Cell {
    /// Writes the group to its places in a strip's head and codes.
    #[inline(always)]
    pub fn write(&self, to: Places, head: &mut [u8], codes: &mut [u8]) {
        for kind in 0..to.layout.num_halves() {
            head[to.half(kind)..][..2].copy_from_slice(&self.halves[kind].to_le_bytes());
        }
        for kind in 0..to.layout.num_multiples() {
            head[to.multiple(kind)] = self.multiples[kind];
        }
        let blocks = self.eights();
        if to.layout.width == Width::Eight {
            for (block, eight) in blocks.iter().enumerate() {
                codes[to.codes(block)..][..8].copy_from_slice(&eight.to_le_bytes());
            }
            return;
        }
        for block in 0..2 {
            let both = (blocks[block] & FOUR_IN_EACH) | (blocks[block + 2] & FOUR_IN_EACH) << 4;
            codes[to.codes(block)..][..8].copy_from_slice(&both.to_le_bytes());
        }
        match to.layout.width {
            Width::Five => {
                for (block, eight) in blocks.iter().enumerate() {
                    // The product brings the bit of byte n to bit 56 + n.
                    head[to.bits(block)] = (((eight >> 4) & IN_EACH).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
                }
            }
            Width::Six => {
                let high = (0..4).fold(0, |bits, block| bits | ((blocks[block] >> 4) & TWO_IN_EACH) << (2 * block));
                codes[to.codes(2)..][..8].copy_from_slice(&high.to_le_bytes());
            }
            Width::Four | Width::Eight | Width::Float => {}
        }
    }

    /// Returns the codes of eight columns each, the first in the lowest byte.
    #[inline(always)]
    fn eights(&self) -> [u64; GROUP / 8] {
        std::array::from_fn(|block| eight(&self.codes, block))
    }

    /// Replaces all codes, eight columns at a time.
    #[inline(always)]
    pub fn set_eights(&mut self, of: impl Fn(usize) -> u64) {
        for (block, to) in self.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *to = of(block).to_le_bytes();
        }
    }

    /// Reads the group from its places in a strip's head and codes.
    pub fn read(from: Places, head: &[u8], codes: &[u8]) -> Self {
        let mut cell = Self::default();
        for kind in 0..from.layout.num_halves() {
            let place = from.half(kind);
            cell.halves[kind] = u16::from_le_bytes([head[place], head[place + 1]]);
        }
        for kind in 0..from.layout.num_multiples() {
            cell.multiples[kind] = head[from.multiple(kind)];
        }
        for (block, eight) in cell.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            for (col, code) in eight.iter_mut().enumerate() {
                let four = || codes[from.codes(block % 2) + col] >> (block / 2 * 4) & 15;
                *code = match from.layout.width {
                    Width::Four => four(),
                    Width::Float => FLOATS[usize::from(four())],
                    Width::Five => four() | (head[from.bits(block)] >> col & 1) << 4,
                    Width::Six => four() | (codes[from.codes(2) + col] >> (2 * block) & 3) << 4,
                    Width::Eight => codes[from.codes(block) + col],
                };
            }
        }
        cell
    }

    /// Computes the values, by the scheme's own definition and order of operations.
    pub fn values(&self, layout: Layout, to: &mut [f32; GROUP]) {
        let min = self.min(layout);
        for (col, (value, code)) in to.iter_mut().zip(self.codes).enumerate() {
            let code = f32::from(i16::from(code) - i16::from(layout.middle));
            let scale = half_to_f32(self.halves[0]);
            *value = match layout.scales {
                Scales::One => scale * code,
                Scales::WithMin | Scales::WithZero => scale * code + min,
                Scales::Multiples => scale * f32::from(self.multiples[0]) * code + min,
                Scales::PerHalf => scale * self.half_multiple(col / (GROUP / 2)) * code,
            };
        }
    }

    /// Multiplies the group with one of activations: whole numbers exactly, then scaled.
    pub fn product(&self, layout: Layout, x: &Group) -> f32 {
        let sum_of = |half: usize| -> i32 {
            let cols = half * GROUP / 2..(half + 1) * GROUP / 2;
            let codes = self.codes[cols.clone()].iter().map(|code| i32::from(*code) - i32::from(layout.middle));
            codes.zip(&x.codes[cols]).map(|(code, x)| code * i32::from(*x)).sum()
        };
        let (first, second) = (sum_of(0), sum_of(1));
        let scale = half_to_f32(self.halves[0]);
        match layout.scales {
            Scales::One => (first + second) as f32 * x.scale * scale,
            Scales::WithMin | Scales::WithZero => {
                (first + second) as f32 * x.scale * scale + self.min(layout) * x.scaled_sum
            }
            Scales::Multiples => {
                let scale = scale * f32::from(self.multiples[0]);
                (first + second) as f32 * x.scale * scale + self.min(layout) * x.scaled_sum
            }
            Scales::PerHalf => {
                let sum = first as f32 * self.half_multiple(0) + second as f32 * self.half_multiple(1);
                sum * x.scale * scale
            }
        }
    }

    /// Returns what the scheme adds to each value.
    fn min(&self, layout: Layout) -> f32 {
        let min = half_to_f32(self.halves[1]);
        match layout.scales {
            Scales::Multiples => -(min * f32::from(self.multiples[1])),
            Scales::WithZero => -(half_to_f32(self.halves[0]) * min),
            Scales::One | Scales::WithMin | Scales::PerHalf => min,
        }
    }

    /// Returns the multiple of the scale for half of the group.
    fn half_multiple(&self, half: usize) -> f32 {
        f32::from(self.multiples[half] as i8)
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
