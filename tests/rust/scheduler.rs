//! Tests of `llm_core::scheduler`.
