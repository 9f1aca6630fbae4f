//! Everything a request asks for besides its prompt.

use crate::fields::settings;
use crate::grammar::Grammar;
use crate::sampling::SamplingParams;
use crate::{Error, Result};

settings! {
    /// Settings of a request: how to sample each token, and when to end.
    #[derive(Debug, Clone, PartialEq)]
    pub struct RequestParams {
        /// Largest number of new tokens; 0 only computes the prompt; `None`: as many as the context has room for.
        pub max_tokens: Option<usize> = None,
        /// Number of new tokens before which the request can't end: end and stop ids can't be drawn, stop strings
        /// aren't looked for.
        pub min_tokens: usize = 0,
        /// Strings that end the text. The text ends before them, unless `include_stop_str_in_output` is set.
        pub stop: Vec<String> = Vec::new(),
        /// Ids that end the request besides the tokenizer's; they count as tokens but have no text.
        pub stop_token_ids: Vec<u32> = Vec::new(),
        /// Whether the tokenizer's end ids are tokens like others.
        pub ignore_eos: bool = false,
        /// Whether special tokens have no text.
        pub skip_special_tokens: bool = true,
        /// Whether the text includes the stop string or stop token that ends it.
        pub include_stop_str_in_output: bool = false,
        own:
        /// Special tokens whose text is kept even with `skip_special_tokens`.
        pub kept_special_ids: Vec<u32> = Vec::new(),
        /// How to sample each token.
        pub sampling: SamplingParams = SamplingParams::default(),
        /// Grammar that the answer follows; made by the engine's own compiler.
        pub grammar: Option<Grammar> = None,
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
        match self.max_tokens {
            Some(max_tokens) if self.min_tokens > max_tokens => Err(Error::InvalidArgument(format!(
                "`min_tokens` must be at most `max_tokens` ({max_tokens}), got {}",
                self.min_tokens
            ))),
            _ => Ok(()),
        }
    }

    /// Checks every id the parameters name against the number of ids there are.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the parameter and its first id that is too high.
    pub fn validate_ids(&self, vocab_size: usize) -> Result<()> {
        let too_high = |id: &u32| *id as usize >= vocab_size;
        let bias_ids: Vec<u32> = self.sampling.logit_bias.iter().map(|&(id, _)| id).collect();
        let highest_allowed = self.sampling.allowed_token_ids.as_ref().and_then(|allowed| allowed.highest());
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
