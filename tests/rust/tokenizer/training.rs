//! The trainer against one that counts everything again for each merge.

use std::collections::HashMap;

use llm_core::Error;
use llm_core::tokenizer::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;
use proptest::prelude::*;

use super::{merged_pairs, sample_tokenizer, text, train};

type Pair = (u32, u32);

fn reference_merges(texts: &[&str], num_merges: usize, pattern: &Pattern) -> Vec<Pair> {
    let mut words: Vec<Vec<u32>> = texts
        .iter()
        .flat_map(|text| pattern.pieces(text).unwrap())
        .map(|piece| piece.bytes().map(u32::from).collect())
        .collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        let mut counts: HashMap<Pair, i64> = HashMap::new();
        for pair in words.iter().flat_map(|word| word.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_default() += 1;
        }
        let Some((&pair, _)) = counts.iter().min_by_key(|&(&pair, &count)| (-count, pair)) else { break };
        let id = 256 + merges.len() as u32;
        words.iter_mut().for_each(|word| merge(word, pair, id));
        merges.push(pair);
    }
    merges
}

fn merge(word: &mut Vec<u32>, pair: Pair, id: u32) {
    let mut index = 0;
    while index + 1 < word.len() {
        if (word[index], word[index + 1]) == pair {
            word.splice(index..index + 2, [id]);
        }
        index += 1;
    }
}

fn in_pool<T: Send>(num_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap().install(work)
}

proptest! {
    #[test]
    fn merges_equal_the_reference(texts in proptest::collection::vec(text(), 1..8), num_merges in 0usize..60) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).chain(["aaaa aaa abab"]).collect();
        for pattern in Pattern::ALL {
            let tokenizer = train(&texts, 256 + num_merges, &pattern, &[]);
            prop_assert_eq!(merged_pairs(&tokenizer), reference_merges(&texts, num_merges, &pattern));
        }
    }
}

#[test]
fn merges_do_not_depend_on_threads_calls_or_order() {
    // Longer than one chunk, so that several threads count.
    let text: String =
        (0..60_000u32).map(|n| format!("w{} t{}\n", n.wrapping_mul(2_654_435_761) % 997, n % 89)).collect();
    let one = in_pool(1, || train(&[&text], 600, &Pattern::Gpt4, &[]));
    let four = in_pool(4, || train(&[&text], 600, &Pattern::Gpt4, &[]));
    let mut trainer = Trainer::new(600, Pattern::Gpt4, &[]).unwrap();
    text.split_inclusive('\n').rev().for_each(|line| trainer.add(&[line.trim_end_matches('\n')]).unwrap());
    trainer.add(&vec!["\n"; 60_000]).unwrap();
    let lines = trainer.train(&mut |_, _| true).unwrap();
    assert_eq!(one.vocab().merges(), four.vocab().merges());
    assert_eq!(one.vocab().merges(), lines.vocab().merges());
    assert_eq!(one.vocab().size(), 600);
}

#[test]
fn special_tokens_are_never_merged() {
    let tokenizer = train(&["<|end|>ab<|end|>ab<|end|>"], 300, &Pattern::Gpt4, &["<|end|>"]);
    assert_eq!(merged_pairs(&tokenizer), [(97, 98)]);
    assert_eq!(tokenizer.vocab().special(), [("<|end|>".to_owned(), 257)]);
}

#[test]
fn progress_counts_up_and_can_stop() {
    let mut trainer = Trainer::new(300, Pattern::Gpt4, &[]).unwrap();
    trainer.add(&["abcdefgh"]).unwrap();
    let mut reports = Vec::new();
    trainer
        .train(&mut |done, total| {
            reports.push((done, total));
            true
        })
        .unwrap();
    assert_eq!(reports, [(0, 44), (7, 7)]);
    let Err(Error::InvalidArgument(message)) = trainer.train(&mut |_, _| false) else { panic!() };
    assert_eq!(message, "training was stopped by its progress callback");
}

#[test]
fn bad_training_input_is_named() {
    let special = ["<|end|>".to_owned(), "<|pad|>".to_owned()];
    let Err(Error::InvalidArgument(message)) = Trainer::new(257, Pattern::Gpt4, &special) else { panic!() };
    let expected = "`vocab_size` must be at least 258 (256 bytes and 2 special tokens) and at most 16777216, got 257";
    assert_eq!(message, expected);
    for (special, expected) in [
        (["", "b"], "special token \"\" (id 256) must not be empty"),
        (["ab", "ab"], "special token \"ab\" (id 257) is there twice"),
        (["ab", "b"], "special token \"b\" (id 257) has the text of an ordinary token"),
    ] {
        let Err(Error::Tokenizer(message)) = Trainer::new(300, Pattern::Gpt4, &special.map(str::to_owned)) else {
            panic!()
        };
        assert_eq!(message, expected);
    }
    let mut trainer = Trainer::new(300, Pattern::Gpt4, &special).unwrap();
    trainer.add(&["", "<|end|>"]).unwrap();
    let Err(Error::InvalidArgument(message)) = trainer.train(&mut |_, _| true) else { panic!() };
    assert_eq!(message, "there must be text to train on, got an empty corpus");
}

#[test]
fn a_vocabulary_that_no_pair_is_left_for_is_smaller() {
    let tokenizer = train(&["ab"], 1000, &Pattern::Gpt2, &["<|end|>"]);
    assert_eq!(tokenizer.vocab().size(), 258);
    assert_eq!(sample_tokenizer(&Pattern::Gpt4).vocab().size(), 300);
}
