//! What the fuzz targets share: small tokenizers of every kind, and the slow way to encode.

use std::collections::HashMap;
use std::sync::LazyLock;

use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;

/// Two special tokens, one the beginning of the other.
pub const SPECIAL: [&str; 2] = ["<|end|>", "<|end|><|end|>"];
/// A pattern that has no scanner of its own.
const CUSTOM: &str = r"\d|[^\d\s]+| +(?=\S)";

/// One tokenizer for each built-in pattern and one for a custom one.
pub static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let custom = Pattern::parse(CUSTOM).expect("the expression compiles");
    Pattern::ALL.into_iter().chain([custom]).map(|pattern| trained(pattern, 400)).collect()
});

/// A tokenizer with few merges: its files are short, so that changes hit every part of them.
pub fn smallest(pattern: Pattern) -> Tokenizer {
    trained(pattern, 262)
}

fn trained(pattern: Pattern, vocab_size: usize) -> Tokenizer {
    let text =
        "the then there's this THAT'S  it's 2024 été 語語 аб ١٢٣ aaaa aaaaaaaa abababab \n\n\tnew  lines\r\n    x = y"
            .repeat(3);
    let mut trainer = Trainer::new(vocab_size, pattern, &SPECIAL.map(str::to_owned)).expect("the settings are valid");
    trainer.add(&[&text]).expect("the pattern takes this text");
    trainer.train(&mut |_, _| true).expect("there is text")
}

/// Panics unless `ids` decode to `text`.
pub fn assert_decodes(tokenizer: &Tokenizer, ids: &[u32], text: &str) {
    let bytes = tokenizer.decode_bytes(ids, false).expect("every id is the tokenizer's");
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// The ids of `text` without special tokens, by taking the lowest merge of a piece again and again.
///
/// `None` if the pattern gives up on this text.
pub fn slow_ids(tokenizer: &Tokenizer, text: &str) -> Option<Vec<u32>> {
    let merges = tokenizer.vocab().merges().iter().map(|merge| ((merge.left, merge.right), merge.id));
    let merges: HashMap<_, _> = merges.collect();
    let mut all = Vec::new();
    for piece in tokenizer.pattern().pieces(text).ok()? {
        let mut ids: Vec<u32> = piece.bytes().map(u32::from).collect();
        let merged = |pair: &[u32]| merges.get(&(pair[0], pair[1])).copied();
        while let Some((id, place)) = ids.windows(2).enumerate().filter_map(|(i, p)| Some((merged(p)?, i))).min() {
            ids.splice(place..place + 2, [id]);
        }
        all.extend(ids);
    }
    Some(all)
}
