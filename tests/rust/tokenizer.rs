//! Tests of `llm_core::tokenizer`.
