//! The parts of a `tokenizer.json` that are stored as read.

use serde_json::{Map, Value, json};

use crate::tokenizer::split::pretokenize::Pattern;

/// Everything in a `tokenizer.json` except vocabulary, merges and added tokens, stored as read so that it can be
/// written again.
#[derive(Debug, Clone, PartialEq)]
pub struct Components {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub truncation: Value,
    pub padding: Value,
    /// All fields of the model except vocabulary and merges.
    pub model: Map<String, Value>,
    /// Tokens that no text encodes to and that have a name that does not stand for bytes.
    pub raw_names: Vec<(u32, String)>,
}

impl Components {
    /// Creates the components of a byte-level tokenizer that splits text by `pattern`.
    pub fn byte_level(pattern: &Pattern) -> Self {
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        });
        Self {
            normalizer: Value::Null,
            pre_tokenizer: pre_tokenizer(pattern),
            post_processor: Value::Null,
            decoder: byte_level(true),
            truncation: Value::Null,
            padding: Value::Null,
            model: model.as_object().cloned().unwrap_or_default(),
            raw_names: vec![],
        }
    }

    pub fn read(document: &Value, raw_names: Vec<(u32, String)>) -> Self {
        let part = |name: &str| document[name].clone();
        let flags = document["model"].as_object().into_iter().flatten();
        let flags = flags.filter(|(name, _)| !["vocab", "merges"].contains(&name.as_str()));
        Self {
            normalizer: part("normalizer"),
            pre_tokenizer: part("pre_tokenizer"),
            post_processor: part("post_processor"),
            decoder: part("decoder"),
            truncation: part("truncation"),
            padding: part("padding"),
            model: flags.map(|(name, value)| (name.clone(), value.clone())).collect(),
            raw_names,
        }
    }
}

pub fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Returns the pre-tokenizer for one pattern.
pub fn pre_tokenizer(pattern: &Pattern) -> Value {
    match pattern {
        // The built-in pattern of `ByteLevel` is GPT-2's.
        Pattern::Gpt2 => byte_level(true),
        _ => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern.regex()}, "behavior": "Isolated", "invert": false,
            });
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        }
    }
}
