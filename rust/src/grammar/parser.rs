//! `llguidance`'s parser: its masks as words of 64 bits, its panics as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use llguidance::TokenParser;
use llguidance::api::StopReason;

use crate::{Error, Result};

/// The tokens that may come next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// One bit per id: bit `id % 64` of word `id / 64` allows `id`.
    pub words: Vec<u64>,
    /// Whether the answer may end here.
    pub may_end: bool,
}

impl Allowed {
    /// Whether the token may come next.
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}

/// The tokens that may come next at the parser's place, out of the first `num_ids`.
pub(super) fn allowed_by(parser: &mut TokenParser, num_ids: usize) -> Result<Allowed> {
    if parser.stopped() {
        return match parser.stop_reason().is_ok() {
            true => Ok(Allowed { words: Vec::new(), may_end: true }),
            false => Err(failed(reason(parser))),
        };
    }
    let result = caught(|| {
        let set = parser.compute_mask()?;
        Ok((set, parser.is_accepting()))
    });
    let (set, may_end) = result.map_err(|problem| match parser.stop_reason() {
        StopReason::NoExtensionBias => failed("can't go on: no token of this model's vocabulary fits".to_owned()),
        _ => failed(format!("can't be matched: {problem}")),
    })?;
    let mut words: Vec<u64> = set.as_slice().chunks(2).map(wide).collect();
    words.truncate(num_ids.div_ceil(64));
    // The trie's own end token lies past the vocabulary.
    if let Some(last) = words.get_mut(num_ids / 64) {
        *last &= (1 << (num_ids % 64)) - 1;
    }
    Ok(Allowed { words, may_end })
}

fn wide(halves: &[u32]) -> u64 {
    u64::from(halves[0]) | halves.get(1).map_or(0, |&high| u64::from(high) << 32)
}

fn reason(parser: &TokenParser) -> String {
    let message = parser.error_message().unwrap_or_else(|| parser.stop_reason().to_string());
    format!("can't be matched: {}", shortened(&message))
}

/// An error of a grammar while an answer follows it.
pub(super) fn failed(problem: String) -> Error {
    Error::Grammar(format!("the grammar {problem}"))
}

/// Runs code of `llguidance`; a panic of it becomes an error.
pub(super) fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(shortened(&error.to_string())),
        Err(_) => Err("it is beyond what the parser can do".to_owned()),
    }
}

/// Limits of one step that a grammar may reach, by a part of `llguidance`'s words, and ours for them.
const LIMITS: [(&str, &str); 4] = [
    ("Too many items", "it is too ambiguous\nhint: write rules that read each text in one way only"),
    ("Current row has", "too many of its rules fit at once\nhint: use fewer optional parts and alternatives"),
    ("too many expressions", "its regular expressions grow too complex\nhint: make them smaller"),
    ("too many states", "its regular expressions grow too complex\nhint: make them smaller"),
];

/// Whether a problem is that the grammar reached a limit of one step.
pub(super) fn is_limit(problem: &str) -> bool {
    LIMITS.iter().any(|(_, words)| *words == problem)
}

/// The part of an error that is meant for people.
fn shortened(message: &str) -> String {
    if message.starts_with("panic:") {
        return "it is beyond what the parser can do".to_owned();
    }
    if let Some((_, words)) = LIMITS.iter().find(|(part, _)| message.contains(part)) {
        return (*words).to_owned();
    }
    message
        .split("<state>")
        .next()
        .unwrap_or_default()
        .split("<non-verbose")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Locks what a panic can't leave half done.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
