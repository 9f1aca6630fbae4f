//! `tokenizer.json` and back.

use llm_core::Error;
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::split::special::SpecialMatcher;
use serde_json::{Value, json};

use super::{sample_tokenizer, train};

#[test]
fn reading_what_was_written_gives_the_same_tokenizer() {
    for pattern in Pattern::ALL {
        let tokenizer = sample_tokenizer(&pattern);
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.pattern(), &pattern);
        assert_eq!(again.vocab().merges(), tokenizer.vocab().merges());
        assert_eq!(again.vocab().special(), tokenizer.vocab().special());
        let text = "this'll été 語 aaaaaa<|end|>";
        assert_eq!(again.encode(text, &Allowed::All).unwrap(), tokenizer.encode(text, &Allowed::All).unwrap());
    }
}

#[test]
fn only_the_pattern_of_gpt2_is_left_to_the_byte_level() {
    for pattern in Pattern::ALL {
        let document: Value = serde_json::from_str(&sample_tokenizer(&pattern).to_json().unwrap()).unwrap();
        let written = &document["pre_tokenizer"];
        if pattern == Pattern::Gpt2 {
            assert_eq!((&written["type"], &written["use_regex"]), (&json!("ByteLevel"), &json!(true)));
        } else {
            assert_eq!(written["pretokenizers"][0]["pattern"]["Regex"], pattern.regex());
            assert_eq!(written["pretokenizers"][1]["use_regex"], false);
        }
    }
}

#[test]
fn a_token_that_no_merge_makes_is_found_as_a_whole_piece_if_merges_are_ignored() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    document["model"]["vocab"]["qzq"] = json!(400);
    for (ignores, expected) in [(true, vec![400]), (false, b"qzq".map(u32::from).to_vec())] {
        document["model"]["ignore_merges"] = json!(ignores);
        let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
        assert_eq!(tokenizer.encode("qzq", &Allowed::None).unwrap(), expected, "ignored: {ignores}");
        assert_eq!(tokenizer.decode(&[400], false).unwrap(), "qzq");
    }
}

#[test]
fn text_is_normalized_by_the_steps_that_are_named() {
    let plain = sample_tokenizer(&Pattern::Gpt4);
    let mut document: Value = serde_json::from_str(&plain.to_json().unwrap()).unwrap();
    let text = " the ﬁÉe\u{301} ";
    for (step, normalized) in [
        (json!({"type": "NFC"}), " the ﬁÉé "),
        (json!({"type": "NFD"}), " the ﬁE\u{301}e\u{301} "),
        (json!({"type": "NFKC"}), " the fiÉé "),
        (json!({"type": "NFKD"}), " the fiE\u{301}e\u{301} "),
        (json!({"type": "Lowercase"}), " the ﬁée\u{301} "),
        (json!({"type": "Strip", "strip_left": true}), "the ﬁÉe\u{301} "),
        (json!({"type": "Strip", "strip_right": true}), " the ﬁÉe\u{301}"),
        (json!({"type": "Prepend", "prepend": "th"}), "th the ﬁÉe\u{301} "),
        (json!({"type": "Replace", "pattern": {"String": "th"}, "content": "é"}), " ée ﬁÉe\u{301} "),
        (json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}), " the ﬁéé "),
    ] {
        document["normalizer"] = step.clone();
        let ids = Tokenizer::from_json(&document.to_string()).unwrap().encode(text, &Allowed::None).unwrap();
        assert_eq!(ids, plain.encode(normalized, &Allowed::None).unwrap(), "{step}");
    }
}

#[test]
fn an_ordinary_token_that_is_written_like_an_added_one_is_named() {
    // `Ġ` stands for the byte of a space.
    let tokenizer = train(&["the then"], 260, &Pattern::Gpt4, &["Ġ"]);
    let Err(Error::Tokenizer(message)) = tokenizer.to_json() else { panic!("must be refused") };
    assert!(message.starts_with("special token \"Ġ\" can't be saved: an ordinary token is written"), "{message}");
}

#[test]
fn an_added_token_that_merges_make_too_keeps_its_bytes() {
    let trained = train(&["the the the"], 259, &Pattern::Gpt4, &[]);
    let mut document: Value = serde_json::from_str(&trained.to_json().unwrap()).unwrap();
    let id = document["model"]["vocab"]["Ġthe"].as_u64().unwrap() as u32;
    document["added_tokens"].as_array_mut().unwrap().push(json!({"id": id, "content": "Ġthe", "special": false}));
    // A processor for offsets alone adds no ids.
    document["post_processor"] = json!({"type": "ByteLevel", "trim_offsets": false});
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    assert!(tokenizer.template().is_none());
    assert_eq!(tokenizer.encode(" the", &Allowed::None).unwrap(), [id]);
    assert_eq!(tokenizer.decode(&[id], false).unwrap(), " the");
    assert_eq!(tokenizer.encode("xĠthex", &Allowed::All).unwrap(), [u32::from(b'x'), id, u32::from(b'x')]);
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
            json!({"type": "BertProcessing", "cls": ["<s>", 5000], "sep": ["</s>", 1]}),
            "`post_processor` must use ids that have a token, got 5000",
        ),
        ("/model/vocab", json!({}), "unsupported `vocab`: must be an object with tokens, got {}"),
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
        (
            "/pre_tokenizer/pretokenizers/0",
            json!({"type": "Metaspace", "prepend_scheme": 1}),
            "unsupported `prepend_scheme`: must be always, first or never, got 1",
        ),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("("), "`pattern` \"(\" is not a regular expression"),
        ("/model/type", json!("Unigram"), "unsupported `type`: must be \"BPE\", got \"Unigram\""),
        ("/model/ignore_merges", json!(1), "unsupported `ignore_merges`: must be true or false, got 1"),
        ("/model/dropout", json!(0.1), "unsupported `dropout`: must be null, got 0.1"),
        ("/model/end_of_word_suffix", json!("</w>"), "unsupported `end_of_word_suffix`: must be null"),
        ("/model/continuing_subword_prefix", json!("##"), "unsupported `continuing_subword_prefix`: must be null"),
        ("/model/vocab", json!([]), "unsupported `vocab`: must be an object with tokens, got []"),
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

/// A `tokenizer.json` in Llama 2's layout: `<unk>`, `<s>`, bytes from id 2 on, then pieces.
pub fn sentence_pieces(pieces: &[&str], merges: &[[&str; 2]]) -> Value {
    let names = ["<unk>", "<s>"].map(str::to_owned).into_iter();
    let names = names.chain((0..=255).map(|byte: u8| format!("<0x{byte:02X}>")));
    let names = names.chain(pieces.iter().map(|&piece| piece.to_owned()));
    let vocab: serde_json::Map<String, Value> = names.zip((0u32..).map(Value::from)).collect();
    json!({
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true, "normalized": false},
            {"id": 1, "content": "<s>", "special": true, "normalized": false, "rstrip": true},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": "kept as it is",
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "truncation": {"max_length": 2},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges,
        },
    })
}

pub const PIECES: [&str; 6] = ["▁", "a", "b", "ab", "▁ab", "b▁"];
pub const SPACE: u32 = 258;

#[test]
fn sentence_pieces_begin_with_characters_and_fall_back_to_bytes() {
    let document = sentence_pieces(&PIECES, &[["a", "b"], ["▁", "ab"]]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let (a, b, word) = (SPACE + 1, SPACE + 2, SPACE + 4);
    assert_eq!(tokenizer.encode("ab ba", &Allowed::None).unwrap(), [word, SPACE, b, a]);
    assert_eq!(tokenizer.encode("abé", &Allowed::None).unwrap(), [word, 2 + 0xC3, 2 + 0xA9]);
    // The special token takes the space after it, and the text after it begins anew.
    assert_eq!(tokenizer.encode("<s> ab<unk>ab", &Allowed::All).unwrap(), [1, word, 0, word]);
    assert_eq!(tokenizer.pieces("a b").unwrap(), ["▁a▁b"]);
    assert_eq!(tokenizer.vocab().tokens().bytes(word), Some(&b" ab"[..]));
    assert!(!tokenizer.cuts_at_line_ends());
    let template = tokenizer.template().unwrap();
    assert_eq!((&template.before[..], &template.after[..]), (&[1][..], &[][..]));
}

#[test]
fn sentence_pieces_lose_the_space_that_was_put_before_them() {
    let document = sentence_pieces(&PIECES, &[["a", "b"], ["▁", "ab"]]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let word = SPACE + 4;
    for (ids, bytes, text) in [
        (&[word, word][..], &b"ab ab"[..], "ab ab"),
        (&[1, word], b"<s> ab", "<s> ab"),
        (&[SPACE, SPACE, word], b"  ab", "  ab"),
        (&[2 + 0xC3, 2 + 0xA9], "é".as_bytes(), "é"),
        // Bytes that are no text are one replacement each, good ones in their run too.
        (&[2 + 0xC3, 2 + b'a' as u32, word], b"\xC3a ab", "\u{fffd}\u{fffd} ab"),
        (&[], b"", ""),
    ] {
        assert_eq!(tokenizer.decode_bytes(ids, false).unwrap(), bytes);
        assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
    }
    assert_eq!(tokenizer.decode(&[1, word], true).unwrap(), "ab");
}

#[test]
fn the_decoder_says_what_is_put_for_names() {
    let mut document = sentence_pieces(&PIECES, &[]);
    let (byte, word) = (2 + u32::from(b'A'), SPACE + 4);
    for (decoder, expected) in [
        (json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}), "ab<0x41> ab"),
        (json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}), "ab<0x41> ab"),
        (json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}), " ab<0x41> ab"),
        (json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}), "▁abA▁ab"),
        (json!({"type": "Fuse"}), "▁ab<0x41>▁ab"),
    ] {
        document["decoder"] = decoder.clone();
        let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
        assert_eq!(tokenizer.decode(&[word, byte, word], false).unwrap(), expected, "{decoder}");
    }
}

#[test]
fn offsets_of_sentence_pieces_cover_unknown_characters_and_begin_anew_after_special_tokens() {
    let mut document = sentence_pieces(&PIECES, &[["a", "b"], ["▁", "ab"]]);
    document["model"]["byte_fallback"] = json!(false);
    let (b, word) = (SPACE + 2, SPACE + 4);
    let text = "abé☃b ab<s>ab";
    for (fuses, unknown) in [(true, vec![[2, 7]]), (false, vec![[2, 4], [4, 7]])] {
        document["model"]["fuse_unk"] = json!(fuses);
        let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
        let chosen = [("<s>".to_owned(), 1)];
        for allowed in [Allowed::All, Allowed::Some(Box::new(SpecialMatcher::new(&chosen)))] {
            let (ids, found) = tokenizer.encode_with_offsets(text, &allowed).unwrap();
            assert_eq!(ids, [vec![word], vec![0; unknown.len()], vec![b, word, 1, word]].concat());
            let expected = [vec![[0, 2]], unknown.clone(), vec![[7, 8], [8, 11], [11, 14], [14, 16]]].concat();
            assert_eq!(found.bytes, expected);
            let char_of = |at: usize| text[..at].chars().count();
            assert_eq!(found.chars, expected.iter().map(|span| span.map(char_of)).collect::<Vec<_>>());
        }
    }
    // Without a token for them, unknown characters are left out: the next token begins after them, and one that was
    // merged around them covers them.
    document["model"]["unk_token"] = json!(null);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let (ids, found) = tokenizer.encode_with_offsets("abé☃b ☃ab", &Allowed::None).unwrap();
    assert_eq!((ids, found.bytes), (vec![word, b, word], vec![[0, 2], [7, 8], [8, 14]]));
}

#[test]
fn whole_sentence_pieces_need_no_merge_if_merges_are_ignored() {
    let mut document = sentence_pieces(&PIECES, &[["a", "b"]]);
    document["model"]["ignore_merges"] = json!(true);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    assert_eq!(tokenizer.encode("ab", &Allowed::None).unwrap(), [SPACE + 4]);
    assert_eq!(tokenizer.encode("ab ab", &Allowed::None).unwrap(), [SPACE, SPACE + 3, SPACE, SPACE + 3]);
}

#[test]
fn sentence_pieces_are_cut_before_spaces_only_if_no_merge_reaches_over_one() {
    let document = sentence_pieces(&PIECES, &[["b", "▁"], ["a", "b"], ["▁", "ab"]]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    assert_eq!(tokenizer.encode("ab ab", &Allowed::None).unwrap(), [SPACE, SPACE + 1, SPACE + 5, SPACE + 3]);
}

#[test]
fn what_was_read_is_written_again() {
    let document = sentence_pieces(&PIECES, &[["a", "b"], ["▁", "ab"]]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    let written = tokenizer.to_json().unwrap();
    let again: Value = serde_json::from_str(&written).unwrap();
    for name in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation"] {
        assert_eq!(again[name], document[name], "{name}");
    }
    for name in ["vocab", "merges", "unk_token", "fuse_unk", "byte_fallback"] {
        assert_eq!(again["model"][name], document["model"][name], "{name}");
    }
    assert_eq!(Tokenizer::from_json(&written).unwrap().to_json().unwrap(), written);
}

#[test]
fn merges_of_a_pair_that_is_there_twice_count_as_the_later() {
    let document = sentence_pieces(&PIECES, &[["a", "b"], ["b", "▁"], ["a", "b"]]);
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    assert_eq!(tokenizer.vocab().merges().len(), 2);
    assert_eq!(tokenizer.encode("ab ", &Allowed::None).unwrap(), [SPACE, SPACE + 1, SPACE + 5]);
}

#[test]
fn components_of_sentence_pieces_are_named() {
    let good = sentence_pieces(&PIECES, &[["a", "b"]]);
    let decoder = |value: Value| json!({"type": "Sequence", "decoders": [value]});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    for (path, value, expected) in [
        (
            "/decoder",
            json!(null),
            "unsupported `decoder`: must be ByteLevel where the pre-tokenizer is, else Metaspace or",
        ),
        (
            "/decoder",
            json!({"type": "ByteLevel"}),
            "unsupported `decoder`: must be ByteLevel where the pre-tokenizer is",
        ),
        ("/decoder", decoder(json!({"type": "WordPiece"})), "got {\"type\":\"WordPiece\"}"),
        ("/decoder", decoder(strip.clone()), "unsupported `decoder`"),
        // The order is fixed: replacements, bytes, Fuse, and what is stripped from the whole text.
        ("/decoder/decoders/3", good["decoder"]["decoders"][0].clone(), "got {\"type\":\"Replace\""),
        ("/decoder/decoders/3", json!({"type": "ByteFallback"}), "got {\"type\":\"ByteFallback\"}"),
        ("/decoder/decoders/2", good["decoder"]["decoders"][0].clone(), "got {\"type\":\"Replace\""),
        ("/decoder/decoders", json!([strip, {"type": "Fuse"}]), "got {\"type\":\"Strip\""),
        ("/decoder/decoders/3/stop", json!(1), "unsupported `stop`: must be 0, got 1"),
        ("/decoder/decoders/3/content", json!("x"), "unsupported `content`: must be a space, got \"x\""),
        ("/decoder/decoders/3/start", json!(-1), "unsupported `start`: must be a count, got -1"),
        ("/model/unk_token", json!("<none>"), "unsupported `unk_token`: must be in `model.vocab`, got \"<none>\""),
        ("/model/byte_fallback", json!(1), "unsupported `byte_fallback`: must be true or false, got 1"),
        ("/model/vocab/a", json!(258), "`model.vocab` must have each id once, got several tokens with id 258"),
    ] {
        let mut document = good.clone();
        *document.pointer_mut(path).unwrap() = value;
        let Err(Error::Tokenizer(message)) = Tokenizer::from_json(&document.to_string()) else { panic!("{path}") };
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[test]
fn bytes_without_a_token_are_left_out_or_unknown() {
    let mut document: Value = serde_json::from_str(&sample_tokenizer(&Pattern::Gpt4).to_json().unwrap()).unwrap();
    document["model"]["vocab"].as_object_mut().unwrap().shift_remove("z");
    let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
    assert_eq!(tokenizer.encode("azzza", &Allowed::None).unwrap(), tokenizer.encode("aa", &Allowed::None).unwrap());
    assert_eq!(tokenizer.vocab().byte_ids()[b'z' as usize], u32::MAX);
    document["model"]["unk_token"] = json!("<|end|>");
    for (fuse, count) in [(false, 3), (true, 1)] {
        document["model"]["fuse_unk"] = json!(fuse);
        let tokenizer = Tokenizer::from_json(&document.to_string()).unwrap();
        let ids = tokenizer.encode("qzzzq", &Allowed::None).unwrap();
        assert_eq!(ids, [vec![u32::from(b'q')], vec![298; count], vec![u32::from(b'q')]].concat());
    }
}
