//! The trainer against one that counts everything again for each merge.

use std::collections::HashMap;
use std::path::PathBuf;

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::{Trainer, TrainerOptions};
use proptest::prelude::*;

use super::{merged_pairs, sample_tokenizer, text, train};

type Pair = (u32, u32);

fn reference_merges(texts: &[&str], num_merges: usize, pattern: &Pattern) -> Vec<Pair> {
    limited_reference_merges(texts, num_merges, pattern, 1, None)
}

fn limited_reference_merges(
    texts: &[&str],
    num_merges: usize,
    pattern: &Pattern,
    min_frequency: i64,
    max_token_length: Option<usize>,
) -> Vec<Pair> {
    let mut lens = vec![1; 256];
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
        let len = |pair: Pair| lens[pair.0 as usize] + lens[pair.1 as usize];
        let allowed = |&(&pair, &count): &(&Pair, &i64)| {
            count >= min_frequency && max_token_length.is_none_or(|limit| len(pair) <= limit)
        };
        let best = counts.iter().filter(allowed).min_by_key(|&(&pair, &count)| (-count, pair));
        let Some((&pair, _)) = best else { break };
        lens.push(len(pair));
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

fn train_with(texts: &[&str], options: TrainerOptions) -> Tokenizer {
    let mut trainer = Trainer::with_options(options).unwrap();
    trainer.add(texts).unwrap();
    trainer.train(&mut |_, _| true).unwrap()
}

fn file_with(content: &[u8], name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("llm_core_training_{}_{name}", std::process::id()));
    std::fs::write(&path, content).unwrap();
    path
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

proptest! {
    #[test]
    fn limited_merges_equal_the_reference(
        texts in proptest::collection::vec(text(), 1..8), num_merges in 0usize..60, min_frequency in 1u64..5,
        max_token_length in proptest::option::of(1usize..7), num_threads in 1usize..4,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).chain(["aaaa aaa abab aaaaaaaaa"]).collect();
        let options = TrainerOptions {
            min_frequency, max_token_length, num_threads: Some(num_threads),
            ..TrainerOptions::new(256 + num_merges, Pattern::Cl100k, &[])
        };
        let expected =
            limited_reference_merges(&texts, num_merges, &Pattern::Cl100k, min_frequency as i64, max_token_length);
        let tokenizer = train_with(&texts, options);
        prop_assert_eq!(merged_pairs(&tokenizer), expected);
    }
}

#[test]
fn bytes_special_tokens_and_merges_make_the_vocabulary() {
    for special in [&[][..], &["<|end|>"], &["<|end|>", "<|pad|>"]] {
        let tokenizer = train(&["the then there's this that's"], 266, &Pattern::Gpt4, special);
        assert_eq!((tokenizer.vocab().size(), merged_pairs(&tokenizer).len()), (266, 10 - special.len()));
    }
}

#[test]
fn a_file_has_the_merges_of_its_text() {
    let text: String = (0..90_000u32).map(|n| format!("wörd{} t{}<|end|>\n", n % 997, n % 89)).collect();
    let path = file_with(text.as_bytes(), "whole");
    let custom = Pattern::parse(r"[^ö]+|ö").unwrap();
    for (pattern, num_threads) in [(Pattern::Gpt4, 1), (Pattern::Cl100k, 3), (custom, 2)] {
        let options = TrainerOptions {
            num_threads: Some(num_threads),
            ..TrainerOptions::new(500, pattern, &["<|end|>".to_owned()])
        };
        let mut trainer = Trainer::with_options(options.clone()).unwrap();
        let mut reports = Vec::new();
        trainer
            .add_file(&path, &mut |bytes| {
                reports.push(bytes);
                true
            })
            .unwrap();
        assert_eq!(reports.last(), Some(&(text.len() as u64)));
        let merges = trainer.train(&mut |_, _| true).unwrap();
        assert_eq!(merges.vocab().merges(), train_with(&[&text], options).vocab().merges());
        assert!(merges.vocab().merges().len() > 200);
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn one_huge_piece_is_learned_from_in_time() {
    // A word scanned again for every merge would take minutes.
    let letters: String =
        (0..300_000u64).map(|n| char::from(b'a' + (n.wrapping_mul(n ^ 0x9E37_79B9) >> 7) as u8 % 26)).collect();
    let tokenizer = train_with(&[&letters], TrainerOptions::new(3000, Pattern::Gpt4, &[]));
    assert_eq!(tokenizer.vocab().size(), 3000);
    let runs = train_with(&[&"a".repeat(300_001)], TrainerOptions::new(300, Pattern::Gpt4, &[]));
    let lens: Vec<usize> =
        (256..runs.vocab().size() as u32).filter_map(|id| runs.vocab().tokens().bytes(id).map(<[u8]>::len)).collect();
    assert_eq!(lens[..4], [2, 4, 8, 16]);
}

#[test]
fn bad_files_are_named_and_spoil_the_trainer() {
    let mut content = "ab cd\n".repeat(100_000).into_bytes();
    content[500_001] = 0xE9;
    content[100_001] = 0xFF;
    let path = file_with(&content, "bad");
    let mut trainer = Trainer::new(300, Pattern::Gpt4, &[]).unwrap();
    let Err(Error::Data(message)) = trainer.add_file(&path, &mut |_| true) else { panic!() };
    let shown = path.display();
    let expected = format!(
        "{shown}: text must be UTF-8, got byte 0xff at offset 100001\nhint: convert it, for example `iconv -f LATIN1 -t UTF-8 {shown}`"
    );
    assert_eq!(message, expected);
    let Err(Error::InvalidArgument(message)) = trainer.train(&mut |_, _| true) else { panic!() };
    assert!(message.starts_with("a trainer must have counted whole texts, got one whose last text failed\nhint"));
    let Err(Error::InvalidArgument(message)) = trainer.add(&["ab"]) else { panic!() };
    assert!(message.starts_with("a trainer must have counted whole texts"));
    std::fs::remove_file(&path).unwrap();
    let mut trainer = Trainer::new(300, Pattern::Gpt4, &[]).unwrap();
    let Err(Error::Data(message)) = trainer.add_file(&path, &mut |_| true) else { panic!() };
    assert!(message.starts_with(&format!("{shown}: can't be read: ")), "{message}");
    // A file that was never opened spoils nothing.
    trainer.add(&["ab"]).unwrap();
    assert_eq!(merged_pairs(&trainer.train(&mut |_, _| true).unwrap()), [(97, 98)]);
}

#[test]
fn counting_reports_bytes_and_can_be_stopped() {
    let text = "ab cd\n".repeat(200_000);
    let mut trainer = Trainer::new(300, Pattern::Gpt4, &[]).unwrap();
    let mut last = 0;
    trainer
        .add_with_progress(&[&text], &mut |bytes| {
            assert!(bytes >= last);
            last = bytes;
            true
        })
        .unwrap();
    assert_eq!(last, text.len() as u64);
    let Err(Error::InvalidArgument(message)) = trainer.add_with_progress(&[&text], &mut |_| false) else { panic!() };
    assert_eq!(message, "counting was stopped by its progress callback");
    assert!(trainer.train(&mut |_, _| true).is_err());
}

#[test]
fn merges_do_not_depend_on_threads_calls_or_order() {
    // Longer than one chunk, so that several threads count.
    let text: String =
        (0..60_000u32).map(|n| format!("w{} t{}\n", n.wrapping_mul(2_654_435_761) % 997, n % 89)).collect();
    let on_threads = |num_threads| {
        train_with(&[&text], TrainerOptions { num_threads, ..TrainerOptions::new(600, Pattern::Gpt4, &[]) })
    };
    let (one, four) = (on_threads(Some(1)), on_threads(Some(4)));
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
    let base = TrainerOptions::new(300, Pattern::Gpt4, &special);
    for (options, expected) in [
        (TrainerOptions { min_frequency: 0, ..base.clone() }, "`min_frequency` must be at least 1, got 0"),
        (
            TrainerOptions { max_token_length: Some(0), ..base.clone() },
            "`max_token_length` must be at least 1 byte, got 0",
        ),
        (TrainerOptions { num_threads: Some(0), ..base.clone() }, "`num_threads` must be from 1 to 1024, got 0"),
        (TrainerOptions { num_threads: Some(5000), ..base.clone() }, "`num_threads` must be from 1 to 1024, got 5000"),
    ] {
        let Err(Error::InvalidArgument(message)) = Trainer::with_options(options) else { panic!() };
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
