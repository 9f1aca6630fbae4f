//! Changes individual logits before probabilities are computed: bias and penalties.

use rustc_hash::FxHashMap;

use super::SamplingParams;
use super::row::LogitsRow;

/// The number of times each token has occurred; a request keeps these counts so that no step rereads its history.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts {
    // Occurrences in the output; 0 for a token that occurs in the prompt only.
    output_counts: FxHashMap<u32, u32>,
}

impl TokenCounts {
    /// Counts the prompt of a request that has generated nothing yet.
    pub fn from_prompt(prompt_ids: &[u32]) -> Self {
        let mut counts = Self::default();
        counts.recount(prompt_ids, &[]);
        counts
    }

    /// Counts one generated token.
    pub fn push_output(&mut self, id: u32) {
        *self.output_counts.entry(id).or_insert(0) += 1;
    }

    /// Clears all counts and recounts, reusing the allocation.
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

/// The tokens that a row's request has processed.
#[derive(Debug, Clone, Copy)]
pub enum History<'a> {
    /// Counts kept up to date by the request.
    Counted(&'a TokenCounts),
    /// Token ids, counted only if a penalty needs counts.
    Ids {
        /// Ids of the prompt.
        prompt: &'a [u32],
        /// Ids generated so far.
        output: &'a [u32],
    },
}

/// Adds each id's bias to its logit; ids past the row are ignored.
///
/// Source: OpenAI API reference, `logit_bias`.
pub(super) fn apply_bias(row: &mut LogitsRow<'_>, bias: &[(u32, f32)]) {
    for &(id, bias) in bias {
        row.change(id, |logit| logit + bias);
    }
}

/// A set of ids. Removing the ids one by one empties the set without a pass over the vocabulary.
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

/// Applies only the repetition penalty to each token of a history. Takes half the time of [`apply_penalties`], because
/// it needs no counts.
pub(super) fn apply_repetition(row: &mut LogitsRow<'_>, penalty: f64, history: [&[u32]; 2], seen: &mut Seen) {
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

/// Applies repetition, frequency and presence penalties to every counted token.
///
/// Source: Keskar et al. 2019, "CTRL", section 4.1 (repetition, sign-aware as in `transformers`);
/// OpenAI API reference, "frequency and presence penalties".
pub(super) fn apply_penalties(row: &mut LogitsRow<'_>, params: &SamplingParams, counts: &TokenCounts) {
    let repetition = params.repetition_penalty as f32;
    let (frequency, presence) = (params.frequency_penalty as f32, params.presence_penalty as f32);
    for (&id, &count) in &counts.output_counts {
        row.change(id, |logit| {
            let logit = repeat_less(logit, repetition);
            if count > 0 { logit - (frequency * count as f32 + presence) } else { logit }
        });
    }
}
