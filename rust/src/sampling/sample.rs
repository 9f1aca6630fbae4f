//! One token for each row of logits.

use rayon::prelude::*;

use super::filter::{Candidate, collect_scaled, keep_min_p, keep_top_k, keep_top_p, to_weights, total_weight};
use super::logprobs::RawLogprobs;
use super::penalties::{apply_penalties, mask_ids};
use super::{SamplingParams, TokenCounts, VocabMask, stream_key, uniform};
use crate::{Error, Result};

/// What a row's request adds to its logits.
#[derive(Debug, Clone, Copy)]
pub struct RowSpec<'a> {
    /// How to sample.
    pub params: &'a SamplingParams,
    /// Tokens seen so far.
    pub counts: &'a TokenCounts,
    /// Ids that must not come now (end and stop ids before `min_tokens`).
    pub banned_ids: &'a [u32],
    /// How many tokens the request generated before this one: the counter of its random stream.
    pub output_idx: usize,
}

/// A row's token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability under the raw masked logits, if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with their log-probabilities, if asked for.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Samples row after row of `logits` (S, V), in parallel and in place; a `None` row is skipped.
///
/// Rows are independent: one that fails (see [`Error::InvalidArgument`] in its place) leaves the others alone.
///
/// # Panics
///
/// If `logits` is not `rows.len() × vocab_len` long; callers check the shape.
pub fn sample_rows(
    logits: &mut [f32],
    vocab_len: usize,
    mask: VocabMask,
    rows: &[Option<RowSpec<'_>>],
) -> Vec<Option<Result<Sampled>>> {
    assert_eq!(logits.len(), rows.len() * vocab_len, "logits and rows disagree");
    let sample = |scratch: &mut Scratch, (row, spec): (&mut [f32], &Option<RowSpec<'_>>)| {
        spec.as_ref().map(|spec| sample_row(row, mask, spec, scratch))
    };
    if rows.len() <= 1 {
        // Handing a single row to the pool costs more than sampling a small one.
        let mut scratch = Scratch::default();
        return rows.iter().map(|spec| sample(&mut scratch, (&mut *logits, spec))).collect();
    }
    logits.par_chunks_exact_mut(vocab_len).zip(rows).map_init(Scratch::default, sample).collect()
}

#[derive(Default)]
struct Scratch {
    candidates: Vec<Candidate>,
    ranked: Vec<Candidate>,
}

fn sample_row(row: &mut [f32], mask: VocabMask, spec: &RowSpec<'_>, scratch: &mut Scratch) -> Result<Sampled> {
    mask.apply(row);
    let raw_max = finite_max(row, "the model's logits")?;
    let raw = spec.params.logprobs.map(|n| RawLogprobs::new(row, raw_max, n));
    apply_penalties(row, spec.params, spec.counts);
    mask_ids(row, spec.banned_ids);
    let max = finite_max(row, "the logits after penalties and `min_tokens`")?;
    let id = if spec.params.is_greedy() { first_at(row, max) } else { draw(row, max, spec, scratch) };
    Ok(Sampled {
        id,
        logprob: raw.as_ref().map(|raw| raw.of(id)),
        top_logprobs: raw.as_ref().map(RawLogprobs::top).unwrap_or_default(),
    })
}

/// The row's maximum.
///
/// # Errors
///
/// A NaN or +inf anywhere, or nothing but -inf: softmax would hand out nonsense in silence.
fn finite_max(row: &[f32], what: &str) -> Result<f32> {
    let (max, has_nan) = max_and_nan(row);
    if max.is_finite() && !has_nan {
        return Ok(max);
    }
    let found = match row.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        Some(id) => format!("{} at token id {id}", row[id]),
        None => "-inf everywhere".to_owned(),
    };
    Err(Error::InvalidArgument(format!(
        "{what} must hold no NaN or +inf and at least one finite value, got {found}\n\
         hint: check the checkpoint's weights, or run the model in float32"
    )))
}

/// The largest value, NaN left aside, and whether there is a NaN.
///
/// In lanes, because a single running maximum can't be vectorized: 4 times faster at 131,072 columns.
fn max_and_nan(row: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let (mut max, mut has_nan) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut visit = |lane: usize, logit: f32| {
        max[lane] = if logit > max[lane] { logit } else { max[lane] };
        has_nan[lane] |= logit.is_nan();
    };
    for chunk in chunks {
        chunk.iter().enumerate().for_each(|(lane, &logit)| visit(lane, logit));
    }
    rest.iter().for_each(|&logit| visit(0, logit));
    (max.into_iter().fold(f32::NEG_INFINITY, f32::max), has_nan.contains(&true))
}

fn first_at(row: &[f32], max: f32) -> u32 {
    row.iter().position(|&logit| logit == max).unwrap_or_default() as u32
}

fn draw(row: &[f32], max: f32, spec: &RowSpec<'_>, scratch: &mut Scratch) -> u32 {
    let Scratch { candidates, ranked } = scratch;
    let params = spec.params;
    collect_scaled(row, max, params.temperature as f32, candidates);
    keep_top_k(candidates, params.top_k, ranked);
    to_weights(candidates);
    keep_top_p(candidates, params.top_p, ranked);
    keep_min_p(candidates, params.min_p);
    let key = stream_key(params.seed, params.choice_index);
    pick(candidates, uniform(key, spec.output_idx as u64, 0))
}

/// Inverse of the cumulative distribution in ascending id order.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * total_weight(candidates);
    let mut mass = 0.0;
    for candidate in candidates {
        mass += f64::from(candidate.value);
        // Strict, so that a weight of 0 is never drawn, not even by a uniform of 0.
        if mass > target {
            return candidate.id;
        }
    }
    // `total_weight` adds in this same order and uniform < 1, so only the product's rounding leads here.
    candidates.iter().rfind(|candidate| candidate.value > 0.0).map_or(0, |candidate| candidate.id)
}
