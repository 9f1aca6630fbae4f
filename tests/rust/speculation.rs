//! Tests of `llm_core::speculation`.

use llm_core::speculation::NgramConfig;
use proptest::prelude::*;

fn config(num_draft_tokens: usize, max_ngram: usize, min_ngram: usize) -> NgramConfig {
    NgramConfig { num_draft_tokens, max_ngram, min_ngram }
}

/// Every run of last tokens, the longest first, held against every place before, the last first.
fn propose_slowly(config: NgramConfig, tokens: &[u32], limit: usize) -> Vec<u32> {
    for len in (config.min_ngram..=config.max_ngram.min(tokens.len().saturating_sub(1))).rev() {
        let wanted = &tokens[tokens.len() - len..];
        let found = (0..tokens.len() - len).rev().find(|&start| tokens[start..start + len] == *wanted);
        if let Some(start) = found {
            return tokens[start + len..].iter().copied().take(config.num_draft_tokens.min(limit)).collect();
        }
    }
    Vec::new()
}

#[test]
fn the_longest_run_wins_then_the_most_recent() {
    let tokens = [1, 2, 3, 7, 2, 3, 8, 3, 9, 1, 2, 3];
    assert_eq!(config(2, 3, 1).propose(&tokens, 9), [7, 2]);
    assert_eq!(config(2, 2, 1).propose(&tokens, 9), [8, 3]);
    assert_eq!(config(2, 1, 1).propose(&tokens, 9), [9, 1]);
    assert_eq!(config(20, 3, 1).propose(&tokens, 9), &tokens[3..]);
    assert_eq!(config(20, 3, 1).propose(&tokens, 1), [7]);
    assert!(config(2, 5, 4).propose(&tokens, 9).is_empty());
    assert!(config(2, 3, 1).propose(&[4], 9).is_empty() && config(2, 3, 1).propose(&[], 9).is_empty());
    // A run may reach into the tokens it is compared with.
    assert_eq!(config(3, 3, 2).propose(&[5, 5, 5, 5], 9), [5]);
}

#[test]
fn bad_settings_are_named() {
    let problem = |config: NgramConfig| config.validate().unwrap_err().to_string();
    assert!(problem(config(0, 3, 1)).contains("`num_draft_tokens` must be at least 1"));
    assert!(problem(config(1, 3, 0)).contains("`min_ngram` must be at least 1"));
    assert!(problem(config(1, 2, 3)).contains("`max_ngram` must be at least `min_ngram` 3, got 2"));
    assert!(config(1, 1, 1).validate().is_ok());
}

proptest! {
    #[test]
    fn guesses_equal_the_slow_search(
        tokens in prop::collection::vec(0..4u32, 0..40),
        num_draft_tokens in 1..6usize,
        (min_ngram, more) in (1..4usize, 0..4usize),
        limit in 0..6usize,
    ) {
        let config = config(num_draft_tokens, min_ngram + more, min_ngram);
        prop_assert_eq!(config.propose(&tokens, limit), propose_slowly(config, &tokens, limit));
    }
}
