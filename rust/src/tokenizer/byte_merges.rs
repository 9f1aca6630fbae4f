//! Where merging a short piece begins: with all pairs of bytes at once that no other merge can take a part of.
//!
//! Merging by the lowest rank is a chain of look-ups, each of which waits for the one before. Of two bytes that meet it is
//! known below which rank no merge of any tokens reaches over the border between them. A pair of bytes whose rank is lower
//! than that of the borders on both sides will be merged, whatever happens around it, and so it is merged at once.

use std::hint::select_unpredictable;

use super::bits::{low_bits, places};
use super::bpe::{Merges, NO_MERGE, SHORT_PIECE};
use super::vocab::{NO_ID, NUM_BYTES, Vocab};
#[cfg(target_arch = "x86_64")]
use super::{
    wide_batch,
    wide_merges::{self, Tables},
};

/// Borders between two bytes.
pub const NUM_BORDERS: usize = NUM_BYTES * NUM_BYTES;

/// What a vocabulary makes of two bytes that meet: the rank of the merge of the bytes alone, and a bound, below which no
/// rank of a merge of any tokens that meet there is.
///
/// In four bytes, for the table should stay in the processor's caches. A bound has few bits; less than the lowest rank is
/// right too, and finds somewhat fewer sure pairs.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Border(u32);

impl Border {
    /// Bits of the rank.
    pub const RANK_BITS: u32 = 22;

    /// The rank where nothing merges.
    pub const NO_RANK: u32 = (1 << Self::RANK_BITS) - 1;

    /// Bits of a bound's mantissa, less the first.
    pub const MANTISSA_BITS: u32 = 5;

    /// A bound and this is a mantissa from this on, shifted by an exponent.
    pub const LEAST_MANTISSA: u32 = 1 << Self::MANTISSA_BITS;

    fn new(rank: u32, bound: u32) -> Self {
        let (rank, bound) = (rank.min(Self::NO_RANK), bound.min(Self::NO_RANK) + Self::LEAST_MANTISSA);
        let exponent = bound.ilog2() - Self::MANTISSA_BITS;
        let mantissa = bound >> exponent & (Self::LEAST_MANTISSA - 1);
        Self(rank | (exponent << Self::MANTISSA_BITS | mantissa) << Self::RANK_BITS)
    }

    /// [`NO_MERGE`] where nothing merges.
    #[inline(always)]
    fn rank(self) -> u32 {
        let rank = self.0 & Self::NO_RANK;
        select_unpredictable(rank == Self::NO_RANK, NO_MERGE, rank)
    }

    #[inline(always)]
    fn bound(self) -> u32 {
        let coded = self.0 >> Self::RANK_BITS;
        let mantissa = coded & (Self::LEAST_MANTISSA - 1) | Self::LEAST_MANTISSA;
        (mantissa << (coded >> Self::MANTISSA_BITS)) - Self::LEAST_MANTISSA
    }
}

/// Most pieces that are merged together.
pub const BATCH: usize = 16;

/// Most bytes of such a piece.
pub const BATCH_BYTES: usize = 32;

/// Fewer pieces than this are merged faster one after the other.
const MIN_BATCH: usize = 4;

/// The tokens of pieces that were merged together.
#[repr(C, align(64))]
pub struct Batch {
    /// Those of each piece, then nothing of meaning.
    pub ids: [[u32; BATCH_BYTES]; BATCH],
    /// How many each piece has.
    pub counts: [u32; BATCH],
    /// What merging side by side needs.
    #[cfg(target_arch = "x86_64")]
    pub columns: wide_batch::Columns,
}

impl Batch {
    /// No tokens.
    pub fn new() -> Self {
        Self {
            ids: [[0; BATCH_BYTES]; BATCH],
            counts: [0; BATCH],
            #[cfg(target_arch = "x86_64")]
            columns: wide_batch::Columns::new(),
        }
    }
}

/// The borders of a vocabulary.
pub struct ByteMerges {
    /// By both bytes. All bounds are zero, and so of no use, in a vocabulary with a merge that comes before one which makes
    /// a token of it.
    borders: Box<[Border; NUM_BORDERS]>,
    /// Whether the processor has registers for `wide_merges`.
    is_wide: bool,
    /// The token of each byte, if they are so small and the processor has what `wide_batch` needs.
    batch_ids: Option<Box<[u8; NUM_BYTES]>>,
}

impl ByteMerges {
    /// Those of a vocabulary.
    pub fn new(vocab: &Vocab) -> Self {
        let (merges, ids) = (vocab.merge_table().merges(), vocab.byte_ids());
        let pairs = ids.iter().flat_map(|&left| ids.iter().map(move |&right| (left, right)));
        let rank =
            |(left, right): (u32, u32)| if left.max(right) == NO_ID { NO_MERGE } else { merges.rank(left, right) };
        let bounds = bounds(vocab).unwrap_or_else(|| vec![0; NUM_BORDERS]);
        let mut borders = Box::new([Border::new(NO_MERGE, 0); NUM_BORDERS]);
        for ((border, pair), bound) in borders.iter_mut().zip(pairs).zip(bounds) {
            *border = Border::new(rank(pair), bound);
        }
        #[cfg(target_arch = "x86_64")]
        let (is_wide, is_batched) = (wide_merges::is_supported(), wide_batch::is_supported());
        #[cfg(not(target_arch = "x86_64"))]
        let (is_wide, is_batched) = (false, false);
        let small = ids.map(|id| id as u8);
        let is_small = small.map(u32::from) == *ids;
        let batch_ids = (is_wide && is_batched && is_small).then(|| Box::new(small));
        Self { borders, is_wide, batch_ids }
    }

    /// Adds to `ids` the tokens to begin with: of a piece of any length whose bytes all are tokens.
    pub fn begin(&self, piece: &[u8], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, ids: &mut Vec<u32>) {
        let border_at = |at: usize| piece.get(at + 1).map(|&next| self.borders[place(piece[at], next)]);
        let bound_at = |at: usize| border_at(at).map_or(NO_MERGE, Border::bound);
        let (mut at, mut before) = (0, NO_MERGE);
        while at < piece.len() {
            let rank = border_at(at).map_or(NO_MERGE, Border::rank);
            // Of two merges of one rank the left one goes first.
            let is_pair = rank < before && rank <= bound_at(at + 1);
            ids.push(if is_pair { merges.id(rank) } else { byte_ids[usize::from(piece[at])] });
            at += usize::from(is_pair);
            before = bound_at(at);
            at += 1;
        }
    }

    /// Merges a piece of one to [`SHORT_PIECE`] bytes, which all are tokens, into `out`, and returns how many are left.
    #[inline(always)]
    pub fn merge(&self, piece: &[u8], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, out: &mut [u32]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(first_id) = merges.first_id().filter(|_| self.is_wide) {
            return Tables { borders: &self.borders, byte_ids, merges: *merges, first_id }.merge(piece, out);
        }
        let mut ranks = [NO_MERGE; SHORT_PIECE];
        // Before and after the piece is a border that nothing reaches over.
        let mut bounds = [NO_MERGE; SHORT_PIECE + 1];
        for (at, pair) in piece.windows(2).enumerate() {
            let border = self.borders[place(pair[0], pair[1])];
            (ranks[at], bounds[at + 1]) = (border.rank(), border.bound());
        }
        let mut sure = 0;
        for at in 0..piece.len() - 1 {
            sure |= u64::from((ranks[at] < bounds[at]) & (ranks[at] <= bounds[at + 2])) << at;
        }
        let (mut ids, mut count, mut changed) = ([0; SHORT_PIECE], 0, 0);
        for at in places(low_bits(piece.len()) & !(sure << 1)) {
            let is_pair = sure >> at & 1;
            ids[count] = merges.id_or(is_pair != 0, ranks[at], byte_ids[usize::from(piece[at])]);
            ranks[count] = ranks[at + is_pair as usize];
            changed |= is_pair << count | is_pair << count >> 1;
            count += 1;
        }
        merges.look_up(&ids, changed & low_bits(count - 1), &mut ranks);
        merges.apply_short(ids[..count].iter().copied(), ranks[..count - 1].iter().copied(), out)
    }

    /// Merges at most [`BATCH`] pieces of one to [`BATCH_BYTES`] bytes, which all are tokens.
    pub fn merge_batch(&self, pieces: &[&[u8]], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, batch: &mut Batch) {
        #[cfg(target_arch = "x86_64")]
        if pieces.len() >= MIN_BATCH
            && let (Some(small_ids), Some(first_id)) = (&self.batch_ids, merges.first_id())
        {
            let tables = Tables { borders: &self.borders, byte_ids, merges: *merges, first_id };
            return tables.merge_batch(pieces, small_ids, batch);
        }
        for ((piece, ids), count) in pieces.iter().zip(&mut batch.ids).zip(&mut batch.counts) {
            *count = self.merge(piece, byte_ids, merges, ids) as u32;
        }
    }
}

#[inline(always)]
fn place(last: u8, first: u8) -> usize {
    usize::from(last) << 8 | usize::from(first)
}

/// The lowest rank of a merge over each border, if every merge comes after those that make its tokens.
fn bounds(vocab: &Vocab) -> Option<Vec<u32>> {
    let tokens = vocab.tokens();
    let mut made = vec![0; vocab.size()];
    let mut bounds = vec![NO_MERGE; NUM_BORDERS];
    for (merge, rank) in vocab.merges().iter().zip(0..) {
        if made[merge.left as usize].max(made[merge.right as usize]) > rank {
            return None;
        }
        made[merge.id as usize] = rank + 1;
        let (last, first) = (tokens.bytes(merge.left)?.last()?, tokens.bytes(merge.right)?.first()?);
        let bound = &mut bounds[place(*last, *first)];
        *bound = rank.min(*bound);
    }
    Some(bounds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::vocab::{Merge, VocabParts};

    /// A vocabulary of all bytes and of merges of `a` to `d` and what comes of them, each given by two places in the list
    /// of tokens so far. Every `late`-th merge of a pair comes after all others.
    fn vocab(pairs: &[(usize, usize)], late: usize) -> Vocab {
        let mut texts: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        let mut merges = Vec::new();
        for &(left, right) in pairs {
            let [left, right] = [left, right].map(|place| (97 + place % (texts.len() - 252)) as u32);
            let [left, right] = [left, right].map(|id| if id > 100 { id + 155 } else { id });
            let text = [&texts[left as usize][..], &texts[right as usize]].concat();
            // A pair merges into one token alone, and two tokens don't have the same text.
            if !texts.contains(&text) {
                merges.push(Merge { left, right, id: texts.len() as u32 });
                texts.push(text);
            }
        }
        let (late, early): (Vec<_>, Vec<_>) =
            merges.into_iter().enumerate().partition(|(index, _)| index % late == late - 1);
        Vocab::build(VocabParts {
            tokens: (0..).zip(texts).collect(),
            unreached: vec![],
            byte_ids: std::array::from_fn(|byte| byte as u32),
            unknown: None,
            characters: None,
            merges: early.into_iter().chain(late).map(|(_, merge)| merge).collect(),
            whole_first: false,
            added: vec![],
        })
        .unwrap()
    }

    proptest! {
        #[test]
        fn beginning_with_pairs_changes_nothing(
            merges in proptest::collection::vec((0usize..40, 0usize..40), 0..40),
            late in prop_oneof![2usize..9, Just(usize::MAX)],
            piece in "[a-d]{1,64}",
        ) {
            let vocab = vocab(&merges, late);
            let byte_merges = ByteMerges::new(&vocab);
            let (table, piece) = (vocab.merge_table(), piece.as_bytes());
            let mut expected: Vec<u32> = piece.iter().copied().map(u32::from).collect();
            table.apply(&mut expected, 0);

            let plain = ByteMerges { borders: byte_merges.borders.clone(), is_wide: false, batch_ids: None };
            for byte_merges in [&byte_merges, &plain] {
                let mut merged = [0; SHORT_PIECE];
                let count = byte_merges.merge(piece, vocab.byte_ids(), &table.merges(), &mut merged);
                prop_assert_eq!(&merged[..count], &expected);
            }

            let mut begun = Vec::new();
            byte_merges.begin(piece, vocab.byte_ids(), &table.merges(), &mut begun);
            table.apply(&mut begun, 0);
            prop_assert_eq!(begun, expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_that_are_merged_together_are_merged_alike(
            merges in proptest::collection::vec((0usize..40, 0usize..40), 0..40),
            late in prop_oneof![2usize..9, Just(usize::MAX)],
            pieces in proptest::collection::vec("[a-d]{1,32}|[a-d]{1,9}", 0..=BATCH),
        ) {
            let vocab = vocab(&merges, late);
            let (byte_merges, table, mut batch) = (ByteMerges::new(&vocab), vocab.merge_table(), Batch::new());
            let texts: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            // What was there before leaves nothing behind.
            for texts in [&texts[..], &texts[texts.len() / 2..]] {
                byte_merges.merge_batch(texts, vocab.byte_ids(), &table.merges(), &mut batch);
                for ((text, ids), &count) in texts.iter().zip(&batch.ids).zip(&batch.counts) {
                    let mut expected: Vec<u32> = text.iter().copied().map(u32::from).collect();
                    table.apply(&mut expected, 0);
                    prop_assert_eq!(&ids[..count as usize], &expected);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_border_has_its_rank_and_no_more_than_its_bound(rank in 0..Border::NO_RANK, bound in 0..Border::NO_RANK) {
            let border = Border::new(rank, bound);
            prop_assert_eq!(border.rank(), rank);
            prop_assert!((bound - bound / 32..=bound).contains(&border.bound()));
            let open = Border::new(NO_MERGE, NO_MERGE);
            prop_assert_eq!(open.rank(), NO_MERGE);
            prop_assert!(open.bound() > 4_000_000);
        }
    }

    #[test]
    fn pairs_that_nothing_can_part_are_merged_at_once() {
        let vocab = vocab(&[(0, 1), (2, 3)], usize::MAX);
        let mut begun = Vec::new();
        let merges = vocab.merge_table().merges();
        ByteMerges::new(&vocab).begin(b"abcdab", vocab.byte_ids(), &merges, &mut begun);
        assert_eq!(begun, [256, 257, 256]);
    }
}
