//! The results of a step.

use crate::sampling::TokenLogprob;

/// Why a request ended, or that it still runs. Python sees the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FinishReason {
    /// The request still runs.
    Running = 0,
    /// The request met an end id, a stop id or a stop string.
    Stop = 1,
    /// The request reached `max_tokens`.
    Length = 2,
    /// The request's logits could not be sampled; [`StepOutputs::errors`] says why.
    Error = 3,
    /// The answer could not go on as its grammar wants it to; [`StepOutputs::errors`] says why.
    Grammar = 4,
}

impl FinishReason {
    /// The name of each reason, in the order of their numbers; `None` while the request runs.
    pub const NAMES: [Option<&str>; 5] = [None, Some("stop"), Some("length"), Some("error"), Some("grammar")];
}

/// Results of a step: one entry for each of the N requests that got a token, ended or failed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutputs {
    /// Request ids (N).
    pub request_ids: Vec<u64>,
    /// New token of each request (N); [`Self::NO_TOKEN`] if the request failed or generates none.
    pub token_ids: Vec<u32>,
    /// Text that became certain (N), often empty.
    pub texts: Vec<String>,
    /// Finish reason of each request, as numbers of [`FinishReason`] (N).
    pub finish_reasons: Vec<u8>,
    /// Log-probability of each token (N); NaN if the request did not ask for it.
    pub logprobs: Vec<f32>,
    /// Rank of each token, 1 for the likeliest (N); 0 if the request did not ask for log-probabilities.
    pub ranks: Vec<u32>,
    /// Likeliest tokens with their log-probabilities (N); `None` if the request did not ask for them.
    pub top_logprobs: Vec<Option<Vec<(u32, f32)>>>,
    /// Log-probabilities of prompts: each request's second and later tokens, delivered once.
    pub prompt_logprobs: Vec<(u64, Vec<(u32, TokenLogprob)>)>,
    /// Requests that met a stop string, each with the string's index among its parameters.
    pub stop_strings: Vec<(u64, usize)>,
    /// Requests that got their first token, or ended without one, with the number of prompt tokens from the prefix cache
    /// if there were any.
    pub cached_tokens: Vec<(u64, usize)>,
    /// Failed requests with their error messages.
    pub errors: Vec<(u64, String)>,
}

impl StepOutputs {
    /// Stands for the token of an entry without one.
    pub const NO_TOKEN: u32 = u32::MAX;

    /// Appends the end of a request that got no token in this step.
    pub(super) fn push_without_token(&mut self, id: u64, finish_reason: FinishReason) {
        self.request_ids.push(id);
        self.token_ids.push(Self::NO_TOKEN);
        self.texts.push(String::new());
        self.finish_reasons.push(finish_reason as u8);
        self.push_logprobs(None, false);
    }

    /// Appends a token's log-probability, rank and alternatives, or placeholders if the request did not ask for them.
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
