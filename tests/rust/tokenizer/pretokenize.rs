//! The scanners against a regex engine with the published patterns, and the general path.

use std::sync::LazyLock;

use fancy_regex::Regex;
use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;
use llm_core::tokenizer::vocab::Vocab;
use proptest::prelude::*;

use super::{merged_pairs, text};

/// Every pattern that has a scanner, with its published regular expressions.
static PUBLISHED: LazyLock<Vec<(Pattern, Vec<Regex>)>> = LazyLock::new(|| {
    let compile = |pattern: Pattern| {
        let regexes = pattern.published().iter().map(|text| Regex::new(text).unwrap()).collect();
        (pattern, regexes)
    };
    Pattern::ALL.map(compile).into()
});

fn regex_pieces<'a>(regex: &Regex, text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut end = 0;
    for found in regex.find_iter(text) {
        let found = found.unwrap();
        pieces.extend([&text[end..found.start()], found.as_str()]);
        end = found.end();
    }
    pieces.push(&text[end..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn assert_pieces_equal_the_regexes(text: &str) {
    for (pattern, regexes) in PUBLISHED.iter() {
        let pieces = pattern.pieces(text).unwrap();
        for regex in regexes {
            assert_eq!(pieces, regex_pieces(regex, text), "{} {regex} {text:?}", pattern.name());
        }
    }
}

fn pieces<'a>(regex: &str, text: &'a str) -> Vec<&'a str> {
    Pattern::from_regex(regex).unwrap().pieces(text).unwrap()
}

fn any_text() -> impl Strategy<Value = String> {
    let cased_words = r"[aBǅʰ語\u{301}\u{903}' /!\r\n7ſsSLl]{0,16}";
    prop_oneof![3 => text(), 3 => cased_words]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn pieces_equal_the_regex(text in any_text()) {
        assert_pieces_equal_the_regexes(&text);
    }

    #[test]
    fn the_general_path_equals_the_scanner(text in any_text()) {
        // In a group it is another text, so no scanner takes it.
        static GENERAL: LazyLock<[Pattern; Pattern::ALL.len()]> = LazyLock::new(|| {
            Pattern::ALL.map(|pattern| Pattern::from_regex(&format!("(?:{})", pattern.regex())).unwrap())
        });
        for (pattern, general) in Pattern::ALL.iter().zip(&*GENERAL) {
            prop_assert!(general.is_custom());
            prop_assert_eq!(general.pieces(&text).unwrap(), pattern.pieces(&text).unwrap(), "{}", pattern.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn pieces_of_long_ascii_equal_the_regex(
        text in r"([a-zA-Z]{1,9}|[0-9]{1,9}|[ \t\r\n\x0b]{1,6}|[!'/.(]{1,4}|'(s|T|ll|RE|ve|x)|;\n//|\n    \n  ){0,60}",
        foreign in "[é語 ſ\u{3000}]{0,2}",
    ) {
        // Whole blocks, blocks that a character beyond ASCII cuts short, and the end of the text.
        assert_pieces_equal_the_regexes(&text);
        let middle = text.len() / 2;
        assert_pieces_equal_the_regexes(&[&text[..middle], &foreign, &text[middle..]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn pieces_of_long_text_in_any_script_equal_the_regex(
        words in r"(\p{Latin}{1,9}|[А-я]{1,9}|[Ꭰ-Ᏽꭰ-ꮿ]{1,3}|[あ語ʰˈ]{1,5}|[क-ह\u{93e}\u{301}]{1,9}|[𝐀𝐚😀]{1,3}){0,3}",
        text in r"[aBéÉǅʰ語\u{301}\u{903}' /!“…\r\n7٣ſsSLl\u{a0}\u{3000}😀]{0,90}",
        mostly_words in r"([a-zé]{1,5}|[A-ZÉ]{1,3}|[ʰ語]|\u{301}|'(s|ſ|LL)|[“.]| ){0,60}",
    ) {
        for text in [&text, &mostly_words] {
            assert_pieces_equal_the_regexes(&[&words, " ", text].concat());
            assert_pieces_equal_the_regexes(&[text, &*words, "!"].concat());
        }
    }
}

#[test]
fn every_short_text_of_border_characters_is_cut_as_the_regex_does() {
    let characters = ["a", "B", "語", "\u{301}", "7", "'", "s", " ", "\n", "/", "!", "“"];
    let mut texts = vec![String::new()];
    for _ in 0..3 {
        texts = texts.iter().flat_map(|text| characters.map(|character| format!("{text}{character}"))).collect();
        for text in &texts {
            assert_pieces_equal_the_regexes(text);
            // Where there is enough of it for a block.
            assert_pieces_equal_the_regexes(&format!("{text}É ab語Bc!"));
        }
    }
}

#[test]
fn contractions_fold_case_except_in_gpt2() {
    for (text, gpt2, gpt4, o200k) in [
        ("I'LL", vec!["I", "'", "LL"], vec!["I", "'LL"], vec!["I'LL"]),
        ("it'ſ", vec!["it", "'", "ſ"], vec!["it", "'ſ"], vec!["it'ſ"]),
        ("we'vE", vec!["we", "'", "vE"], vec!["we", "'vE"], vec!["we'vE"]),
        ("'sad", vec!["'s", "ad"], vec!["'s", "ad"], vec!["'sad"]),
        ("'lo", vec!["'", "lo"], vec!["'lo"], vec!["'lo"]),
        ("'\u{212a}", vec!["'", "\u{212a}"], vec!["'\u{212a}"], vec!["'\u{212a}"]),
    ] {
        assert_eq!(Pattern::Gpt2.pieces(text).unwrap(), gpt2);
        assert_eq!(Pattern::Gpt4.pieces(text).unwrap(), gpt4);
        assert_eq!(Pattern::O200k.pieces(text).unwrap(), o200k);
    }
}

#[test]
fn patterns_differ_where_they_should() {
    let text = "camelCase HTMLBody 1234\n/x \n ";
    for (pattern, expected) in [
        (Pattern::Gpt4, vec!["camelCase", " HTMLBody", " ", "123", "4", "\n", "/x", " \n", " "]),
        (Pattern::Cl100k, vec!["camelCase", " HTMLBody", " ", "123", "4", "\n", "/x", " \n "]),
        (Pattern::O200k, vec!["camel", "Case", " HTMLBody", " ", "123", "4", "\n", "/x", " \n", " "]),
        (Pattern::Qwen2, vec!["camelCase", " HTMLBody", " ", "1", "2", "3", "4", "\n", "/x", " \n", " "]),
        (Pattern::Whitespace, vec!["camelCase", " ", "HTMLBody", " ", "1234", "\n", "/x", " \n "]),
    ] {
        assert_eq!(pattern.pieces(text).unwrap(), expected);
    }
}

#[test]
fn long_runs_are_cut_in_linear_time() {
    for unit in ["a", "A", "語", "語A", "\u{301}A", "\u{301}", " ", "\n", " \n", "7", "!", "/", "'", "\u{a0}"] {
        let text = unit.repeat(1 << 16);
        for pattern in Pattern::ALL {
            assert_eq!(pattern.pieces(&text).unwrap().concat(), text);
        }
    }
}

#[test]
fn names_and_published_expressions_are_recognised() {
    for pattern in Pattern::ALL {
        assert_eq!(Pattern::parse(pattern.name()).unwrap(), pattern);
        for regex in pattern.published() {
            assert_eq!(Pattern::from_regex(regex).unwrap(), pattern);
            assert_eq!(Pattern::parse(regex).unwrap(), pattern);
        }
    }
    assert_eq!(Pattern::parse("llama3").unwrap(), Pattern::Gpt4);
    let custom = Pattern::parse(r"\d+").unwrap();
    assert_eq!((custom.name(), custom.regex(), custom.is_custom()), (r"\d+", r"\d+", true));
    assert_eq!([custom == Pattern::parse(r"\d+").unwrap(), custom == Pattern::parse(r"\w+").unwrap()], [true, false]);
}

#[test]
fn tiktokens_cl100k_is_another_expression_in_tokenizer_json() {
    let portable = Pattern::Cl100k.regex();
    let tiktoken = portable.replace("{1,3}", "{1,3}+");
    assert_eq!(Pattern::parse(&tiktoken).unwrap(), Pattern::Cl100k);
    assert_eq!(pieces(portable, "12345"), ["123", "45"]);
    assert_eq!(pieces(&tiktoken, "12345"), ["12345"]);
    let regex = Regex::new(&tiktoken).unwrap();
    assert_eq!(regex_pieces(&regex, "a 12345\n "), Pattern::Cl100k.pieces("a 12345\n ").unwrap());
}

#[test]
fn what_lies_between_matches_is_a_piece() {
    assert_eq!(pieces(r"\d", "ab12c"), ["ab", "1", "2", "c"]);
    assert_eq!(pieces("b*", "abcbbd"), ["a", "b", "c", "bb", "d"]);
    assert_eq!(pieces("(?=b)|c", "abcb"), ["a", "b", "c", "b"]);
    assert_eq!(pieces("x+y", "none"), ["none"]);
    assert_eq!(pieces(r"\d", ""), Vec::<&str>::new());
}

#[test]
fn anchors_are_at_line_ends() {
    assert_eq!(pieces(r"\s+$", "a  \n b  "), ["a", "  ", "\n b", "  "]);
    assert_eq!(pieces("^.", "ab\ncd"), ["a", "b\n", "c", "d"]);
    assert_eq!(pieces(r".\z", "ab\ncd"), ["ab\nc", "d"]);
}

#[test]
fn a_custom_pattern_trains_and_encodes() {
    // It joins what the built-in patterns part, so a text must not be counted in parts.
    let text = "ab ab\n".repeat(100_000);
    let pattern = Pattern::parse("[a-z \n]+").unwrap();
    let mut trainer = Trainer::new(259, pattern, &[]).unwrap();
    trainer.add(&[&text]).unwrap();
    let tokenizer = trainer.train(&mut |_, _| true).unwrap();
    assert_eq!(merged_pairs(&tokenizer), [(97, 98), (32, 256), (256, 257)]);
    assert_eq!(tokenizer.encode("ab ab\n", &Allowed::None).unwrap(), [258, 10]);
    let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
    assert_eq!(again.pattern(), tokenizer.pattern());
}

#[test]
fn bad_patterns_are_named() {
    let Err(Error::InvalidArgument(message)) = Pattern::parse("gpt5") else { panic!() };
    let names = r#""gpt2", "gpt4", "cl100k", "o200k", "qwen2", "whitespace", "llama3""#;
    assert_eq!(message, format!("`pattern` must be one of {names} or a regular expression, got \"gpt5\""));
    let Err(Error::Tokenizer(message)) = Pattern::parse("(a") else { panic!() };
    assert!(message.starts_with("`pattern` \"(a\" is not a regular expression: "), "{message}");
    for huge in [r"\w{99999}".repeat(9), "(".repeat(10_000), format!("(?:{}", "(?:a{99}){99}".repeat(99))] {
        assert!(matches!(Pattern::parse(&huge), Err(Error::Tokenizer(_))));
    }
}

#[test]
fn too_much_backtracking_is_an_error() {
    let bytes: Vec<u8> = (0..=255).collect();
    let pattern = Pattern::parse(r"(?:(a|aa|aaa)+)+(?=!)\1").unwrap();
    let tokenizer = Tokenizer::new(Vocab::new(&bytes, vec![], vec![]).unwrap(), pattern.clone());
    let text = "a".repeat(4000);
    let Err(Error::Tokenizer(message)) = tokenizer.encode(&text, &Allowed::None) else { panic!() };
    assert!(message.contains("can't cut this text: "), "{message}");
    assert!(tokenizer.encode_batch(&["a", &text], &Allowed::All).is_err());
    let mut trainer = Trainer::new(300, pattern, &[]).unwrap();
    assert!(trainer.add(&["b", &text]).is_err());
    // Part of the failed call may be counted.
    let Err(Error::InvalidArgument(message)) = trainer.train(&mut |_, _| true) else { panic!() };
    assert!(message.contains("got one whose last text failed"));
}
