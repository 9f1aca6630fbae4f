//! Binding of the `tokenizer` module's table of bytes, and of streams and offsets, which need only that table.

use std::sync::Arc;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::convert::{token_ids, utf8};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::decode::join::Joiner;
use crate::tokenizer::decode::offsets::{Offsets, offsets};
use crate::tokenizer::decode::token_stream::{TokenStream, unknown};
use crate::tokenizer::tokens::TokenTable;

/// Adds this module's classes to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTokenTable>()?;
    module.add_class::<PyTokenStream>()
}

/// The bytes of each id; see `_rust.pyi`.
#[pyclass(name = "TokenTable", module = "llm._rust", frozen)]
pub struct PyTokenTable {
    inner: Arc<TokenTable>,
    joiner: Joiner,
}

impl From<&Tokenizer> for PyTokenTable {
    fn from(tokenizer: &Tokenizer) -> Self {
        Self { inner: Arc::new(tokenizer.vocab().tokens().clone()), joiner: tokenizer.joiner() }
    }
}

/// Byte offsets and character offsets, each of shape (T, 2).
pub type OffsetArrays<'py> = (Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<i64>>);

/// Converts offsets to two arrays.
pub fn offset_arrays(py: Python<'_>, found: Offsets) -> PyResult<OffsetArrays<'_>> {
    let array = |pairs: Vec<[usize; 2]>| {
        let flat: Vec<i64> = pairs.iter().flatten().map(|&place| place as i64).collect();
        flat.into_pyarray(py).reshape([pairs.len(), 2])
    };
    Ok((array(found.bytes)?, array(found.chars)?))
}

#[pymethods]
impl PyTokenTable {
    #[new]
    fn new(token_bytes: Vec<Option<Vec<u8>>>, special_ids: Vec<u32>) -> PyResult<Self> {
        let inner = Arc::new(TokenTable::new(token_bytes, &special_ids)?);
        Ok(Self { inner, joiner: Joiner::Bytes })
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn bytes(&self, token_id: u32) -> Option<&[u8]> {
        self.inner.bytes(token_id)
    }

    #[pyo3(signature = (*, skip_special_tokens=false))]
    fn stream(&self, skip_special_tokens: bool) -> PyResult<PyTokenStream> {
        let text = TokenStream::new(self.joiner, skip_special_tokens)?;
        Ok(PyTokenStream { table: Arc::clone(&self.inner), text })
    }

    fn offsets<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        text: &Bound<'py, PyString>,
    ) -> PyResult<OffsetArrays<'py>> {
        let (ids, text) = (token_ids(ids)?, utf8(text)?);
        offset_arrays(py, py.detach(|| offsets(&self.inner, self.joiner, &ids, text))?)
    }
}

/// Decodes ids to text one by one; see `_rust.pyi`.
#[pyclass(name = "TokenStream", module = "llm._rust")]
struct PyTokenStream {
    table: Arc<TokenTable>,
    text: TokenStream,
}

#[pymethods]
impl PyTokenStream {
    fn push(&mut self, token_id: i64) -> PyResult<String> {
        let id = u32::try_from(token_id).map_err(|_| unknown(&self.table, token_id))?;
        Ok(self.text.push(&self.table, id)?)
    }

    fn finish(&mut self) -> String {
        self.text.finish()
    }
}
