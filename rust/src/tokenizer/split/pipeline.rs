//! Splits text for tokenizers that need more than one pattern: added tokens with flags, normalizer, stages.

use super::aligned::{AlignedText, Origin};
use super::normalizer::{Normalizer, NormalizerStep};
use super::special::{AddedToken, Segment, SpecialMatcher};
use super::stages::{Behavior, Needle, Stage, Stretch, cut};
use crate::Result;

/// Finds added tokens, normalizes the text between them and splits it into pieces.
#[derive(Debug, Clone)]
pub struct Pipeline {
    normalizer: Normalizer,
    stages: Vec<Stage>,
    /// Finds added tokens in the unchanged text.
    raw: SpecialMatcher,
    /// Finds added tokens in the normalized text.
    normalized: SpecialMatcher,
}

/// Part of a text: an added token, or text to split or merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// Id of an added token, and its origin if offsets are requested.
    Token(u32, Origin),
    /// Normalized text.
    Text(Stretch<'a>),
}

impl Pipeline {
    /// Creates a pipeline that finds `added`, then normalizes, then splits by `stages` in order.
    pub fn new(normalizer: Normalizer, stages: Vec<Stage>, added: &[AddedToken]) -> Self {
        let (mut normalized, raw): (Vec<AddedToken>, Vec<AddedToken>) =
            added.iter().cloned().partition(|token| token.normalized);
        for token in &mut normalized {
            token.content = normalizer.normalize(&token.content).into_owned();
        }
        normalized.retain(|token| !token.content.is_empty());
        // If two tokens normalize to the same text, the special one is found.
        normalized.sort_by_key(|token| !token.special);
        let [raw, normalized] = [raw, normalized].map(SpecialMatcher::with_flags);
        Self { normalizer, stages, raw, normalized }
    }

    /// Returns the changes made to text.
    pub fn normalizer(&self) -> &Normalizer {
        &self.normalizer
    }

    /// Returns the stages that split text.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Returns whether no piece and no added token crosses the end of a line, and no change depends on surrounding
    /// text.
    pub fn cuts_at_line_ends(&self) -> bool {
        let keeps_lines = |stage: &Stage| match stage {
            Stage::Pattern(pattern) => !pattern.is_custom(),
            Stage::Split { needle, behavior, .. } => *needle == Needle::Number && *behavior != Behavior::Removed,
            Stage::PrefixSpace | Stage::Metaspace { .. } => false,
        };
        let has_pattern = self.stages.iter().any(|stage| matches!(stage, Stage::Pattern(_)));
        let only_composes = self.normalizer.steps().iter().all(|step| *step == NormalizerStep::Nfc);
        has_pattern && self.stages.iter().all(keeps_lines) && only_composes && !self.adds_line_ends()
    }

    /// Returns whether an added token that is not special may cross the end of a line or depend on surrounding text.
    fn adds_line_ends(&self) -> bool {
        let tokens = self.raw.tokens().iter().chain(self.normalized.tokens());
        let mut ordinary = tokens.filter(|token| !token.special);
        ordinary.any(|token| token.content.contains(['\r', '\n']) || token.lstrip || token.rstrip || token.single_word)
    }

    /// Calls `visit` with every added token and every piece of `text` in order. Unless `finds_special` is set, special
    /// tokens are ordinary text.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text.
    pub fn for_each_piece(&self, text: &str, finds_special: bool, visit: &mut dyn FnMut(Part<'_>)) -> Result<()> {
        self.for_each_stretch(text, finds_special, &mut |part| match part {
            Part::Text(stretch) => cut(&self.stages, stretch, &mut |piece| visit(Part::Text(piece))),
            token => {
                visit(token);
                Ok(())
            }
        })
    }

    /// Calls `visit` with every added token of `text` and the normalized text between them, in order.
    ///
    /// # Errors
    ///
    /// The error that `visit` returns.
    pub fn for_each_stretch(
        &self,
        text: &str,
        finds_special: bool,
        visit: &mut dyn FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        for (raw_range, segment) in self.raw.located_segments(text, finds_special) {
            match segment {
                Segment::Special(id) => visit(Part::Token(id, [raw_range.start, raw_range.end]))?,
                Segment::Text(raw) => {
                    let normalized = self.normalizer.normalize(raw);
                    let whole = Stretch { text: &normalized, origins: &[], is_first: raw_range.start == 0 };
                    self.for_each_normalized(whole, finds_special, visit)?;
                }
            }
        }
        Ok(())
    }

    /// Does the same as [`Pipeline::for_each_piece`], with the origin of each byte and token in `text`.
    ///
    /// # Errors
    ///
    /// Same as [`Pipeline::for_each_piece`].
    pub fn for_each_aligned(&self, text: &str, finds_special: bool, visit: &mut dyn FnMut(Part<'_>)) -> Result<()> {
        let mut cut_part = |part: Part<'_>| match part {
            Part::Text(stretch) => cut(&self.stages, stretch, &mut |piece| visit(Part::Text(piece))),
            token => {
                visit(token);
                Ok(())
            }
        };
        for (range, segment) in self.raw.located_segments(text, finds_special) {
            match segment {
                Segment::Special(id) => cut_part(Part::Token(id, [range.start, range.end]))?,
                Segment::Text(raw) => {
                    let aligned = AlignedText::new(raw, range.start).normalized(&self.normalizer);
                    let (normalized, origins) = aligned.into_parts(text);
                    let whole = Stretch { text: &normalized, origins: &origins, is_first: range.start == 0 };
                    self.for_each_normalized(whole, finds_special, &mut cut_part)?;
                }
            }
        }
        Ok(())
    }

    /// Calls `visit` with the added tokens found in normalized text, and with the text between them.
    fn for_each_normalized(
        &self,
        whole: Stretch<'_>,
        finds_special: bool,
        visit: &mut dyn FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        for (range, segment) in self.normalized.located_segments(whole.text, finds_special) {
            let part = whole.slice(range);
            visit(match (segment, part.origins) {
                (Segment::Text(_), _) => Part::Text(part),
                (Segment::Special(id), [first, .., last]) => Part::Token(id, [first[0], last[1]]),
                (Segment::Special(id), origins) => Part::Token(id, origins.first().copied().unwrap_or_default()),
            })?;
        }
        Ok(())
    }
}
