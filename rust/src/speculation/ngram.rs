//! N-gram drafts: the tokens that followed the last few tokens at their previous occurrence.

use crate::fields::settings;
use crate::{Error, Result};

settings! {
    /// Settings for looking up draft tokens in a request's own prompt and output.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct NgramConfig {
        /// Largest number of draft tokens.
        pub num_draft_tokens: usize = 4,
        /// Longest suffix to look for, in tokens.
        pub max_ngram: usize = 4,
        /// Shortest suffix that yields drafts, in tokens.
        pub min_ngram: usize = 2,
    }
}

impl NgramConfig {
    /// Checks each field.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] naming the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        let Self { num_draft_tokens, max_ngram, min_ngram } = *self;
        let problem = match () {
            () if num_draft_tokens == 0 => "`num_draft_tokens` must be at least 1, got 0".to_owned(),
            () if min_ngram == 0 => "`min_ngram` must be at least 1, got 0".to_owned(),
            () if max_ngram < min_ngram => {
                format!("`max_ngram` must be at least `min_ngram` {min_ngram}, got {max_ngram}")
            }
            () => return Ok(()),
        };
        Err(Error::InvalidArgument(problem))
    }

    /// Returns the tokens that followed the longest suffix of `min_ngram` to `max_ngram` tokens at its most recent earlier
    /// occurrence: at most `limit`, and never more than [`Self::num_draft_tokens`].
    ///
    /// The search is one backward pass, about 1 ns per token; an index would cost memory for each token of each request.
    ///
    /// Source: Saxena 2023, "Prompt lookup decoding".
    ///
    /// ```
    /// use llm_core::speculation::NgramConfig;
    /// let config = NgramConfig { num_draft_tokens: 2, max_ngram: 3, min_ngram: 1 };
    /// assert_eq!(config.propose(&[1, 2, 3, 4, 9, 2, 3], 8), [4, 9]);
    /// ```
    pub fn propose<'a>(&self, tokens: &'a [u32], limit: usize) -> &'a [u32] {
        let Some((&last, before)) = tokens.split_last() else { return &[] };
        let mut best = (0, 0);
        for end in (0..before.len()).rev() {
            if before[end] != last {
                continue;
            }
            let matched = self.matched_len(tokens, end);
            if matched > best.0 {
                best = (matched, end + 1);
                if matched == self.max_ngram {
                    break;
                }
            }
        }
        let (matched, start) = best;
        let num_tokens = self.num_draft_tokens.min(limit).min(tokens.len() - start);
        if matched >= self.min_ngram { &tokens[start..start + num_tokens] } else { &[] }
    }

    /// Number of last tokens that equal the tokens up to and including `end`.
    fn matched_len(&self, tokens: &[u32], end: usize) -> usize {
        let there = tokens[..=end].iter().rev();
        let here = tokens.iter().rev();
        here.zip(there).take(self.max_ngram).take_while(|(one, other)| one == other).count()
    }
}
