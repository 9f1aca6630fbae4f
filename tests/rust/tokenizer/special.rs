//! Added tokens in text, against a search that looks at every place for every token.

use llm_core::tokenizer::split::special::{AddedToken, Segment, SpecialMatcher};
use proptest::prelude::*;

fn token(content: &str, id: u32) -> AddedToken {
    AddedToken::special(content.to_owned(), id)
}

/// The first place where a token is, of several there the longest.
fn reference_segments(tokens: &[AddedToken], text: &str) -> Vec<(Option<u32>, String)> {
    let (mut segments, mut rest) = (Vec::new(), text);
    'search: while !rest.is_empty() {
        for (at, _) in rest.char_indices() {
            let here = tokens.iter().filter(|token| rest[at..].starts_with(&token.content));
            let Some(token) = here.max_by_key(|token| token.content.len()) else { continue };
            if at > 0 {
                segments.push((None, rest[..at].to_owned()));
            }
            segments.push((Some(token.id), token.content.clone()));
            rest = &rest[at + token.content.len()..];
            continue 'search;
        }
        segments.push((None, rest.to_owned()));
        break;
    }
    segments
}

fn found<'a>(matcher: &'a SpecialMatcher, text: &'a str) -> Vec<Segment<'a>> {
    matcher.segments(text).collect()
}

proptest! {
    #[test]
    fn plain_tokens_are_found_as_the_reference_finds_them(
        contents in proptest::collection::btree_set("[aé<]{1,4}", 0..6), text in "[aé<b]{0,30}",
    ) {
        let tokens: Vec<AddedToken> = contents.iter().zip(0..).map(|(content, id)| token(content, id)).collect();
        let matcher = SpecialMatcher::with_flags(tokens.clone());
        let expected = reference_segments(&tokens, &text);
        let segments = found(&matcher, &text);
        prop_assert_eq!(segments.len(), expected.len());
        for (segment, (id, content)) in segments.into_iter().zip(expected) {
            match segment {
                Segment::Special(special) => prop_assert_eq!(Some(special), id),
                Segment::Text(part) => prop_assert_eq!((None, part.to_owned()), (id, content)),
            }
        }
    }
}

#[test]
fn flags_take_in_white_space_and_want_a_word_alone() {
    use Segment::{Special, Text};
    let left = AddedToken { lstrip: true, ..token("<l>", 1) };
    let right = AddedToken { rstrip: true, ..token("<r>", 2) };
    let word = AddedToken { single_word: true, ..token("word", 3) };
    let matcher = SpecialMatcher::with_flags(vec![left, right, word, token("or", 4)]);
    for (text, expected) in [
        ("a \u{3000}<l> b", vec![Text("a"), Special(1), Text(" b")]),
        ("a <r> \n b", vec![Text("a "), Special(2), Text("b")]),
        ("<r>  <l>", vec![Special(2), Special(1)]),
        ("a word.", vec![Text("a "), Special(3), Text(".")]),
        // It hides the "or" inside it even where it is no word alone.
        ("swords or", vec![Text("swords "), Special(4)]),
        ("wordé", vec![Text("wordé")]),
        ("word_", vec![Text("word_")]),
        ("", vec![]),
    ] {
        assert_eq!(found(&matcher, text), expected, "{text:?}");
    }
}

#[test]
fn special_tokens_that_are_not_allowed_are_text_with_all_inside() {
    use Segment::{Special, Text};
    let ordinary = AddedToken { special: false, ..token("ex", 2) };
    let matcher = SpecialMatcher::with_flags(vec![token("<text>", 1), ordinary]);
    let cut = |allowed| {
        let located = matcher.located_segments("ex<text>ex", allowed);
        located.map(|(_, segment)| segment).collect::<Vec<_>>()
    };
    assert_eq!(cut(true), [Special(2), Special(1), Special(2)]);
    assert_eq!(cut(false), [Special(2), Text("<text>"), Special(2)]);
}

#[test]
fn plain_tokens_have_no_flag_but_special() {
    let plain = AddedToken::special("<s>".to_owned(), 1);
    assert!(plain.is_plain());
    for other in [
        AddedToken { special: false, ..plain.clone() },
        AddedToken { single_word: true, ..plain.clone() },
        AddedToken { lstrip: true, ..plain.clone() },
        AddedToken { rstrip: true, ..plain.clone() },
        AddedToken { normalized: true, ..plain.clone() },
    ] {
        assert!(!other.is_plain(), "{other:?}");
    }
}
