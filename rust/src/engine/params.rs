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
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Ids that end it besides the tokenizer's; they count as tokens but have no text.
    pub stop_token_ids: Vec<u32>,
    /// Whether the tokenizer's end ids are tokens like others.
    pub ignore_eos: bool,
    /// Whether special tokens have no text.
    pub skip_special_tokens: bool,
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

    /// All ids that end this request: its own, and the tokenizer's unless ignored.
    pub fn stop_ids(&self, eos_ids: &[u32]) -> Vec<u32> {
        let eos_ids = if self.ignore_eos { &[] } else { eos_ids };
        self.stop_token_ids.iter().chain(eos_ids).copied().collect()
    }
}
