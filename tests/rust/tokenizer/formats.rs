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
        ("/normalizer", json!({"type": "NFC"}), "unsupported `normalizer`: must be null, got {\"type\":\"NFC\"}"),
        ("/truncation", json!({"max_length": 8}), "unsupported `truncation`: must be null"),
        ("/decoder", json!(null), "unsupported `decoder`: must be ByteLevel, got null"),
        (
            "/post_processor",
            json!({"type": "TemplateProcessing"}),
            "unsupported `post_processor`: must be null or ByteLevel",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "unsupported `pre_tokenizer`: must be ByteLevel without prefix",
        ),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("("), "`pattern` \"(\" is not a regular expression"),
        ("/model/type", json!("Unigram"), "unsupported `type`: must be \"BPE\", got \"Unigram\""),
        ("/model/ignore_merges", json!(true), "unsupported `ignore_merges`: must be false, got true"),
        ("/model/byte_fallback", json!(true), "unsupported `byte_fallback`: must be false, got true"),
        ("/model/dropout", json!(0.1), "unsupported `dropout`: must be null, got 0.1"),
        ("/model/end_of_word_suffix", json!("</w>"), "unsupported `end_of_word_suffix`: must be null"),
        ("/model/vocab", json!([]), "unsupported `vocab`: must be an object, got []"),
        ("/model/vocab", json!({"a": 0}), "byte 0 ('Ā') must have an id below 256, got None"),
        ("/model/vocab/spare", json!(5000), "must have the 256 bytes, a token for each of its 42 merges"),
        ("/model/merges", json!(null), "unsupported `merges`: must be a list, got null"),
        ("/model/merges/0", json!(["a"]), "unsupported `merges`: must be pairs of tokens, got [\"a\"]"),
        ("/model/merges/0", json!(["a", "☃"]), "has a token that is not in `model.vocab`"),
        ("/model/merges/1", json!(["a", "a"]), "ids must follow the order of the merges; \"aa\" must be 257, got 256"),
        ("/added_tokens/0/lstrip", json!(true), "unsupported `lstrip`: must be false, got true"),
        ("/added_tokens/0/special", json!(false), "unsupported `special`: must be true, got false"),
        ("/added_tokens/0/id", json!(-1), "unsupported `added_tokens`: must be tokens with content and id"),
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
