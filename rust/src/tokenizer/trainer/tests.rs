use std::collections::HashMap;
use std::io::Write;

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn chunks_have_the_pieces_of_the_whole(text in "[abA' \n\t1./é\u{301}\u{3000}]{0,60}", target_bytes in 1usize..9) {
        let cutter = Cutter { target_bytes, ..Cutter::new(false, &[]) };
        let chunks: Vec<&str> = cutter.chunks(&text).collect();
        prop_assert_eq!(chunks.concat(), text.as_str());
        for pattern in Pattern::ALL {
            let cut: Vec<&str> = chunks.iter().flat_map(|chunk| pattern.pieces(chunk).unwrap()).collect();
            prop_assert_eq!(cut, pattern.pieces(&text).unwrap());
        }
    }

    #[test]
    fn chunks_of_files_and_texts_leave_special_tokens_whole(text in "(a b|b\na b|[ab]{1,3}| |\n|é){0,30}", target_bytes in 1usize..9) {
        let special = ["a b".to_owned(), "b\na b".to_owned(), "aa".to_owned()];
        let cutter = Cutter { target_bytes, ..Cutter::new(false, &special) };
        let indexed: Vec<(String, u32)> = special.iter().cloned().zip(0..).collect();
        let matcher = SpecialMatcher::new(&indexed);
        let pieces = |text: &str| {
            let mut pieces = Vec::new();
            for segment in matcher.segments(text) {
                match segment {
                    crate::tokenizer::special::Segment::Text(text) => pieces.extend(Pattern::Gpt2.pieces(text).unwrap().into_iter().map(str::to_owned)),
                    crate::tokenizer::special::Segment::Special(id) => pieces.push(format!("special {id}")),
                }
            }
            pieces
        };
        let cut: Vec<String> = cutter.chunks(&text).flat_map(pieces).collect();
        prop_assert_eq!(&cut, &pieces(&text));
        let read = file_chunks(text.as_bytes(), &cutter);
        prop_assert_eq!(read.concat(), text.as_bytes());
        let cut: Vec<String> = read.iter().flat_map(|chunk| pieces(std::str::from_utf8(chunk).unwrap())).collect();
        prop_assert_eq!(cut, pieces(&text));
    }

    #[test]
    fn words_are_counted_by_all_threads_together(words in proptest::collection::vec("[abé]{1,24}", 0..200), every in 1usize..9) {
        let mut expected: HashMap<Vec<u8>, u64> = HashMap::new();
        let (mut counts, special) = (WordCounts::new(), SpecialMatcher::new(&[]));
        let mut locals = [LocalCounts::default(), LocalCounts::default()];
        for (index, word) in words.iter().enumerate() {
            *expected.entry(word.clone().into_bytes()).or_default() += 1;
            locals[index % 2].count(word, &Pattern::Whitespace, &special, &counts).unwrap();
            if index % every == 0 {
                locals[index % 2].hand_over(&counts);
            }
        }
        locals.iter_mut().for_each(|local| local.hand_over(&counts));
        let counted: HashMap<Vec<u8>, u64> =
            counts.with_words(|words| words.iter().map(|word| (word.with_bytes(<[u8]>::to_vec), word.count)).collect());
        prop_assert_eq!(counted, expected);
    }

    /// Many epochs and several shards give the merges of one epoch and one shard, which the public tests hold to the
    /// slow twin.
    #[test]
    fn merges_do_not_depend_on_epochs_or_shards(
        text in "([ab]{1,9} |[a-e]{1,5} |a{1,20} ){1,60}", num_tracked in 1usize..6, num_shards in 1usize..4,
        min_count in 1u64..4, max_len in 2u32..9,
    ) {
        let (mut counts, special) = (WordCounts::new(), SpecialMatcher::new(&[]));
        let mut local = LocalCounts::default();
        local.count(&text, &Pattern::Whitespace, &special, &counts).unwrap();
        local.hand_over(&counts);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_shards).build().unwrap();
        let mut learn = |num_shards, num_tracked| {
            let limits = Limits { num_merges: 60, min_count, max_len, num_tracked };
            counts.with_words(|words| learn_merges(Merger::new(words, num_shards, limits, &pool).unwrap(), 60, &mut |_, _| true).unwrap())
        };
        prop_assert_eq!(learn(num_shards, num_tracked), learn(1, usize::MAX / 8));
    }
}

fn file_chunks(content: &[u8], cutter: &Cutter) -> Vec<Vec<u8>> {
    let path =
        std::env::temp_dir().join(format!("llm_core_chunks_{}_{:?}", std::process::id(), std::thread::current().id()));
    std::fs::File::create(&path).unwrap().write_all(content).unwrap();
    let mut file = FileChunks::open(&path, cutter).unwrap();
    let (mut chunks, mut chunk, mut end) = (vec![], vec![], 0);
    while let Some(offset) = file.next_into(&mut chunk).unwrap() {
        assert_eq!(offset, end);
        end += chunk.len() as u64;
        chunks.push(chunk.clone());
    }
    std::fs::remove_file(&path).unwrap();
    chunks
}

#[test]
fn a_sketch_bounds_counts_from_above() {
    let mut sketch = pairs::Sketch::new(64);
    (0..200u32).for_each(|id| sketch.add((id, id / 7), u64::from(id) + 1));
    assert!((0..200u32).all(|id| sketch.reaching(u64::from(id) + 1).may_have((id, id / 7))));
    sketch.add((1, 1), u64::MAX);
    assert!(sketch.reaching(u64::MAX).may_have((1, 1)));
    let absent = (0..200u32).filter(|&id| sketch.reaching(u64::MAX).may_have((id, id / 7))).count();
    assert!(absent < 100, "{absent}");
    assert_eq!(pairs::Sketch::new(64).count_of_top(3), 1);
}

#[test]
fn the_threshold_is_met_by_no_more_pairs_than_wanted() {
    let mut sketch = pairs::Sketch::new(1 << 20);
    (0..1000u32).for_each(|id| sketch.add((id, 0), u64::from(id) + 1));
    for wanted in [100, 200, 500] {
        let reached = 1001 - sketch.count_of_top(wanted);
        assert!(reached <= wanted as u64 && reached + 70 >= wanted as u64, "{wanted}: {reached}");
    }
    // From 960 on: the highest class is too large, and taken all the same.
    assert_eq!(sketch.count_of_top(1), 960);
    assert_eq!(sketch.count_of_top(1000), 1);
}
