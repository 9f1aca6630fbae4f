//! Reads the normalizer, pre-tokenizer, post-processor and decoder of a `tokenizer.json`.

use serde_json::Value;

use super::json::{as_id, expect, flag, list, text, unsupported};
use crate::Result;
use crate::tokenizer::decode::join::Joiner;
use crate::tokenizer::options::Template;
use crate::tokenizer::split::normalizer::NormalizerStep;
use crate::tokenizer::split::pretokenize::{CustomPattern, Pattern};
use crate::tokenizer::split::stages::{Behavior, Needle, Prepend, Stage};

/// How text is split before merging.
pub struct PreTokenizer {
    pub stages: Vec<Stage>,
    /// Whether merging starts from bytes.
    pub is_byte_level: bool,
}

/// How a token's name is converted to its text.
pub struct TokenText {
    pub replacements: Vec<(String, String)>,
    pub byte_fallback: bool,
    pub joiner: Joiner,
}

pub fn read_normalizer(value: &Value) -> Result<Vec<NormalizerStep>> {
    use NormalizerStep as Step;
    const ALLOWED: &str =
        "null, NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace of a string, or a Sequence of these";
    if value.is_null() {
        return Ok(vec![]);
    }
    let step = match value["type"].as_str() {
        Some("Sequence") => {
            let steps: Result<Vec<_>> = list(value, "normalizers")?.iter().map(read_normalizer).collect();
            return Ok(steps?.concat());
        }
        Some("NFC") => Step::Nfc,
        Some("NFD") => Step::Nfd,
        Some("NFKC") => Step::Nfkc,
        Some("NFKD") => Step::Nfkd,
        Some("Lowercase") => Step::Lowercase,
        Some("Strip") => {
            Step::Strip { left: flag(value, "strip_left", false)?, right: flag(value, "strip_right", false)? }
        }
        Some("Prepend") => Step::Prepend(text(value, "prepend")?.to_owned()),
        Some("Replace") => {
            let (from, to) = read_replacement(value)?;
            Step::Replace { from, to }
        }
        _ => return Err(unsupported("normalizer", ALLOWED, value)),
    };
    Ok(vec![step])
}

/// Reads the needle and replacement of a `Replace`.
fn read_replacement(value: &Value) -> Result<(String, String)> {
    let from = value["pattern"]["String"].as_str().filter(|from| !from.is_empty());
    let from = from.ok_or_else(|| unsupported("Replace", "of a string that is not empty", value))?;
    Ok((from.to_owned(), text(value, "content")?.to_owned()))
}

pub fn read_pre_tokenizer(value: &Value) -> Result<PreTokenizer> {
    let mut read = PreTokenizer { stages: vec![], is_byte_level: false };
    for component in flattened(value, "pretokenizers")? {
        if read.is_byte_level {
            return Err(unsupported("pre_tokenizer", "a Sequence with nothing after ByteLevel", value));
        }
        read.add(component)?;
    }
    Ok(read)
}

/// Returns the component itself, or the components of a `Sequence` nested to any depth; none for null.
fn flattened<'a>(value: &'a Value, name: &str) -> Result<Vec<&'a Value>> {
    match value["type"].as_str() {
        _ if value.is_null() => Ok(vec![]),
        Some("Sequence") => {
            let parts: Result<Vec<_>> = list(value, name)?.iter().map(|part| flattened(part, name)).collect();
            Ok(parts?.concat())
        }
        _ => Ok(vec![value]),
    }
}

impl PreTokenizer {
    fn add(&mut self, value: &Value) -> Result<()> {
        const ALLOWED: &str = "null, ByteLevel, Split, Digits, Metaspace, or a Sequence of these";
        match value["type"].as_str() {
            Some("ByteLevel") => {
                self.is_byte_level = true;
                if flag(value, "add_prefix_space", true)? {
                    self.stages.push(Stage::PrefixSpace);
                }
                if flag(value, "use_regex", true)? {
                    self.stages.push(Stage::Pattern(Pattern::Gpt2));
                }
            }
            Some("Split") => self.stages.push(read_split(value)?),
            Some("Digits") => {
                let behavior =
                    if flag(value, "individual_digits", false)? { Behavior::Isolated } else { Behavior::Contiguous };
                self.stages.push(Stage::Split { needle: Needle::Number, behavior, invert: false });
            }
            Some("Metaspace") => self.stages.push(read_metaspace(value)?),
            _ => return Err(unsupported("pre_tokenizer", ALLOWED, value)),
        }
        Ok(())
    }
}

fn read_split(value: &Value) -> Result<Stage> {
    let behavior = match value["behavior"].as_str() {
        Some("Removed") => Behavior::Removed,
        Some("Isolated") => Behavior::Isolated,
        Some("MergedWithPrevious") => Behavior::MergedWithPrevious,
        Some("MergedWithNext") => Behavior::MergedWithNext,
        Some("Contiguous") => Behavior::Contiguous,
        _ => {
            let allowed = "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous";
            return Err(unsupported("behavior", allowed, &value["behavior"]));
        }
    };
    let invert = flag(value, "invert", false)?;
    let pattern = &value["pattern"];
    if let Some(needle) = pattern["String"].as_str().filter(|needle| !needle.is_empty()) {
        return Ok(Stage::Split { needle: Needle::Text(needle.to_owned()), behavior, invert });
    }
    let Some(regex) = pattern["Regex"].as_str() else {
        return Err(unsupported("pattern", "a Regex, or a String that is not empty", pattern));
    };
    let pattern = Pattern::from_regex(regex)?;
    // The matches of all published expressions except the white-space one cover the whole text.
    let matches_all = !matches!(pattern, Pattern::Custom(_) | Pattern::Whitespace);
    if behavior == Behavior::Isolated || matches_all && behavior == Behavior::Removed && invert {
        return Ok(Stage::Pattern(pattern));
    }
    Ok(Stage::Split { needle: Needle::Regex(CustomPattern::new(regex)?), behavior, invert })
}

fn read_metaspace(value: &Value) -> Result<Stage> {
    let replacement = read_character(value, "replacement", "▁")?;
    // Older files have the flag `add_prefix_space` instead of `prepend_scheme`.
    let prepends = flag(value, "add_prefix_space", true)?;
    let prepend = match value["prepend_scheme"].as_str() {
        None if value["prepend_scheme"].is_null() => {
            if prepends {
                Prepend::Always
            } else {
                Prepend::Never
            }
        }
        Some("always") => Prepend::Always,
        Some("first") => Prepend::First,
        Some("never") => Prepend::Never,
        _ => return Err(unsupported("prepend_scheme", "always, first or never", &value["prepend_scheme"])),
    };
    Ok(Stage::Metaspace { replacement, prepend, split: flag(value, "split", true)? })
}

fn read_character(value: &Value, name: &str, default: &str) -> Result<char> {
    let text = if value[name].is_null() { default } else { text(value, name)? };
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) => Ok(character),
        _ => Err(unsupported(name, "one character", &value[name])),
    }
}

pub fn read_decoder(value: &Value, is_byte_level: bool) -> Result<TokenText> {
    if is_byte_level {
        if value["type"] != "ByteLevel" {
            return Err(unsupported("decoder", "ByteLevel, as the pre-tokenizer is", value));
        }
        return Ok(TokenText { replacements: vec![], byte_fallback: false, joiner: Joiner::Bytes });
    }
    let mut read = TokenText {
        replacements: vec![],
        byte_fallback: false,
        joiner: Joiner::Words { strip_start: 0, bare_first: false },
    };
    let parts = flattened(value, "decoders")?;
    let mut is_fused = parts.len() == 1 && parts[0]["type"] == "Metaspace";
    for part in parts {
        read.add(part, &mut is_fused)?;
    }
    if is_fused { Ok(read) } else { Err(unsupported("decoder", DECODERS, value)) }
}

const DECODERS: &str = "ByteLevel where the pre-tokenizer is, else Metaspace or a Sequence of Replace, ByteFallback, Fuse and Strip of spaces at \
                        the start, in this order";

impl TokenText {
    fn add(&mut self, value: &Value, is_fused: &mut bool) -> Result<()> {
        match value["type"].as_str() {
            Some("Replace") if !*is_fused && !self.byte_fallback => self.replacements.push(read_replacement(value)?),
            Some("ByteFallback") if !*is_fused => self.byte_fallback = true,
            Some("Fuse") => *is_fused = true,
            Some("Strip") if *is_fused => {
                expect(value, "content", "a space", |content| content == " ")?;
                expect(value, "stop", "0", |stop| stop == 0)?;
                let start = as_id(&value["start"]).ok_or_else(|| unsupported("start", "a count", &value["start"]))?;
                self.joiner = Joiner::Words { strip_start: start as usize, bare_first: false };
            }
            Some("Metaspace") => {
                let Stage::Metaspace { replacement, prepend, .. } = read_metaspace(value)? else { return Ok(()) };
                self.replacements.push((replacement.to_string(), " ".to_owned()));
                self.joiner = Joiner::Words { strip_start: 0, bare_first: prepend != Prepend::Never };
            }
            _ => return Err(unsupported("decoder", DECODERS, value)),
        }
        Ok(())
    }
}

pub fn read_template(value: &Value) -> Result<Option<Template>> {
    let mut template = Template::default();
    for part in flattened(value, "processors")? {
        let Template { before, after } = match part["type"].as_str() {
            Some("ByteLevel") => continue,
            Some("TemplateProcessing") => read_single(part)?,
            Some("BertProcessing" | "RobertaProcessing") => {
                Template { before: vec![named_id(part, "cls")?], after: vec![named_id(part, "sep")?] }
            }
            _ => {
                let allowed =
                    "null, ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing, or a Sequence of these";
                return Err(unsupported("post_processor", allowed, part));
            }
        };
        // Each processor wraps the output of the previous one.
        template = Template { before: [before, template.before].concat(), after: [template.after, after].concat() };
    }
    Ok((template != Template::default()).then_some(template))
}

/// Returns the id in an entry such as `"cls": ["<s>", 0]`.
fn named_id(value: &Value, name: &str) -> Result<u32> {
    as_id(&value[name][1]).ok_or_else(|| unsupported(name, "a token and its id", &value[name]))
}

fn read_single(value: &Value) -> Result<Template> {
    let single = &value["single"];
    let wrong = || unsupported("single", "special tokens around one Sequence A", single);
    let (mut before, mut after, mut has_text) = (Vec::new(), Vec::new(), false);
    for part in single.as_array().ok_or_else(wrong)? {
        if part["Sequence"]["id"] == "A" && !has_text {
            has_text = true;
            continue;
        }
        let name = part["SpecialToken"]["id"].as_str().ok_or_else(wrong)?;
        let ids = &value["special_tokens"][name]["ids"];
        let ids: Option<Vec<u32>> = ids.as_array().and_then(|ids| ids.iter().map(as_id).collect());
        let ids =
            ids.ok_or_else(|| unsupported("special_tokens", "ids for each in `single`", &value["special_tokens"]))?;
        if has_text { &mut after } else { &mut before }.extend(ids);
    }
    if has_text { Ok(Template { before, after }) } else { Err(wrong()) }
}
