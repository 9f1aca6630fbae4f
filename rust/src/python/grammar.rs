//! Binding of the `grammar` module.

use pyo3::prelude::*;

use crate::Error;
use crate::grammar::{Grammar, GrammarSource};

/// A compiled grammar; `RequestParams` takes it.
#[pyclass(frozen, name = "Grammar", module = "llm._rust")]
pub(super) struct PyGrammar(pub(super) Grammar);

#[pymethods]
impl PyGrammar {
    fn accepts(&self, py: Python<'_>, text: &[u8]) -> bool {
        py.detach(|| self.0.accepts(text))
    }
}

/// Reads a grammar's source; `kind` is the name of the setting that holds it.
pub(super) fn source_of(kind: &str, source: &Bound<'_, PyAny>, is_compact: bool) -> PyResult<GrammarSource> {
    Ok(match kind {
        "json" => GrammarSource::JsonSchema { schema: source.extract()?, is_compact },
        "regex" => GrammarSource::Regex(source.extract()?),
        "choice" => GrammarSource::Choice(source.extract()?),
        "grammar" => GrammarSource::Lark(source.extract()?),
        _ => return Err(unknown(kind).into()),
    })
}

fn unknown(kind: &str) -> Error {
    Error::InvalidArgument(format!("`kind` must be json, regex, choice or grammar, got {kind}"))
}

/// Adds this module's classes to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyGrammar>()
}
