//! Reads and writes the vocabulary, merges and added tokens of a `tokenizer.json`.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Map, Value};

use super::json::{as_id, expect, flag, list, text, unsupported};
use super::read::TokenText;
use crate::tokenizer::merge::sentencepiece::SentencePiece;
use crate::tokenizer::merge::unknown::Unknown;
use crate::tokenizer::split::special::AddedToken;
use crate::tokenizer::tokens::{MAX_IDS, Merge, NO_ID, NUM_BYTES};
use crate::tokenizer::vocab::{Vocab, VocabParts};
use crate::{Error, Result};

type Ids<'a> = FxHashMap<&'a str, u32>;

/// Returns the character that stands for each byte, so that any bytes can be written as text.
///
/// Source: openai/gpt-2 `encoder.py`, `bytes_to_unicode`.
fn byte_characters() -> [char; NUM_BYTES] {
    let mut next_substitute = NUM_BYTES as u32..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (33..=126 | 161..=172 | 174..=255) => char::from(byte),
        _ => next_substitute.next().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

/// Returns tokens as names with ids, and merges as pairs of names, in the form that the file uses.
pub fn written_tokens(vocab: &Vocab, raw_names: &[(u32, String)]) -> Result<(Map<String, Value>, Value)> {
    let names = match vocab.sentence_piece() {
        Some(characters) => characters.names().iter().map(|name| name.to_string()).collect(),
        None => byte_level_names(vocab, raw_names),
    };
    let is_added: FxHashSet<u32> = vocab.added().iter().map(|token| token.id).collect();
    let named = (0u32..).zip(&names).filter(|(_, name)| !name.is_empty());
    let keeps_added = vocab.sentence_piece().is_some();
    let mut ids: Map<String, Value> = named
        .filter(|(id, _)| keeps_added || !is_added.contains(id) || vocab.byte_ids().contains(id))
        .map(|(id, name)| (name.clone(), Value::from(id)))
        .collect();
    if vocab.sentence_piece().is_none() {
        for token in vocab.added() {
            let before = ids.insert(token.content.clone(), Value::from(token.id));
            if before.is_some_and(|id| id != token.id) {
                return Err(Error::Tokenizer(format!(
                    "{} token {:?} can't be saved: an ordinary token is written the same way in tokenizer.json",
                    if token.special { "special" } else { "added" },
                    token.content
                )));
            }
        }
    }
    let name = |id: u32| names.get(id as usize).map_or("", String::as_str);
    let merges = vocab.merges().iter().map(|merge| Value::from(vec![name(merge.left), name(merge.right)])).collect();
    Ok((ids, merges))
}

fn byte_level_names(vocab: &Vocab, raw_names: &[(u32, String)]) -> Vec<String> {
    let characters = byte_characters();
    let name = |id: u32| vocab.tokens().bytes(id).unwrap_or_default().iter().map(|&byte| characters[byte as usize]);
    let mut names: Vec<String> = (0..vocab.size() as u32).map(|id| name(id).collect()).collect();
    for (id, name) in raw_names {
        names[*id as usize].clone_from(name);
    }
    names
}

/// Reads the vocabulary; also returns the tokens of a byte-level model that have names that don't stand for bytes.
pub fn read_model(
    document: &Value,
    is_byte_level: bool,
    token_text: &TokenText,
) -> Result<(Vocab, Vec<(u32, String)>)> {
    let model = &document["model"];
    expect(model, "type", "\"BPE\"", |value| value == "BPE" || value.is_null() && model.is_object())?;
    expect(model, "dropout", "null", |value| value.is_null() || value.as_f64() == Some(0.0))?;
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        expect(model, name, "null", |value| value.is_null() || value == "")?;
    }
    let ids = read_ids(model)?;
    let added = list(document, "added_tokens")?.iter().map(|token| read_added(token, &ids)).collect::<Result<_>>()?;
    let mut parts = VocabParts {
        tokens: vec![],
        unreached: vec![],
        byte_ids: [NO_ID; NUM_BYTES],
        unknown: read_unknown(model, &ids)?,
        sentence_piece: None,
        merges: read_merges(model, &ids)?,
        whole_first: flag(model, "ignore_merges", false)?,
        added,
    };
    let mut raw_names = Vec::new();
    if is_byte_level {
        raw_names = add_byte_level(&mut parts, &ids);
        if parts.byte_ids.contains(&NO_ID) {
            expect(model, "byte_fallback", "false where bytes are missing", |value| value.is_null() || value == false)?;
        }
    } else {
        add_characters(&mut parts, model, &ids, token_text)?;
    }
    Ok((Vocab::build(parts)?, raw_names))
}

fn read_unknown(model: &Value, ids: &Ids<'_>) -> Result<Option<Unknown>> {
    if model["unk_token"].is_null() {
        return Ok(None);
    }
    let id = ids.get(text(model, "unk_token")?).copied();
    let id = id.ok_or_else(|| unsupported("unk_token", "in `model.vocab`", &model["unk_token"]))?;
    Ok(Some(Unknown { id, fuse: flag(model, "fuse_unk", false)? }))
}

fn read_ids(model: &Value) -> Result<Ids<'_>> {
    let entries = model["vocab"].as_object().filter(|entries| !entries.is_empty());
    let entries = entries.ok_or_else(|| unsupported("vocab", "an object with tokens", &model["vocab"]))?;
    entries
        .iter()
        .map(|(name, id)| match as_id(id).filter(|&id| (id as usize) < MAX_IDS) {
            Some(id) => Ok((name.as_str(), id)),
            None => Err(unsupported("vocab", &format!("ids below {MAX_IDS}"), id)),
        })
        .collect()
}

/// Reads the merges in order; of two equal merges the later one counts, as in Hugging Face's libraries.
fn read_merges(model: &Value, ids: &Ids<'_>) -> Result<Vec<Merge>> {
    let merges = model["merges"].as_array().ok_or_else(|| unsupported("merges", "a list", &model["merges"]))?;
    let mut name = String::new();
    let mut merges: Vec<Merge> = merges.iter().map(|merge| read_merge(merge, ids, &mut name)).collect::<Result<_>>()?;
    let mut seen = FxHashSet::default();
    let is_last: Vec<bool> = merges.iter().rev().map(|merge| seen.insert((merge.left, merge.right))).collect();
    let mut is_last = is_last.into_iter().rev();
    merges.retain(|_| is_last.next().unwrap_or(true));
    Ok(merges)
}

/// Reads one merge: a list of two names, or both names separated by a space.
fn read_merge(merge: &Value, ids: &Ids<'_>, name: &mut String) -> Result<Merge> {
    let names = match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(names) if names.len() == 2 => names[0].as_str().zip(names[1].as_str()),
        _ => None,
    };
    let (left, right) = names.ok_or_else(|| unsupported("merges", "pairs of tokens", merge))?;
    name.clear();
    name.push_str(left);
    name.push_str(right);
    match (ids.get(left), ids.get(right), ids.get(name.as_str())) {
        (Some(&left), Some(&right), Some(&id)) => Ok(Merge { left, right, id }),
        _ => Err(Error::Tokenizer(format!("merge {merge} has a token that is not in `model.vocab`"))),
    }
}

fn read_added(token: &Value, ids: &Ids<'_>) -> Result<AddedToken> {
    let (Some(content), Some(id)) = (token["content"].as_str(), as_id(&token["id"])) else {
        return Err(unsupported("added_tokens", "tokens with content and id", token));
    };
    if let Some(found) = ids.get(content).filter(|&&found| found != id) {
        return Err(Error::Tokenizer(format!(
            "added token {content:?} must have one id, got {id} and {found} in `model.vocab`"
        )));
    }
    Ok(AddedToken {
        content: content.to_owned(),
        id,
        special: flag(token, "special", false)?,
        single_word: flag(token, "single_word", false)?,
        lstrip: flag(token, "lstrip", false)?,
        rstrip: flag(token, "rstrip", false)?,
        normalized: flag(token, "normalized", true)?,
    })
}

/// Adds the tokens with names that stand for bytes; returns the names of all others.
fn add_byte_level(parts: &mut VocabParts, ids: &Ids<'_>) -> Vec<(u32, String)> {
    let bytes: FxHashMap<char, u8> = byte_characters().into_iter().zip(0..=u8::MAX).collect();
    let mut made = FxHashSet::from_iter(parts.merges.iter().map(|merge| merge.id));
    for (byte, character) in byte_characters().into_iter().enumerate() {
        if let Some(&id) = ids.get(character.encode_utf8(&mut [0; 4]) as &str) {
            parts.byte_ids[byte] = id;
            made.insert(id);
        }
    }
    let added: FxHashSet<&str> = parts.added.iter().map(|token| token.content.as_str()).collect();
    let mut raw_names = Vec::new();
    for (&name, &id) in ids {
        let is_made = made.contains(&id);
        if !is_made && added.contains(name) {
            continue;
        }
        match name.chars().map(|character| bytes.get(&character).copied()).collect::<Option<Vec<u8>>>() {
            Some(token) if is_made || parts.whole_first => parts.tokens.push((id, token)),
            Some(token) => parts.unreached.push((id, token)),
            None => {
                parts.unreached.push((id, name.as_bytes().to_vec()));
                raw_names.push((id, name.to_owned()));
            }
        }
    }
    parts.tokens.sort_unstable();
    raw_names.sort_unstable();
    raw_names
}

/// Adds the tokens with names that are text.
fn add_characters(parts: &mut VocabParts, model: &Value, ids: &Ids<'_>, token_text: &TokenText) -> Result<()> {
    let num_names = ids.values().max().map_or(0, |&id| id as usize + 1);
    let mut names: Vec<Box<str>> = vec![Box::default(); num_names];
    for (&name, &id) in ids {
        if !std::mem::replace(&mut names[id as usize], name.into()).is_empty() {
            return Err(Error::Tokenizer(format!(
                "`model.vocab` must have each id once, got several tokens with id {id}"
            )));
        }
    }
    for (byte, id) in parts.byte_ids.iter_mut().enumerate() {
        *id = ids.get(format!("<0x{byte:02X}>").as_str()).copied().unwrap_or(NO_ID);
    }
    let byte_ids = flag(model, "byte_fallback", false)?.then_some(parts.byte_ids);
    parts.tokens = (0u32..)
        .zip(&names)
        .filter(|(_, name)| !name.is_empty())
        .map(|(id, name)| (id, token_text.bytes(name)))
        .collect();
    parts.sentence_piece = Some(SentencePiece::new(names, byte_ids));
    Ok(())
}

impl TokenText {
    fn bytes(&self, name: &str) -> Vec<u8> {
        let mut text = name.to_owned();
        for (from, to) in &self.replacements {
            text = text.replace(from, to);
        }
        let hex = text.strip_prefix("<0x").and_then(|text| text.strip_suffix('>')).filter(|hex| hex.len() == 2);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if self.byte_fallback => vec![byte],
            _ => text.into_bytes(),
        }
    }
}
