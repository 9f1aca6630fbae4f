//! Any ids: an error for one that is none of the tokenizer's, else the stream's deltas are the whole's text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_core::tokenizer::decode::stream::Detokenizer;
use llm_core_fuzz::TOKENIZERS;

fuzz_target!(|data: (u8, bool, Vec<u16>, u32)| {
    let (choice, skip_special, short_ids, any_id) = data;
    let tokenizer = &TOKENIZERS[choice as usize % TOKENIZERS.len()];
    let size = tokenizer.vocab().size() as u32;
    let ids: Vec<u32> = short_ids.iter().map(|&id| u32::from(id) % size).collect();
    let bytes = tokenizer.decode_bytes(&ids, skip_special).expect("every id is the tokenizer's");
    let mut stream = Detokenizer::new(Vec::new(), skip_special).expect("there is no stop string");
    let mut text = String::new();
    for &id in &ids {
        text.push_str(&stream.push(tokenizer.vocab().tokens(), id, true).text);
    }
    text.push_str(&stream.finish());
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    let with_any: Vec<u32> = ids.into_iter().chain([any_id]).collect();
    assert_eq!(tokenizer.decode_bytes(&with_any, skip_special).is_ok(), any_id < size);
});
