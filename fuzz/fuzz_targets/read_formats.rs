//! Any file: every reader gives an error or a tokenizer that works.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use llm_core::Result;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::decode::join::Joiner;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core_fuzz::{assert_decodes, smallest};

type Reader = fn(&[u8]) -> Result<Tokenizer>;

/// Every reader with a whole file of its format, which the fuzzer changes here and there.
static READERS: LazyLock<Vec<(Reader, Vec<u8>)>> = LazyLock::new(|| {
    let tokenizers = [Pattern::Gpt2, Pattern::O200k].map(smallest);
    let json = tokenizers.map(|tokenizer| tokenizer.to_json().expect("it can be written").into_bytes());
    json.into_iter().map(|file| (read_json as Reader, file)).collect()
});

/// What is put in place of `removed` bytes at `place`.
type Edit = (u16, u8, Vec<u8>);

fuzz_target!(|data: (u8, Vec<Edit>, Option<Vec<u8>>)| {
    let (choice, edits, raw) = data;
    let (read, whole) = &READERS[choice as usize % READERS.len()];
    let mut file = raw.unwrap_or_else(|| whole.clone());
    for (place, removed, added) in edits {
        let start = usize::from(place).min(file.len());
        let end = (start + usize::from(removed)).min(file.len());
        file.splice(start..end, added);
    }
    if let Ok(tokenizer) = read(&file) {
        works(&tokenizer);
    }
});

fn read_json(file: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_json(&String::from_utf8_lossy(file))
}

/// A custom pattern may give up on a text, and what two tokens would be written alike can't be written at all.
fn works(tokenizer: &Tokenizer) {
    let text = "it's  2024, été 語\n\n<|end|>aaaa";
    for allowed in [Allowed::None, Allowed::All] {
        let Ok(ids) = tokenizer.encode(text, &allowed) else { continue };
        if matches!(allowed, Allowed::None) && keeps_text(tokenizer, text) {
            assert_decodes(tokenizer, &ids, text);
        }
        tokenizer.decode_bytes(&ids, false).expect("every id is the tokenizer's");
        tokenizer.decode(&ids, true).expect("every id is the tokenizer's");
    }
    if let Ok(json) = tokenizer.to_json() {
        let again = Tokenizer::from_json(&json).expect("what was written can be read");
        assert_eq!(again.encode(text, &Allowed::All).ok(), tokenizer.encode(text, &Allowed::All).ok());
    }
}

/// Whether a file has nothing that changes a text or leaves some of it out.
fn keeps_text(tokenizer: &Tokenizer, text: &str) -> bool {
    let vocab = tokenizer.vocab();
    vocab.has_all_bytes()
        && vocab.sentence_piece().is_none()
        && tokenizer.joiner() == Joiner::Bytes
        && vocab.added().iter().all(|token| token.special)
        && tokenizer.pieces(text).is_ok_and(|pieces| pieces.concat() == text)
}
