//! Hugging Face's `tokenizer.json`, written and read.

use rustc_hash::FxHashMap;
use serde_json::{Value, json};

use super::Tokenizer;
use super::pretokenize::Pattern;
use super::vocab::{NUM_BYTES, Vocab};
use crate::{Error, Result};

impl Tokenizer {
    /// The tokenizer as Hugging Face's `tokenizer.json`; `tokenizers` and `transformers` give the same ids with it.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a special token reads like an ordinary token in that file, which has one namespace for both.
    pub fn to_json(&self) -> Result<String> {
        let characters = byte_characters();
        let vocab = self.vocab();
        let names: Vec<String> = (0..vocab.size() as u32)
            .map(|id| vocab.tokens().bytes(id).unwrap_or_default().iter().map(|&b| characters[b as usize]).collect())
            .collect();
        let ordinary = (0u32..).zip(&names).filter(|&(id, _)| vocab.is_ordinary(id));
        let mut ids: serde_json::Map<String, Value> =
            ordinary.map(|(id, name)| (name.clone(), Value::from(id))).collect();
        for (text, id) in vocab.special() {
            if ids.insert(text.clone(), Value::from(*id)).is_some() {
                return Err(Error::Tokenizer(format!(
                    "special token {text:?} can't be saved: an ordinary token is written the same way in tokenizer.json"
                )));
            }
        }
        let merges: Vec<[&str; 2]> = vocab
            .merges()
            .iter()
            .map(|merge| [merge.left, merge.right].map(|id| names[id as usize].as_str()))
            .collect();
        let document = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocab.special().iter().map(|(text, id)| added_token(text, *id)).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": pre_tokenizer(self.pattern()),
            "post_processor": null,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": vocab.whole_first(),
                "vocab": ids, "merges": merges,
            },
        });
        serde_json::to_string_pretty(&document).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Reads Hugging Face's `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if it is not such a file, or has a component that would change ids and is not supported; the
    /// message names it.
    pub fn from_json(text: &str) -> Result<Self> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| Error::Tokenizer(format!("must be JSON: {error}")))?;
        for name in ["normalizer", "truncation", "padding"] {
            expect(&document, name, "null", Value::is_null)?;
        }
        expect(&document, "decoder", "ByteLevel", is_byte_level)?;
        expect(&document, "post_processor", "null or ByteLevel", |value| value.is_null() || is_byte_level(value))?;
        let pattern = read_pre_tokenizer(&document["pre_tokenizer"])?;
        Ok(Self::new(read_vocab(&document)?, pattern))
    }
}

/// The character that stands for each byte, so that any bytes can be written as text.
///
/// Source: openai/gpt-2 `encoder.py`, `bytes_to_unicode`.
fn byte_characters() -> [char; NUM_BYTES] {
    let mut next_substitute = NUM_BYTES as u32..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (33..=126 | 161..=172 | 174..=255) => char::from(byte),
        _ => next_substitute.next().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

fn added_token(text: &str, id: u32) -> Value {
    json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn pre_tokenizer(pattern: &Pattern) -> Value {
    match pattern {
        // ByteLevel's own pattern is GPT-2's.
        Pattern::Gpt2 => byte_level(true),
        _ => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern.regex()}, "behavior": "Isolated", "invert": false,
            });
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        }
    }
}

fn read_pre_tokenizer(value: &Value) -> Result<Pattern> {
    let is_bytes = |value: &Value, use_regex: bool| {
        is_byte_level(value)
            && value["add_prefix_space"] == false
            && value.get("use_regex").unwrap_or(&Value::Bool(true)) == use_regex
    };
    if is_bytes(value, true) {
        return Ok(Pattern::Gpt2);
    }
    if let Some([split, bytes]) = value["pretokenizers"].as_array().map(Vec::as_slice)
        && (value["type"] == "Sequence" && split["type"] == "Split" && is_bytes(bytes, false))
        && (split["behavior"] == "Isolated" && split["invert"] == false)
        && let Some(regex) = split["pattern"]["Regex"].as_str()
    {
        return Pattern::from_regex(regex);
    }
    Err(unsupported(
        "pre_tokenizer",
        "ByteLevel without prefix space, or Split by a regular expression, isolated",
        value,
    ))
}

fn read_vocab(document: &Value) -> Result<Vocab> {
    let model = &document["model"];
    expect(model, "type", "\"BPE\"", |value| value == "BPE")?;
    expect(model, "dropout", "null", |value| value.is_null() || value.as_f64() == Some(0.0))?;
    for name in ["byte_fallback", "ignore_merges"] {
        expect(model, name, "false", |value| value.is_null() || value == false)?;
    }
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        expect(model, name, "null", |value| value.is_null() || value == "")?;
    }
    let special = read_special(document)?;
    let ids = read_ids(model)?;
    let (bytes, merges) = (read_bytes(&ids)?, read_merges(model, &ids)?);
    let num_special = special.iter().filter(|(text, _)| ids.contains_key(text.as_str())).count();
    if ids.len() != bytes.len() + merges.len() + num_special {
        return Err(Error::Tokenizer(format!(
            "`model.vocab` must have the 256 bytes, a token for each of its {} merges and special tokens, got {} tokens",
            merges.len(),
            ids.len()
        )));
    }
    Vocab::new(&bytes, merges, special)
}

fn read_ids(model: &Value) -> Result<FxHashMap<&str, u32>> {
    let entries = model["vocab"].as_object().ok_or_else(|| unsupported("vocab", "an object", &model["vocab"]))?;
    entries
        .iter()
        .map(|(name, id)| Ok((name.as_str(), as_id(id).ok_or_else(|| unsupported("vocab", "ids", id))?)))
        .collect()
}

/// The byte of each of the first 256 ids.
fn read_bytes(ids: &FxHashMap<&str, u32>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; NUM_BYTES];
    for (byte, character) in byte_characters().into_iter().enumerate() {
        let id = ids.get(character.encode_utf8(&mut [0; 4]) as &str).copied();
        let place = id.and_then(|id| bytes.get_mut(id as usize)).ok_or_else(|| {
            Error::Tokenizer(format!("byte {byte} ({character:?}) must have an id below 256, got {id:?}"))
        })?;
        *place = byte as u8;
    }
    Ok(bytes)
}

fn read_merges(model: &Value, ids: &FxHashMap<&str, u32>) -> Result<Vec<(u32, u32)>> {
    let merges = model["merges"].as_array().ok_or_else(|| unsupported("merges", "a list", &model["merges"]))?;
    merges.iter().zip(NUM_BYTES as u32..).map(|(merge, id)| read_merge(merge, id, ids)).collect()
}

/// One merge, as a list of two names or as both with a space between.
fn read_merge(merge: &Value, id: u32, ids: &FxHashMap<&str, u32>) -> Result<(u32, u32)> {
    let names = match merge {
        Value::String(text) => text.split_once(' '),
        _ => merge[0].as_str().zip(merge[1].as_str()),
    };
    let (left, right) = names.ok_or_else(|| unsupported("merges", "pairs of tokens", merge))?;
    let merged = format!("{left}{right}");
    match (ids.get(left), ids.get(right), ids.get(merged.as_str())) {
        (Some(&left), Some(&right), Some(&found)) if found == id => Ok((left, right)),
        (Some(_), Some(_), Some(found)) => Err(Error::Tokenizer(format!(
            "ids must follow the order of the merges; {merged:?} must be {id}, got {found}"
        ))),
        _ => Err(Error::Tokenizer(format!("merge {merge} has a token that is not in `model.vocab`"))),
    }
}

fn read_special(document: &Value) -> Result<Vec<(String, u32)>> {
    let tokens = document["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut special: Vec<(String, u32)> = tokens.iter().map(read_added_token).collect::<Result<_>>()?;
    special.sort_by_key(|&(_, id)| id);
    Ok(special)
}

fn read_added_token(token: &Value) -> Result<(String, u32)> {
    expect(token, "special", "true", |value| value == true)?;
    for name in ["single_word", "lstrip", "rstrip"] {
        expect(token, name, "false", |value| value.is_null() || value == false)?;
    }
    match (token["content"].as_str(), as_id(&token["id"])) {
        (Some(content), Some(id)) => Ok((content.to_owned(), id)),
        _ => Err(unsupported("added_tokens", "tokens with content and id", token)),
    }
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn is_byte_level(value: &Value) -> bool {
    value["type"] == "ByteLevel"
}

fn expect(object: &Value, name: &str, allowed: &str, is_allowed: impl Fn(&Value) -> bool) -> Result<()> {
    let value = &object[name];
    if is_allowed(value) { Ok(()) } else { Err(unsupported(name, allowed, value)) }
}

/// The error about a component; a long one is cut.
fn unsupported(name: &str, allowed: &str, value: &Value) -> Error {
    let mut got = value.to_string();
    if let Some((cut, _)) = got.char_indices().nth(200) {
        got.truncate(cut);
        got.push('…');
    }
    Error::Tokenizer(format!("unsupported `{name}`: must be {allowed}, got {got}"))
}
