//! Normalized text, and the bytes of the original that its characters come from.

use llm_core::tokenizer::split::aligned::{AlignedText, Origin};
use llm_core::tokenizer::split::normalizer::{Normalizer, NormalizerStep};
use proptest::prelude::*;

use super::text;

use NormalizerStep::{Lowercase, Nfc, Nfd, Nfkc, Nfkd, Prepend, Replace, Strip};

fn replace(from: &str, to: &str) -> NormalizerStep {
    Replace { from: from.to_owned(), to: to.to_owned() }
}

/// The characters of the normalized text with their origins.
fn aligned(steps: &[NormalizerStep], original: &str) -> Vec<(char, Origin)> {
    let (text, origins) =
        AlignedText::new(original, 0).normalized(&Normalizer::new(steps.to_vec())).into_parts(original);
    assert_eq!(origins.len(), text.len());
    let origin =
        |(at, character): (usize, char)| (character, [origins[at][0], origins[at + character.len_utf8() - 1][1]]);
    text.char_indices().map(origin).collect()
}

#[test]
fn characters_come_from_what_was_changed_into_them() {
    let strip = |left, right| Strip { left, right };
    for (step, text, expected) in [
        (Nfc, " e\u{301}é", vec![(' ', [0, 1]), ('é', [1, 2]), ('é', [4, 6])]),
        (Nfc, "q\u{307}\u{323}", vec![('q', [0, 1]), ('\u{323}', [1, 3]), ('\u{307}', [3, 5])]),
        (
            Nfc,
            "\u{301}as\u{323}\u{307}b",
            vec![('\u{301}', [0, 2]), ('a', [2, 3]), ('\u{1e69}', [3, 4]), ('b', [8, 9])],
        ),
        // A mark is composed over one of a lower class, but not over one of its own.
        (Nfc, "e\u{316}\u{301}b", vec![('é', [0, 1]), ('\u{316}', [3, 5]), ('b', [5, 6])]),
        (Nfc, "a\u{305}\u{301}b", vec![('a', [0, 1]), ('\u{305}', [1, 3]), ('\u{301}', [3, 5]), ('b', [5, 6])]),
        (Nfd, "xéy", vec![('x', [0, 1]), ('e', [1, 3]), ('\u{301}', [1, 3]), ('y', [3, 4])]),
        (Nfkc, "ﬁ①", vec![('f', [0, 3]), ('i', [0, 3]), ('1', [3, 6])]),
        (Nfkd, "ﬁé", vec![('f', [0, 3]), ('i', [0, 3]), ('e', [3, 5]), ('\u{301}', [3, 5])]),
        (Lowercase, "aİX", vec![('a', [0, 1]), ('i', [1, 3]), ('\u{307}', [1, 3]), ('x', [3, 4])]),
        (strip(true, false), " a\u{a0}", vec![('a', [1, 2]), ('\u{a0}', [2, 4])]),
        (strip(false, true), " a\u{a0}", vec![(' ', [0, 1]), ('a', [1, 2])]),
        (strip(true, false), " \t", vec![]),
        (strip(false, true), " \t", vec![]),
        (Prepend("_-".to_owned()), "éa", vec![('_', [0, 2]), ('-', [0, 2]), ('é', [0, 2]), ('a', [2, 3])]),
        (Prepend("_".to_owned()), "", vec![]),
        (
            replace("ab", "éz"),
            "cabbab",
            vec![('c', [0, 1]), ('é', [2, 3]), ('z', [2, 3]), ('b', [3, 4]), ('é', [5, 6]), ('z', [5, 6])],
        ),
        (replace("é", ""), "aéb", vec![('a', [0, 1]), ('b', [3, 4])]),
    ] {
        assert_eq!(aligned(std::slice::from_ref(&step), text), expected, "{step:?} of {text:?}");
        let characters: String = expected.into_iter().map(|(character, _)| character).collect();
        assert_eq!(Normalizer::new(vec![step]).normalize(text), characters);
    }
}

#[test]
fn origins_begin_where_the_part_of_the_text_begins() {
    let (text, origins) = AlignedText::new("éb", 1).normalized(&Normalizer::new(vec![Nfd])).into_parts("aéb");
    assert_eq!((text.as_str(), origins), ("e\u{301}b", vec![[1, 3], [1, 3], [1, 3], [3, 4]]));
}

proptest! {
    #[test]
    fn aligned_text_is_the_normalized_one(
        // Marks of several classes, of which some keep others from being composed.
        text in prop_oneof![text(), "[aeqs \u{301}\u{302}\u{305}\u{316}\u{323}\u{327}]{0,9}"],
        steps in proptest::collection::vec(step(), 0..4),
    ) {
        let found = aligned(&steps, &text);
        let normalized: String = found.iter().map(|&(character, _)| character).collect();
        prop_assert_eq!(normalized, Normalizer::new(steps).normalize(&text));
        prop_assert!(found.iter().all(|&(_, [start, end])| start <= end && end <= text.len()));
    }
}

fn step() -> impl Strategy<Value = NormalizerStep> {
    prop_oneof![
        Just(Nfc),
        Just(Nfd),
        Just(Nfkc),
        Just(Nfkd),
        Just(Lowercase),
        any::<(bool, bool)>().prop_map(|(left, right)| Strip { left, right }),
        Just(Prepend("▁é".to_owned())),
        prop_oneof![Just(replace(" ", "▁")), Just(replace("s", "")), Just(replace("ab", "b"))],
    ]
}
