//! The scanners against a regex engine with the published patterns.

use std::sync::LazyLock;

use fancy_regex::Regex;
use llm_core::Error;
use llm_core::tokenizer::pretokenize::Pattern;
use proptest::prelude::*;

use super::text;

fn regex_pieces(pattern: Pattern, text: &str) -> Vec<&str> {
    static REGEXES: LazyLock<[Regex; 2]> =
        LazyLock::new(|| Pattern::ALL.map(|pattern| Regex::new(pattern.regex()).unwrap()));
    let regex = REGEXES.iter().find(|regex| regex.as_str() == pattern.regex()).unwrap();
    regex.find_iter(text).map(|piece| piece.unwrap().as_str()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn pieces_equal_the_regex(text in text()) {
        for pattern in Pattern::ALL {
            let pieces: Vec<&str> = pattern.pieces(&text).collect();
            prop_assert_eq!(pieces, regex_pieces(pattern, &text), "{}", pattern.name());
        }
    }
}

#[test]
fn contractions_fold_case_in_gpt4_only() {
    for (text, gpt2, gpt4) in [
        ("I'LL", vec!["I", "'", "LL"], vec!["I", "'LL"]),
        ("it'ſ", vec!["it", "'", "ſ"], vec!["it", "'ſ"]),
        ("we'vE", vec!["we", "'", "vE"], vec!["we", "'vE"]),
        ("'sad", vec!["'s", "ad"], vec!["'s", "ad"]),
        ("'lo", vec!["'", "lo"], vec!["'lo"]),
    ] {
        assert_eq!(Pattern::Gpt2.pieces(text).collect::<Vec<_>>(), gpt2);
        assert_eq!(Pattern::Gpt4.pieces(text).collect::<Vec<_>>(), gpt4);
    }
}

#[test]
fn unknown_pattern_lists_the_names() {
    let Err(Error::InvalidArgument(message)) = Pattern::from_name("gpt5") else { panic!() };
    assert_eq!(message, "`pattern` must be one of \"gpt2\", \"gpt4\", got \"gpt5\"");
}
