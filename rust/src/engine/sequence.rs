//! The state of a request between sampling and text.

use super::constraint::Constraint;
use super::{FinishReason, RequestParams};
use crate::Result;
use crate::sampling::{History, RowSpec, TokenCounts, TokenLogprob};
use crate::tokenizer::decode::stream::Detokenizer;
use crate::tokenizer::tokens::TokenTable;

/// A request's parameters, token counts and pending text.
#[derive(Debug)]
pub(super) struct Sequence {
    params: RequestParams,
    /// Ids that end the request: the tokenizer's end ids unless ignored, and the request's own stop ids.
    stop_ids: Vec<u32>,
    max_tokens: usize,
    counts: TokenCounts,
    detokenizer: Detokenizer,
    num_output_tokens: usize,
    /// The grammar that the answer follows.
    constraint: Option<Constraint>,
    /// Log-probabilities of the prompt's tokens from the second on, as far as the prompt is computed.
    prompt_logprobs: Vec<(u32, TokenLogprob)>,
}

impl Sequence {
    pub fn new(prompt_ids: &[u32], mut params: RequestParams, eos_ids: &[u32]) -> Result<Self> {
        let stop_ids = params.stop_ids(eos_ids);
        let max_tokens = params.max_tokens.unwrap_or(usize::MAX);
        let counts = match params.sampling.has_penalties() {
            true => TokenCounts::from_prompt(prompt_ids),
            false => TokenCounts::default(),
        };
        let detokenizer = Detokenizer::new(std::mem::take(&mut params.stop), params.skip_special_tokens)?
            .including_stop(params.include_stop_str_in_output)
            .keeping_special(std::mem::take(&mut params.kept_special_ids));
        let constraint = params.grammar.take().map(|grammar| Constraint::new(&grammar));
        Ok(Self {
            params,
            stop_ids,
            max_tokens,
            counts,
            detokenizer,
            num_output_tokens: 0,
            constraint,
            prompt_logprobs: Vec::new(),
        })
    }

    /// Whether the answer follows a grammar.
    pub fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Makes the mask that [`Self::row_spec`] needs if the answer follows a grammar.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Grammar`] if the grammar leaves no token.
    pub fn make_mask(&mut self) -> Result<()> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        let sampling = &self.params.sampling;
        let is_biased = |id| sampling.logit_bias.iter().any(|&(biased, _)| biased == id);
        constraint.make_mask(&self.stop_ids, sampling.allowed_token_ids.as_deref(), &is_biased)
    }

    /// Starts to make the mask of the next token on another thread if the answer follows a grammar.
    pub fn prepare_mask(&self) {
        self.constraint.iter().for_each(Constraint::prepare);
    }

    /// Returns draft tokens for the text that the grammar forces, or else the allowed part of other drafts.
    pub fn drafts(&self, others: &[u32]) -> Vec<u32> {
        let Some(constraint) = &self.constraint else { return others.to_vec() };
        let forced = constraint.forced(self.num_tokens_left().saturating_sub(1));
        if forced.is_empty() { constraint.allowed_part(others).to_vec() } else { forced }
    }

    /// Inputs for sampling the request's next token.
    pub fn row_spec(&self) -> RowSpec<'_> {
        let may_stop = self.num_output_tokens >= self.params.min_tokens;
        RowSpec {
            params: &self.params.sampling,
            history: History::Counted(&self.counts),
            banned_ids: if may_stop { &[] } else { &self.stop_ids },
            allowed: match &self.constraint {
                Some(constraint) => constraint.mask(),
                None => self.params.sampling.allowed_token_ids.as_deref(),
            },
            output_idx: self.num_output_tokens,
        }
    }

    /// Number of likeliest tokens to report per prompt token; `None` if no prompt log-probabilities are wanted.
    pub fn num_prompt_logprobs(&self) -> Option<usize> {
        self.params.sampling.prompt_logprobs
    }

    /// Appends log-probabilities of the next prompt tokens.
    pub fn push_prompt_logprobs(&mut self, logprobs: impl IntoIterator<Item = (u32, TokenLogprob)>) {
        self.prompt_logprobs.extend(logprobs);
    }

    /// Returns whether the request ends once its prompt is computed.
    pub fn generates_none(&self) -> bool {
        self.max_tokens == 0
    }

    /// Returns the prompt's log-probabilities once, with the first token or the end. Of several choices, the first one
    /// has them.
    pub fn take_prompt_logprobs(&mut self) -> Option<Vec<(u32, TokenLogprob)>> {
        let is_there = self.num_output_tokens <= 1 && !self.prompt_logprobs.is_empty();
        is_there.then(|| std::mem::take(&mut self.prompt_logprobs))
    }

    /// Whether the last token was the request's first.
    pub fn has_begun(&self) -> bool {
        self.num_output_tokens == 1
    }

    /// Number of tokens the request may still generate.
    pub fn num_tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.num_output_tokens)
    }

    pub fn asks_top_logprobs(&self) -> bool {
        self.params.sampling.logprobs.is_some_and(|n| n > 0)
    }

    /// Index of the stop string that ended the request, among those of its parameters.
    pub fn stop_string(&self) -> Option<usize> {
        self.detokenizer.stopped()
    }

    /// Appends the next token. Returns the text that became certain, and whether the request goes on.
    pub fn push(&mut self, table: &TokenTable, id: u32) -> (String, FinishReason) {
        self.num_output_tokens += 1;
        if self.params.sampling.has_penalties() {
            self.counts.push_output(id);
        }
        let is_stop = self.stop_ids.contains(&id);
        if is_stop && !self.params.include_stop_str_in_output {
            return (self.detokenizer.finish(), FinishReason::Stop);
        }
        let is_complete = !is_stop && self.constraint.as_mut().is_some_and(|constraint| constraint.consume(id));
        let check_stop = self.num_output_tokens > self.params.min_tokens;
        let delta = self.detokenizer.push(table, id, check_stop);
        if is_stop || is_complete || delta.stopped.is_some() {
            return (delta.text + &self.detokenizer.finish(), FinishReason::Stop);
        }
        if self.num_output_tokens == self.max_tokens {
            return (delta.text + &self.detokenizer.finish(), FinishReason::Length);
        }
        (delta.text, FinishReason::Running)
    }
}
