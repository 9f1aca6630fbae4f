//! The entry point: samples one token from each row of logits.

use super::draw::draw;
use super::logprobs::{RawLogprobs, TokenLogprob};
use super::mask::{TokenMask, VocabMask};
use super::penalties::{History, Seen, TokenCounts, apply_bias, apply_penalties, apply_repetition};
use super::row::LogitsRow;
use super::rows::{Logit, Scratch, map_rows};
use super::scan::CHUNK;
use super::{SamplingParams, stream_key, uniform};
use crate::Result;

/// The sampling state of a row's request.
#[derive(Debug, Clone, Copy)]
pub struct RowSpec<'a> {
    /// Sampling parameters.
    pub params: &'a SamplingParams,
    /// Tokens processed so far.
    pub history: History<'a>,
    /// Ids excluded from this draw (end and stop ids before `min_tokens`).
    pub banned_ids: &'a [u32],
    /// The only ids allowed in this draw; `None` allows all.
    pub allowed: Option<&'a TokenMask>,
    /// Number of tokens generated before this one: the counter of the request's random stream.
    pub output_idx: usize,
}

impl RowSpec<'_> {
    fn changes_logits(&self) -> bool {
        let params = self.params;
        let changes_some = !params.logit_bias.is_empty() || !self.banned_ids.is_empty();
        self.allowed.is_some() || changes_some || params.has_penalties()
    }

    /// Describes the changed logits in error messages.
    fn description(&self) -> &'static str {
        match self.allowed.is_some() || !self.params.logit_bias.is_empty() {
            true => "the logits after the grammar, `allowed_token_ids`, `logit_bias`, penalties and `min_tokens`",
            false => "the logits after penalties and `min_tokens`",
        }
    }
}

/// The token sampled from a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Token id.
    pub id: u32,
    /// Log-probabilities of this token and of the most likely ones before any change, if requested.
    pub logprobs: Option<TokenLogprob>,
}

/// Samples each row of `logits` (S, V) in parallel; a `None` row is skipped.
///
/// Rows are independent: a row that fails returns [`crate::Error::InvalidArgument`] in its place without affecting the
/// others. `logits` serve as scratch memory. A row costs one pass, plus one for log-probabilities and one for draws
/// without top-k.
///
/// # Panics
///
/// If `logits` is not `rows.len() × vocab_len` long; callers check the shape.
pub fn sample_rows<L: Logit>(
    logits: &mut [L],
    vocab_len: usize,
    mask: VocabMask,
    rows: &[Option<RowSpec<'_>>],
) -> Vec<Option<Result<Sampled>>> {
    map_rows(logits, vocab_len, rows, |logits, spec, scratch| {
        spec.as_ref().map(|spec| sample_row(logits, mask, spec, scratch))
    })
}

fn sample_row(logits: &mut [f32], mask: VocabMask, spec: &RowSpec<'_>, scratch: &mut Scratch) -> Result<Sampled> {
    mask.apply(logits);
    let mut row = LogitsRow::new(logits, &mut scratch.maxima);
    let mut max = row.finite_max("the model's logits")?;
    let raw_logprobs = spec.params.logprobs.map(|n| RawLogprobs::new(&row, max, n, &mut scratch.sums));
    if spec.changes_logits() {
        if raw_logprobs.is_some() {
            scratch.raw.copy(&row);
        }
        adjust(&mut row, spec, &mut scratch.counts, &mut scratch.seen);
        max = row.finite_max(spec.description())?;
    }
    let id = match spec.params.is_greedy() {
        true => first_at(&row, max),
        false => {
            let key = stream_key(spec.params.seed, spec.params.choice_index);
            draw(&row, max, spec.params, uniform(key, spec.output_idx as u64, 0), &mut scratch.draw)
        }
    };
    let logprobs = raw_logprobs.map(|logprobs| match spec.changes_logits() {
        true => logprobs.of(&scratch.raw.logits, &scratch.raw.maxima, id),
        false => logprobs.of(row.logits(), row.maxima(), id),
    });
    Ok(Sampled { id, logprobs })
}

/// Applies everything that changes single logits, in the order documented in [`super`].
fn adjust(row: &mut LogitsRow<'_>, spec: &RowSpec<'_>, counts: &mut TokenCounts, seen: &mut Seen) {
    if let Some(allowed) = spec.allowed {
        row.change_all(|logits| allowed.apply(logits));
    }
    apply_bias(row, &spec.params.logit_bias);
    match spec.history {
        _ if !spec.params.has_penalties() => {}
        History::Counted(counts) => apply_penalties(row, spec.params, counts),
        History::Ids { prompt, output } if !spec.params.counts_output() => {
            apply_repetition(row, spec.params.repetition_penalty, [prompt, output], seen);
        }
        History::Ids { prompt, output } => {
            counts.recount(prompt, output);
            apply_penalties(row, spec.params, counts);
        }
    }
    for &id in spec.banned_ids {
        row.change(id, |_| f32::NEG_INFINITY);
    }
}

/// Returns the lowest id with the row's maximum.
fn first_at(row: &LogitsRow<'_>, max: f32) -> u32 {
    let Some(chunk) = row.maxima().iter().position(|&highest| highest == max) else { return 0 };
    let start = chunk * CHUNK;
    let offset = row.logits()[start..].iter().position(|&logit| logit == max);
    (start + offset.unwrap_or_default()) as u32
}
