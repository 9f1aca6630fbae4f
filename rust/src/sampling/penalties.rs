//! What changes single logits before any probability is taken: bias, penalties, and ids that must not come now.

use rustc_hash::FxHashMap;

use super::SamplingParams;
use super::row::Row;

/// How often each token was seen, kept by the request so that no step walks its history.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts {
    // Value: occurrences in the output; 0 for a token of the prompt alone.
    output_counts: FxHashMap<u32, u32>,
}

impl TokenCounts {
    /// Counts of a request that has generated nothing yet.
    pub fn from_prompt(prompt_ids: &[u32]) -> Self {
        let mut counts = Self::default();
        counts.recount(prompt_ids, &[]);
        counts
    }

    /// Counts one generated token.
    pub fn push_output(&mut self, id: u32) {
        *self.output_counts.entry(id).or_insert(0) += 1;
    }

    /// Forgets all and counts anew, in the room that is there.
    pub(super) fn recount(&mut self, prompt_ids: &[u32], output_ids: &[u32]) {
        self.output_counts.clear();
        self.output_counts.reserve(prompt_ids.len());
        for &id in prompt_ids {
            self.output_counts.insert(id, 0);
        }
        for &id in output_ids {
            self.push_output(id);
        }
    }
}

/// The tokens a row's request has seen.
#[derive(Debug, Clone, Copy)]
pub enum History<'a> {
    /// Counted as they came.
    Counted(&'a TokenCounts),
    /// To be counted where penalties ask for it.
    Ids {
        /// The prompt.
        prompt: &'a [u32],
        /// What was generated since.
        output: &'a [u32],
    },
}

/// Adds `logit_bias` to the ids it names; ids past the row are ignored.
///
/// Source: OpenAI API reference, `logit_bias`.
pub(super) fn apply_bias(row: &mut Row<'_>, bias: &[(u32, f32)]) {
    for &(id, bias) in bias {
        row.change(id, |logit| logit + bias);
    }
}

/// A set of ids that is emptied by naming them again: no pass over the vocabulary.
#[derive(Debug, Default)]
pub(super) struct Seen {
    bits: Vec<u64>,
}

impl Seen {
    fn insert(&mut self, id: u32) -> bool {
        let (index, bit) = (id as usize / 64, 1 << (id % 64));
        let is_new = self.bits[index] & bit == 0;
        self.bits[index] |= bit;
        is_new
    }
}

/// Applies the repetition penalty alone to each token of a history, uncounted: half the time of counting it first.
pub(super) fn apply_repetition(row: &mut Row<'_>, penalty: f64, history: [&[u32]; 2], seen: &mut Seen) {
    let vocab_len = row.logits().len();
    let ids = || history.into_iter().flatten().copied().filter(|&id| (id as usize) < vocab_len);
    let num_words = vocab_len.div_ceil(64).max(seen.bits.len());
    seen.bits.resize(num_words, 0);
    for id in ids() {
        if seen.insert(id) {
            row.change(id, |logit| repeat_less(logit, penalty as f32));
        }
    }
    ids().for_each(|id| seen.bits[id as usize / 64] = 0);
}

fn repeat_less(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { logit / penalty } else { logit * penalty }
}

/// Applies repetition, frequency and presence penalty to the tokens seen.
///
/// Source: Keskar et al. 2019, "CTRL", section 4.1 (repetition, sign-aware as in `transformers`);
/// OpenAI API reference, "frequency and presence penalties".
pub(super) fn apply_penalties(row: &mut Row<'_>, params: &SamplingParams, counts: &TokenCounts) {
    let repetition = params.repetition_penalty as f32;
    let (frequency, presence) = (params.frequency_penalty as f32, params.presence_penalty as f32);
    for (&id, &count) in &counts.output_counts {
        row.change(id, |logit| {
            let logit = repeat_less(logit, repetition);
            if count > 0 { logit - (frequency * count as f32 + presence) } else { logit }
        });
    }
}
