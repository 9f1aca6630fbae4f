//! Binding of the `tokenizer` module's table of bytes, and of what needs nothing else: streams and offsets.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::tokenizer::{token_ids, utf8};
use crate::Error;
use crate::tokenizer::offsets::offsets;
use crate::tokenizer::stream::{Detokenizer, TokenTable};

/// Adds this module's classes to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTokenTable>()?;
    module.add_class::<PyTokenStream>()
}

/// Bytes of each id; see `_rust.pyi`.
#[pyclass(name = "TokenTable", module = "llm._rust", frozen)]
pub struct PyTokenTable {
    inner: Arc<TokenTable>,
}

impl From<TokenTable> for PyTokenTable {
    fn from(table: TokenTable) -> Self {
        Self { inner: Arc::new(table) }
    }
}

/// Byte and character offsets, (T, 2) each.
type OffsetArrays<'py> = (Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<i64>>);

#[pymethods]
impl PyTokenTable {
    #[new]
    fn new(token_bytes: Vec<Option<Vec<u8>>>, special_ids: Vec<u32>) -> PyResult<Self> {
        Ok(TokenTable::new(token_bytes, &special_ids)?.into())
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    #[pyo3(signature = (*, stop=Vec::new(), skip_special_tokens=false))]
    fn stream(&self, stop: Vec<String>, skip_special_tokens: bool) -> PyResult<PyTokenStream> {
        let text = Detokenizer::new(stop.clone(), skip_special_tokens)?;
        Ok(PyTokenStream { table: Arc::clone(&self.inner), text, stop, stopped: None })
    }

    fn offsets<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        text: &Bound<'py, PyString>,
    ) -> PyResult<OffsetArrays<'py>> {
        let (ids, text) = (token_ids(ids)?, utf8(text)?);
        let found = py.detach(|| offsets(&self.inner, &ids, text))?;
        let array = |pairs: Vec<[usize; 2]>| {
            let flat: Vec<i64> = pairs.iter().flatten().map(|&place| place as i64).collect();
            flat.into_pyarray(py).reshape([pairs.len(), 2])
        };
        Ok((array(found.bytes)?, array(found.chars)?))
    }
}

/// The text of ids that come one by one; see `_rust.pyi`.
#[pyclass(name = "TokenStream", module = "llm._rust")]
struct PyTokenStream {
    table: Arc<TokenTable>,
    text: Detokenizer,
    stop: Vec<String>,
    stopped: Option<usize>,
}

#[pymethods]
impl PyTokenStream {
    fn push(&mut self, token_id: i64) -> PyResult<String> {
        let known = u32::try_from(token_id).ok().filter(|&id| self.table.bytes(id).is_some());
        let Some(id) = known else {
            let last = self.table.len().saturating_sub(1);
            return Err(Error::InvalidArgument(format!(
                "token ids must be ids of this tokenizer (0 to {last}), got {token_id}"
            ))
            .into());
        };
        let delta = self.text.push(&self.table, id, true);
        self.stopped = delta.stopped;
        Ok(delta.text)
    }

    fn finish(&mut self) -> String {
        self.text.finish()
    }

    #[getter]
    fn stopped(&self) -> Option<&str> {
        self.stopped.and_then(|index| self.stop.get(index)).map(String::as_str)
    }
}
