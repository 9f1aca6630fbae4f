//! Binding of the `tokenizer` module.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use numpy::{IntoPyArray, PyArray1};
use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use super::convert::{self, positive, token_ids, utf8};
use super::corpus::{self, BlockArrays, PyTextBlock};
use super::shared_ints::SharedInts;
use super::tokenizer_batch::{self, FlatArrays, PyEncodePlan};
use super::tokenizer_stream::{OffsetArrays, PyTokenTable};
use crate::Error;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::memory::join_freed;
use crate::tokenizer::options::Allowed;
use crate::tokenizer::split::pretokenize::Pattern;
use crate::tokenizer::trainer::{Trainer, TrainerOptions};
use crate::tokenizer::vocab::Vocab;

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyTrainer>()
}

/// Length from which a text is encoded with the GIL released; shorter texts take only a few microseconds.
const DETACHED_BYTES: usize = 2048;

/// Byte-level BPE; see `_rust.pyi`.
#[pyclass(name = "Tokenizer", module = "llm._rust", frozen)]
pub(super) struct PyTokenizer {
    inner: Tokenizer,
    /// Python integers shared by all lists of ids.
    ints: Mutex<Option<SharedInts>>,
    /// Number of ids listed so far; shared integers pay off once there are enough.
    listed: AtomicUsize,
}

impl PyTokenizer {
    fn new(inner: Tokenizer) -> Self {
        Self { inner, ints: Mutex::default(), listed: AtomicUsize::new(0) }
    }

    pub(super) fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// Returns the ids of a text. Special tokens in the text are ordinary text unless `allow_special` is set.
    #[inline]
    fn ids(&self, py: Python<'_>, text: &Bound<'_, PyString>, allow_special: bool) -> PyResult<Vec<u32>> {
        let text = utf8(text)?;
        let allowed = if allow_special { Allowed::All } else { Allowed::None };
        // A short text is encoded before another thread could use the GIL.
        let encode = || self.inner.encode(text, &allowed);
        Ok(if text.len() < DETACHED_BYTES { encode() } else { py.detach(encode) }?)
    }

    /// Creates a list of ids of this tokenizer.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let size = self.inner.vocab().size();
        let listed = self.listed.fetch_add(ids.len(), Ordering::Relaxed) + ids.len();
        // Does not wait for the lock, because its holder may be waiting for the GIL.
        let mut ints = match self.ints.try_lock() {
            Ok(ints) if listed > size / 16 => ints,
            _ => return PyList::new(py, ids),
        };
        ints.get_or_insert_with(|| SharedInts::new(py, size)).list(py, ids)
    }
}

#[pymethods]
impl PyTokenizer {
    #[staticmethod]
    fn from_json(py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<Self> {
        let text = utf8(text)?;
        Ok(Self::new(py.detach(|| Tokenizer::from_json(text))?))
    }

    #[staticmethod]
    fn from_ranks(
        py: Python<'_>,
        ranks: Vec<Vec<u8>>,
        special_tokens: &Bound<'_, PyDict>,
        pattern: &str,
    ) -> PyResult<Self> {
        let pattern = Pattern::parse(pattern)?;
        let mut special = convert::special_tokens(special_tokens)?;
        special.sort_by_key(|&(_, id)| id);
        let tokenizer = py.detach(|| Vocab::from_ranks(&ranks, special).map(|vocab| Tokenizer::new(vocab, pattern)))?;
        drop(ranks);
        join_freed();
        Ok(Self::new(tokenizer))
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        Ok(py.detach(|| self.inner.to_json())?)
    }

    #[pyo3(signature = (text, allow_special=false))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        allow_special: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        self.list(py, &self.ids(py, text, allow_special)?)
    }

    #[pyo3(signature = (text, allow_special=false))]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        allow_special: bool,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        Ok(self.ids(py, text, allow_special)?.into_pyarray(py))
    }

    #[pyo3(signature = (ids, skip_special_tokens=false))]
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = token_ids(ids)?;
        let bytes = py.detach(|| self.inner.decode_bytes(&ids, skip_special_tokens))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[pyo3(signature = (ids, skip_special_tokens=false))]
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, skip_special_tokens: bool) -> PyResult<String> {
        let ids = token_ids(ids)?;
        Ok(py.detach(|| self.inner.decode(&ids, skip_special_tokens))?)
    }

    fn pieces(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<Vec<String>> {
        let text = utf8(text)?;
        Ok(py.detach(|| self.inner.pieces(text))?)
    }

    fn token_bytes<'py>(&self, py: Python<'py>) -> Vec<Option<Bound<'py, PyBytes>>> {
        let tokens = self.inner.vocab().tokens();
        (0..tokens.len() as u32).map(|id| tokens.bytes(id).map(|bytes| PyBytes::new(py, bytes))).collect()
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let special = PyDict::new(py);
        for (text, id) in self.inner.vocab().special() {
            special.set_item(text, id)?;
        }
        Ok(special)
    }

    #[getter]
    fn template(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        self.inner.template().map(|template| (template.before.clone(), template.after.clone()))
    }

    #[getter]
    fn cuts_at_line_ends(&self) -> bool {
        self.inner.cuts_at_line_ends()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab().size()
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.inner.pattern().name()
    }

    fn token_table(&self) -> PyTokenTable {
        (&self.inner).into()
    }

    fn encode_planned<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        plan: &PyEncodePlan,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        tokenizer_batch::encode_planned(py, &self.inner, text, plan)
    }

    fn offsets<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        plan: &PyEncodePlan,
    ) -> PyResult<OffsetArrays<'py>> {
        tokenizer_batch::offsets(py, &self.inner, text, plan)
    }

    #[pyo3(signature = (texts, plan=None, num_threads=None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyString>>,
        plan: Option<&PyEncodePlan>,
        num_threads: Option<i64>,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let rows = tokenizer_batch::encode_rows(py, &self.inner, &texts, plan, num_threads)?;
        rows.iter().map(|ids| self.list(py, ids)).collect()
    }

    #[pyo3(signature = (texts, plan=None, num_threads=None))]
    fn encode_batch_flat<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyString>>,
        plan: Option<&PyEncodePlan>,
        num_threads: Option<i64>,
    ) -> PyResult<FlatArrays<'py>> {
        Ok(tokenizer_batch::arrays(py, tokenizer_batch::encode_rows(py, &self.inner, &texts, plan, num_threads)?))
    }

    fn encode_blocks<'py>(
        &self,
        py: Python<'py>,
        blocks: Vec<PyRef<'py, PyTextBlock>>,
        end: Option<u32>,
        wide: bool,
    ) -> PyResult<BlockArrays<'py>> {
        corpus::encode_blocks(py, &self.inner, &blocks, end, wide)
    }

    #[pyo3(signature = (batch, skip_special_tokens=false, num_threads=None))]
    fn decode_batch(
        &self,
        py: Python<'_>,
        batch: Vec<Bound<'_, PyAny>>,
        skip_special_tokens: bool,
        num_threads: Option<i64>,
    ) -> PyResult<Vec<String>> {
        tokenizer_batch::decode_rows(py, &self.inner, &batch, skip_special_tokens, num_threads)
    }
}

/// Counts text and learns merges; see `_rust.pyi`.
#[pyclass(name = "BPETrainer", module = "llm._rust", frozen)]
struct PyTrainer {
    /// Locked only while the GIL is released, so that a thread waiting for the lock never blocks the thread that
    /// counts.
    inner: Mutex<Trainer>,
}

#[pymethods]
impl PyTrainer {
    #[new]
    #[pyo3(signature = (
        *, vocab_size, pattern, special_tokens, min_frequency=1, max_token_length=None, num_threads=None
    ))]
    fn new(
        vocab_size: i64,
        pattern: &str,
        special_tokens: Vec<String>,
        min_frequency: i64,
        max_token_length: Option<i64>,
        num_threads: Option<i64>,
    ) -> PyResult<Self> {
        let options = TrainerOptions {
            vocab_size: positive("vocab_size", vocab_size)?,
            pattern: Pattern::parse(pattern)?,
            special_tokens,
            min_frequency: positive("min_frequency", min_frequency)? as u64,
            max_token_length: max_token_length.map(|len| positive("max_token_length", len)).transpose()?,
            num_threads: num_threads.map(|number| positive("num_threads", number)).transpose()?,
        };
        Ok(Self { inner: Mutex::new(Trainer::with_options(options)?) })
    }

    #[pyo3(signature = (texts, progress=None))]
    fn add(&self, py: Python<'_>, texts: Vec<Bound<'_, PyString>>, progress: Option<Py<PyAny>>) -> PyResult<()> {
        let texts = texts.iter().map(utf8).collect::<PyResult<Vec<&str>>>()?;
        self.reporting(py, progress, |trainer, report| trainer.add_with_progress(&texts, &mut |bytes| report((bytes,))))
    }

    #[pyo3(signature = (path, progress=None))]
    fn add_file(&self, py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<()> {
        self.reporting(py, progress, |trainer, report| trainer.add_file(&path, &mut |bytes| report((bytes,))))
    }

    #[pyo3(signature = (progress=None))]
    fn train(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<PyTokenizer> {
        let train = |trainer: &mut Trainer, report: &mut dyn FnMut((usize, usize)) -> bool| {
            trainer.train(&mut |done, total| report((done, total)))
        };
        Ok(PyTokenizer::new(self.reporting(py, progress, train)?))
    }
}

impl PyTrainer {
    /// Runs `work` with the GIL released. Each report checks for Ctrl-C and then calls `progress`; an exception from
    /// either ends `work` and is raised here.
    fn reporting<T: Send, A>(
        &self,
        py: Python<'_>,
        progress: Option<Py<PyAny>>,
        work: impl FnOnce(&mut Trainer, &mut dyn FnMut(A) -> bool) -> crate::Result<T> + Send,
    ) -> PyResult<T>
    where
        A: for<'py> PyCallArgs<'py>,
    {
        let mut raised = None;
        let mut report = |arguments: A| {
            let result = Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |callback| callback.call1(py, arguments).map(drop))
            });
            raised = result.err();
            raised.is_none()
        };
        let result = py.detach(|| self.locked(|trainer| work(trainer, &mut report)));
        match raised {
            Some(error) => Err(error),
            None => Ok(result??),
        }
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Trainer) -> T) -> crate::Result<T> {
        match self.inner.lock() {
            Ok(mut trainer) => Ok(work(&mut trainer)),
            Err(_) => Err(Error::Internal("a thread failed while it used this trainer".to_owned())),
        }
    }
}
