//! Tests of `llm_core::sampling`.
