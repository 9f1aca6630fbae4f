//! Binding of the `tokenizer` module.

use pyo3::prelude::*;

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
