//! Binding of the `answer` module.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::convert::utf8;
use crate::answer::{AnswerParser, FORMATS, Format, Part, Setup};
use crate::{Error, Result};

/// A part as Python receives it: kind, index of the call and text.
type PartTuple = (&'static str, Option<usize>, String);

/// The parser of one answer; see `_rust.pyi`.
#[pyclass(frozen, name = "AnswerParser", module = "llm._rust")]
struct PyAnswerParser(Mutex<AnswerParser>);

impl PyAnswerParser {
    fn parser(&self) -> MutexGuard<'_, AnswerParser> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyAnswerParser {
    #[new]
    #[pyo3(signature = (format, reasoning=None, starts_in_reasoning=false, tools=None))]
    fn new(
        format: Option<&str>,
        reasoning: Option<(String, String)>,
        starts_in_reasoning: bool,
        tools: Option<HashMap<String, HashMap<String, String>>>,
    ) -> Result<Self> {
        let format = format.map(named).transpose()?;
        let setup = Setup { format, reasoning, starts_in_reasoning, tools: tools.unwrap_or_default() };
        Ok(Self(Mutex::new(AnswerParser::new(setup)?)))
    }

    #[getter]
    fn is_reasoning(&self) -> bool {
        self.parser().is_reasoning()
    }

    fn push(&self, text: &Bound<'_, PyString>) -> PyResult<Vec<PartTuple>> {
        let text = utf8(text)?;
        Ok(tuples(self.parser().push(text)))
    }

    fn finish(&self) -> Vec<PartTuple> {
        tuples(self.parser().finish())
    }
}

fn named(name: &str) -> Result<&'static Format> {
    Format::named(name).ok_or_else(|| {
        let names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
        Error::InvalidArgument(format!("`format` must be one of {}, got {name:?}", names.join(", ")))
    })
}

fn tuples(parts: Vec<Part>) -> Vec<PartTuple> {
    parts.into_iter().map(|part| (part.kind.name(), part.call, part.text)).collect()
}

/// Adds this module's class and the names and markers of the formats to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let formats = FORMATS.iter().map(|format| (format.name, format.markers().collect::<Vec<_>>()));
    module.add("ANSWER_FORMATS", PyTuple::new(module.py(), formats)?)?;
    module.add_class::<PyAnswerParser>()
}
