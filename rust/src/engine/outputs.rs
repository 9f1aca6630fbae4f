//! What a step gave each request.

use crate::sampling::TokenLogprob;

/// Whether a request goes on; the numbers are what Python sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FinishReason {
    /// It goes on.
    Running = 0,
    /// An end id, a stop id or a stop string.
    Stop = 1,
    /// `max_tokens` is reached.
    Length = 2,
    /// Its logits could not be sampled; see [`StepOutputs::errors`].
    Error = 3,
}

/// A step's results, one entry a request that got a token or failed (N).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutputs {
    /// The requests (N).
    pub request_ids: Vec<u64>,
    /// Their new tokens (N); `u32::MAX` where the request failed.
    pub token_ids: Vec<u32>,
    /// Text that became certain (N), often none.
    pub texts: Vec<String>,
    /// Whether each goes on, as [`FinishReason`] numbers (N).
    pub finish_reasons: Vec<u8>,
    /// The token's log-probability (N); NaN where it wasn't asked for.
    pub logprobs: Vec<f32>,
    /// The token's rank, 1 for the likeliest (N); 0 where log-probabilities weren't asked for.
    pub ranks: Vec<u32>,
    /// The likeliest tokens (N); `None` where they weren't asked for.
    pub top_logprobs: Vec<Option<Vec<(u32, f32)>>>,
    /// Prompts' own log-probabilities: a request's, once, with its tokens from the second on.
    pub prompt_logprobs: Vec<(u64, Vec<(u32, TokenLogprob)>)>,
    /// The requests that failed, and why.
    pub errors: Vec<(u64, String)>,
}

impl StepOutputs {
    /// Adds what a token's own row says of it, if that was asked for.
    pub(super) fn push_logprobs(&mut self, logprobs: Option<TokenLogprob>, asks_top: bool) {
        let (logprob, rank, top) = match logprobs {
            Some(TokenLogprob { logprob, rank, top }) => (logprob, rank, asks_top.then_some(top)),
            None => (f32::NAN, 0, None),
        };
        self.logprobs.push(logprob);
        self.ranks.push(rank);
        self.top_logprobs.push(top);
    }
}
