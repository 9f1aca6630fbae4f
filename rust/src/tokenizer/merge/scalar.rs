//! Merges short pieces with instructions that every processor has.

use super::boundary::{ByteBoundary, NUM_BOUNDARIES, boundary_index};
use super::table::{Merges, NO_MERGE, SHORT_PIECE};
use crate::tokenizer::bits::{low_bits, places};
use crate::tokenizer::tokens::NUM_BYTES;

/// The tables that merging reads.
pub struct ScalarTables<'a> {
    /// Every boundary of the vocabulary.
    pub boundaries: &'a [ByteBoundary; NUM_BOUNDARIES],
    /// The token of each byte.
    pub byte_ids: &'a [u32; NUM_BYTES],
    /// All merges of the vocabulary.
    pub merges: &'a Merges<'a>,
}

impl ScalarTables<'_> {
    /// Appends the tokens from which merging starts: single bytes, and pairs of bytes that merge whatever surrounds
    /// them.
    ///
    /// The piece may have any length; each of its bytes must be a token.
    pub fn begin(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let boundary_at = |at: usize| piece.get(at + 1).map(|&next| self.boundaries[boundary_index(piece[at], next)]);
        let bound_at = |at: usize| boundary_at(at).map_or(NO_MERGE, ByteBoundary::bound);
        let (mut at, mut before) = (0, NO_MERGE);
        while at < piece.len() {
            let rank = boundary_at(at).map_or(NO_MERGE, ByteBoundary::rank);
            // Of two merges with the same rank, the left one goes first.
            let is_pair = rank < before && rank <= bound_at(at + 1);
            ids.push(if is_pair { self.merges.id(rank) } else { self.byte_ids[usize::from(piece[at])] });
            at += usize::from(is_pair);
            before = bound_at(at);
            at += 1;
        }
    }

    /// Merges a piece of 1 to [`SHORT_PIECE`] bytes into `out` and returns the number of tokens. Each byte must be a
    /// token.
    #[inline(always)]
    pub fn merge(&self, piece: &[u8], out: &mut [u32]) -> usize {
        let merges = self.merges;
        let mut ranks = [NO_MERGE; SHORT_PIECE];
        // No merge crosses the start or the end of the piece.
        let mut bounds = [NO_MERGE; SHORT_PIECE + 1];
        for (at, pair) in piece.windows(2).enumerate() {
            let boundary = self.boundaries[boundary_index(pair[0], pair[1])];
            (ranks[at], bounds[at + 1]) = (boundary.rank(), boundary.bound());
        }
        let mut sure = 0;
        for at in 0..piece.len() - 1 {
            sure |= u64::from((ranks[at] < bounds[at]) & (ranks[at] <= bounds[at + 2])) << at;
        }
        let (mut ids, mut count, mut changed) = ([0; SHORT_PIECE], 0, 0);
        for at in places(low_bits(piece.len()) & !(sure << 1)) {
            let is_pair = sure >> at & 1;
            ids[count] = merges.id_or(is_pair != 0, ranks[at], self.byte_ids[usize::from(piece[at])]);
            ranks[count] = ranks[at + is_pair as usize];
            changed |= is_pair << count | is_pair << count >> 1;
            count += 1;
        }
        merges.look_up(&ids, changed & low_bits(count - 1), &mut ranks);
        merges.apply_short(ids[..count].iter().copied(), ranks[..count - 1].iter().copied(), out)
    }
}
