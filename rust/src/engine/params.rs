//! Everything a request asks for besides its prompt.

use crate::sampling::SamplingParams;
use crate::{Error, Result};

/// How a request is sampled, and when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestParams {
    /// How each token is drawn.
    pub sampling: SamplingParams,
    /// New tokens at most, at least 1.
    pub max_tokens: usize,
    /// No end before this many new tokens: end and stop ids can't be drawn, stop strings aren't looked for.
    pub min_tokens: usize,
    /// Strings that end the text; they are not part of it, unless `include_stop` says so.
    pub stop: Vec<String>,
    /// Ids that end it besides the tokenizer's; they count as tokens but have no text.
    pub stop_token_ids: Vec<u32>,
    /// Whether the tokenizer's end ids are tokens like others.
    pub ignore_eos: bool,
    /// Whether special tokens have no text.
    pub skip_special_tokens: bool,
    /// Whether the stop string or token that ends the text is part of it.
    pub include_stop: bool,
}

impl Default for RequestParams {
    fn default() -> Self {
        Self {
            sampling: SamplingParams::default(),
            max_tokens: 256,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special_tokens: true,
            include_stop: false,
        }
    }
}

impl RequestParams {
    /// Checks each field and those that depend on each other.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        self.sampling.validate()?;
        if self.max_tokens == 0 {
            return Err(Error::InvalidArgument("`max_tokens` must be at least 1, got 0".to_owned()));
        }
        if self.min_tokens > self.max_tokens {
            return Err(Error::InvalidArgument(format!(
                "`min_tokens` must be at most `max_tokens` ({}), got {}",
                self.max_tokens, self.min_tokens
            )));
        }
        Ok(())
    }

    /// Checks every id the parameters name against the number of ids there are.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the parameter and its first id that is too high.
    pub fn validate_ids(&self, vocab_size: usize) -> Result<()> {
        let too_high = |id: &u32| *id as usize >= vocab_size;
        let bias_ids: Vec<u32> = self.sampling.logit_bias.iter().map(|&(id, _)| id).collect();
        let highest_allowed = self.sampling.allowed.as_ref().and_then(|allowed| allowed.highest());
        let named = [
            ("stop_token_ids", self.stop_token_ids.as_slice()),
            ("logit_bias", &bias_ids),
            ("allowed_token_ids", highest_allowed.as_slice()),
        ];
        for (name, ids) in named {
            if let Some(id) = ids.iter().find(|id| too_high(id)) {
                return Err(Error::InvalidArgument(format!(
                    "`{name}` must be below the vocabulary's size {vocab_size}, got {id}"
                )));
            }
        }
        Ok(())
    }

    /// All ids that end this request: its own, and the tokenizer's unless ignored.
    pub fn stop_ids(&self, eos_ids: &[u32]) -> Vec<u32> {
        let eos_ids = if self.ignore_eos { &[] } else { eos_ids };
        self.stop_token_ids.iter().chain(eos_ids).copied().collect()
    }
}
