//! Any text: its ids are those of the slow way, and decode to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_core::tokenizer::options::Allowed;
use llm_core_fuzz::{SPECIAL, TOKENIZERS, assert_decodes, slow_ids};

/// The slow way takes the square of this, in the worst case.
const MAX_SLOW_BYTES: usize = 128;

fuzz_target!(|data: (u8, u16, Vec<u8>)| {
    let (choice, repeats, bytes) = data;
    let tokenizer = &TOKENIZERS[choice as usize % TOKENIZERS.len()];
    let text = String::from_utf8_lossy(&bytes);
    check(tokenizer, &text);
    // Long pieces take another way than short ones.
    let longer = (1 << 14) / text.len().max(1);
    check(tokenizer, &text.repeat(usize::from(repeats).min(longer)));
    check(tokenizer, &text.replace('\0', SPECIAL[usize::from(choice) % 2]));
});

fn check(tokenizer: &llm_core::tokenizer::Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text, &Allowed::None) else {
        assert!(tokenizer.pattern().is_custom(), "only a custom pattern may give up");
        return;
    };
    if text.len() <= MAX_SLOW_BYTES {
        assert_eq!(Some(&ids), slow_ids(tokenizer, text).as_ref());
    }
    assert_decodes(tokenizer, &ids, text);
    if let Ok(ids) = tokenizer.encode(text, &Allowed::All) {
        assert_decodes(tokenizer, &ids, text);
    }
}
