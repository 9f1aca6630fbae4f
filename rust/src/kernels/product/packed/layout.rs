//! How a scheme is laid out: the bits of its codes, and what scales them.

/// Columns of a group.
pub const GROUP: usize = 32;

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Two codes share a byte.
    Four,
    /// As four, and a fifth bit in the strip's head.
    Five,
    /// As four, and four codes share a byte of higher bits.
    Six,
    /// As four, and each is the place of a code in [`FLOATS`].
    Float,
    Eight,
}

/// Twice the four-bit floats, which are whole numbers, 16 too high: magnitudes of two bits of exponent and one of fraction,
/// then the same negative.
///
/// Source: OCP Microscaling Formats (MX) Specification, version 1.0, section 5.3.3 (FP4, E2M1).
pub(super) const FLOATS: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

/// What scales the codes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// A scale.
    One,
    /// A scale and a minimum, which is added.
    WithMin,
    /// A scale and a zero point, which is subtracted from codes: the minimum is minus the product of both, exact in f32.
    WithZero,
    /// Multiples of a block's scale and of its minimum, which is subtracted.
    Multiples,
    /// A multiple of a block's scale for each half of the group.
    PerHalf,
}

/// How a scheme is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub width: Width,
    pub scales: Scales,
    /// What stored codes are too high.
    pub middle: u8,
    /// Bytes of a block in a file.
    pub block_bytes: usize,
}

impl Layout {
    #[inline(always)]
    pub const fn of(width: Width, scales: Scales, middle: u8, block_bytes: usize) -> Self {
        Self { width, scales, middle, block_bytes }
    }

    /// Returns the groups of a block in a file.
    #[inline(always)]
    pub const fn groups(self) -> usize {
        if matches!(self.scales, Scales::Multiples | Scales::PerHalf) { 8 } else { 1 }
    }

    /// Returns how many half-precision numbers a block has.
    #[inline(always)]
    pub const fn num_halves(self) -> usize {
        if matches!(self.scales, Scales::WithMin | Scales::WithZero | Scales::Multiples) { 2 } else { 1 }
    }

    /// Returns how many multiples a group has, a byte each.
    #[inline(always)]
    pub const fn num_multiples(self) -> usize {
        if self.groups() > 1 { 2 } else { 0 }
    }

    /// Returns the bytes of a group of one output in a strip's head: multiples, then fifth bits.
    #[inline(always)]
    pub const fn group_head(self) -> usize {
        self.num_multiples() + if matches!(self.width, Width::Five) { GROUP / 8 } else { 0 }
    }

    /// Returns the bytes of a block of one output in a strip's head: half-precision numbers, then its groups.
    #[inline(always)]
    pub const fn block_head(self) -> usize {
        2 * self.num_halves() + self.groups() * self.group_head()
    }

    /// Returns the bytes of a group's codes, without fifth bits.
    #[inline(always)]
    pub const fn code_bytes(self) -> usize {
        match self.width {
            Width::Four | Width::Five | Width::Float => GROUP / 2,
            Width::Six => GROUP / 4 * 3,
            Width::Eight => GROUP,
        }
    }
}
