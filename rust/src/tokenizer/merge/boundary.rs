//! For each pair of adjacent bytes, stores the lowest rank of any merge that crosses the boundary between them.

use std::hint::select_unpredictable;

use super::table::NO_MERGE;
use crate::tokenizer::tokens::{NO_ID, NUM_BYTES};
use crate::tokenizer::vocab::Vocab;

/// Number of pairs of adjacent bytes.
pub const NUM_BOUNDARIES: usize = NUM_BYTES * NUM_BYTES;

/// The boundary between two adjacent bytes: the rank of the merge of just these bytes, and a lower bound for the rank
/// of every merge that crosses the boundary.
///
/// Both share four bytes so that the table stays in the processor's caches. The bound has few bits and may be lower
/// than the true one, which is still correct: slightly fewer pairs are then known to merge.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct ByteBoundary(u32);

impl ByteBoundary {
    /// Number of bits of the rank.
    pub const RANK_BITS: u32 = 22;

    /// The rank of two bytes that never merge.
    pub const NO_RANK: u32 = (1 << Self::RANK_BITS) - 1;

    /// Number of bits of a bound's mantissa, without its leading bit.
    pub const MANTISSA_BITS: u32 = 5;

    /// The smallest mantissa; a bound plus this value is a mantissa shifted by an exponent.
    pub const LEAST_MANTISSA: u32 = 1 << Self::MANTISSA_BITS;

    /// The boundary with this rank and the largest bound that fits and does not exceed `bound`.
    pub fn new(rank: u32, bound: u32) -> Self {
        let (rank, bound) = (rank.min(Self::NO_RANK), bound.min(Self::NO_RANK) + Self::LEAST_MANTISSA);
        let exponent = bound.ilog2() - Self::MANTISSA_BITS;
        let mantissa = bound >> exponent & (Self::LEAST_MANTISSA - 1);
        Self(rank | (exponent << Self::MANTISSA_BITS | mantissa) << Self::RANK_BITS)
    }

    /// The rank of the merge of the two bytes, or [`NO_MERGE`].
    #[inline(always)]
    pub fn rank(self) -> u32 {
        let rank = self.0 & Self::NO_RANK;
        select_unpredictable(rank == Self::NO_RANK, NO_MERGE, rank)
    }

    /// A rank below which no merge crosses the boundary.
    #[inline(always)]
    pub fn bound(self) -> u32 {
        let coded = self.0 >> Self::RANK_BITS;
        let mantissa = coded & (Self::LEAST_MANTISSA - 1) | Self::LEAST_MANTISSA;
        (mantissa << (coded >> Self::MANTISSA_BITS)) - Self::LEAST_MANTISSA
    }
}

/// The index of the boundary between two bytes in a table of all of them.
#[inline(always)]
pub fn boundary_index(last: u8, first: u8) -> usize {
    usize::from(last) << 8 | usize::from(first)
}

/// All boundaries of a vocabulary, by [`boundary_index`].
///
/// Every bound is zero, and so of no use, in a vocabulary with a merge that precedes the merge of one of its parts.
pub fn boundaries(vocab: &Vocab) -> Box<[ByteBoundary; NUM_BOUNDARIES]> {
    let (merges, ids) = (vocab.merge_table().merges(), vocab.byte_ids());
    let pairs = ids.iter().flat_map(|&left| ids.iter().map(move |&right| (left, right)));
    let rank = |(left, right): (u32, u32)| if left.max(right) == NO_ID { NO_MERGE } else { merges.rank(left, right) };
    let bounds = bounds(vocab).unwrap_or_else(|| vec![0; NUM_BOUNDARIES]);
    let mut boundaries = Box::new([ByteBoundary::new(NO_MERGE, 0); NUM_BOUNDARIES]);
    for ((boundary, pair), bound) in boundaries.iter_mut().zip(pairs).zip(bounds) {
        *boundary = ByteBoundary::new(rank(pair), bound);
    }
    boundaries
}

/// The lowest rank of a merge that crosses each boundary; `None` unless every merge follows those that make its parts.
fn bounds(vocab: &Vocab) -> Option<Vec<u32>> {
    let tokens = vocab.tokens();
    let mut made = vec![0; vocab.size()];
    let mut bounds = vec![NO_MERGE; NUM_BOUNDARIES];
    for (merge, rank) in vocab.merges().iter().zip(0..) {
        if made[merge.left as usize].max(made[merge.right as usize]) > rank {
            return None;
        }
        made[merge.id as usize] = rank + 1;
        let (last, first) = (tokens.bytes(merge.left)?.last()?, tokens.bytes(merge.right)?.first()?);
        let bound = &mut bounds[boundary_index(*last, *first)];
        *bound = rank.min(*bound);
    }
    Some(bounds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_boundary_keeps_its_rank_and_never_exceeds_its_bound(
            rank in 0..ByteBoundary::NO_RANK, bound in 0..ByteBoundary::NO_RANK,
        ) {
            let boundary = ByteBoundary::new(rank, bound);
            prop_assert_eq!(boundary.rank(), rank);
            prop_assert!((bound - bound / 32..=bound).contains(&boundary.bound()));
            let open = ByteBoundary::new(NO_MERGE, NO_MERGE);
            prop_assert_eq!(open.rank(), NO_MERGE);
            prop_assert!(open.bound() > 4_000_000);
        }
    }
}
