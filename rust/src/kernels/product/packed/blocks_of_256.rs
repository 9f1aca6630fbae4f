//! Blocks of 256 columns, which are eight groups: Q4_K, Q5_K and Q6_K.

use super::cell::{Cell, FOUR_IN_EACH, IN_EACH, TWO_IN_EACH, eight};
use super::layout::{GROUP, Layout, Width};

/// Reads group `idx` of a block of Q4_K or Q5_K: scale and minimum, twelve bytes of multiples in six bits, fifth bits if
/// any, then codes. Each 32 bytes of codes hold two groups, one in the low halves; bit `idx` of a column's fifth bits is
/// the group's.
#[inline(always)]
pub(super) fn cell_with_min(layout: Layout, block: &[u8], idx: usize) -> Cell {
    let (multiples, rest) = block[4..].split_at(12);
    let (bits, codes) = rest.split_at(if layout.width == Width::Five { GROUP } else { 0 });
    let codes = &codes[idx / 2 * GROUP..][..GROUP];
    let mut cell =
        Cell { halves: [half(block, 0), half(block, 2)], multiples: six_bits(multiples, idx), ..Cell::default() };
    let fifth = |at: usize| if bits.is_empty() { 0 } else { (eight(bits, at) >> idx) & IN_EACH };
    cell.set_eights(|at| ((eight(codes, at) >> (idx % 2 * 4)) & FOUR_IN_EACH) | fifth(at) << 4);
    cell
}

/// Returns the multiples of scale and minimum for group `idx`. The first four groups have a byte each, whose two upper bits
/// belong to the last four; these have their lower four bits in the last four bytes.
#[inline(always)]
fn six_bits(bytes: &[u8], idx: usize) -> [u8; 2] {
    if idx < 4 {
        return [bytes[idx] & 63, bytes[idx + 4] & 63];
    }
    [bytes[idx + 4] & 15 | bytes[idx - 4] >> 6 << 4, bytes[idx + 4] >> 4 | bytes[idx] >> 6 << 4]
}

/// Reads group `idx` of a block of Q6_K: lower four bits, upper two, sixteen multiples, then the scale. Each half of the
/// block has four groups: two in the low halves of 64 bytes, two in the high; all four share bytes of upper bits.
#[inline(always)]
pub(super) fn cell_of_six_bits(block: &[u8], idx: usize) -> Cell {
    let (half_idx, quarter) = (idx / 4, idx % 4);
    let low = &block[64 * half_idx + quarter % 2 * GROUP..][..GROUP];
    let high = &block[128 + GROUP * half_idx..][..GROUP];
    let multiples = [block[192 + 2 * idx], block[193 + 2 * idx]];
    let mut cell = Cell { halves: [half(block, 208), 0], multiples, ..Cell::default() };
    cell.set_eights(|at| {
        ((eight(low, at) >> (quarter / 2 * 4)) & FOUR_IN_EACH) | ((eight(high, at) >> (2 * quarter)) & TWO_IN_EACH) << 4
    });
    cell
}

#[inline(always)]
fn half(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}
