//! Tests of `llm_core::tokenizer`.

mod stream;
