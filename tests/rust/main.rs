//! Public behaviour of the core, one module per Rust module.

mod answer;
mod corpus;
mod engine;
mod engine_grammar;
mod grammar;
mod kernels;
mod sampling;
mod scheduler;
mod speculation;
mod tokenizer;
