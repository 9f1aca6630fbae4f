//! Binding of the `sampling` module, and of the parameters it shares with the engine.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray2};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::engine::RequestParams;
use crate::sampling::{RowSpec, Sampled, SamplingParams, TokenCounts, VocabMask, sample_rows, stream_key, uniform};
use crate::{Error, Result};

/// How one request is sampled and when it ends.
#[pyclass(frozen, name = "RequestParams", module = "llm._rust")]
pub(super) struct PyRequestParams(pub(super) RequestParams);

#[pymethods]
impl PyRequestParams {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "Python's keyword arguments are this struct's fields")]
    #[pyo3(signature = (*, max_tokens, seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
        presence_penalty=0.0, frequency_penalty=0.0, choice_index=0, stop=Vec::new(), stop_token_ids=Vec::new(),
        ignore_eos=false, min_tokens=0, logprobs=None, skip_special_tokens=true))]
    fn new(
        max_tokens: usize,
        seed: u64,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        min_p: f64,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        choice_index: u32,
        stop: Vec<String>,
        stop_token_ids: Vec<u32>,
        ignore_eos: bool,
        min_tokens: usize,
        logprobs: Option<usize>,
        skip_special_tokens: bool,
    ) -> Result<Self> {
        let sampling = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            seed,
            choice_index,
            logprobs,
        };
        let params =
            RequestParams { sampling, max_tokens, min_tokens, stop, stop_token_ids, ignore_eos, skip_special_tokens };
        params.validate()?;
        Ok(Self(params))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

/// What `sample` returns: one token a row.
#[pyclass(frozen, get_all, name = "SampledTokens", module = "llm._rust")]
struct PySampledTokens {
    token_ids: Py<PyArray1<u32>>,
    logprobs: Py<PyArray1<f32>>,
    top_logprobs: Py<PyList>,
}

/// Samples one token for each row of logits, without an engine.
#[pyfunction]
#[pyo3(signature = (logits, params, prompt_ids, output_ids, *, vocab_size=None, pad_id=None, eos_ids=Vec::new()))]
#[expect(clippy::too_many_arguments, reason = "Python's keyword arguments")]
fn sample(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    params: Vec<Bound<'_, PyRequestParams>>,
    prompt_ids: Vec<PyReadonlyArray1<'_, u32>>,
    output_ids: Vec<PyReadonlyArray1<'_, u32>>,
    vocab_size: Option<usize>,
    pad_id: Option<u32>,
    eos_ids: Vec<u32>,
) -> PyResult<PySampledTokens> {
    let mut array = writable_logits(logits)?;
    let [num_rows, vocab_len] = [array.shape()[0], array.shape()[1]];
    if vocab_len == 0 {
        return Err(Error::InvalidArgument("`logits` must have at least one column, got none".to_owned()).into());
    }
    check_lengths(num_rows, [params.len(), prompt_ids.len(), output_ids.len()])?;
    let mask = VocabMask { vocab_size: vocab_size.unwrap_or(vocab_len), pad_id };
    let rows: Vec<Row> = (params.iter().zip(&prompt_ids).zip(&output_ids))
        .map(|((params, prompt), output)| Row::new(&params.get().0, prompt, output, &eos_ids))
        .collect();
    let logits = array.as_slice_mut()?;
    let sampled = py.detach(|| {
        let specs: Vec<_> = rows.iter().map(|row| Some(row.spec())).collect();
        sample_rows(logits, vocab_len, mask, &specs)
    });
    let mut tokens = Vec::with_capacity(num_rows);
    for (row, result) in sampled.into_iter().flatten().enumerate() {
        tokens.push(result.map_err(|error| Error::InvalidArgument(format!("row {row}: {error}")))?);
    }
    sampled_tokens(py, tokens)
}

/// A row's request, with its history counted.
struct Row<'a> {
    params: &'a RequestParams,
    counts: TokenCounts,
    banned_ids: Vec<u32>,
    output_idx: usize,
}

impl<'a> Row<'a> {
    fn new(
        params: &'a RequestParams,
        prompt: &PyReadonlyArray1<'_, u32>,
        output: &PyReadonlyArray1<'_, u32>,
        eos_ids: &[u32],
    ) -> Self {
        let mut counts = TokenCounts::default();
        if params.sampling.has_penalties() {
            counts = TokenCounts::from_prompt(&prompt.as_array().to_vec());
            output.as_array().iter().for_each(|&id| counts.push_output(id));
        }
        let output_idx = output.len();
        let banned_ids = if output_idx < params.min_tokens { params.stop_ids(eos_ids) } else { Vec::new() };
        Self { params, counts, banned_ids, output_idx }
    }

    fn spec(&self) -> RowSpec<'_> {
        RowSpec {
            params: &self.params.sampling,
            counts: &self.counts,
            banned_ids: &self.banned_ids,
            output_idx: self.output_idx,
        }
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

fn sampled_tokens(py: Python<'_>, tokens: Vec<Sampled>) -> PyResult<PySampledTokens> {
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let logprobs: Vec<f32> = tokens.iter().map(|token| token.logprob.unwrap_or(f32::NAN)).collect();
    let top_logprobs = tokens.into_iter().map(|token| Some(token.top_logprobs).filter(|top| !top.is_empty()));
    Ok(PySampledTokens {
        top_logprobs: top_logprobs_list(py, top_logprobs.collect())?,
        token_ids: ids.into_pyarray(py).unbind(),
        logprobs: logprobs.into_pyarray(py).unbind(),
    })
}

/// A list with `(ids, logprobs)` for each row that asked for its likeliest tokens, else `None`.
pub(super) fn top_logprobs_list(py: Python<'_>, rows: Vec<Option<Vec<(u32, f32)>>>) -> PyResult<Py<PyList>> {
    let split = |row: Option<Vec<(u32, f32)>>| row.map(|top| top.into_iter().unzip::<_, _, Vec<_>, Vec<_>>());
    Ok(PyList::new(py, rows.into_iter().map(split))?.unbind())
}

/// A view of logits that may be written, or an error that says what was given.
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

/// The uniform number a request draws for its output token `output_idx`.
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
    module.add_function(wrap_pyfunction!(philox_uniform, module)?)
}
