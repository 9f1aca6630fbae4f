//! Grammars that an answer must follow: JSON schemas, regular expressions, choices and Lark grammars.
//!
//! A [`GrammarCompiler`] belongs to one vocabulary and turns a [`GrammarSource`] into a [`Grammar`]. Each answer has a
//! [`Matcher`] of its own, which tells after every token which tokens may come next. The parsers are those of the crate
//! `llguidance`; this module bounds what they may cost and refuses what they would not enforce.

mod cache;
mod compiler;
mod expressions;
mod formats;
mod limits;
mod matcher;
mod parser;
mod problem;
mod schema;
mod source;
mod unions;
mod vocabulary;

pub use compiler::GrammarCompiler;
pub use matcher::{Grammar, Matcher};
pub use parser::Allowed;
pub use source::GrammarSource;
pub use vocabulary::Vocabulary;
