//! Plans, batches, threads and offsets.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::batch::Rows;
use llm_core::tokenizer::decode::join::Joiner;
use llm_core::tokenizer::decode::offsets::offsets;
use llm_core::tokenizer::options::{Allowed, EncodePlan, Side, Template, Truncation};
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::split::special::SpecialMatcher;
use llm_core::tokenizer::threads::{MAX_THREADS, pool};
use proptest::prelude::*;

use super::formats::{PIECES, SPACE, sentence_pieces};
use super::{sample_tokenizer, text};

const END: &str = "<|end|>";

fn plan(allowed: Allowed) -> EncodePlan {
    EncodePlan::new(allowed, vec![], Template::default(), None).unwrap()
}

fn plain() -> EncodePlan {
    plan(Allowed::None)
}

/// How often a text is repeated: seldom, or so often that a few texts make several jobs.
fn repeat() -> impl Strategy<Value = usize> {
    prop_oneof![1..50_usize, 500..1000_usize]
}

proptest! {
    // Texts long enough for several jobs take their time in a debug build.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn rows_are_each_texts_ids_on_any_number_of_threads(
        texts in proptest::collection::vec(text(), 0..6), repeat in repeat(), num_threads in 1..4_usize
    ) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        let long: Vec<String> = texts.iter().map(|text| text.repeat(repeat)).collect();
        let texts: Vec<&str> = long.iter().map(String::as_str).collect();
        let rows = tokenizer.encode_rows(&texts, &plain(), Some(num_threads)).unwrap();
        let expected: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, &Allowed::None).unwrap()).collect();
        prop_assert_eq!(rows.iter().map(<[u32]>::to_vec).collect::<Vec<_>>(), expected.clone());
        prop_assert_eq!(tokenizer.decode_rows(&expected, false, Some(num_threads)).unwrap(), long);
    }

    #[test]
    fn documents_are_the_ids_of_their_pieces_with_an_end_each(
        pieces in proptest::collection::vec((text(), any::<bool>()), 0..9), repeat in repeat(), num_threads in 1..4_usize
    ) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        let long: Vec<(String, bool)> = pieces.into_iter().map(|(text, ends)| (text.repeat(repeat), ends)).collect();
        let pieces: Vec<(&str, bool)> = long.iter().map(|(text, ends)| (text.as_str(), *ends)).collect();
        for end in [Some(7), None] {
            let (mut ids, mut ends) = (Vec::new(), Vec::new());
            for (text, is_last) in &pieces {
                ids.extend(tokenizer.encode(text, &Allowed::None).unwrap());
                if *is_last {
                    ids.extend(end);
                    ends.push(ids.len() as i64);
                }
            }
            let narrow: Vec<u16> = ids.iter().map(|&id| id as u16).collect();
            let found = tokenizer.encode_documents::<u16>(&pieces, end, Some(num_threads)).unwrap();
            prop_assert_eq!(found, (narrow, ends.clone()));
            prop_assert_eq!(tokenizer.encode_documents::<u32>(&pieces, end, Some(num_threads)).unwrap(), (ids, ends));
        }
        if long.iter().any(|(_, is_last)| *is_last) {
            let error = tokenizer.encode_documents::<u16>(&pieces, Some(1 << 16), Some(num_threads)).unwrap_err();
            prop_assert!(error.to_string().contains("65536"), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn a_frame_keeps_what_is_around_and_cuts_the_rest(
        text in text(), before in 0..2_usize, after in 0..2_usize, max_length in 2..20_usize, left in any::<bool>()
    ) {
        let tokenizer = sample_tokenizer(&Pattern::Gpt2);
        let mut own = tokenizer.encode(&text, &Allowed::None).unwrap();
        while before + own.len() + after > max_length {
            if left { own.remove(0); } else { own.pop(); }
        }
        let expected = [vec![7; before], own, vec![8; after]].concat();
        let side = if left { Side::Left } else { Side::Right };
        let template = Template { before: vec![7; before], after: vec![8; after] };
        let plan = EncodePlan::new(Allowed::None, vec![], template, Some(Truncation { max_length, side })).unwrap();
        prop_assert_eq!([plan.template().before.len(), plan.template().after.len()], [before, after]);
        let mut ids = vec![1, 2];
        tokenizer.encode_planned(&text, &plan, &mut ids).unwrap();
        prop_assert_eq!(&ids[..2], [1, 2]);
        prop_assert_eq!(&ids[2..], expected);
    }

    #[test]
    fn offsets_slice_the_text(text in text()) {
        let tokenizer = sample_tokenizer(&Pattern::O200k);
        let ids = tokenizer.encode(&text, &Allowed::All).unwrap();
        let found = offsets(tokenizer.vocab().tokens(), tokenizer.joiner(), &ids, &text).unwrap();
        // The obvious twin: the character that each byte is part of.
        let char_of: Vec<usize> =
            text.chars().enumerate().flat_map(|(index, c)| std::iter::repeat_n(index, c.len_utf8())).collect();
        for ((&id, [start, end]), [first, last]) in ids.iter().zip(found.bytes).zip(found.chars) {
            prop_assert_eq!(Some(&text.as_bytes()[start..end]), tokenizer.vocab().tokens().bytes(id));
            prop_assert_eq!([first, last], [char_of[start], char_of[end - 1] + 1]);
        }
    }
}

#[test]
fn offsets_do_not_count_the_space_before_the_text() {
    let document = sentence_pieces(&PIECES, &[]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let (table, ab, word) = (tokenizer.vocab().tokens(), SPACE + 3, SPACE + 4);
    for (ids, text, expected) in [
        (&[word, ab][..], "abab", vec![[0, 2], [2, 4]]),
        (&[ab, word], "ab ab", vec![[0, 2], [2, 5]]),
        (&[SPACE, word], " ab", vec![[0, 0], [0, 3]]),
        (&[], "", vec![]),
    ] {
        assert_eq!(offsets(table, tokenizer.joiner(), ids, text).unwrap().bytes, expected, "{text:?}");
    }
    assert_eq!(offsets(table, Joiner::Bytes, &[word], " ab").unwrap().bytes, [[0, 3]]);
    for (joiner, text, index) in
        [(Joiner::Bytes, "aba", 0), (tokenizer.joiner(), "ab", 0), (tokenizer.joiner(), "abé", 2)]
    {
        let message = offsets(table, joiner, &[word, ab], text).unwrap_err().to_string();
        assert!(message.contains(&format!("got a difference at index {index}\n")), "{message}");
    }
}

#[test]
fn chosen_special_tokens_become_ids_and_forbidden_ones_are_named() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    let end = tokenizer.vocab().special()[0].clone();
    assert_eq!(end.0, END);
    let text = format!("é{END}{END}");
    let encode = |plan: &EncodePlan| {
        let mut ids = Vec::new();
        tokenizer.encode_planned(&text, plan, &mut ids).map(|()| ids)
    };
    // Chosen alone, the short token is found where all together find the long one.
    let e = tokenizer.encode("é", &Allowed::None).unwrap();
    let chosen = plan(Allowed::Some(Box::new(SpecialMatcher::new(std::slice::from_ref(&end)))));
    assert_eq!(encode(&chosen).unwrap(), [&e[..], &[end.1, end.1]].concat());
    let all = plan(Allowed::All);
    assert_eq!(encode(&all).unwrap(), tokenizer.encode(&text, &Allowed::All).unwrap());
    assert_eq!(encode(&plain()).unwrap(), tokenizer.encode(&text, &Allowed::None).unwrap());
    let strict = EncodePlan::new(Allowed::None, vec!["no".into(), END.into()], Template::default(), None).unwrap();
    let Err(Error::InvalidArgument(message)) = encode(&strict) else { panic!("must be refused") };
    assert!(message.starts_with("text must not have the special token \"<|end|>\", got it at index 1\nhint: "));
    let Err(Error::InvalidArgument(message)) = tokenizer.encode_rows(&["", &text], &strict, Some(1)) else {
        panic!("must be refused")
    };
    assert!(message.starts_with("item 1 of the batch: text must not have"), "{message}");
}

#[test]
fn a_text_within_the_limit_is_kept_whole() {
    for (side, long) in [(Side::Left, 3..7), (Side::Right, 0..4)] {
        let truncation = Truncation { max_length: 4, side };
        let plan = EncodePlan::new(Allowed::None, vec![], Template::default(), Some(truncation)).unwrap();
        assert_eq!([plan.kept(0), plan.kept(3), plan.kept(4), plan.kept(7)], [0..0, 0..3, 0..4, long]);
    }
}

#[test]
fn bad_plans_and_numbers_of_threads_are_named() {
    let message = |result: Result<EncodePlan, Error>| result.unwrap_err().to_string();
    let short = EncodePlan::new(
        Allowed::None,
        vec![],
        Template { before: vec![1], after: vec![2] },
        Some(Truncation { max_length: 1, side: Side::Left }),
    );
    assert_eq!(message(short), "`max_length` must have room for the tokens added around a text (2), got 1");
    let empty = EncodePlan::new(Allowed::None, vec![String::new()], Template::default(), None);
    assert_eq!(message(empty), "`disallowed_special` must not have an empty text");
    for wrong in [0, MAX_THREADS + 1] {
        let expected = format!("`num_threads` must be from 1 to 1024, got {wrong}");
        assert_eq!(pool(Some(wrong)).unwrap_err().to_string(), expected);
        let tokenizer = sample_tokenizer(&Pattern::Gpt4);
        assert_eq!(tokenizer.encode_rows(&["a"], &plain(), Some(wrong)).unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_first_fault_of_a_batch_is_named_on_any_number_of_threads() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt4);
    let mut rows = vec![vec![1; 1 << 14]; 20];
    rows[7][3] = 9999;
    rows[15][0] = 8888;
    for num_threads in [None, Some(1), Some(2), Some(4)] {
        let message = tokenizer.decode_rows(&rows, false, num_threads).unwrap_err().to_string();
        assert!(message.starts_with("item 7 of the batch: token ids must be ids of this tokenizer"), "{message}");
        assert!(message.ends_with("got 9999 at index 3"), "{message}");
    }
    assert_eq!(tokenizer.encode_rows(&[], &plain(), Some(2)).unwrap(), Rows::default());
}
