//! Blocks of 32 columns, which are a group: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, MXFP4, Z4 and Z8.

use super::cell::{Cell, IN_EACH, Places, eight};
use super::layout::{GROUP, Layout, Width};

/// The largest exponent of half-precision numbers and its fraction's bits: infinity, which no scheme accepts as a scale.
const INFINITY: u16 = 0x7C00;

/// Reads a block of codes of eight bits: scale, zero point if any, then codes.
#[inline(always)]
pub(super) fn cell_of_eight_bits(layout: Layout, block: &[u8]) -> Cell {
    let mut cell = Cell::default();
    let (halves, codes) = block.split_at(2 * layout.num_halves());
    cell.halves.iter_mut().zip(halves.as_chunks().0).for_each(|(to, half)| *to = u16::from_le_bytes(*half));
    // Without a sign, as instructions take codes.
    cell.set_eights(|at| eight(codes, at) ^ (IN_EACH << 7));
    cell
}

/// Moves a block of codes of four or five bits to its places: scale, minimum if any, fifth bits if any, then codes. Eight
/// bytes hold the same sixteen codes in a file and in a strip, and a byte the same fifth bits. Returns whether the block's
/// scales are finite.
#[inline(always)]
pub(super) fn move_codes(layout: Layout, block: &[u8], to: Places, head: &mut [u8], codes: &mut [u8]) -> bool {
    let (first, stored) = block.split_at(block.len() - GROUP / 2);
    let mut halves = [0; 2];
    if layout.width == Width::Float {
        let is_zero = stored.iter().fold(0, |all, byte| all | byte & 0x77) == 0;
        halves[0] = if is_zero { 0 } else { half_of_power(i32::from(first[0]) - 128) };
    } else {
        halves.iter_mut().zip(first.as_chunks().0).for_each(|(to, half)| *to = u16::from_le_bytes(*half));
    }
    let halves = &halves[..layout.num_halves()];
    for (kind, half) in halves.iter().enumerate() {
        head[to.half(kind)..][..2].copy_from_slice(&half.to_le_bytes());
    }
    if layout.width == Width::Five {
        first[2 * halves.len()..].iter().enumerate().for_each(|(at, bits)| head[to.bits(at)] = *bits);
    }
    for (idx, eight) in stored.as_chunks::<8>().0.iter().enumerate() {
        codes[to.codes(idx)..][..8].copy_from_slice(eight);
    }
    halves.iter().all(|half| half & INFINITY != INFINITY)
}

/// Returns a power of two in half precision, or infinity if half precision has none.
#[inline(always)]
fn half_of_power(exponent: i32) -> u16 {
    match exponent {
        -24..=-15 => 1 << (exponent + 24),
        -14..=15 => ((exponent + 15) << 10) as u16,
        _ => INFINITY,
    }
}
