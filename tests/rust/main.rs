//! Public behaviour of the core, one module per Rust module.

mod answer;
mod corpus;
mod engine;
mod engine_grammar;
mod grammar;
// As in the core: fuzzing and checks by mutants compile no kernels.
#[cfg(not(fuzzing))]
mod kernels;
mod sampling;
mod scheduler;
mod speculation;
mod tokenizer;
