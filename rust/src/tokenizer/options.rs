//! Options of encoding: special tokens, the ids around a text and the maximum length.

use std::ops::Range;

use super::split::special::{Segment, SpecialMatcher};
use crate::{Error, Result};

/// The special tokens in a text that become their ids. All other special tokens are ordinary text.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// No special tokens.
    None,
    /// All special tokens of the tokenizer.
    All,
    /// Only these special tokens.
    Some(Box<SpecialMatcher>),
}

/// A side of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end.
    Right,
    /// The beginning.
    Left,
}

/// Ids added around the ids of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Ids before the text.
    pub before: Vec<u32>,
    /// Ids after the text.
    pub after: Vec<u32>,
}

/// How a long text is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Maximum number of ids, including those of the template.
    pub max_length: usize,
    /// The side of the text that is cut off.
    pub side: Side,
}

/// How a text is encoded: special tokens, the ids around the text and the maximum length.
///
/// ```
/// use llm_core::tokenizer::options::{Allowed, EncodePlan, Side, Template, Truncation};
///
/// let template = Template { before: vec![1], after: vec![2] };
/// let truncation = Truncation { max_length: 4, side: Side::Left };
/// let plan = EncodePlan::new(Allowed::None, vec![], template, Some(truncation))?;
/// assert_eq!(plan.kept(10), 8..10); // two of the four places belong to the template
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EncodePlan {
    allowed: Allowed,
    disallowed: Vec<String>,
    /// Finds the disallowed strings; the index of each is its id.
    finder: SpecialMatcher,
    template: Template,
    /// The truncation of the text alone, without the template.
    own: Option<Truncation>,
}

impl EncodePlan {
    /// Creates a plan in which the `allowed` special tokens become ids, a text with a `disallowed` string is an error,
    /// and `template` surrounds each text.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the template alone exceeds the maximum length, or a disallowed string is empty.
    pub fn new(
        allowed: Allowed,
        disallowed: Vec<String>,
        template: Template,
        truncation: Option<Truncation>,
    ) -> Result<Self> {
        let num_around = template.before.len() + template.after.len();
        let own = truncation.map(|Truncation { max_length, side }| {
            let max_length = max_length.checked_sub(num_around).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "`max_length` must have room for the tokens added around a text ({num_around}), got {max_length}"
                ))
            })?;
            Ok::<_, Error>(Truncation { max_length, side })
        });
        if disallowed.iter().any(String::is_empty) {
            return Err(Error::InvalidArgument("`disallowed_special` must not have an empty text".to_owned()));
        }
        let indexed: Vec<(String, u32)> = disallowed.iter().cloned().zip(0..).collect();
        Ok(Self { allowed, disallowed, finder: SpecialMatcher::new(&indexed), template, own: own.transpose()? })
    }

    /// The special tokens that become their ids.
    pub fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    /// The ids added around each text.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The range of ids that is kept of a text with `num_ids` ids.
    pub fn kept(&self, num_ids: usize) -> Range<usize> {
        match self.own {
            Some(Truncation { max_length, side: Side::Right }) if max_length < num_ids => 0..max_length,
            Some(Truncation { max_length, side: Side::Left }) if max_length < num_ids => num_ids - max_length..num_ids,
            _ => 0..num_ids,
        }
    }

    /// Checks that a text has no disallowed special token.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the first such token and its index.
    pub fn check(&self, text: &str) -> Result<()> {
        if self.disallowed.is_empty() {
            return Ok(());
        }
        let mut segments = self.finder.segments(text);
        let (before, found) = match segments.next() {
            Some(Segment::Text(before)) => (before, segments.next()),
            first => ("", first),
        };
        let Some(Segment::Special(at)) = found else {
            return Ok(());
        };
        let (token, index) = (&self.disallowed[at as usize], before.chars().count());
        Err(Error::InvalidArgument(format!(
            "text must not have the special token {token:?}, got it at index {index}\n\
             hint: `allowed_special` makes it one id; without `disallowed_special` it is ordinary text"
        )))
    }

    /// Truncates the ids from `start` on and adds the template around them.
    pub(super) fn frame(&self, ids: &mut Vec<u32>, start: usize) {
        let kept = self.kept(ids.len() - start);
        ids.truncate(start + kept.end);
        ids.splice(start..start + kept.start, self.template.before.iter().copied());
        ids.extend_from_slice(&self.template.after);
    }
}
