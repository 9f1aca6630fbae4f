//! Guesses of the tokens that come next, for the model to check all at once.
//!
//! A guess costs nothing but the rows it adds to a pass, and can't change an answer: each row is sampled as it would
//! have been without it, and a guess that isn't what was sampled is dropped with all after it.

mod ngram;

pub use ngram::NgramConfig;
