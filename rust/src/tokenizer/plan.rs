//! How a text becomes ids when plain encoding is not enough: special tokens, what stands around it, how long it may be.

use std::ops::Range;

use super::Tokenizer;
use super::special::{Segment, SpecialMatcher};
use crate::{Error, Result};

/// Which special tokens in a text become their id; the others are ordinary text.
#[derive(Debug, Clone)]
pub enum Allowed {
    /// None of them.
    None,
    /// All of the tokenizer's.
    All,
    /// These.
    Some(Box<SpecialMatcher>),
}

/// Where a text that is too long is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end is lost.
    Right,
    /// The beginning is lost.
    Left,
}

/// What to do with a text beside merging.
///
/// ```
/// use llm_core::tokenizer::plan::{Allowed, EncodePlan, Side};
///
/// let plan = EncodePlan::new(Allowed::None, vec![], (vec![1], vec![2]), Some((4, Side::Left)))?;
/// assert_eq!(plan.kept(10), 8..10); // two of the four places are the frame's
/// # Ok::<(), llm_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EncodePlan {
    allowed: Allowed,
    disallowed: Vec<String>,
    /// Finds those, an index for an id.
    finder: SpecialMatcher,
    before: Vec<u32>,
    after: Vec<u32>,
    /// Ids left for the text itself, and where it is cut.
    room: Option<(usize, Side)>,
}

impl EncodePlan {
    /// A plan: special tokens that become ids, texts that are an error, ids before and after each text, and the most
    /// ids of a text, these included.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if the ids around a text alone are too many, or a disallowed text is empty.
    pub fn new(
        allowed: Allowed,
        disallowed: Vec<String>,
        (before, after): (Vec<u32>, Vec<u32>),
        max_length: Option<(usize, Side)>,
    ) -> Result<Self> {
        let num_around = before.len() + after.len();
        let room = match max_length {
            Some((max_length, _)) if max_length < num_around => {
                return Err(Error::InvalidArgument(format!(
                    "`max_length` must have room for the tokens added around a text ({num_around}), got {max_length}"
                )));
            }
            Some((max_length, side)) => Some((max_length - num_around, side)),
            None => None,
        };
        if disallowed.iter().any(String::is_empty) {
            return Err(Error::InvalidArgument("`disallowed_special` must not have an empty text".to_owned()));
        }
        let indexed: Vec<(String, u32)> = disallowed.iter().cloned().zip(0..).collect();
        Ok(Self { allowed, disallowed, finder: SpecialMatcher::new(&indexed), before, after, room })
    }

    /// Special tokens that become their id.
    pub fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    /// Ids before each text.
    pub fn before(&self) -> &[u32] {
        &self.before
    }

    /// Ids after each text.
    pub fn after(&self) -> &[u32] {
        &self.after
    }

    /// Which of `num_ids` ids of a text are kept.
    pub fn kept(&self, num_ids: usize) -> Range<usize> {
        match self.room {
            Some((room, Side::Right)) if room < num_ids => 0..room,
            Some((room, Side::Left)) if room < num_ids => num_ids - room..num_ids,
            _ => 0..num_ids,
        }
    }

    /// Refuses a text with a special token that is not allowed.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` that names the first such token and its place.
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

    /// Cuts the ids from `start` on to what is kept and puts the others around them.
    fn frame(&self, ids: &mut Vec<u32>, start: usize) {
        let kept = self.kept(ids.len() - start);
        ids.truncate(start + kept.end);
        ids.splice(start..start + kept.start, self.before.iter().copied());
        ids.extend_from_slice(&self.after);
    }
}

impl Tokenizer {
    /// Adds the ids of `text` to `ids`, as `plan` says.
    ///
    /// # Errors
    ///
    /// As [`EncodePlan::check`] and [`Tokenizer::encode`].
    pub fn encode_planned(&self, text: &str, plan: &EncodePlan, ids: &mut Vec<u32>) -> Result<()> {
        plan.check(text)?;
        let start = ids.len();
        match &plan.allowed {
            Allowed::None => self.encode_into(text, false, ids)?,
            Allowed::All => self.encode_into(text, true, ids)?,
            Allowed::Some(tokens) => {
                for segment in tokens.segments(text) {
                    match segment {
                        Segment::Text(text) => self.encode_into(text, false, ids)?,
                        Segment::Special(id) => ids.push(id),
                    }
                }
            }
        }
        plan.frame(ids, start);
        Ok(())
    }
}
