//! Tests of `llm_core::tokenizer`.
#![expect(clippy::unwrap_used, reason = "in a test it is the assertion")]

mod batch;
mod formats;
mod normalize;
mod pretokenize;
mod special;
mod stages;
mod stream;
mod training;
mod vocabulary;

use std::sync::LazyLock;

use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;
use proptest::prelude::*;

/// Text with many borders: letters, marks, numbers, every kind of white space, quotes, controls.
fn text() -> impl Strategy<Value = String> {
    let characters = "[ab sStTrReEvVmMlLdD'ſ0-9½Ⅷ٣.,!?é語ñß\u{301}😀 \n\r\t\u{0b}\u{0c}\u{1c}\u{85}\u{a0}\u{180e}\u{2003}\u{2028}\u{3000}\u{200b}\0]{0,40}";
    prop_oneof![4 => characters, 1 => ".{0,20}", 1 => proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter)]
}

fn train(texts: &[&str], vocab_size: usize, pattern: &Pattern, special: &[&str]) -> Tokenizer {
    let special: Vec<String> = special.iter().map(|&text| text.to_owned()).collect();
    let mut trainer = Trainer::new(vocab_size, pattern.clone(), &special).unwrap();
    trainer.add(texts).unwrap();
    trainer.train(&mut |_, _| true).unwrap()
}

/// The two tokens of each merge, in order.
fn merged_pairs(tokenizer: &Tokenizer) -> Vec<(u32, u32)> {
    tokenizer.vocab().merges().iter().map(|merge| (merge.left, merge.right)).collect()
}

/// A small tokenizer with merges in several scripts and two special tokens, one the beginning of the other.
fn sample_tokenizer(pattern: &Pattern) -> &'static Tokenizer {
    static TOKENIZERS: LazyLock<[Tokenizer; Pattern::ALL.len()]> = LazyLock::new(|| {
        let text =
            "the then there's this that's  it's 2024 été 語語 aaaa aaaaaaaa abababab \n\n\tnew  lines\r\n".repeat(3);
        Pattern::ALL.map(|pattern| train(&[&text], 300, &pattern, &["<|end|>", "<|end|><|end|>"]))
    });
    TOKENIZERS.iter().find(|tokenizer| tokenizer.pattern() == pattern).unwrap()
}
