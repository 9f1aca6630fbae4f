//! What changes logits before any probability is taken: masks and penalties.

use rustc_hash::FxHashMap;

use super::SamplingParams;

/// Which columns of a row can never be a token.
#[derive(Debug, Clone, Copy)]
pub struct VocabMask {
    /// Number of ids the tokenizer has; a model's matrix is often padded past it.
    pub vocab_size: usize,
    /// The padding id, unless it also ends generation and so must stay possible.
    pub pad_id: Option<u32>,
}

impl VocabMask {
    /// Sets PAD and every id past the vocabulary to -inf.
    pub fn apply(&self, row: &mut [f32]) {
        let end = self.vocab_size.min(row.len());
        row[end..].fill(f32::NEG_INFINITY);
        mask_ids(row, self.pad_id.as_slice());
    }
}

/// Sets these ids to -inf; ids past the row are ignored.
pub(super) fn mask_ids(row: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// How often each token was seen, kept by the request so that no step walks its history.
#[derive(Debug, Clone, Default)]
pub struct TokenCounts {
    // Value: occurrences in the output; 0 for a token of the prompt alone.
    output_counts: FxHashMap<u32, u32>,
}

impl TokenCounts {
    /// Counts of a request that has generated nothing yet.
    pub fn from_prompt(prompt_ids: &[u32]) -> Self {
        Self { output_counts: prompt_ids.iter().map(|&id| (id, 0)).collect() }
    }

    /// Counts one generated token.
    pub fn push_output(&mut self, id: u32) {
        *self.output_counts.entry(id).or_insert(0) += 1;
    }
}

/// Applies repetition, frequency and presence penalty to the tokens seen.
///
/// Source: Keskar et al. 2019, "CTRL", section 4.1 (repetition, sign-aware as in `transformers`);
/// OpenAI API reference, "frequency and presence penalties".
pub(super) fn apply_penalties(row: &mut [f32], params: &SamplingParams, counts: &TokenCounts) {
    if !params.has_penalties() {
        return;
    }
    let repetition = params.repetition_penalty as f32;
    let (frequency, presence) = (params.frequency_penalty as f32, params.presence_penalty as f32);
    for (&id, &count) in &counts.output_counts {
        let Some(logit) = row.get_mut(id as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if count > 0 {
            *logit -= frequency * count as f32 + presence;
        }
    }
}
