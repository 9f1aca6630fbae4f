//! `tokenizer::decode::stream` against the obvious oracle: decode everything, then cut.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::decode::join::Joiner;
use llm_core::tokenizer::decode::stream::{Delta, Detokenizer};
use llm_core::tokenizer::decode::token_stream::TokenStream;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::tokens::TokenTable;
use proptest::prelude::*;
use serde_json::json;

use super::formats::{PIECES, SPACE, sentence_pieces};
use super::sample_tokenizer;

/// All bytes decoded at once, cut where the first stop string is complete (the longest of those complete there).
fn oracle(tokens: &[Vec<u8>], stop: &[String]) -> (String, Option<usize>) {
    let text = String::from_utf8_lossy(&tokens.concat()).into_owned();
    for end in 0..=text.len() {
        let hits = (0..stop.len()).filter(|&index| text.as_bytes()[..end].ends_with(stop[index].as_bytes()));
        if let Some(index) = hits.rev().max_by_key(|&index| stop[index].len()) {
            return (text[..end - stop[index].len()].to_owned(), Some(index));
        }
    }
    (text, None)
}

fn table_of(tokens: &[Vec<u8>]) -> TokenTable {
    TokenTable::new(tokens.iter().cloned().map(Some).collect(), &[]).unwrap()
}

/// Pushes ids 0, 1, … and returns each delta's text, the rest, and the stop string hit.
fn stream(tokens: &[Vec<u8>], stop: &[String], checked_from: usize) -> (Vec<String>, String, Option<usize>) {
    let table = table_of(tokens);
    let mut detokenizer = Detokenizer::new(stop.to_vec(), true).unwrap();
    let mut texts = Vec::new();
    let mut stopped = None;
    for index in 0..tokens.len() {
        let delta = detokenizer.push(&table, index as u32, index >= checked_from);
        texts.push(delta.text);
        stopped = delta.stopped;
    }
    (texts, detokenizer.finish(), stopped)
}

/// Bytes that often form, and often break, code points and stop strings.
fn token() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => proptest::sample::select(vec!["a", "b", "ab", "\n", "é", "語", "😀", "\u{fffd}"])
            .prop_map(|text| text.as_bytes().to_vec()),
        2 => proptest::sample::select(vec![0xC3u8, 0xA9, 0xF0, 0x9F, 0x98, 0x80, 0xE8, 0xED, 0xFF]).prop_map(|b| vec![b]),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

fn stop_strings() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[ab\né語\u{fffd}]{1,4}", 0..4)
}

proptest! {
    #[test]
    fn deltas_equal_decoding_at_once(tokens in proptest::collection::vec(token(), 0..24), stop in stop_strings()) {
        let (texts, rest, stopped) = stream(&tokens, &stop, 0);
        let (expected, expected_stop) = oracle(&tokens, &stop);
        prop_assert_eq!(texts.concat() + &rest, expected);
        // A stop string that needs the U+FFFD of an incomplete end is complete only in `finish`.
        if stopped.is_some() || !stop.iter().any(|text| text.contains('\u{fffd}')) {
            prop_assert_eq!(stopped, expected_stop);
        }
    }

    #[test]
    fn a_stop_string_is_part_of_the_text_when_asked(
        tokens in proptest::collection::vec(token(), 0..24), stop in stop_strings(),
    ) {
        let table = table_of(&tokens);
        let mut detokenizer = Detokenizer::new(stop.clone(), true).unwrap().including_stop(true);
        let mut text = String::new();
        let mut stopped = None;
        for index in 0..tokens.len() {
            let delta = detokenizer.push(&table, index as u32, true);
            text.push_str(&delta.text);
            stopped = delta.stopped;
            if stopped.is_none() {
                // Nothing is held back but a character's first bytes.
                let known = String::from_utf8_lossy(&tokens[..=index].concat()).into_owned();
                prop_assert!(known.chars().count() - text.chars().count() <= 1);
            }
        }
        text.push_str(&detokenizer.finish());
        let (before, expected_stop) = oracle(&tokens, &stop);
        prop_assert_eq!(text, before + expected_stop.map_or("", |index| &stop[index]));
        if stopped.is_some() || !stop.iter().any(|text| text.contains('\u{fffd}')) {
            prop_assert_eq!(stopped, expected_stop);
        }
    }

    #[test]
    fn deltas_hold_back_only_what_could_be_a_stop(tokens in proptest::collection::vec(token(), 0..24)) {
        let stop = vec!["ab\n".to_owned()];
        let (texts, _, _) = stream(&tokens, &stop, 0);
        let whole = oracle(&tokens, &stop).0;
        let mut sent = String::new();
        for (index, text) in texts.iter().enumerate() {
            sent.push_str(text);
            let known = oracle(&tokens[..=index], &[]).0;
            prop_assert!(whole.starts_with(&sent));
            if whole.starts_with(&known) {
                // At most the stop string's two first characters, and one U+FFFD for an incomplete code point.
                prop_assert!(known.chars().count() - sent.chars().count() <= 3);
            }
        }
    }

    #[test]
    fn stops_are_not_looked_for_before_min_tokens(
        tokens in proptest::collection::vec("[ab\n]{0,4}", 1..12), stop in stop_strings(), gate in 0usize..12,
    ) {
        let tokens: Vec<Vec<u8>> = tokens.into_iter().map(String::into_bytes).collect();
        let gate = gate.min(tokens.len());
        let (texts, rest, stopped) = stream(&tokens, &stop, gate);
        let free = String::from_utf8_lossy(&tokens[..gate].concat()).into_owned();
        let (checked, expected_stop) = oracle(&tokens[gate..], &stop);
        prop_assert_eq!(texts.concat() + &rest, free + &checked);
        if gate < tokens.len() {
            prop_assert_eq!(stopped, expected_stop);
        }
    }
}

#[test]
fn half_a_character_is_never_in_a_delta() {
    let tokens = vec![vec![0xF0, 0x9F], vec![0x98], vec![0x80, b'!'], vec![0xC3]];
    let (texts, rest, _) = stream(&tokens, &[], 0);
    assert_eq!(texts, ["", "", "😀!", ""]);
    assert_eq!(rest, "\u{fffd}");
}

#[test]
fn stop_strings_match_across_tokens_and_are_dropped() {
    let tokens = vec![b"one <".to_vec(), b"|e".to_vec(), b"nd|> two".to_vec()];
    let (texts, rest, stopped) = stream(&tokens, &["|end|".to_owned(), "<|end|>".to_owned()], 0);
    assert_eq!(texts, ["one ", "", "<"]);
    assert_eq!((rest.as_str(), stopped), ("", Some(0)));
}

#[test]
fn of_stop_strings_that_end_together_the_longest_wins() {
    let tokens = vec![b"xab".to_vec()];
    for (stop, expected) in [(["b", "ab"], 1), (["ab", "b"], 0)] {
        let (texts, _, stopped) = stream(&tokens, &stop.map(str::to_owned), 0);
        assert_eq!((texts.concat().as_str(), stopped), ("x", Some(expected)));
    }
}

#[test]
fn a_stop_string_is_not_matched_around_text_that_is_not_searched() {
    let table = table_of(&[b"a".to_vec(), b"x".to_vec(), b"b".to_vec()]);
    let mut detokenizer = Detokenizer::new(vec!["ab".to_owned()], true).unwrap();
    let texts = [(0, true), (1, false), (2, true)].map(|(id, checks)| detokenizer.push(&table, id, checks));
    assert_eq!(texts.map(|delta| (delta.text, delta.stopped)), ["", "ax", "b"].map(|text| (text.to_owned(), None)));
}

#[test]
fn nothing_follows_a_stop() {
    let table = table_of(&[b"stop".to_vec(), b"more".to_vec()]);
    let mut detokenizer = Detokenizer::new(vec!["top".to_owned()], true).unwrap();
    assert_eq!(detokenizer.stopped(), None);
    assert_eq!(detokenizer.push(&table, 0, true), Delta { text: "s".to_owned(), stopped: Some(0) });
    assert_eq!(detokenizer.stopped(), Some(0));
    assert_eq!(detokenizer.push(&table, 1, true), Delta { text: String::new(), stopped: Some(0) });
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn special_tokens_are_skipped_only_when_asked() {
    let table = TokenTable::new(vec![Some(b"a".to_vec()), Some(b"<|end|>".to_vec()), None], &[1]).unwrap();
    for (skip_special, expected) in [(true, "aa"), (false, "a<|end|>a")] {
        let mut detokenizer = Detokenizer::new(vec![], skip_special).unwrap();
        let text: String = [0, 1, 2, 99, 0].map(|id| detokenizer.push(&table, id, true).text).concat();
        assert_eq!(text, expected);
    }
}

#[test]
fn no_more_spaces_are_stripped_than_the_decoder_says() {
    let table = table_of(&[b" ".to_vec(), b"  a".to_vec()]);
    for (strip_start, expected) in [(0, "    a"), (1, "   a"), (3, " a"), (4, "a"), (5, "a")] {
        let mut stream = TokenStream::new(Joiner::Words { strip_start, bare_first: false }, false).unwrap();
        let parts = [0, 0, 1].map(|id| stream.push(&table, id).unwrap()).concat();
        assert_eq!(parts + &stream.finish(), expected);
    }
}

#[test]
fn bad_arguments_are_named() {
    let Err(Error::InvalidArgument(message)) = Detokenizer::new(vec![String::new()], true) else { panic!() };
    assert_eq!(message, "`stop` strings must not be empty, got [\"\"]");
    let Err(Error::InvalidArgument(message)) = TokenTable::new(vec![None, None], &[2]) else { panic!() };
    assert_eq!(message, "special ids must be below the number of tokens (2), got 2");
}

proptest! {
    #[test]
    fn a_stream_of_tokens_ends_with_the_decoded_text(ids in proptest::collection::vec(0..300_u32, 0..30)) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        let mut stream = TokenStream::new(tokenizer.joiner(), false).unwrap();
        let parts = ids.iter().map(|&id| stream.push(tokenizer.vocab().tokens(), id).unwrap()).collect::<String>();
        prop_assert_eq!(parts + &stream.finish(), tokenizer.decode(&ids, false).unwrap());
    }

    #[test]
    fn a_stream_of_sentence_pieces_loses_the_spaces_that_the_whole_text_does(
        ids in proptest::collection::vec(prop_oneof![Just(1_u32), SPACE..SPACE + PIECES.len() as u32], 0..8),
        start in 0..4_usize, metaspace in any::<bool>(), skip_special in any::<bool>(),
    ) {
        let mut document = sentence_pieces(&PIECES, &[]);
        document["decoder"]["decoders"][3]["start"] = start.into();
        if metaspace {
            document["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        }
        let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
        let mut stream = TokenStream::new(tokenizer.joiner(), skip_special).unwrap();
        let parts = ids.iter().map(|&id| stream.push(tokenizer.vocab().tokens(), id).unwrap()).collect::<String>();
        prop_assert_eq!(parts + &stream.finish(), tokenizer.decode(&ids, skip_special).unwrap());
    }
}
