//! Encoding and decoding, against an encoder that merges one pair at a time.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::pretokenize::Pattern;
use llm_core::tokenizer::vocab::Vocab;
use proptest::prelude::*;

use super::{sample_tokenizer, text};

/// Byte-level BPE as the paper has it: the first merge in the list that applies, leftmost first, until none does.
fn reference_encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for piece in tokenizer.pattern().pieces(text).unwrap() {
        let mut word: Vec<u32> = piece.bytes().map(u32::from).collect();
        while let Some((merge, at)) =
            tokenizer.vocab().merges().iter().enumerate().find_map(|(merge, &(left, right))| {
                word.windows(2).position(|pair| pair == [left, right]).map(|at| (merge, at))
            })
        {
            word.splice(at..at + 2, [256 + merge as u32]);
        }
        ids.extend(word);
    }
    ids
}

proptest! {
    #[test]
    fn ids_equal_the_reference_and_decode_to_the_text(text in text(), repeat in 1usize..5) {
        let text = text.repeat(repeat);
        for pattern in Pattern::ALL {
            let tokenizer = sample_tokenizer(&pattern);
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(&ids, &reference_encode(tokenizer, &text));
            prop_assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn special_tokens_round_trip(parts in proptest::collection::vec(prop_oneof![Just("<|end|>".to_owned()), text()], 0..6)) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        let text = parts.concat();
        for allow_special in [false, true] {
            let ids = tokenizer.encode(&text, allow_special).unwrap();
            prop_assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn a_batch_equals_its_texts_alone(texts in proptest::collection::vec(text(), 0..8)) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt2);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let alone: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, true).unwrap()).collect();
        prop_assert_eq!(tokenizer.encode_batch(&texts, true).unwrap(), alone);
    }
}

#[test]
fn the_longest_special_token_wins_and_only_when_allowed() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    let [(_, end), (_, twice)] = tokenizer.vocab().special() else { panic!() };
    assert_eq!(tokenizer.encode("<|end|><|end|><|end|>a", true).unwrap(), [*twice, *end, 97]);
    assert!(tokenizer.encode("<|end|>", false).unwrap().iter().all(|id| id < end));
    assert_eq!(tokenizer.decode(&[97, *end, 98], true).unwrap(), b"ab");
}

#[test]
fn a_long_unsplittable_piece_is_fast_and_right() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    // Quadratic merging would take hours for this.
    let text = "ab".repeat(1 << 20);
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(tokenizer.decode_bytes(&ids).unwrap(), text.as_bytes());
    assert_eq!(ids[..100], reference_encode(tokenizer, &text[..4096])[..100]);
}

#[test]
fn unknown_ids_are_named() {
    let bytes: Vec<u8> = (0..=255).collect();
    let vocab = Vocab::new(&bytes, vec![(97, 98)], vec![("<|end|>".to_owned(), 300)]).unwrap();
    let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
    for id in [257, 301, u32::MAX] {
        let Err(Error::InvalidArgument(message)) = tokenizer.decode_bytes(&[97, id]) else { panic!() };
        assert_eq!(message, format!("token ids must be ids of this tokenizer (0 to 300), got {id} at index 1"));
    }
}

#[test]
fn a_merge_that_is_never_reached_is_not_looked_up() {
    let bytes: Vec<u8> = (0..=255).collect();
    // "bc" is merged first, so "ab" + "c" is never there and "abc" is not one token.
    let vocab = Vocab::new(&bytes, vec![(98, 99), (97, 98), (257, 99)], vec![]).unwrap();
    assert_eq!(Tokenizer::new(vocab, Pattern::Gpt4).encode("abc", false).unwrap(), [97, 256]);
}

#[test]
fn ranks_give_the_same_vocabulary() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    let ordinary = 256 + tokenizer.vocab().merges().len() as u32;
    let ranks: Vec<Vec<u8>> = (0..ordinary).map(|id| tokenizer.vocab().tokens().bytes(id).unwrap().to_vec()).collect();
    let again = Vocab::from_ranks(&ranks, tokenizer.vocab().special().to_vec()).unwrap();
    assert_eq!(again.merges(), tokenizer.vocab().merges());
    assert_eq!(again.size(), tokenizer.vocab().size());
}

#[test]
fn bad_vocabularies_are_named() {
    let bytes: Vec<u8> = (0..=255).collect();
    let special = |text: &str, id: u32| vec![(text.to_owned(), id)];
    for (vocab, expected) in [
        (Vocab::new(&bytes[1..], vec![], vec![]), "the first 256 tokens must be the 256 single bytes, each once"),
        (Vocab::new(&bytes, vec![(97, 256)], vec![]), "merge into id 256 must use lower ids, got (97, 256)"),
        (Vocab::new(&bytes, vec![(97, 98), (97, 98)], vec![]), "merge (97, 98) into id 257 is there twice"),
        (
            Vocab::new(&bytes, vec![(97, 97), (256, 97), (97, 256)], vec![]),
            "ids 257 and 258 have the same bytes (\"aaa\")",
        ),
        (
            Vocab::new(&bytes, vec![], special("<|e|>", 255)),
            "special token \"<|e|>\" (id 255) has the id of another token",
        ),
        (
            Vocab::new(&bytes, vec![], special("<|e|>", 1 << 24)),
            "special token \"<|e|>\" (id 16777216) must have an id below 16777216",
        ),
        (
            Vocab::from_ranks(&bytes.iter().map(|&b| vec![b]).chain([b"abc".to_vec()]).collect::<Vec<_>>(), vec![]),
            "token 256 (\"abc\") must be two tokens of lower rank, got 3",
        ),
        (Vocab::from_ranks(&[b"a".to_vec()], vec![]), "the first 256 tokens must be the 256 single bytes, each once"),
    ] {
        let Err(Error::Tokenizer(message)) = vocab else { panic!("{expected}") };
        assert_eq!(message, expected);
    }
}
