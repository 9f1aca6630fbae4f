//! Sets of small numbers as bits of a word.

/// The lowest `count` bits, at most 64.
#[inline(always)]
pub fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Places of the bits of a mask.
#[inline(always)]
pub fn places(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (at < 64).then_some(at)
    })
}
