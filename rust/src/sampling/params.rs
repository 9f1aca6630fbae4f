//! How one request is sampled.

use std::sync::Arc;

use super::mask::TokenMask;
use crate::{Error, Result};

/// What decides the next token, once the logits are there.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; 1 the model's own distribution.
    pub temperature: f64,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of likeliest tokens with this mass, in (0, 1].
    pub top_p: f64,
    /// Drop tokens less likely than this share of the likeliest one, in [0, 1].
    pub min_p: f64,
    /// Keep the most typical tokens with this mass, in (0, 1]; 1 keeps all.
    pub typical_p: f64,
    /// Added to the logit of each id named, in [-100, 100].
    pub logit_bias: Vec<(u32, f32)>,
    /// The only ids that may be drawn; `None` allows all.
    pub allowed: Option<Arc<TokenMask>>,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output.
    pub repetition_penalty: f64,
    /// Subtracted once from each token seen in the output.
    pub presence_penalty: f64,
    /// Subtracted for each time a token was seen in the output.
    pub frequency_penalty: f64,
    /// Key of the request's random stream.
    pub seed: u64,
    /// Which of a prompt's several answers this is; each has a stream of its own.
    pub choice_index: u32,
    /// `Some(n)`: report the chosen token's log-probability and rank, and the n likeliest tokens.
    pub logprobs: Option<usize>,
    /// `Some(n)`: report the same of each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            logit_bias: Vec::new(),
            allowed: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            choice_index: 0,
            logprobs: None,
            prompt_logprobs: None,
        }
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
        if self.allowed.as_ref().is_some_and(|allowed| allowed.is_empty()) {
            let message = "`allowed_token_ids` must name at least one id, got none\nhint: leave it out to allow all";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        Ok(())
    }

    /// Whether the likeliest token is always taken. A temperature that is 0 in fp32 counts: dividing by it can't.
    pub fn is_greedy(&self) -> bool {
        self.temperature as f32 == 0.0
    }

    /// Whether earlier tokens change the logits.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.counts_output()
    }

    /// Whether the output's tokens weigh more than the prompt's.
    pub(super) fn counts_output(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

impl SamplingParams {
    /// Whether top-p, min-p or typical-p drop any token.
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
