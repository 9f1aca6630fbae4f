//! Log-probabilities under the model's own distribution, before bias, penalties and filters.

use super::mask::VocabMask;
use super::row::LogitsRow;
use super::rows::{Logit, map_rows};
use super::scale::Scale;
use super::scan::{CHUNK, sum_weights};
use crate::Result;

/// The log-probability of one token under the model's own distribution, with the most likely alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's log-probability; -inf for a masked token.
    pub logprob: f32,
    /// 1 for the most likely token, 2 for the next; ties rank the lower id first.
    pub rank: u32,
    /// The most likely tokens with their log-probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

/// Returns, for one given token per row of `logits` (S, V), its log-probability, its rank and the `n` best alternatives.
///
/// Scores a prompt if row `i` holds the logits at a position and `ids[i]` the token that follows. Rows run in parallel;
/// padding and ids past the vocabulary are masked in place.
///
/// # Errors
///
/// [`crate::Error::InvalidArgument`] in place of a row that holds a NaN or +inf, or only -inf.
///
/// # Panics
///
/// If `logits` is not `ids.len() × vocab_len` long; callers check the shape, and that ids are below `vocab_len`.
///
/// ```
/// use llm_core::sampling::{VocabMask, token_logprobs};
///
/// let mut logits = [1.0f32, 3.0, 4.0].map(f32::ln);
/// let mask = VocabMask { vocab_size: 3, pad_id: None };
/// let scored = token_logprobs(&mut logits, 3, mask, &[1], 1).remove(0)?;
/// assert_eq!((scored.rank, scored.top[0].0), (2, 2));
/// assert!((scored.logprob - 0.375f32.ln()).abs() < 1e-6);
/// # Ok::<(), llm_core::Error>(())
/// ```
pub fn token_logprobs<L: Logit>(
    logits: &mut [L],
    vocab_len: usize,
    mask: VocabMask,
    ids: &[u32],
    n: usize,
) -> Vec<Result<TokenLogprob>> {
    map_rows(logits, vocab_len, ids, |logits, &id, scratch| {
        mask.apply(logits);
        let mut row = LogitsRow::new(logits, &mut scratch.maxima);
        let max = row.finite_max("the model's logits")?;
        Ok(RawLogprobs::new(&row, max, n, &mut scratch.sums).of(row.logits(), row.maxima(), id))
    })
}

/// The facts about a row that must be computed before sampling changes the row.
pub(super) struct RawLogprobs {
    log_normalizer: f64,
    top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    /// Normalizes the masked row and ranks its `n` most likely tokens. `max` is the row's finite maximum.
    pub fn new(row: &LogitsRow<'_>, max: f32, n: usize, sums: &mut Vec<f64>) -> Self {
        sum_weights(row.logits(), row.maxima(), Scale::new(max, 1.0), sums);
        let log_normalizer = f64::from(max) + sums.iter().sum::<f64>().ln();
        let top = top_logits(row.logits(), row.maxima(), n);
        let top = top.into_iter().map(|(id, logit)| (id, (f64::from(logit) - log_normalizer) as f32)).collect();
        Self { log_normalizer, top }
    }

    /// Returns the log-probability of `id`. `row` and `maxima` are those passed to [`Self::new`].
    pub fn of(self, row: &[f32], maxima: &[f32], id: u32) -> TokenLogprob {
        let logit = row[id as usize];
        TokenLogprob {
            logprob: (f64::from(logit) - self.log_normalizer) as f32,
            rank: rank_of(row, maxima, id),
            top: self.top,
        }
    }
}

/// Returns 1 plus the number of tokens more likely than `id`, or equally likely with a lower id.
fn rank_of(row: &[f32], maxima: &[f32], id: u32) -> u32 {
    let logit = row[id as usize];
    let mut rank = 1;
    for (chunk_idx, chunk) in row.chunks(CHUNK).enumerate() {
        if maxima[chunk_idx] < logit {
            continue;
        }
        let start = chunk_idx * CHUNK;
        let num_before = (id as usize).saturating_sub(start).min(chunk.len());
        rank += chunk.iter().map(|&other| u32::from(other > logit)).sum::<u32>();
        rank += chunk[..num_before].iter().map(|&other| u32::from(other == logit)).sum::<u32>();
    }
    rank
}

/// Returns the `n` highest logits above -inf, by insertion: `n` is small and most chunks hold none.
fn top_logits(row: &[f32], maxima: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(row.len()) + 1);
    let mut worst = f32::NEG_INFINITY;
    if n == 0 {
        return top;
    }
    for (chunk_idx, chunk) in row.chunks(CHUNK).enumerate() {
        if maxima[chunk_idx] <= worst {
            continue;
        }
        for (offset, &logit) in chunk.iter().enumerate() {
            if logit <= worst {
                continue;
            }
            let place = top.partition_point(|&(_, other)| other >= logit);
            top.insert(place, ((chunk_idx * CHUNK + offset) as u32, logit));
            top.truncate(n);
            if top.len() == n {
                worst = top[n - 1].1;
            }
        }
    }
    top
}
