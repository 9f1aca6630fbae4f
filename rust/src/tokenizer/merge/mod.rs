//! Merges the bytes or characters of a piece into tokens.
//!
//! Merging by the lowest rank is a chain of look-ups, each of which waits for the one before. For each pair of adjacent
//! bytes, `boundary` therefore stores the lowest rank of any merge that crosses the boundary between them. A pair of
//! bytes with a lower rank than the boundaries on both sides merges whatever surrounds it, so all such pairs are merged
//! at once.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_batch;
pub mod backtrack;
mod batch;
mod boundary;
#[cfg(target_arch = "x86_64")]
mod registers;
mod scalar;
pub mod sentencepiece;
pub mod table;
pub mod unknown;

#[cfg(target_arch = "x86_64")]
use self::avx512::Avx512Tables;
pub(crate) use self::batch::{BATCH, BATCH_BYTES, MergedPieces};
use self::boundary::{ByteBoundary, NUM_BOUNDARIES, boundaries};
use self::scalar::ScalarTables;
use self::table::Merges;
use crate::tokenizer::tokens::NUM_BYTES;
use crate::tokenizer::vocab::Vocab;

/// Minimum number of pieces of a batch; fewer pieces are merged faster one by one.
const MIN_BATCH: usize = 4;

/// Working memory for merging a batch of pieces.
#[repr(C, align(64))]
pub(crate) struct Batch {
    /// The tokens of the pieces that were merged last.
    pub merged: MergedPieces,
    /// The symbols of all pieces while they are merged side by side.
    #[cfg(target_arch = "x86_64")]
    columns: avx512_batch::Columns,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            merged: MergedPieces { ids: [[0; BATCH_BYTES]; BATCH], counts: [0; BATCH] },
            #[cfg(target_arch = "x86_64")]
            columns: avx512_batch::Columns::new(),
        }
    }
}

/// Merges pieces with one vocabulary, in the widest registers of the processor.
pub(crate) struct PieceMerger {
    boundaries: Box<[ByteBoundary; NUM_BOUNDARIES]>,
    /// Whether the processor supports the instructions of `avx512`.
    has_avx512: bool,
    /// The token of each byte, if every id fits in a byte and the processor supports the instructions of
    /// `avx512_batch`.
    batch_ids: Option<Box<[u8; NUM_BYTES]>>,
}

impl PieceMerger {
    /// Builds the merge tables of a vocabulary.
    pub fn new(vocab: &Vocab) -> Self {
        #[cfg(target_arch = "x86_64")]
        let (has_avx512, is_batched) = (avx512::is_supported(), avx512_batch::is_supported());
        #[cfg(not(target_arch = "x86_64"))]
        let (has_avx512, is_batched) = (false, false);
        let ids = vocab.byte_ids();
        let small = ids.map(|id| id as u8);
        let is_small = small.map(u32::from) == *ids;
        let batch_ids = (has_avx512 && is_batched && is_small).then(|| Box::new(small));
        Self { boundaries: boundaries(vocab), has_avx512, batch_ids }
    }

    /// Appends the tokens from which merging a piece starts. The piece may have any length; each of its bytes must be a
    /// token.
    pub fn begin(&self, piece: &[u8], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, ids: &mut Vec<u32>) {
        ScalarTables { boundaries: &self.boundaries, byte_ids, merges }.begin(piece, ids);
    }

    /// Merges a piece of 1 to [`SHORT_PIECE`](table::SHORT_PIECE) bytes into `out` and returns the number of tokens.
    /// Each byte must be a token.
    #[inline(always)]
    pub fn merge(&self, piece: &[u8], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, out: &mut [u32]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let Some(first_id) = merges.first_id().filter(|_| self.has_avx512) {
            return Avx512Tables { boundaries: &self.boundaries, byte_ids, merges: *merges, first_id }
                .merge(piece, out);
        }
        ScalarTables { boundaries: &self.boundaries, byte_ids, merges }.merge(piece, out)
    }

    /// Merges at most [`BATCH`] pieces of 1 to [`BATCH_BYTES`] bytes. Each byte must be a token.
    pub fn merge_batch(&self, pieces: &[&[u8]], byte_ids: &[u32; NUM_BYTES], merges: &Merges<'_>, batch: &mut Batch) {
        #[cfg(target_arch = "x86_64")]
        if pieces.len() >= MIN_BATCH
            && let (Some(small_ids), Some(first_id)) = (&self.batch_ids, merges.first_id())
        {
            let tables = Avx512Tables { boundaries: &self.boundaries, byte_ids, merges: *merges, first_id };
            return tables.merge_batch(pieces, small_ids, &mut batch.columns, &mut batch.merged);
        }
        let MergedPieces { ids, counts } = &mut batch.merged;
        for ((piece, ids), count) in pieces.iter().zip(ids).zip(counts) {
            *count = self.merge(piece, byte_ids, merges, ids) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::table::{MergeTable, SHORT_PIECE};
    use super::*;
    use crate::tokenizer::tokens::Merge;
    use crate::tokenizer::vocab::VocabParts;

    /// The bytes that merge. Registers have a zero after the end of a piece, which must not merge with its last byte.
    const SYMBOLS: &[u8; 4] = b"abc\0";

    /// A vocabulary of all bytes and of merges of `SYMBOLS` and their results. Each pair has two positions in the list
    /// of tokens so far; every `late`-th merge comes after all others.
    fn vocab(pairs: &[(usize, usize)], late: usize) -> Vocab {
        let mut texts: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        let mut merges = Vec::new();
        for &(left, right) in pairs {
            let [left, right] = [left, right].map(|place| match place % (texts.len() - 252) {
                symbol @ 0..4 => u32::from(SYMBOLS[symbol]),
                made => made as u32 + 252,
            });
            let text = [&texts[left as usize][..], &texts[right as usize]].concat();
            // A pair merges into only one token, and no two tokens have the same text.
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
            sentence_piece: None,
            merges: early.into_iter().chain(late).map(|(_, merge)| merge).collect(),
            whole_first: false,
            added: vec![],
        })
        .unwrap()
    }

    /// The tokens of a piece, by the table alone.
    fn reference(table: &MergeTable, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().copied().map(u32::from).collect();
        table.apply(&mut ids, 0);
        ids
    }

    proptest! {
        #[test]
        fn beginning_with_pairs_changes_nothing(
            merges in proptest::collection::vec((0usize..40, 0usize..40), 0..40),
            late in prop_oneof![2usize..9, Just(usize::MAX)],
            piece in "[a-c\\x00]{1,64}|[a-c\\x00]{64}",
        ) {
            let vocab = vocab(&merges, late);
            let merger = PieceMerger::new(&vocab);
            let (table, piece) = (vocab.merge_table(), piece.as_bytes());
            let expected = reference(table, piece);

            let plain = PieceMerger { boundaries: merger.boundaries.clone(), has_avx512: false, batch_ids: None };
            for merger in [&merger, &plain] {
                let mut merged = [0; SHORT_PIECE];
                let count = merger.merge(piece, vocab.byte_ids(), &table.merges(), &mut merged);
                prop_assert_eq!(&merged[..count], &expected);
            }

            let mut begun = Vec::new();
            merger.begin(piece, vocab.byte_ids(), &table.merges(), &mut begun);
            table.apply(&mut begun, 0);
            prop_assert_eq!(begun, expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_that_are_merged_together_are_merged_alike(
            merges in proptest::collection::vec((0usize..40, 0usize..40), 0..40),
            late in prop_oneof![2usize..9, Just(usize::MAX)],
            pieces in proptest::collection::vec("[a-c\\x00]{1,32}|[a-c\\x00]{1,9}", 0..=BATCH),
        ) {
            let vocab = vocab(&merges, late);
            let (merger, table, mut batch) = (PieceMerger::new(&vocab), vocab.merge_table(), Batch::new());
            let texts: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            // An earlier batch must not affect the next one.
            for texts in [&texts[..], &texts[texts.len() / 2..]] {
                merger.merge_batch(texts, vocab.byte_ids(), &table.merges(), &mut batch);
                for ((text, ids), &count) in texts.iter().zip(&batch.merged.ids).zip(&batch.merged.counts) {
                    prop_assert_eq!(&ids[..count as usize], &reference(table, text));
                }
            }
        }
    }

    #[test]
    fn a_batch_has_room_for_all_pairs_of_its_longest_pieces() {
        // `ab` and `c\0` merge whatever surrounds them, and each of them with the other.
        let vocab = vocab(&[(0, 1), (2, 3), (4, 5), (5, 4)], usize::MAX);
        let (table, mut batch) = (vocab.merge_table(), Batch::new());
        for piece in ["abc\0".repeat(8), "c\0ab".repeat(4), "abc\0ab".to_owned()] {
            let pieces = vec![piece.as_bytes(); BATCH];
            PieceMerger::new(&vocab).merge_batch(&pieces, vocab.byte_ids(), &table.merges(), &mut batch);
            let expected = reference(table, piece.as_bytes());
            for (ids, &count) in batch.merged.ids.iter().zip(&batch.merged.counts) {
                assert_eq!(&ids[..count as usize], &expected);
            }
        }
    }

    /// Random pieces seldom have pairs that part each other just where one vector ends and the next begins.
    #[test]
    fn pairs_around_the_borders_of_vectors_are_merged_as_elsewhere() {
        for seed in 0..6 {
            let pairs: Vec<_> = (0..24).map(|i| ((7 * seed + 5 * i) % 40, (3 * seed + 11 * i + i * i) % 40)).collect();
            let vocab = vocab(&pairs, if seed % 3 == 0 { 4 } else { usize::MAX });
            let (merger, table) = (PieceMerger::new(&vocab), vocab.merge_table());
            for border in [16, 32, 48] {
                for around in 0..1 << 12 {
                    let mut piece: Vec<u8> = (0..SHORT_PIECE).map(|at| SYMBOLS[(at + seed) % 4]).collect();
                    for (at, byte) in piece[border - 3..border + 3].iter_mut().enumerate() {
                        *byte = SYMBOLS[around >> (2 * at) & 3];
                    }
                    piece.truncate(border + 3 + around % 13);
                    let mut merged = [0; SHORT_PIECE];
                    let count = merger.merge(&piece, vocab.byte_ids(), &table.merges(), &mut merged);
                    assert_eq!(&merged[..count], &reference(table, &piece), "{:?}", String::from_utf8_lossy(&piece));
                }
            }
        }
    }

    #[test]
    fn pairs_that_nothing_can_part_are_merged_at_once() {
        let vocab = vocab(&[(0, 1), (2, 3)], usize::MAX);
        let mut begun = Vec::new();
        let merges = vocab.merge_table().merges();
        PieceMerger::new(&vocab).begin(b"abc\0ab", vocab.byte_ids(), &merges, &mut begun);
        assert_eq!(begun, [256, 257, 256]);
    }
}
