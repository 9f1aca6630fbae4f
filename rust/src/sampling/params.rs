//! Sampling parameters of one request.

use std::sync::Arc;

use super::mask::TokenMask;
use crate::fields::settings;
use crate::{Error, Result};

settings! {
    /// Settings that decide the next token from the model's logits. The caller declares the range of each setting, and
    /// [`Self::validate`] checks it.
    #[derive(Debug, Clone, PartialEq)]
    pub struct SamplingParams {
        /// Temperature: 0 is greedy; 1 keeps the model's own distribution.
        pub temperature: f64 = 1.0,
        /// Number of most likely tokens to keep; 0 keeps all.
        pub top_k: usize = 0,
        /// Mass of the smallest set of most likely tokens to keep, in (0, 1]; 1 keeps all.
        pub top_p: f64 = 1.0,
        /// Share of the most likely token's probability below which tokens are dropped, in [0, 1].
        pub min_p: f64 = 0.0,
        /// Mass of the set of most typical tokens to keep, in (0, 1]; 1 keeps all.
        pub typical_p: f64 = 1.0,
        /// Values added to the logits of these ids, in [-100, 100].
        pub logit_bias: Vec<(u32, f32)> = Vec::new(),
        /// The only ids that may be drawn; `None` allows all.
        pub allowed_token_ids: Option<Arc<TokenMask>> = None,
        /// Divisor of positive logits and factor of negative logits, for tokens in the prompt or output.
        pub repetition_penalty: f64 = 1.0,
        /// Value subtracted once from the logit of each token in the output.
        pub presence_penalty: f64 = 0.0,
        /// Value subtracted from a token's logit for each of its occurrences in the output.
        pub frequency_penalty: f64 = 0.0,
        /// Key of the request's random stream.
        pub seed: u64 = 0,
        /// `Some(n)`: report the chosen token's log-probability and rank, and the n most likely tokens.
        pub logprobs: Option<usize> = None,
        /// `Some(n)`: report the same for every prompt token except the first.
        pub prompt_logprobs: Option<usize> = None,
        /// Index of the first prompt token to report; the prefix cache may hold all tokens before the one ahead of it.
        pub prompt_logprobs_start: usize = 0,
        own:
        /// Index of this answer among the answers to its prompt; each answer has a random stream of its own.
        pub choice_index: u32 = 0,
    }
}

impl SamplingParams {
    /// Checks every field's range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    ///
    /// ```
    /// use llm_core::sampling::SamplingParams;
    /// let params = SamplingParams { top_p: 1.5, ..SamplingParams::default() };
    /// assert_eq!(params.validate().unwrap_err().to_string(), "`top_p` must be in (0, 1], got 1.5");
    /// ```
    pub fn validate(&self) -> Result<()> {
        let finite = |value: f64| value.is_finite();
        require("temperature", self.temperature, "finite and at least 0", |t| finite(t) && t >= 0.0)?;
        require("top_p", self.top_p, "in (0, 1]", |p| p > 0.0 && p <= 1.0)?;
        require("min_p", self.min_p, "in [0, 1]", |p| (0.0..=1.0).contains(&p))?;
        require("typical_p", self.typical_p, "in (0, 1]", |p| p > 0.0 && p <= 1.0)?;
        require("repetition_penalty", self.repetition_penalty, "finite and above 0", |p| finite(p) && p > 0.0)?;
        require("presence_penalty", self.presence_penalty, "finite", finite)?;
        require("frequency_penalty", self.frequency_penalty, "finite", finite)?;
        for &(id, bias) in &self.logit_bias {
            let is_allowed = |bias: f64| (-100.0..=100.0).contains(&bias);
            require(&format!("logit_bias[{id}]"), f64::from(bias), "in [-100, 100]", is_allowed)?;
        }
        if self.allowed_token_ids.as_ref().is_some_and(|allowed| allowed.is_empty()) {
            let message = "`allowed_token_ids` must name at least one id, got none\nhint: leave it out to allow all";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        Ok(())
    }

    /// Returns whether the most likely token is always taken. A temperature that rounds to 0 in f32 counts as greedy,
    /// since logits can't be divided by it.
    pub fn is_greedy(&self) -> bool {
        self.temperature as f32 == 0.0
    }

    /// Returns whether earlier tokens change the logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.counts_output()
    }

    /// Returns whether a presence or frequency penalty applies; both need the counts of the output tokens.
    pub(super) fn counts_output(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

impl SamplingParams {
    /// Returns whether top-p, min-p or typical-p may drop a token.
    pub(super) fn has_mass_filters(&self) -> bool {
        self.top_p < 1.0 || self.min_p > 0.0 || self.typical_p < 1.0
    }
}

fn require(name: &str, value: f64, allowed: &str, is_allowed: impl Fn(f64) -> bool) -> Result<()> {
    if is_allowed(value) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("`{name}` must be {allowed}, got {value}")))
}
