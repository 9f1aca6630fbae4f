//! Maps each error of the core to a class of `llm.errors`.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::Error;

/// Converts `error` to a Python exception.
///
/// # Errors
///
/// Never fails: if `llm.errors` can't be imported, the import's own exception is returned.
pub fn to_python(error: Error) -> PyErr {
    let class = match &error {
        Error::InvalidArgument(_) => "InvalidArgumentError",
        Error::Tokenizer(_) => "TokenizerError",
        Error::Capacity(_) => "CapacityError",
        Error::ContextLength(_) => "ContextLengthError",
        Error::QueueFull(_) => "QueueFullError",
        Error::Grammar(_) => "GrammarError",
        Error::UnknownRequest(_) => "UnknownRequestError",
        Error::Io { .. } => "FileError",
        Error::Data(_) => "DataError",
        Error::Internal(_) => "InternalError",
    };
    let message = error.to_string();
    Python::attach(|py| match py.import("llm.errors").and_then(|module| module.getattr(class)) {
        Ok(class) => match class.call1((message.clone(),)) {
            Ok(value) => PyErr::from_value(value),
            Err(failure) => failure,
        },
        Err(_) => PyRuntimeError::new_err(message),
    })
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        to_python(error)
    }
}
