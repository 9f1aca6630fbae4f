//! Activations in eight bits, with a scale for every 32 columns.

use super::layout::GROUP;
use crate::kernels::simd::{Simd, dispatch};

/// A group of a row of activations: `scale * code`, rounded to the nearest code.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Group {
    /// Whole numbers in [-127, 127].
    pub codes: [i8; GROUP],
    /// Largest magnitude / 127.
    pub scale: f32,
    /// Sum of the codes, scaled: what a minimum of weights is multiplied with.
    pub scaled_sum: f32,
    /// Sum of the codes times -4: half the sum for codes of weights that are stored 8 too high, since two lanes share it.
    pub offset: i32,
    /// The same of the first 16 codes.
    pub first_offset: i32,
}

dispatch! {
    /// Quantises a row, or groups of a row, of whole groups.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, and `to` has room for all groups.
    pub(crate) unsafe fn quantise = run_quantise(from: &[f32], to: *mut Group)
}

#[inline(always)]
unsafe fn run_quantise<S: Simd>(from: &[f32], to: *mut Group) {
    for (idx, values) in from.as_chunks::<GROUP>().0.iter().enumerate() {
        // SAFETY: the caller promises room for all groups.
        unsafe { to.add(idx).write(group_of(values)) };
    }
}

/// Quantises a group. A group with NaN or infinity gets a scale that is not finite, and so do its products.
#[inline(always)]
fn group_of(values: &[f32; GROUP]) -> Group {
    // 1.5 · 2^23: adding the number rounds to whole numbers, ties to even, in the lowest bits.
    const ROUNDS: f32 = 12_582_912.0;
    // Magnitudes as bits: they are ordered like the numbers, NaN last, and compared without a branch.
    let largest = values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7FFF_FFFF));
    let largest = f32::from_bits(largest);
    let is_tiny = largest < 1e-30;
    let (scale, inverse) = if is_tiny { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
    // A loop for each result, so that the compiler uses vectors for all of them.
    let mut codes = [0_i8; GROUP];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse + ROUNDS).to_bits().wrapping_sub(ROUNDS.to_bits()) as i8;
    }
    let (first, second) = codes.split_at(GROUP / 2);
    let sums = [first, second].map(|half| half.iter().map(|code| i32::from(*code)).sum::<i32>());
    let sum = sums[0] + sums[1];
    Group { codes, scale, scaled_sum: scale * sum as f32, offset: -4 * sum, first_offset: -4 * sums[0] }
}
