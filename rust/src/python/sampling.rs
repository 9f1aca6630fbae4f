//! Binding of the `sampling` module and of the parameters that it shares with the engine.

use std::borrow::Cow;

use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray2};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::fields::Attributes;
use super::grammar::PyGrammar;
use crate::engine::RequestParams;
use crate::sampling::{
    History, RowSpec, Sampled, SamplingParams, VocabMask, sample_rows, stream_key, token_logprobs, uniform,
};
use crate::{Error, Result};

/// The settings of one request, read by name from `llm.SamplingParams`.
#[pyclass(frozen, name = "RequestParams", module = "llm._rust")]
pub(super) struct PyRequestParams(pub(super) RequestParams);

#[pymethods]
impl PyRequestParams {
    #[new]
    #[pyo3(signature = (params, *, choice_index=0, grammar=None, kept_special_ids=None))]
    fn new(
        params: &Bound<'_, PyAny>,
        choice_index: u32,
        grammar: Option<&Bound<'_, PyGrammar>>,
        kept_special_ids: Option<Vec<u32>>,
    ) -> Result<Self> {
        let source = Attributes(params);
        let kept_special_ids = kept_special_ids.unwrap_or_default();
        let sampling = SamplingParams { choice_index, ..SamplingParams::read(&source)? };
        let grammar = grammar.map(|grammar| grammar.get().0.clone());
        let params = RequestParams { sampling, grammar, kept_special_ids, ..RequestParams::read(&source)? };
        params.validate()?;
        Ok(Self(params))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// One token per row, sampled or given. Arrays are created on access, because most callers need only the ids.
#[pyclass(frozen, name = "SampledTokens", module = "llm._rust")]
struct PySampledTokens(Vec<Sampled>);

impl PySampledTokens {
    fn column<'py, T: Element>(&self, py: Python<'py>, read: impl Fn(&Sampled) -> T) -> Bound<'py, PyArray1<T>> {
        self.0.iter().map(read).collect::<Vec<T>>().into_pyarray(py)
    }
}

#[pymethods]
impl PySampledTokens {
    #[getter]
    fn token_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.column(py, |token| token.id)
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.column(py, |token| token.logprobs.as_ref().map_or(f32::NAN, |scored| scored.logprob))
    }

    #[getter]
    fn ranks<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.column(py, |token| token.logprobs.as_ref().map_or(0, |scored| scored.rank))
    }

    #[getter]
    fn top_logprobs(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let top = |token: &Sampled| token.logprobs.as_ref().map(|scored| scored.top.clone());
        top_logprobs_list(py, self.0.iter().map(|token| top(token).filter(|top| !top.is_empty())).collect())
    }
}

/// Samples one token for each row of logits, without an engine.
#[pyfunction]
#[pyo3(signature = (logits, params, prompt_ids, output_ids, *, vocab_size=None, pad_id=None, eos_ids=Vec::new()))]
#[expect(clippy::too_many_arguments, reason = "Python's keyword arguments")]
fn sample(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    params: Vec<Bound<'_, PyRequestParams>>,
    prompt_ids: Vec<Bound<'_, PyArray1<u32>>>,
    output_ids: Vec<Bound<'_, PyArray1<u32>>>,
    vocab_size: Option<usize>,
    pad_id: Option<u32>,
    eos_ids: Vec<u32>,
) -> PyResult<PySampledTokens> {
    let mut array = Logits::new(logits)?;
    let [num_rows, vocab_len] = array.shape()?;
    check_lengths(num_rows, [params.len(), prompt_ids.len(), output_ids.len()])?;
    let mask = VocabMask { vocab_size: vocab_size.unwrap_or(vocab_len), pad_id };
    let params: Vec<&RequestParams> = params.iter().map(|params| &params.get().0).collect();
    let (prompts, outputs) = (histories(&prompt_ids, &params)?, histories(&output_ids, &params)?);
    let rows: Vec<Row<'_>> = (0..num_rows)
        .map(|row| Row {
            params: params[row],
            prompt: ids_of(&prompts[row]),
            output: ids_of(&outputs[row]),
            output_len: output_ids[row].len(),
            banned_ids: banned_ids(params[row], output_ids[row].len(), &eos_ids),
        })
        .collect();
    let sampled = array.work(py, |logits| {
        let specs: Vec<_> = rows.iter().map(|row| Some(row.spec())).collect();
        match logits {
            LogitsMut::F32(logits) => sample_rows(logits, vocab_len, mask, &specs),
            LogitsMut::Bf16(logits) => sample_rows(logits, vocab_len, mask, &specs),
        }
    })?;
    Ok(PySampledTokens(name_rows(sampled.into_iter().flatten())?))
}

/// Returns the log-probability and rank of one given token per row, and the most likely alternatives.
#[pyfunction]
#[pyo3(name = "token_logprobs", signature = (logits, token_ids, n=0, *, vocab_size=None, pad_id=None))]
fn py_token_logprobs(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    token_ids: PyReadonlyArray1<'_, u32>,
    n: usize,
    vocab_size: Option<usize>,
    pad_id: Option<u32>,
) -> PyResult<PySampledTokens> {
    let mut array = Logits::new(logits)?;
    let [num_rows, vocab_len] = array.shape()?;
    let ids = token_ids.as_array().to_vec();
    if ids.len() != num_rows || ids.iter().any(|&id| id as usize >= vocab_len) {
        let highest = ids.iter().max().map_or_else(|| "none".to_owned(), u32::to_string);
        return Err(Error::InvalidArgument(format!(
            "`token_ids` must be {num_rows} ids below {vocab_len}, one for each row of `logits`, got {} of which the \
             highest is {highest}",
            ids.len()
        ))
        .into());
    }
    let mask = VocabMask { vocab_size: vocab_size.unwrap_or(vocab_len), pad_id };
    let scored = array.work(py, |logits| match logits {
        LogitsMut::F32(logits) => token_logprobs(logits, vocab_len, mask, &ids, n),
        LogitsMut::Bf16(logits) => token_logprobs(logits, vocab_len, mask, &ids, n),
    })?;
    let scored = ids.into_iter().zip(name_rows(scored)?);
    Ok(PySampledTokens(scored.map(|(id, logprobs)| Sampled { id, logprobs: Some(logprobs) }).collect()))
}

/// The parameters and history of a row's request.
struct Row<'a> {
    params: &'a RequestParams,
    prompt: Cow<'a, [u32]>,
    output: Cow<'a, [u32]>,
    output_len: usize,
    banned_ids: Vec<u32>,
}

impl Row<'_> {
    fn spec(&self) -> RowSpec<'_> {
        let sampling = &self.params.sampling;
        RowSpec {
            params: sampling,
            history: History::Ids { prompt: &self.prompt, output: &self.output },
            banned_ids: &self.banned_ids,
            allowed: sampling.allowed_token_ids.as_deref(),
            output_idx: self.output_len,
        }
    }
}

fn banned_ids(params: &RequestParams, output_len: usize, eos_ids: &[u32]) -> Vec<u32> {
    if output_len >= params.min_tokens { Vec::new() } else { params.stop_ids(eos_ids) }
}

/// A history array borrowed for reading; `None` if no penalty needs it.
type HeldIds<'py> = Option<PyReadonlyArray1<'py, u32>>;

/// Borrows the histories of rows with penalties only: borrowing an array takes longer than sampling a short row.
fn histories<'py>(arrays: &[Bound<'py, PyArray1<u32>>], params: &[&RequestParams]) -> PyResult<Vec<HeldIds<'py>>> {
    let borrowed = |(array, params): (&Bound<'py, PyArray1<u32>>, &&RequestParams)| {
        let is_read = params.sampling.has_penalties() && !array.is_empty();
        Ok(is_read.then(|| array.try_readonly()).transpose()?)
    };
    arrays.iter().zip(params).map(borrowed).collect()
}

/// Returns the ids of an array, copied only if the array is not contiguous.
fn ids_of<'a>(history: &'a HeldIds<'_>) -> Cow<'a, [u32]> {
    match history.as_ref().map(|array| (array, array.as_slice())) {
        None => Cow::Borrowed(&[]),
        Some((_, Ok(ids))) => Cow::Borrowed(ids),
        Some((array, Err(_))) => Cow::Owned(array.as_array().to_vec()),
    }
}

fn check_lengths(num_rows: usize, lengths: [usize; 3]) -> Result<()> {
    if lengths == [num_rows; 3] {
        return Ok(());
    }
    let [params, prompts, outputs] = lengths;
    Err(Error::InvalidArgument(format!(
        "`params`, `prompt_ids` and `output_ids` must have one entry for each of {num_rows} rows of `logits`, \
         got {params}, {prompts} and {outputs}"
    )))
}

/// Returns the results of all rows, or the first error together with its row number.
fn name_rows<T>(rows: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let named = |(row, result): (usize, Result<T>)| {
        result.map_err(|error| Error::InvalidArgument(format!("row {row}: {error}")))
    };
    rows.into_iter().enumerate().map(named).collect()
}

/// Creates a list with `(ids, logprobs)` for each row that requested its most likely tokens, and `None` for other rows.
pub(super) fn top_logprobs_list(py: Python<'_>, rows: Vec<Option<Vec<(u32, f32)>>>) -> PyResult<Py<PyList>> {
    let split = |row: Option<Vec<(u32, f32)>>| row.map(|top| top.into_iter().unzip::<_, _, Vec<_>, Vec<_>>());
    Ok(PyList::new(py, rows.into_iter().map(split))?.unbind())
}

/// Logits from a caller: float32, or bfloat16 as 16-bit integers with the same bits.
pub(super) enum Logits<'py> {
    F32(PyReadwriteArray2<'py, f32>),
    Bits(PyReadwriteArray2<'py, u16>),
    SignedBits(PyReadwriteArray2<'py, i16>),
}

/// The data of [`Logits`] while the GIL is released.
pub(super) enum LogitsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

impl<'py> Logits<'py> {
    /// Returns a writable view of the logits, or an error that describes the argument.
    pub fn new(array: &Bound<'py, PyAny>) -> Result<Self> {
        let logits = (writable(array).map(Self::F32))
            .or_else(|| writable(array).map(Self::Bits))
            .or_else(|| writable(array).map(Self::SignedBits));
        logits.ok_or_else(|| {
            let given = match array.cast::<PyUntypedArray>() {
                Ok(array) => format!("{} of shape {:?}", array.dtype(), array.shape()),
                Err(_) => array.get_type().to_string(),
            };
            Error::InvalidArgument(format!(
                "`logits` must be a writable C-contiguous float32 array of 2 dimensions, or int16 or uint16 with the \
                 bits of bfloat16, got {given}\n\
                 hint: `numpy.ascontiguousarray(logits, numpy.float32)`; `tensor.view(torch.int16).numpy()`"
            ))
        })
    }

    /// Returns the number of rows and columns; fails if there are no columns.
    pub fn shape(&self) -> Result<[usize; 2]> {
        let shape = match self {
            Self::F32(array) => array.shape(),
            Self::Bits(array) => array.shape(),
            Self::SignedBits(array) => array.shape(),
        };
        match *shape {
            [num_rows, vocab_len] if vocab_len > 0 => Ok([num_rows, vocab_len]),
            _ => Err(Error::InvalidArgument("`logits` must have at least one column, got none".to_owned())),
        }
    }

    /// Runs `work` on the logits with the GIL released.
    pub fn work<R: Send>(&mut self, py: Python<'_>, work: impl FnOnce(LogitsMut<'_>) -> R + Send) -> PyResult<R> {
        Ok(match self {
            Self::F32(array) => {
                let logits = array.as_slice_mut()?;
                py.detach(|| work(LogitsMut::F32(logits)))
            }
            Self::Bits(array) => {
                let logits = array.as_slice_mut()?;
                py.detach(|| work(LogitsMut::Bf16(logits)))
            }
            Self::SignedBits(array) => {
                let logits = bytemuck::cast_slice_mut(array.as_slice_mut()?);
                py.detach(|| work(LogitsMut::Bf16(logits)))
            }
        })
    }
}

fn writable<'py, T: Element>(array: &Bound<'py, PyAny>) -> Option<PyReadwriteArray2<'py, T>> {
    let array = array.cast::<PyArray2<T>>().ok().filter(|array| array.is_c_contiguous())?;
    array.try_readwrite().ok()
}

/// Returns a writable view of float32 logits, or an error that describes the argument.
pub(super) fn writable_logits<'py>(array: &Bound<'py, PyAny>) -> Result<PyReadwriteArray2<'py, f32>> {
    array
        .cast::<PyArray2<f32>>()
        .ok()
        .filter(|array| array.is_c_contiguous())
        .and_then(|array| array.try_readwrite().ok())
        .ok_or_else(|| {
            let given = match array.cast::<PyUntypedArray>() {
                Ok(array) => format!("{} of shape {:?}", array.dtype(), array.shape()),
                Err(_) => array.get_type().to_string(),
            };
            Error::InvalidArgument(format!(
                "`logits` must be a writable C-contiguous float32 array of 2 dimensions, got {given}\n\
                 hint: `numpy.ascontiguousarray(logits, numpy.float32)`"
            ))
        })
}

/// Returns the uniform number that a request draws for its output token `output_idx`.
#[pyfunction]
#[pyo3(signature = (seed, output_idx, *, choice_index=0, draw_idx=0))]
fn philox_uniform(seed: u64, output_idx: u64, choice_index: u32, draw_idx: u32) -> f64 {
    uniform(stream_key(seed, choice_index), output_idx, draw_idx)
}

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyRequestParams>()?;
    module.add_class::<PySampledTokens>()?;
    module.add_function(wrap_pyfunction!(sample, module)?)?;
    module.add_function(wrap_pyfunction!(py_token_logprobs, module)?)?;
    module.add_function(wrap_pyfunction!(philox_uniform, module)?)
}
