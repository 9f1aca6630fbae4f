//! Stages that split text one after another, and where tokenizers use them.

use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::aligned::Origin;
use llm_core::tokenizer::split::normalizer::{Normalizer, NormalizerStep};
use llm_core::tokenizer::split::pipeline::Pipeline;
use llm_core::tokenizer::split::pretokenize::{CustomPattern, Pattern};
use llm_core::tokenizer::split::special::AddedToken;
use llm_core::tokenizer::split::stages::{Behavior, Needle, Prepend, Stage, Stretch, cut};
use serde_json::{Value, json};

use super::formats::{PIECES, SPACE, sentence_pieces};
use super::{sample_tokenizer, train};

fn split(needle: Needle, behavior: Behavior, invert: bool) -> Stage {
    Stage::Split { needle, behavior, invert }
}

fn metaspace(prepend: Prepend, split: bool) -> Stage {
    Stage::Metaspace { replacement: '▁', prepend, split }
}

/// The pieces of `text`, and the origins of their bytes.
fn cut_at(stages: &[Stage], text: &str, is_first: bool) -> Vec<(String, Vec<Origin>)> {
    let origins: Vec<Origin> = (0..text.len()).map(|at| [at, at + 1]).collect();
    let mut pieces = Vec::new();
    let stretch = Stretch { text, origins: &origins, is_first };
    cut(stages, stretch, &mut |piece| pieces.push((piece.text.to_owned(), piece.origins.to_vec()))).unwrap();
    pieces
}

fn pieces(stages: &[Stage], text: &str) -> Vec<String> {
    cut_at(stages, text, true).into_iter().map(|(piece, _)| piece).collect()
}

#[test]
fn matches_are_treated_by_their_behavior() {
    let dash = || Needle::Text("-".to_owned());
    for (behavior, invert, expected) in [
        (Behavior::Removed, false, vec!["a", "b"]),
        (Behavior::Removed, true, vec!["-", "-", "-", "-"]),
        (Behavior::Isolated, false, vec!["-", "a", "-", "-", "b", "-"]),
        (Behavior::MergedWithPrevious, false, vec!["-", "a-", "-", "b-"]),
        (Behavior::MergedWithNext, false, vec!["-a", "-", "-b", "-"]),
        (Behavior::Contiguous, false, vec!["-", "a", "--", "b", "-"]),
        (Behavior::Contiguous, true, vec!["-", "a", "--", "b", "-"]),
    ] {
        assert_eq!(pieces(&[split(dash(), behavior, invert)], "-a--b-"), expected, "{behavior:?}, inverted: {invert}");
    }
    assert_eq!(pieces(&[split(Needle::Number, Behavior::Isolated, false)], "a12½b"), ["a", "1", "2", "½", "b"]);
    assert_eq!(pieces(&[split(Needle::Number, Behavior::Contiguous, false)], "a12½b"), ["a", "12½", "b"]);
    let regex = |text| Needle::Regex(CustomPattern::new(text).unwrap());
    assert_eq!(pieces(&[split(regex("[ab]+"), Behavior::Isolated, false)], "xabyb"), ["x", "ab", "y", "b"]);
    // An empty match separates the text around it.
    assert_eq!(pieces(&[split(regex("(?=b)"), Behavior::Isolated, false)], "abab"), ["a", "ba", "b"]);
    assert!(pieces(&[split(dash(), Behavior::Removed, false)], "").is_empty());
}

#[test]
fn spaces_are_put_before_text_and_replaced_in_it() {
    let of_first = |num_bytes: usize| vec![[0, 2]; num_bytes];
    let found = cut_at(&[Stage::PrefixSpace], "éa", true);
    assert_eq!(found, [(" éa".to_owned(), [of_first(1), vec![[0, 1], [1, 2], [2, 3]]].concat())]);
    assert_eq!(pieces(&[Stage::PrefixSpace], " a"), [" a"]);
    let found = cut_at(&[metaspace(Prepend::Always, false)], "é b", false);
    let inside = vec![[0, 1], [1, 2], [2, 3], [2, 3], [2, 3], [3, 4]];
    assert_eq!(found, [("▁é▁b".to_owned(), [of_first(3), inside].concat())]);
    for (prepend, is_first, expected) in [
        (Prepend::Always, true, vec!["▁a", "▁b", "▁", "▁c"]),
        (Prepend::Always, false, vec!["▁a", "▁b", "▁", "▁c"]),
        (Prepend::First, true, vec!["▁a", "▁b", "▁", "▁c"]),
        (Prepend::First, false, vec!["a", "▁b", "▁", "▁c"]),
        (Prepend::Never, true, vec!["a", "▁b", "▁", "▁c"]),
    ] {
        let found = cut_at(&[metaspace(prepend, true)], "a b  c", is_first);
        let found: Vec<&str> = found.iter().map(|(piece, _)| piece.as_str()).collect();
        assert_eq!(found, expected, "{prepend:?}, first: {is_first}");
    }
    assert_eq!(pieces(&[metaspace(Prepend::Always, true)], " a"), ["▁a"]);
}

#[test]
fn each_stage_splits_the_pieces_of_the_one_before() {
    let bars = split(Needle::Text("|".to_owned()), Behavior::Removed, false);
    let stages = [bars, metaspace(Prepend::First, true)];
    let expected = [("▁a", 0), ("▁b", 1), ("c", 4)].map(|(piece, at)| (piece.to_owned(), at));
    let found = cut_at(&stages, "a b|c", true);
    assert_eq!(found.into_iter().map(|(piece, origins)| (piece, origins[0][0])).collect::<Vec<_>>(), expected);
    let stages = [Stage::Pattern(Pattern::Gpt4), split(Needle::Number, Behavior::Isolated, false)];
    assert_eq!(pieces(&stages, "it's 42"), ["it", "'s", " ", "4", "2"]);
}

#[test]
fn behaviors_are_read_from_their_names() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    for (name, expected) in [
        ("Removed", vec!["a", "b"]),
        ("Isolated", vec!["a", "-", "-", "b"]),
        ("MergedWithPrevious", vec!["a-", "-", "b"]),
        ("MergedWithNext", vec!["a", "-", "-b"]),
        ("Contiguous", vec!["a", "--", "b"]),
    ] {
        let stage = json!({"type": "Split", "pattern": {"String": "-"}, "behavior": name, "invert": false});
        document["pre_tokenizer"]["pretokenizers"][0] = stage;
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().pieces("a--b").unwrap(), expected, "{name}");
    }
}

#[test]
fn a_known_expression_splits_as_any_other() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    for pattern in [Pattern::Gpt4, Pattern::Whitespace] {
        for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
            for invert in [false, true] {
                // The second spelling is one that no vocabulary is published with.
                let [known, custom] = [pattern.regex().to_owned(), format!("(?:{})", pattern.regex())].map(|regex| {
                    document["pre_tokenizer"]["pretokenizers"][0] =
                        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert});
                    Tokenizer::from_json(&document.to_string()).unwrap().pieces("it's  42\n\n é").unwrap()
                });
                assert_eq!(known, custom, "{pattern:?}, {behavior}, inverted: {invert}");
            }
        }
    }
    for (behavior, expected) in [("Removed", vec!["ab", "c"]), ("Isolated", vec!["ab", "12", "c"])] {
        document["pre_tokenizer"]["pretokenizers"][0] =
            json!({"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": behavior, "invert": true});
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().pieces("ab12c").unwrap(), expected);
    }
}

#[test]
fn a_scheme_or_in_older_files_a_flag_says_whether_a_space_is_put_before_text() {
    let mut document = sentence_pieces(&PIECES, &[]);
    document["normalizer"] = json!(null);
    for (stage, expected) in [
        (json!({"type": "Metaspace"}), "▁a"),
        (json!({"type": "Metaspace", "add_prefix_space": true}), "▁a"),
        (json!({"type": "Metaspace", "add_prefix_space": false}), "a"),
        (json!({"type": "Metaspace", "prepend_scheme": "never"}), "a"),
        (json!({"type": "Metaspace", "prepend_scheme": "always", "add_prefix_space": false}), "▁a"),
    ] {
        document["pre_tokenizer"] = stage.clone();
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().pieces("a").unwrap(), [expected], "{stage}");
    }
}

#[test]
fn numbers_are_split_into_digits_if_asked() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    for (stage, expected) in [
        (json!({"type": "Digits", "individual_digits": true}), vec!["a", "1", "½"]),
        (json!({"type": "Digits", "individual_digits": false}), vec!["a", "1½"]),
        (json!({"type": "Digits"}), vec!["a", "1½"]),
    ] {
        document["pre_tokenizer"]["pretokenizers"][0] = stage.clone();
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().pieces("a1½").unwrap(), expected, "{stage}");
    }
}

#[test]
fn the_byte_level_puts_a_space_before_text_and_splits_as_gpt2_unless_told_not_to() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt2).to_json().unwrap()).unwrap();
    for (stage, expected) in [
        (json!({"type": "ByteLevel"}), vec![" a", "1"]),
        (json!({"type": "ByteLevel", "add_prefix_space": false}), vec!["a", "1"]),
        (json!({"type": "ByteLevel", "use_regex": false}), vec![" a1"]),
        (json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}), vec!["a1"]),
    ] {
        document["pre_tokenizer"] = stage.clone();
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().pieces("a1").unwrap(), expected, "{stage}");
    }
}

#[test]
fn only_the_beginning_of_the_text_is_its_first_stretch() {
    let mut document = sentence_pieces(&PIECES, &[["a", "b"], ["▁", "ab"]]);
    document["normalizer"] = json!(null);
    document["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let (ab, word) = (SPACE + 3, SPACE + 4);
    for text in ["ab<s>ab", "ab<s> <s>ab"] {
        let (with_offsets, _) = tokenizer.encode_with_offsets(text, &Allowed::All).unwrap();
        assert_eq!(tokenizer.encode(text, &Allowed::All).unwrap(), with_offsets, "{text}");
        assert_eq!((with_offsets[0], with_offsets[with_offsets.len() - 1]), (word, ab), "{text}");
    }
    assert_eq!(tokenizer.encode("<s>ab", &Allowed::All).unwrap(), [1, ab]);
}

#[test]
fn text_is_cut_at_line_ends_only_if_nothing_reaches_over_one() {
    let pattern = || Stage::Pattern(Pattern::Gpt4);
    let number = |behavior| split(Needle::Number, behavior, false);
    let text = || Needle::Text("x".to_owned());
    let plain = AddedToken::special("<|end|>".to_owned(), 0);
    let ordinary = AddedToken { special: false, ..plain.clone() };
    for (stages, steps, added, expected) in [
        (vec![pattern()], vec![], plain.clone(), true),
        (vec![pattern()], vec![NormalizerStep::Nfc], plain.clone(), true),
        (vec![pattern()], vec![NormalizerStep::Nfc, NormalizerStep::Lowercase], plain.clone(), false),
        (vec![number(Behavior::Isolated), pattern()], vec![], plain.clone(), true),
        (vec![number(Behavior::Removed), pattern()], vec![], plain.clone(), false),
        (vec![split(text(), Behavior::Isolated, false), pattern()], vec![], plain.clone(), false),
        (vec![pattern(), Stage::PrefixSpace], vec![], plain.clone(), false),
        (vec![metaspace(Prepend::Never, true), pattern()], vec![], plain.clone(), false),
        (vec![Stage::Pattern(Pattern::from_regex("[^x]+").unwrap())], vec![], plain.clone(), false),
        (vec![number(Behavior::Isolated)], vec![], plain.clone(), false),
        (vec![], vec![], plain.clone(), false),
        // Special tokens are found before text is cut; ordinary ones must not reach over a line's end.
        (vec![pattern()], vec![], AddedToken { lstrip: true, ..plain.clone() }, true),
        (vec![pattern()], vec![], ordinary.clone(), true),
        (vec![pattern()], vec![], AddedToken { content: "a\nb".to_owned(), ..ordinary.clone() }, false),
        (vec![pattern()], vec![], AddedToken { content: "a\rb".to_owned(), ..ordinary.clone() }, false),
        (vec![pattern()], vec![], AddedToken { lstrip: true, ..ordinary.clone() }, false),
        (vec![pattern()], vec![], AddedToken { rstrip: true, ..ordinary.clone() }, false),
        (vec![pattern()], vec![], AddedToken { single_word: true, ..ordinary.clone() }, false),
        (vec![pattern()], vec![], AddedToken { content: "a\nb".to_owned(), normalized: true, ..ordinary }, false),
    ] {
        let shown = format!("{stages:?}, {steps:?}, {added:?}");
        assert_eq!(Pipeline::new(Normalizer::new(steps), stages, &[added]).cuts_at_line_ends(), expected, "{shown}");
    }
    // Of whole tokenizers: one without a pipeline, whose pattern reaches over line ends or not, and one with both.
    assert!(sample_tokenizer(&Pattern::Gpt4).cuts_at_line_ends());
    assert!(!train(&["a"], 256, &Pattern::from_regex("[^x]+").unwrap(), &[]).cuts_at_line_ends());
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    for (normalizer, expected) in [("NFC", true), ("Lowercase", false)] {
        document["normalizer"] = json!({"type": normalizer});
        assert_eq!(Tokenizer::from_json(&document.to_string()).unwrap().cuts_at_line_ends(), expected);
    }
}
