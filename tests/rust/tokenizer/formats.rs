//! `tokenizer.json` and back.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::pretokenize::Pattern;
use serde_json::{Value, json};

use super::sample_tokenizer;

#[test]
fn reading_what_was_written_gives_the_same_tokenizer() {
    for pattern in Pattern::ALL {
        let tokenizer = sample_tokenizer(&pattern);
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.pattern(), &pattern);
        assert_eq!(again.vocab().merges(), tokenizer.vocab().merges());
        assert_eq!(again.vocab().special(), tokenizer.vocab().special());
        let text = "this'll été 語 aaaaaa<|end|>";
        assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
    }
}

#[test]
fn merges_written_as_one_string_are_read() {
    let tokenizer = sample_tokenizer(&Pattern::Gpt2);
    let mut document: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    for merge in document["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    let again = Tokenizer::from_json(&document.to_string()).unwrap();
    assert_eq!(again.vocab().merges(), tokenizer.vocab().merges());
}

#[test]
fn components_that_would_change_ids_are_named() {
    let written = sample_tokenizer(&Pattern::Gpt4).to_json().unwrap();
    for (path, value, expected) in [
        (
            "/normalizer",
            json!({"type": "Nmt"}),
            "unsupported `normalizer`: must be null, NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace of a string, or a Sequence of these, got {\"type\":\"Nmt\"}",
        ),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": {}}),
            "unsupported `normalizers`: must be a list, got {}",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": ""}),
            "unsupported `Replace`: must be of a string that is not empty, got {",
        ),
        (
            "/normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": ""}),
            "unsupported `Replace`: must be of a string that is not empty, got {",
        ),
        (
            "/normalizer",
            json!({"type": "Strip", "strip_left": 1}),
            "unsupported `strip_left`: must be true or false, got 1",
        ),
        ("/decoder", json!(null), "unsupported `decoder`: must be ByteLevel, as the pre-tokenizer is, got null"),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing"}),
            "unsupported `single`: must be special tokens around one Sequence A, got null",
        ),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}),
            "unsupported `special_tokens`: must be ids for each in `single`, got null",
        ),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing", "single": []}),
            "unsupported `single`: must be special tokens around one Sequence A, got []",
        ),
        (
            "/post_processor",
            json!({"type": "BertProcessing", "cls": ["<s>"]}),
            "unsupported `cls`: must be a token and its id, got [\"<s>\"]",
        ),
        (
            "/post_processor",
            json!({"type": "Whatever"}),
            "unsupported `post_processor`: must be null, ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing, or a Sequence of these",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "unsupported `pre_tokenizer`: must be null, ByteLevel, Split, Digits, Metaspace, or a Sequence of these, got",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]}),
            "unsupported `pre_tokenizer`: must be a Sequence with nothing after ByteLevel",
        ),
        (
            "/pre_tokenizer/pretokenizers/0/behavior",
            json!("Merged"),
            "unsupported `behavior`: must be Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, got \"Merged\"",
        ),
        ("/pre_tokenizer/pretokenizers/0/invert", json!(0), "unsupported `invert`: must be true or false, got 0"),
        (
            "/pre_tokenizer/pretokenizers/0/pattern",
            json!({"String": ""}),
            "unsupported `pattern`: must be a Regex, or a String that is not empty, got {\"String\":\"\"}",
        ),
        (
            "/pre_tokenizer/pretokenizers/0",
            json!({"type": "Metaspace", "replacement": "__"}),
            "unsupported `replacement`: must be one character, got \"__\"",
        ),
        (
            "/pre_tokenizer/pretokenizers/0",
            json!({"type": "Metaspace", "prepend_scheme": "last"}),
            "unsupported `prepend_scheme`: must be always, first or never, got \"last\"",
        ),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("("), "`pattern` \"(\" is not a regular expression"),
        ("/model/type", json!("Unigram"), "unsupported `type`: must be \"BPE\", got \"Unigram\""),
        ("/model/ignore_merges", json!(1), "unsupported `ignore_merges`: must be true or false, got 1"),
        ("/model/dropout", json!(0.1), "unsupported `dropout`: must be null, got 0.1"),
        ("/model/end_of_word_suffix", json!("</w>"), "unsupported `end_of_word_suffix`: must be null"),
        ("/model/continuing_subword_prefix", json!("##"), "unsupported `continuing_subword_prefix`: must be null"),
        ("/model/vocab", json!([]), "unsupported `vocab`: must be an object, got []"),
        ("/model/vocab", json!({"a": 0}), "merge [\"a\",\"a\"] has a token that is not in `model.vocab`"),
        ("/model/vocab/spare", json!(-1), "unsupported `vocab`: must be ids below 16777216, got -1"),
        ("/model/vocab/spare", json!(1 << 24), "unsupported `vocab`: must be ids below 16777216, got 16777216"),
        ("/model/vocab/spare", json!(97), "token ids must be there once each, got several tokens with id 97"),
        ("/model/merges", json!(null), "unsupported `merges`: must be a list, got null"),
        ("/model/merges/0", json!(["a"]), "unsupported `merges`: must be pairs of tokens, got [\"a\"]"),
        ("/model/merges/0", json!(["a", "☃"]), "has a token that is not in `model.vocab`"),
        ("/added_tokens", json!({}), "unsupported `added_tokens`: must be a list, got {}"),
        ("/added_tokens/0/lstrip", json!("yes"), "unsupported `lstrip`: must be true or false, got \"yes\""),
        ("/added_tokens/0/id", json!(-1), "unsupported `added_tokens`: must be tokens with content and id"),
        ("/added_tokens/0/id", json!(7), "added token \"<|end|>\" must have one id, got 7 and 298 in `model.vocab`"),
        ("/added_tokens/0/content", json!(""), "special token \"\" (id 298) must not be empty"),
    ] {
        let mut document: Value = serde_json::from_str(&written).unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        match document.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        }
        let Err(Error::Tokenizer(message)) = Tokenizer::from_json(&document.to_string()) else { panic!("{path}") };
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[test]
fn text_that_is_not_json_says_where() {
    let Err(Error::Tokenizer(message)) = Tokenizer::from_json("{\"model\": ") else { panic!() };
    assert_eq!(message, "must be JSON: EOF while parsing a value at line 1 column 10");
}
