use proptest::prelude::*;
use rustc_hash::FxHashMap;

use super::*;
use crate::tokenizer::key::piece_key;

/// The ids that the cache has for a piece, as an encoder reads them.
fn known(cache: &PieceCache, piece: &str) -> Option<Vec<u32>> {
    let words = cache.look().find(piece_key(piece.as_bytes(), 0, piece.len()));
    if is_inline(words[0]) {
        let tokens = words.into_iter().flat_map(|word| {
            let (tokens, count) = tokens_of(word);
            tokens.into_iter().take(count)
        });
        return Some(tokens.collect());
    }
    let is_found = words[0] != 0 && (piece.len() <= MEDIUM_BYTES || cache.is_of(words, piece.as_bytes()));
    is_found.then(|| cache.pooled(words).to_vec())
}

fn insert(cache: &mut PieceCache, piece: &str, ids: &[u32]) {
    let key = piece_key(piece.as_bytes(), 0, piece.len());
    cache.insert(key, piece.as_bytes(), ids);
}

/// Pieces of text of every kind of key, and ids of every kind of words.
fn entries() -> impl Strategy<Value = FxHashMap<String, Vec<u32>>> {
    let id = prop_oneof![0..MAX_TOKENS, MAX_TOKENS - 1..1 << 24];
    let piece = prop_oneof!["[a-c\\x00\\x09-\\x0f]{1,20}", "\\PC{1,60}"];
    proptest::collection::hash_map(piece, proptest::collection::vec(id, 0..9), 1..60)
        .prop_map(|entries| entries.into_iter().filter(|(piece, _)| piece.len() <= LONG_BYTES).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_kept_is_found_and_nothing_else(entries in entries(), others in entries()) {
        let mut cache = PieceCache::new();
        for (piece, ids) in &entries {
            insert(&mut cache, piece, ids);
        }
        for (piece, ids) in &entries {
            // Eight zeros are what a gap looks like, and are not kept.
            let expected = (piece != "\0\0\0\0\0\0\0\0").then(|| ids.clone());
            prop_assert_eq!(known(&cache, piece), expected);
        }
        for piece in others.keys().filter(|piece| !entries.contains_key(*piece)) {
            prop_assert_eq!(known(&cache, piece), None);
        }
    }

    #[test]
    fn a_key_is_the_same_wherever_the_piece_stands(piece in "\\PC{1,60}", before in "\\PC{0,20}", after in "\\PC{0,20}") {
        let text = format!("{before}{piece}{after}");
        let key = piece_key(text.as_bytes(), before.len(), before.len() + piece.len());
        prop_assert_eq!(key, piece_key(piece.as_bytes(), 0, piece.len()));
    }
}

#[test]
fn two_pieces_that_fill_their_words_alike_have_two_keys() {
    let (small, medium) = ("abcdefg\x0f", "abcdefg\x0fabcdefg");
    let mut cache = PieceCache::new();
    insert(&mut cache, small, &[1]);
    insert(&mut cache, medium, &[2]);
    assert_eq!(known(&cache, small), Some(vec![1]));
    assert_eq!(known(&cache, medium), Some(vec![2]));
}

/// The ids of a piece made for a number.
fn ids_of(number: u32) -> [u32; 2] {
    [number % 1_000, number / 1_000]
}

#[test]
fn a_table_grows_without_a_loss_and_when_it_is_full_only_forgets() {
    for (width, places_per_line) in [(6, 4), (12, 2), (20, 2)] {
        let piece = |number: u32| format!("{number:0width$}");
        for max_lines in [2, 4, 16, 128] {
            let mut cache = PieceCache::with_lines([2, max_lines], [2, max_lines]);
            let num_places = (places_per_line * max_lines) as u32;
            let num_kept = if places_per_line == 4 { num_places * 3 / 4 } else { (num_places * 3).div_ceil(5) };
            for number in 0..20 * num_places {
                insert(&mut cache, &piece(number), &ids_of(number));
                let oldest = if number < num_kept { 0 } else { number };
                for asked in oldest..=number.min(oldest + 50) {
                    let is_right = known(&cache, &piece(asked)).is_none_or(|ids| ids == ids_of(asked));
                    assert!(is_right && (number >= num_kept || known(&cache, &piece(asked)).is_some()));
                }
                assert_eq!(known(&cache, &piece(number + 1)), None);
            }
            let num_found = (0..20 * num_places).filter(|&number| known(&cache, &piece(number)).is_some()).count();
            assert!(num_found >= num_kept as usize / 2 && num_found <= num_kept as usize, "{num_found} of {num_kept}");
        }
    }
}

#[test]
fn pieces_that_share_a_line_are_forgotten_before_they_are_far_away() {
    let mut cache = PieceCache::with_lines([128, 128], [128, 128]);
    let home = |cache: &PieceCache, piece: &str| cache.look().home(piece_key(piece.as_bytes(), 0, piece.len()));
    let there = home(&cache, "000000");
    let pieces: Vec<String> =
        (0..).map(|number| format!("{number:06}")).filter(|piece| home(&cache, piece) == there).take(380).collect();
    for (piece, number) in pieces.iter().zip(0..) {
        insert(&mut cache, piece, &ids_of(number));
        assert_eq!(known(&cache, piece), Some(ids_of(number).to_vec()));
    }
    let found: Vec<u32> =
        pieces.iter().zip(0..).filter(|(piece, _)| known(&cache, piece).is_some()).map(|(_, number)| number).collect();
    assert!(found.iter().all(|&number| known(&cache, &pieces[number as usize]) == Some(ids_of(number).to_vec())));
    assert_eq!(found.len(), 4 * MAX_WAY);
}

#[test]
fn a_full_pool_is_emptied_with_all_that_points_into_it() {
    let mut cache = PieceCache::new();
    let ids: Vec<u32> = (0..250).collect();
    let mut number = 0;
    while cache.pool.len() <= MAX_POOL_WORDS {
        insert(&mut cache, &format!("{number:0200}"), &ids);
        number += 1;
    }
    insert(&mut cache, "a", &[97]);
    cache.bound();
    assert_eq!(known(&cache, &format!("{:0200}", 0)), None);
    assert_eq!(known(&cache, "a"), None);
    insert(&mut cache, "a", &[97]);
    assert_eq!(known(&cache, "a"), Some(vec![97]));
}
