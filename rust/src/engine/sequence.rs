//! One request on its way from tokens to text.

use super::{FinishReason, RequestParams};
use crate::Result;
use crate::sampling::{History, RowSpec, TokenCounts, TokenLogprob};
use crate::tokenizer::stream::{Detokenizer, TokenTable};

/// What a request needs after the model: its parameters, token counts and text so far.
#[derive(Debug)]
pub(super) struct Sequence {
    params: RequestParams,
    /// Ids that end it: the tokenizer's, unless ignored, and its own.
    stop_ids: Vec<u32>,
    counts: TokenCounts,
    detokenizer: Detokenizer,
    num_output_tokens: usize,
    /// How likely the prompt's tokens were, from its second on, as far as it is computed.
    prompt_logprobs: Vec<(u32, TokenLogprob)>,
}

impl Sequence {
    pub fn new(prompt_ids: &[u32], mut params: RequestParams, eos_ids: &[u32]) -> Result<Self> {
        let stop_ids = params.stop_ids(eos_ids);
        let counts = match params.sampling.has_penalties() {
            true => TokenCounts::from_prompt(prompt_ids),
            false => TokenCounts::default(),
        };
        let detokenizer = Detokenizer::new(std::mem::take(&mut params.stop), params.skip_special_tokens)?
            .including_stop(params.include_stop);
        Ok(Self { params, stop_ids, counts, detokenizer, num_output_tokens: 0, prompt_logprobs: Vec::new() })
    }

    /// What sampling its next token needs.
    pub fn row_spec(&self) -> RowSpec<'_> {
        let may_stop = self.num_output_tokens >= self.params.min_tokens;
        RowSpec {
            params: &self.params.sampling,
            history: History::Counted(&self.counts),
            banned_ids: if may_stop { &[] } else { &self.stop_ids },
            allowed: self.params.sampling.allowed.as_deref(),
            output_idx: self.num_output_tokens,
        }
    }

    /// Likeliest tokens wanted beside each of the prompt's; `None`: nothing is wanted of the prompt.
    pub fn num_prompt_logprobs(&self) -> Option<usize> {
        self.params.sampling.prompt_logprobs
    }

    /// Takes how likely the prompt's next tokens were.
    pub fn push_prompt_logprobs(&mut self, logprobs: impl IntoIterator<Item = (u32, TokenLogprob)>) {
        self.prompt_logprobs.extend(logprobs);
    }

    /// What was taken of the prompt, once: with the first token. Of several choices the first has it.
    pub fn take_prompt_logprobs(&mut self) -> Option<Vec<(u32, TokenLogprob)>> {
        let is_there = self.num_output_tokens == 1 && !self.prompt_logprobs.is_empty();
        is_there.then(|| std::mem::take(&mut self.prompt_logprobs))
    }

    /// Tokens it may still generate.
    pub fn num_tokens_left(&self) -> usize {
        self.params.max_tokens.saturating_sub(self.num_output_tokens)
    }

    pub fn asks_top_logprobs(&self) -> bool {
        self.params.sampling.logprobs.is_some_and(|n| n > 0)
    }

    /// Takes its next token. Returns the text that became certain, and whether it goes on.
    pub fn push(&mut self, table: &TokenTable, id: u32) -> (String, FinishReason) {
        self.num_output_tokens += 1;
        if self.params.sampling.has_penalties() {
            self.counts.push_output(id);
        }
        let is_stop = self.stop_ids.contains(&id);
        if is_stop && !self.params.include_stop {
            return (self.detokenizer.finish(), FinishReason::Stop);
        }
        let check_stop = self.num_output_tokens > self.params.min_tokens;
        let delta = self.detokenizer.push(table, id, check_stop);
        if is_stop || delta.stopped.is_some() {
            return (delta.text + &self.detokenizer.finish(), FinishReason::Stop);
        }
        if self.num_output_tokens == self.params.max_tokens {
            return (delta.text + &self.detokenizer.finish(), FinishReason::Length);
        }
        (delta.text, FinishReason::Running)
    }
}
