//! Binding of the `engine` module: arrays in, arrays out, with one call each for schedule and update.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::MutexExt;
use pyo3::types::{PyList, PyTuple};

use super::fields::Attributes;
use super::grammar::{PyGrammar, source_of};
use super::sampling::{PyRequestParams, top_logprobs_list, writable_logits};
use super::tokenizer::PyTokenizer;
use crate::engine::{EngineConfig, EngineCore, FinishReason, StepOutputs, Submission};
use crate::fields::Fields;
use crate::grammar::GrammarCompiler;
use crate::sampling::TokenLogprob;
use crate::scheduler::{BlockEvent, BlockHash, SchedulerConfig, StepPlan};
use crate::tokenizer::tokens::TokenTable;
use crate::{Error, Result};

/// The engine without its model. Any thread may call it; concurrent calls wait for each other with the GIL released.
#[pyclass(frozen, name = "EngineCore", module = "llm._rust")]
struct PyEngineCore {
    core: Mutex<EngineCore>,
    /// Compiles without the engine's lock, so that a large grammar delays no step.
    compiler: Arc<GrammarCompiler>,
}

impl PyEngineCore {
    fn locked<T: Send>(&self, py: Python<'_>, action: impl FnOnce(&mut EngineCore) -> Result<T> + Send) -> Result<T> {
        py.detach(|| action(&mut *self.core.lock().map_err(poisoned)?))
    }
}

fn poisoned<T>(_: PoisonError<T>) -> Error {
    Error::Internal("an earlier call panicked; make a new engine".to_owned())
}

#[pymethods]
impl PyEngineCore {
    #[new]
    #[pyo3(signature = (config, *, num_blocks, token_bytes, special_ids, eos_ids, pad_id, tokenizer=None))]
    fn new(
        config: &Bound<'_, PyAny>,
        num_blocks: usize,
        token_bytes: Vec<Option<PyBackedBytes>>,
        special_ids: Vec<u32>,
        eos_ids: Vec<u32>,
        pad_id: Option<u32>,
        tokenizer: Option<&Bound<'_, PyTokenizer>>,
    ) -> Result<Self> {
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.get().inner().clone());
        let limits = Attributes(config);
        let scheduler = SchedulerConfig { num_blocks, ..SchedulerConfig::read(&limits)? };
        let speculative = limits.field("speculative")?;
        config.py().detach(|| {
            let token_bytes = token_bytes.into_iter().map(|bytes| bytes.map(|bytes| bytes.to_vec())).collect();
            let table = TokenTable::new(token_bytes, &special_ids)?;
            let core = EngineCore::new(EngineConfig { table, tokenizer, eos_ids, pad_id, scheduler, speculative })?;
            Ok(Self { compiler: core.grammar_compiler(), core: Mutex::new(core) })
        })
    }

    #[pyo3(signature = (request_id, prompt_ids, params, *, priority=0, num_choices=1, adapter=0))]
    #[expect(clippy::too_many_arguments, reason = "options by name")]
    fn add_choices(
        &self,
        py: Python<'_>,
        request_id: u64,
        prompt_ids: PyReadonlyArray1<'_, u32>,
        params: &Bound<'_, PyRequestParams>,
        priority: i32,
        num_choices: u32,
        adapter: u16,
    ) -> Result<()> {
        let prompt_ids = prompt_ids.as_array().to_vec();
        let params = params.get().0.clone();
        let submission = Submission { priority, num_choices, adapter };
        self.locked(py, |core| core.add_choices(request_id, prompt_ids, params, submission))
    }

    #[pyo3(signature = (kind, source, *, is_compact=false))]
    fn compile_grammar(&self, kind: &str, source: &Bound<'_, PyAny>, is_compact: bool) -> PyResult<PyGrammar> {
        let own = source_of(kind, source, is_compact)?;
        Ok(PyGrammar(source.py().detach(|| self.compiler.compile(&own))?))
    }

    fn abort(&self, py: Python<'_>, request_id: u64) -> Result<bool> {
        self.locked(py, |core| core.abort(request_id))
    }

    fn schedule(&self, py: Python<'_>) -> PyResult<Option<PyStepPlan>> {
        // Holds the lock until the plan's buffers are copied, since copying needs the GIL again.
        let mut guard = self.core.lock_py_attached(py).map_err(poisoned)?;
        let core = &mut *guard;
        let plan = py.detach(|| core.schedule())?;
        plan.map(|plan| PyStepPlan::new(py, plan)).transpose()
    }

    fn fail_step(&self, py: Python<'_>) -> Result<Vec<u64>> {
        self.locked(py, EngineCore::fail_step)
    }

    fn update(&self, py: Python<'_>, logits: &Bound<'_, PyAny>) -> PyResult<PyStepOutputs> {
        let mut array = writable_logits(logits)?;
        let shape = (array.shape()[0], array.shape()[1]);
        let logits = array.as_slice_mut()?;
        let outputs = self.locked(py, |core| core.update(logits, shape))?;
        PyStepOutputs::new(py, outputs)
    }

    fn request_tokens<'py>(
        &self,
        py: Python<'py>,
        request_id: u64,
        start: usize,
    ) -> Result<Option<(Bound<'py, PyArray1<u32>>, usize)>> {
        let found = self.locked(py, |core| {
            let from_start = |tokens: &[u32]| tokens.get(start..).unwrap_or_default().to_vec();
            Ok(core.request_tokens(request_id).map(|(tokens, num_left)| (from_start(tokens), num_left)))
        })?;
        Ok(found.map(|(tokens, num_left)| (PyArray1::from_vec(py, tokens), num_left)))
    }

    fn set_drafts(&self, py: Python<'_>, request_id: u64, drafts: Vec<u32>) -> Result<()> {
        self.locked(py, |core| core.set_drafts(request_id, &drafts))
    }

    fn take_block_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let events = self.locked(py, |core| Ok(core.take_block_events()))?;
        events.into_iter().map(|event| block_event(py, event)).collect()
    }

    fn has_unfinished(&self, py: Python<'_>) -> Result<bool> {
        self.locked(py, |core| Ok(core.has_unfinished()))
    }

    fn stats(&self, py: Python<'_>) -> Result<BTreeMap<&'static str, usize>> {
        let stats = self.locked(py, |core| Ok(core.stats()))?;
        let num_compiled = self.compiler.num_compiled();
        Ok(stats.named().into_iter().chain([("grammars_compiled", num_compiled)]).collect())
    }

    fn check_integrity(&self, py: Python<'_>) -> Result<()> {
        self.locked(py, |core| core.check_integrity())
    }
}

/// The input of one forward pass, as NumPy arrays.
#[pyclass(frozen, get_all, name = "StepPlan", module = "llm._rust")]
struct PyStepPlan {
    token_ids: Py<PyArray1<i64>>,
    positions: Py<PyArray1<i64>>,
    slot_mapping: Py<PyArray1<i64>>,
    query_start: Py<PyArray1<i32>>,
    seq_lens: Py<PyArray1<i32>>,
    block_tables: Py<PyArray2<i32>>,
    logits_indices: Py<PyArray1<i64>>,
    request_ids: Py<PyArray1<u64>>,
    adapters: Py<PyArray1<u16>>,
    block_copies: Py<PyArray2<i64>>,
}

impl PyStepPlan {
    /// Copies the plan into arrays that the caller may keep; the next step overwrites the plan's buffers.
    fn new(py: Python<'_>, plan: &StepPlan) -> PyResult<Self> {
        let table_shape = [plan.request_ids.len(), plan.max_blocks];
        let copies = plan.block_copies.as_flattened();
        Ok(Self {
            token_ids: PyArray1::from_slice(py, &plan.token_ids).unbind(),
            positions: PyArray1::from_slice(py, &plan.positions).unbind(),
            slot_mapping: PyArray1::from_slice(py, &plan.slot_mapping).unbind(),
            query_start: PyArray1::from_slice(py, &plan.query_start).unbind(),
            seq_lens: PyArray1::from_slice(py, &plan.seq_lens).unbind(),
            block_tables: PyArray1::from_slice(py, &plan.block_tables).reshape(table_shape)?.unbind(),
            logits_indices: PyArray1::from_slice(py, &plan.logits_indices).unbind(),
            request_ids: PyArray1::from_slice(py, &plan.request_ids).unbind(),
            adapters: PyArray1::from_slice(py, &plan.adapters).unbind(),
            block_copies: PyArray1::from_slice(py, copies).reshape([plan.block_copies.len(), 2])?.unbind(),
        })
    }
}

/// The tokens and results of a step, one entry per request.
#[pyclass(frozen, get_all, name = "StepOutputs", module = "llm._rust")]
struct PyStepOutputs {
    request_ids: Py<PyArray1<u64>>,
    token_ids: Py<PyArray1<u32>>,
    // Lists rather than vectors, because each access to a vector would convert it again.
    texts: Py<PyList>,
    finish_reasons: Py<PyArray1<u8>>,
    logprobs: Py<PyArray1<f32>>,
    ranks: Py<PyArray1<u32>>,
    top_logprobs: Py<PyList>,
    prompt_logprobs: Py<PyList>,
    stop_strings: Py<PyList>,
    cached_tokens: Py<PyList>,
    errors: Py<PyList>,
}

impl PyStepOutputs {
    fn new(py: Python<'_>, outputs: StepOutputs) -> PyResult<Self> {
        let of_prompt = |(request_id, tokens): (u64, Vec<(u32, TokenLogprob)>)| {
            let rows = tokens.into_iter().map(|(id, of)| (id, of.logprob, of.rank, of.top));
            (request_id, rows.collect::<Vec<_>>())
        };
        Ok(Self {
            request_ids: outputs.request_ids.into_pyarray(py).unbind(),
            token_ids: outputs.token_ids.into_pyarray(py).unbind(),
            texts: PyList::new(py, outputs.texts)?.unbind(),
            finish_reasons: outputs.finish_reasons.into_pyarray(py).unbind(),
            logprobs: outputs.logprobs.into_pyarray(py).unbind(),
            ranks: outputs.ranks.into_pyarray(py).unbind(),
            top_logprobs: top_logprobs_list(py, outputs.top_logprobs)?,
            prompt_logprobs: PyList::new(py, outputs.prompt_logprobs.into_iter().map(of_prompt))?.unbind(),
            stop_strings: PyList::new(py, outputs.stop_strings)?.unbind(),
            cached_tokens: PyList::new(py, outputs.cached_tokens)?.unbind(),
            errors: PyList::new(py, outputs.errors)?.unbind(),
        })
    }
}

/// A tuple of hashes, parent's hash, tokens and adapter for stored blocks, a list of hashes for removed ones.
///
/// Outside, the lower half of a hash stands for it, as in vLLM: a billion blocks share one with a probability of 3 %.
fn block_event(py: Python<'_>, event: BlockEvent) -> PyResult<Bound<'_, PyAny>> {
    let outside = |hash: BlockHash| hash.get() as u64;
    let all_outside = |hashes: Vec<BlockHash>| hashes.into_iter().map(outside).collect::<Vec<_>>();
    match event {
        BlockEvent::Removed(hashes) => all_outside(hashes).into_bound_py_any(py),
        BlockEvent::Stored(blocks) => {
            let parent = blocks.parent.map(outside);
            (all_outside(blocks.hashes), parent, blocks.token_ids, blocks.adapter).into_bound_py_any(py)
        }
    }
}

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("FINISH_REASONS", PyTuple::new(module.py(), FinishReason::NAMES)?)?;
    module.add_class::<PyEngineCore>()?;
    module.add_class::<PyStepPlan>()?;
    module.add_class::<PyStepOutputs>()
}
