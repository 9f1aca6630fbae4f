//! Tests of `llm_core::engine`.
