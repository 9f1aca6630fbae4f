//! Binding of the `corpus` module, and of encoding its blocks.

use std::sync::{Mutex, MutexGuard};

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::convert::{positive, utf8};
use crate::corpus::{CutOptions, DocumentCutter, JsonLines, TextBlock};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Adds this module's classes to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTextBlock>()?;
    module.add_class::<PyDocumentCutter>()?;
    module.add_function(wrap_pyfunction!(crc32, module)?)
}

/// CRC-32 of bytes that follow others with the checksum `before`; see `_rust.pyi`.
#[pyfunction]
fn crc32(py: Python<'_>, data: PyReadonlyArray1<'_, u8>, before: u32) -> PyResult<u32> {
    let bytes = data.as_slice().map_err(not_contiguous)?;
    Ok(py.detach(|| {
        let mut hasher = crc32fast::Hasher::new_with_initial(before);
        hasher.update(bytes);
        hasher.finalize()
    }))
}

fn not_contiguous<E>(_: E) -> Error {
    Error::InvalidArgument("arrays must be contiguous".to_owned())
}

/// Pieces of documents; see `_rust.pyi`.
#[pyclass(name = "TextBlock", module = "llm._rust", frozen)]
pub struct PyTextBlock {
    inner: TextBlock,
}

#[pymethods]
impl PyTextBlock {
    fn __len__(&self) -> usize {
        self.inner.len()
    }

    #[getter]
    fn num_documents(&self) -> usize {
        self.inner.num_documents()
    }

    #[getter]
    fn num_bytes(&self) -> usize {
        self.inner.num_bytes()
    }

    fn pieces<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyString>, bool)> {
        self.inner.pieces().map(|(text, ends)| (PyString::new(py, text), ends)).collect()
    }

    fn slice(&self, start: usize, stop: usize) -> Self {
        Self { inner: self.inner.clone().slice(start..stop) }
    }
}

/// Cuts text into documents; see `_rust.pyi`.
#[pyclass(name = "DocumentCutter", module = "llm._rust", frozen)]
struct PyDocumentCutter {
    /// Locked only while the GIL is released, so that no thread that waits for it keeps its holder from the GIL.
    inner: Mutex<(DocumentCutter, JsonLines)>,
}

impl PyDocumentCutter {
    fn locked(&self) -> Result<MutexGuard<'_, (DocumentCutter, JsonLines)>> {
        self.inner.lock().map_err(|_| Error::Internal("a thread failed while it cut text".to_owned()))
    }
}

#[pymethods]
impl PyDocumentCutter {
    #[new]
    #[pyo3(signature = (*, separator, at_line_ends, field, piece_bytes, max_piece_bytes))]
    fn new(
        separator: Option<String>,
        at_line_ends: bool,
        field: String,
        piece_bytes: i64,
        max_piece_bytes: i64,
    ) -> PyResult<Self> {
        let options = CutOptions {
            separator: separator.filter(|separator| !separator.is_empty()),
            at_line_ends,
            piece_bytes: positive("piece_bytes", piece_bytes)?,
            max_piece_bytes: positive("max_piece_bytes", max_piece_bytes)?,
        };
        Ok(Self { inner: Mutex::new((DocumentCutter::new(options), JsonLines::new(field))) })
    }

    #[getter]
    fn num_blank(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(py.detach(|| Ok::<_, Error>(self.locked()?.0.num_blank()))?)
    }

    fn feed(&self, py: Python<'_>, text: &Bound<'_, PyBytes>, ends: bool) -> PyResult<PyTextBlock> {
        let bytes = text.as_bytes();
        Ok(py.detach(|| {
            let (cutter, _) = &mut *self.locked()?;
            cutter.push_bytes(bytes, ends)?;
            Ok::<_, Error>(PyTextBlock { inner: cutter.take() })
        })?)
    }

    fn feed_text(&self, py: Python<'_>, text: &Bound<'_, PyString>, ends: bool) -> PyResult<PyTextBlock> {
        let text = utf8(text)?;
        Ok(py.detach(|| {
            let (cutter, _) = &mut *self.locked()?;
            cutter.push_bytes(text.as_bytes(), ends)?;
            Ok::<_, Error>(PyTextBlock { inner: cutter.take() })
        })?)
    }

    fn feed_lines(
        &self,
        py: Python<'_>,
        lines: &Bound<'_, PyBytes>,
        is_last: bool,
        other: Py<PyAny>,
    ) -> PyResult<PyTextBlock> {
        let bytes = lines.as_bytes();
        let read_line = |number: usize, line: &[u8]| {
            Python::attach(|py| other.call1(py, (number, PyBytes::new(py, line)))?.extract::<String>(py))
        };
        py.detach(|| {
            let (cutter, lines) = &mut *self.locked()?;
            lines.push(bytes, is_last, cutter, read_line)?;
            Ok(PyTextBlock { inner: cutter.take() })
        })
    }

    fn feed_rows(
        &self,
        py: Python<'_>,
        values: PyReadonlyArray1<'_, u8>,
        offsets: PyReadonlyArray1<'_, i64>,
    ) -> PyResult<PyTextBlock> {
        let values = values.as_slice().map_err(not_contiguous)?;
        let offsets = offsets.as_slice().map_err(not_contiguous)?;
        Ok(py.detach(|| {
            let (cutter, _) = &mut *self.locked()?;
            cutter.push_rows(values, offsets)?;
            Ok::<_, Error>(PyTextBlock { inner: cutter.take() })
        })?)
    }
}

/// Ids of an unsigned type, and where documents end.
pub type BlockArrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>);

/// Encodes the pieces of all blocks into one array of 16 or 32 bits, with an id after each document.
pub fn encode_blocks<'py>(
    py: Python<'py>,
    tokenizer: &Tokenizer,
    blocks: &[PyRef<'py, PyTextBlock>],
    end: Option<u32>,
    wide: bool,
) -> PyResult<BlockArrays<'py>> {
    let pieces: Vec<(&str, bool)> = blocks.iter().flat_map(|block| block.inner.pieces()).collect();
    if wide {
        let (ids, ends) = py.detach(|| tokenizer.encode_documents::<u32>(&pieces, end, None))?;
        return Ok((ids.into_pyarray(py).into_any(), ends.into_pyarray(py)));
    }
    let (ids, ends) = py.detach(|| tokenizer.encode_documents::<u16>(&pieces, end, None))?;
    Ok((ids.into_pyarray(py).into_any(), ends.into_pyarray(py)))
}
