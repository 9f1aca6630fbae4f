//! Binding of encoding with plans, and of encoding and decoding in batches.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::convert::{positive, special_tokens, token_ids, utf8};
use super::tokenizer_stream::{OffsetArrays, offset_arrays};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::batch::Rows;
use crate::tokenizer::options::{Allowed, EncodePlan, Side, Template, Truncation};
use crate::tokenizer::split::special::{Segment, SpecialMatcher};

/// Adds this module's classes to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEncodePlan>()
}

/// Options for encoding texts to ids; see `_rust.pyi`.
#[pyclass(name = "EncodePlan", module = "llm._rust", frozen)]
pub struct PyEncodePlan {
    inner: EncodePlan,
    /// Splits text at special tokens for tokenizers outside Rust, where `inner` may allow `All` but lack their tokens.
    allowed: SpecialMatcher,
}

#[pymethods]
impl PyEncodePlan {
    #[new]
    #[pyo3(signature = (*, allowed, allow_all, disallowed, template, max_length, truncate_left))]
    fn new(
        allowed: &Bound<'_, PyDict>,
        allow_all: bool,
        disallowed: Vec<String>,
        template: (Vec<u32>, Vec<u32>),
        max_length: Option<usize>,
        truncate_left: bool,
    ) -> PyResult<Self> {
        let allowed = SpecialMatcher::new(&special_tokens(allowed)?);
        let side = if truncate_left { Side::Left } else { Side::Right };
        let inner = EncodePlan::new(
            if allow_all { Allowed::All } else { Allowed::Some(Box::new(allowed.clone())) },
            disallowed,
            Template { before: template.0, after: template.1 },
            max_length.map(|max_length| Truncation { max_length, side }),
        )?;
        Ok(Self { inner, allowed })
    }

    fn check(&self, text: &Bound<'_, PyString>) -> PyResult<()> {
        Ok(self.inner.check(utf8(text)?)?)
    }

    fn split<'py>(&self, py: Python<'py>, text: &Bound<'py, PyString>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let part = |segment| match segment {
            Segment::Text(text) => Ok(PyString::new(py, text).into_any()),
            Segment::Special(id) => Ok(id.into_pyobject(py)?.into_any()),
        };
        self.allowed.segments(utf8(text)?).map(part).collect()
    }

    fn kept(&self, num_ids: usize) -> (usize, usize) {
        let kept = self.inner.kept(num_ids);
        (kept.start, kept.end)
    }

    #[getter]
    fn template(&self) -> (Vec<u32>, Vec<u32>) {
        let Template { before, after } = self.inner.template().clone();
        (before, after)
    }
}

/// Encodes a text by the plan to an array of ids.
pub fn encode_planned<'py>(
    py: Python<'py>,
    tokenizer: &Tokenizer,
    text: &Bound<'py, PyString>,
    plan: &PyEncodePlan,
) -> PyResult<Bound<'py, PyArray1<u32>>> {
    let text = utf8(text)?;
    let mut ids = Vec::with_capacity(text.len() / 4);
    py.detach(|| tokenizer.encode_planned(text, &plan.inner, &mut ids))?;
    Ok(ids.into_pyarray(py))
}

/// Returns the place in the text of each token that the plan produces.
pub fn offsets<'py>(
    py: Python<'py>,
    tokenizer: &Tokenizer,
    text: &Bound<'py, PyString>,
    plan: &PyEncodePlan,
) -> PyResult<OffsetArrays<'py>> {
    let text = utf8(text)?;
    let (_, found) = py.detach(|| tokenizer.encode_with_offsets(text, plan.inner.allowed()))?;
    offset_arrays(py, found)
}

/// Encodes each text to ids; without a plan, the same ids as plain encoding.
pub fn encode_rows(
    py: Python<'_>,
    tokenizer: &Tokenizer,
    texts: &[Bound<'_, PyString>],
    plan: Option<&PyEncodePlan>,
    num_threads: Option<i64>,
) -> PyResult<Rows> {
    let texts = texts.iter().map(utf8).collect::<PyResult<Vec<&str>>>()?;
    let num_threads = num_threads.map(|number| positive("num_threads", number)).transpose()?;
    let plain = EncodePlan::new(Allowed::None, Vec::new(), Template::default(), None)?;
    let plan = plan.map_or(&plain, |plan| &plan.inner);
    Ok(py.detach(|| tokenizer.encode_rows(&texts, plan, num_threads))?)
}

/// The ids of all rows in one array, and the start of each row followed by the end of the last.
pub type FlatArrays<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);

/// Converts rows to two arrays.
pub fn arrays(py: Python<'_>, rows: Rows) -> FlatArrays<'_> {
    let starts = std::iter::once(0).chain(rows.ends.iter().map(|&end| end as i64));
    (rows.ids.into_pyarray(py), starts.collect::<Vec<i64>>().into_pyarray(py))
}

/// Decodes each list or array of ids to text.
pub fn decode_rows(
    py: Python<'_>,
    tokenizer: &Tokenizer,
    batch: &[Bound<'_, PyAny>],
    skip_special_tokens: bool,
    num_threads: Option<i64>,
) -> PyResult<Vec<String>> {
    let rows = batch.iter().map(token_ids).collect::<PyResult<Vec<Vec<u32>>>>()?;
    let num_threads = num_threads.map(|number| positive("num_threads", number)).transpose()?;
    Ok(py.detach(|| tokenizer.decode_rows(&rows, skip_special_tokens, num_threads))?)
}
