//! The way of a text to pieces where it is longer than one pattern: added tokens with flags, normalizer, stages.

use super::normalizer::{Normalizer, NormalizerStep};
use super::special::{AddedToken, Segment, SpecialMatcher};
use super::stages::{Behavior, Needle, Stage, cut};
use crate::Result;

/// Finds added tokens, normalises what lies between and cuts it into pieces.
#[derive(Debug, Clone)]
pub struct Pipeline {
    normalizer: Normalizer,
    stages: Vec<Stage>,
    /// Finds added tokens in the text as it is.
    raw: SpecialMatcher,
    /// Finds added tokens in the normalised text.
    normalized: SpecialMatcher,
}

/// Part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// An added token's id.
    Token(u32),
    /// A piece to merge.
    Piece(&'a str),
}

impl Pipeline {
    /// Looks for `added`, then normalises, then cuts by `stages` in order.
    pub fn new(normalizer: Normalizer, stages: Vec<Stage>, added: &[AddedToken]) -> Self {
        let (mut normalized, raw): (Vec<AddedToken>, Vec<AddedToken>) =
            added.iter().cloned().partition(|token| token.normalized);
        for token in &mut normalized {
            token.content = normalizer.normalize(&token.content).into_owned();
        }
        normalized.retain(|token| !token.content.is_empty());
        // Of two that are normalised to the same, the special one is found.
        normalized.sort_by_key(|token| !token.special);
        let [raw, normalized] = [raw, normalized].map(SpecialMatcher::with_flags);
        Self { normalizer, stages, raw, normalized }
    }

    /// The changes made to text.
    pub fn normalizer(&self) -> &Normalizer {
        &self.normalizer
    }

    /// The ways text is cut.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Whether no piece and no added token reaches over the end of a line, and no change depends on what is around it.
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

    /// Whether an added token that is no special one may reach over the end of a line, or looks at what is around it.
    fn adds_line_ends(&self) -> bool {
        let tokens = self.raw.tokens().iter().chain(self.normalized.tokens());
        let mut ordinary = tokens.filter(|token| !token.special);
        ordinary.any(|token| token.content.contains(['\r', '\n']) || token.lstrip || token.rstrip || token.single_word)
    }

    /// Calls `visit` with every added token and piece of `text` in order; without `allow_special`, special tokens are
    /// text.
    ///
    /// # Errors
    ///
    /// `Tokenizer` if a custom pattern backtracks too much on this text.
    pub fn for_each_part(&self, text: &str, allow_special: bool, visit: &mut dyn FnMut(Part<'_>)) -> Result<()> {
        self.for_each_segment(text, allow_special, &mut |segment| match segment {
            (Segment::Special(id), _) => {
                visit(Part::Token(id));
                Ok(())
            }
            (Segment::Text(part), is_first) => {
                cut(&self.stages, part, is_first, &mut |piece| visit(Part::Piece(piece)))
            }
        })
    }

    /// Calls `visit` with every added token of `text` and the normalised text between, and whether it begins the text.
    ///
    /// # Errors
    ///
    /// What `visit` returns.
    pub fn for_each_segment(
        &self,
        text: &str,
        allow_special: bool,
        visit: &mut dyn FnMut((Segment<'_>, bool)) -> Result<()>,
    ) -> Result<()> {
        for segment in self.raw.allowed_segments(text, allow_special) {
            let Segment::Text(raw) = segment else {
                visit((segment, false))?;
                continue;
            };
            let is_first = std::ptr::eq(raw.as_ptr(), text.as_ptr());
            let normalized = self.normalizer.normalize(raw);
            for segment in self.normalized.allowed_segments(&normalized, allow_special) {
                let begins = matches!(segment, Segment::Text(part) if std::ptr::eq(part.as_ptr(), normalized.as_ptr()));
                visit((segment, is_first && begins))?;
            }
        }
        Ok(())
    }
}
