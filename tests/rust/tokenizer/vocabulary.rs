//! Encoding and decoding, against an encoder that merges one pair at a time.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::split::special::AddedToken;
use llm_core::tokenizer::tokens::Merge;
use llm_core::tokenizer::vocab::{Vocab, VocabParts};
use proptest::prelude::*;

use super::{sample_tokenizer, text};

/// Byte-level BPE as the paper has it: the first merge in the list that applies, leftmost first, until none does.
fn reference_encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for piece in tokenizer.pattern().pieces(text).unwrap() {
        let mut word: Vec<u32> = piece.bytes().map(u32::from).collect();
        while let Some((id, at)) = tokenizer.vocab().merges().iter().find_map(|merge| {
            word.windows(2).position(|pair| pair == [merge.left, merge.right]).map(|at| (merge.id, at))
        }) {
            word.splice(at..at + 2, [id]);
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
            let ids = tokenizer.encode(&text, &Allowed::None).unwrap();
            prop_assert_eq!(&ids, &reference_encode(tokenizer, &text));
            prop_assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn special_tokens_round_trip(parts in proptest::collection::vec(prop_oneof![Just("<|end|>".to_owned()), text()], 0..6)) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        let text = parts.concat();
        for allowed in [Allowed::None, Allowed::All] {
            let ids = tokenizer.encode(&text, &allowed).unwrap();
            prop_assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn a_batch_equals_its_texts_alone(texts in proptest::collection::vec(text(), 0..8)) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt2);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let alone: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, &Allowed::All).unwrap()).collect();
        prop_assert_eq!(tokenizer.encode_batch(&texts, &Allowed::All).unwrap(), alone);
    }
}

/// Words of one to 300 bytes, more than any table of pieces holds at first, each several times.
fn many_words(num_words: usize) -> String {
    let letters = ["a", "b", "ab", "é", "語", "th", "e"];
    let word = |seed: usize| {
        let len = if seed.is_multiple_of(97) { 120 } else { 1 + seed % 9 };
        (0..len).map(|at| letters[seed.wrapping_mul(2_654_435_761).rotate_left(at as u32) % letters.len()]).collect()
    };
    let words: Vec<String> = (0..num_words).map(word).collect();
    [words.join(" "), words.join("\n"), words.join(" ")].concat()
}

#[test]
fn what_is_remembered_of_pieces_changes_no_ids() {
    let text = many_words(40_000);
    for pattern in [Pattern::Gpt4, Pattern::Whitespace] {
        let tokenizer = sample_tokenizer(&pattern);
        let merged: Vec<u32> = tokenizer
            .pattern()
            .pieces(&text)
            .unwrap()
            .into_iter()
            .flat_map(|piece| {
                let mut ids = Vec::new();
                tokenizer.vocab().merge_bytes(piece.as_bytes(), &mut ids);
                ids
            })
            .collect();
        // Twice: with nothing remembered, and with all that there was room for.
        for _ in 0..2 {
            assert_eq!(tokenizer.encode(&text, &Allowed::None).unwrap(), merged);
        }
    }
}

#[test]
fn a_vocabulary_with_unreached_tokens_or_several_merges_takes_long_pieces() {
    // "abc" is never made of "ab" and "c", and the second vocabulary makes "aaa" in two ways.
    let ranks = ranks_of(&["bc", "ab", "abc", "aa", "aaa"]);
    let text = "abcaaab".repeat(300);
    let tokenizer = Tokenizer::new(Vocab::from_ranks(&ranks, vec![]).unwrap(), Pattern::Whitespace);
    assert_eq!(tokenizer.encode(&text, &Allowed::None).unwrap(), reference_merge_by_rank(&ranks, text.as_bytes()));
}

#[test]
fn the_longest_special_token_wins_and_only_when_allowed() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    let [(_, end), (_, twice)] = tokenizer.vocab().special() else { panic!() };
    assert_eq!(tokenizer.encode("<|end|><|end|><|end|>a", &Allowed::All).unwrap(), [*twice, *end, 97]);
    assert!(tokenizer.encode("<|end|>", &Allowed::None).unwrap().iter().all(|id| id < end));
    assert_eq!(tokenizer.decode_bytes(&[97, *end, 98], true).unwrap(), b"ab");
}

#[test]
fn a_long_unsplittable_piece_is_fast_and_right() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    // Quadratic merging would take hours for this.
    let text = "ab".repeat(1 << 20);
    let ids = tokenizer.encode(&text, &Allowed::None).unwrap();
    assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), text.as_bytes());
    assert_eq!(ids[..100], reference_encode(tokenizer, &text[..4096])[..100]);
}

#[test]
fn unknown_ids_are_named() {
    let bytes: Vec<u8> = (0..=255).collect();
    let vocab = Vocab::new(&bytes, vec![(97, 98)], vec![("<|end|>".to_owned(), 300)]).unwrap();
    let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
    for id in [257, 301, u32::MAX] {
        let Err(Error::InvalidArgument(message)) = tokenizer.decode_bytes(&[97, id], false) else { panic!() };
        assert_eq!(message, format!("token ids must be ids of this tokenizer (0 to 300), got {id} at index 1"));
    }
}

#[test]
fn a_merge_that_is_never_reached_is_not_looked_up() {
    let bytes: Vec<u8> = (0..=255).collect();
    // "bc" is merged first, so "ab" + "c" is never there and "abc" is not one token.
    let vocab = Vocab::new(&bytes, vec![(98, 99), (97, 98), (257, 99)], vec![]).unwrap();
    assert_eq!(Tokenizer::new(vocab, Pattern::Gpt4).encode("abc", &Allowed::None).unwrap(), [97, 256]);
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

/// tiktoken's way: any two neighbours that are a token together merge, the lowest rank first, leftmost first.
fn reference_merge_by_rank(ranks: &[Vec<u8>], piece: &[u8]) -> Vec<u32> {
    let rank = |bytes: &[u8]| ranks.iter().position(|token| token == bytes);
    if let Some(whole) = rank(piece) {
        return vec![whole as u32];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
    let lowest = |parts: &[Vec<u8>]| {
        let pairs = parts.windows(2).enumerate();
        pairs.filter_map(|(at, pair)| rank(&pair.concat()).map(|rank| (rank, at))).min()
    };
    while let Some((_, at)) = lowest(&parts) {
        let merged = parts[at..at + 2].concat();
        parts.splice(at..at + 2, [merged]);
    }
    parts.iter().map(|part| rank(part).unwrap() as u32).collect()
}

/// The 256 bytes, then `tokens` without those that are there already.
fn ranks_of(tokens: &[&str]) -> Vec<Vec<u8>> {
    let mut ranks: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    for token in tokens.iter().map(|token| token.as_bytes().to_vec()) {
        if !ranks.contains(&token) {
            ranks.push(token);
        }
    }
    ranks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_table_of_ranks_merges_as_tiktoken_does(
        tokens in proptest::collection::vec("[a-c]{2,5}", 0..25), pieces in proptest::collection::vec("[a-c]{1,9}", 20),
    ) {
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let ranks = ranks_of(&tokens);
        let tokenizer = Tokenizer::new(Vocab::from_ranks(&ranks, vec![]).unwrap(), Pattern::Whitespace);
        for piece in pieces {
            let ids = tokenizer.encode(&piece, &Allowed::None).unwrap();
            prop_assert_eq!(ids, reference_merge_by_rank(&ranks, piece.as_bytes()), "{} of {:?}", piece, tokens);
        }
    }
}

#[test]
fn a_token_that_merging_never_makes_is_found_whole() {
    // Neither "ab" nor "bc" is a token, so "abc" is never two.
    let vocab = Vocab::from_ranks(&ranks_of(&["abc", "cd"]), vec![]).unwrap();
    assert!(vocab.whole_first());
    let tokenizer = Tokenizer::new(vocab, Pattern::Whitespace);
    assert_eq!(tokenizer.encode("abc abcd", &Allowed::None).unwrap(), [256, 32, 97, 98, 257]);
}

#[test]
fn a_table_with_gaps_and_bytes_anywhere_keeps_its_ids() {
    let mut ranks: Vec<Vec<u8>> = (0..=255).rev().map(|byte| vec![byte]).collect();
    ranks.extend([vec![], b"ab".to_vec(), vec![], b"abb".to_vec()]);
    let vocab = Vocab::from_ranks(&ranks, vec![("<|e|>".to_owned(), 256)]).unwrap();
    assert_eq!((vocab.size(), vocab.whole_first()), (260, false));
    assert_eq!(vocab.byte_ids()[0], 255);
    assert!([257, 259, 0].iter().all(|&id| vocab.is_ordinary(id)));
    assert!([256, 258, 260].iter().all(|&id| !vocab.is_ordinary(id)));
    let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
    assert_eq!(tokenizer.encode("abbab<|e|>", &Allowed::All).unwrap(), [259, 257, 256]);
}

/// Parts with the bytes as ids 10 to 265, then `tokens` with the ids given.
fn parts(tokens: &[(u32, &str)], merges: &[(u32, u32, u32)]) -> VocabParts {
    let bytes = (0..=255).map(|byte: u8| (10 + u32::from(byte), vec![byte]));
    VocabParts {
        tokens: bytes.chain(tokens.iter().map(|&(id, text)| (id, text.as_bytes().to_vec()))).collect(),
        unreached: vec![],
        unknown: None,
        sentence_piece: None,
        byte_ids: std::array::from_fn(|byte| 10 + byte as u32),
        merges: merges.iter().map(|&(left, right, id)| Merge { left, right, id }).collect(),
        whole_first: false,
        added: vec![AddedToken::special("<|e|>".to_owned(), 0)],
    }
}

const A: u32 = 10 + b'a' as u32;
const B: u32 = 10 + b'b' as u32;

#[test]
fn ids_need_not_follow_the_merges() {
    // "aab" can be made in two ways; "aa" comes after "ab" although its id is lower.
    let merges = [(A, B, 300), (A, A, 5), (A, 300, 299), (5, B, 299)];
    let vocab = Vocab::build(parts(&[(5, "aa"), (299, "aab"), (300, "ab")], &merges)).unwrap();
    assert_eq!((vocab.size(), vocab.special()), (301, &[("<|e|>".to_owned(), 0)][..]));
    let tokenizer = Tokenizer::new(vocab, Pattern::Gpt4);
    assert_eq!(tokenizer.encode("aab aaa<|e|>", &Allowed::All).unwrap(), [299, 42, 5, A, 0]);
    assert_eq!(tokenizer.decode_bytes(&[299, 0, 5], false).unwrap(), b"aab<|e|>aa");
}

#[test]
fn bad_parts_are_named() {
    let tokens = [(5, "aa"), (300, "ab")];
    let added = |content: &str, id: u32| {
        let mut parts = parts(&[], &[]);
        parts.added.push(AddedToken::special(content.to_owned(), id));
        parts
    };
    for (parts, expected) in [
        (parts(&[(5, "aa"), (5, "ab")], &[]), "token ids must be there once each, got several tokens with id 5"),
        (parts(&[(1 << 24, "aa")], &[]), "token ids must be below 16777216, got 16777216"),
        (parts(&tokens, &[(A, A, 5), (A, A, 5)]), "merge (107, 107) into id 5 is there twice"),
        (parts(&tokens, &[(A, B, 5)]), "merge of \"a\" and \"b\" must make both together, got \"aa\" (id 5)"),
        (parts(&tokens, &[(5, 5, 5)]), "merge of \"aa\" and \"aa\" must make both together, got \"aa\" (id 5)"),
        (parts(&tokens, &[(A, 299, 5)]), "merge (107, 299) into id 5 must use ids that have a token"),
        (added("", 1), "special token \"\" (id 1) must not be empty"),
        (added("<|e|>", 1), "special token \"<|e|>\" (id 1) is there twice"),
        (added("<|f|>", 1 << 24), "special token \"<|f|>\" (id 16777216) must have an id below 16777216"),
    ] {
        let Err(Error::Tokenizer(message)) = Vocab::build(parts) else { panic!("{expected}") };
        assert_eq!(message, expected);
    }
}

#[test]
fn bad_vocabularies_are_named() {
    let bytes: Vec<u8> = (0..=255).collect();
    let special = |text: &str, id: u32| vec![(text.to_owned(), id)];
    for (vocab, expected) in [
        (Vocab::new(&bytes[1..], vec![], vec![]), "each of the 256 bytes must be a token, byte 0x00 is none"),
        (Vocab::new(&bytes, vec![(97, 256)], vec![]), "merge into id 256 must use lower ids, got (97, 256)"),
        (Vocab::new(&bytes, vec![(97, 98), (97, 98)], vec![]), "ids 256 and 257 have the same bytes (\"ab\")"),
        (
            Vocab::new(&bytes, vec![(97, 97), (256, 97), (97, 256)], vec![]),
            "ids 257 and 258 have the same bytes (\"aaa\")",
        ),
        (Vocab::new(&bytes, vec![], special("", 256)), "special token \"\" (id 256) must not be empty"),
        (
            Vocab::new(&bytes, vec![], special("<|e|>", 255)),
            "special token \"<|e|>\" (id 255) has the id of another token",
        ),
        (
            Vocab::new(&bytes, vec![], special("a", 256)),
            "special token \"a\" (id 256) has the text of an ordinary token",
        ),
        (
            Vocab::new(&bytes, vec![], special("<|e|>", 1 << 24)),
            "special token \"<|e|>\" (id 16777216) must have an id below 16777216",
        ),
        (
            Vocab::from_ranks(&ranks_of(&["ab", "cd"])[1..], vec![]),
            "each of the 256 bytes must be a token, byte 0x00 is none",
        ),
        (
            Vocab::from_ranks(&[ranks_of(&["ab"]), vec![b"ab".to_vec()]].concat(), vec![]),
            "ids 256 and 257 have the same bytes (\"ab\")",
        ),
    ] {
        let Err(Error::Tokenizer(message)) = vocab else { panic!("{expected}") };
        assert_eq!(message, expected);
    }
}
