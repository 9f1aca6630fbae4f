//! Blocks of 32 columns, which are a group: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Z4 and Z8.

use super::cell::Cell;
use super::layout::{GROUP, Layout, Width};

/// Reads a block: scale, minimum if any, fifth bits if any, then codes.
#[inline]
pub(super) fn cell(layout: Layout, block: &[u8]) -> Cell {
    let mut cell = Cell::default();
    let (halves, rest) = block.split_at(2 * layout.num_halves());
    for (to, half) in cell.halves.iter_mut().zip(halves.as_chunks().0) {
        *to = u16::from_le_bytes(*half);
    }
    if layout.width == Width::Eight {
        // Without a sign, as instructions take codes.
        cell.codes.iter_mut().zip(rest).for_each(|(to, code)| *to = code ^ 0x80);
        return cell;
    }
    let (bits, codes) = rest.split_at(if layout.width == Width::Five { GROUP / 8 } else { 0 });
    let (low, high) = cell.codes.split_at_mut(GROUP / 2);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        (*low, *high) = (code & 15, code >> 4);
    }
    if let Some(bits) = bits.first_chunk() {
        let bits = u32::from_le_bytes(*bits);
        cell.codes.iter_mut().enumerate().for_each(|(col, code)| *code |= (bits >> col & 1) as u8 * 16);
    }
    cell
}
