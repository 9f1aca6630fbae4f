//! Binding of the `kernels` module: takes the addresses of PyTorch's tensors, checks the tensors and keeps them alive.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::sampling::writable_logits;
use crate::kernels::{
    Activation, CacheFormat, CacheLayer, CachePart, CacheShape, CpuModel, Dtype, Experts, FeedForward, Isa, Layer,
    Linear, LowRank, LowRankPart, Matrix, ModelSpec, Norm, Part, QueryGrowth, Rope, SCALE_BYTES, Scheme, Scoring,
    SharedExpert, StepInput,
};
use crate::{Error, Result};

/// The address, shape and type of a PyTorch tensor; each use checks them.
pub(super) struct Tensor {
    pub(super) address: usize,
    shape: Vec<usize>,
    pub(super) dtype: Cow<'static, str>,
    device: Cow<'static, str>,
    is_contiguous: bool,
}

/// PyTorch's objects of the types that kernels read most, whose names then need no conversion.
static FLOAT32: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static BFLOAT16: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Returns the name of a tensor's number type.
fn dtype_name(dtype: &Bound<'_, PyAny>) -> PyResult<Cow<'static, str>> {
    let py = dtype.py();
    if dtype.is(FLOAT32.import(py, "torch", "float32")?) {
        return Ok(Cow::Borrowed("torch.float32"));
    }
    if dtype.is(BFLOAT16.import(py, "torch", "bfloat16")?) {
        return Ok(Cow::Borrowed("torch.bfloat16"));
    }
    Ok(Cow::Owned(dtype.str()?.to_string()))
}

/// Returns the numbers of a tensor's `shape`, which is a tuple.
fn lengths(shape: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    shape.cast::<PyTuple>()?.iter_borrowed().map(|length| length.extract()).collect()
}

/// Returns the kind of device that a tensor lies on.
fn device_name(tensor: &Borrowed<'_, '_, PyAny>) -> PyResult<Cow<'static, str>> {
    let py = tensor.py();
    if tensor.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
        return Ok(Cow::Borrowed("cpu"));
    }
    Ok(Cow::Owned(tensor.getattr(intern!(py, "device"))?.getattr(intern!(py, "type"))?.extract()?))
}

impl<'a, 'py> FromPyObject<'a, 'py> for Tensor {
    type Error = PyErr;

    fn extract(tensor: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let py = tensor.py();
        Ok(Self {
            address: tensor.call_method0(intern!(py, "data_ptr"))?.extract()?,
            shape: lengths(&tensor.getattr(intern!(py, "shape"))?)?,
            dtype: dtype_name(&tensor.getattr(intern!(py, "dtype"))?)?,
            device: device_name(&tensor)?,
            is_contiguous: tensor.call_method0(intern!(py, "is_contiguous"))?.extract()?,
        })
    }
}

impl Tensor {
    /// Returns the number of elements.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the numbers of an int64 tensor that kernels can read in place.
    #[expect(unsafe_code, reason = "PyTorch owns the memory")]
    pub(super) fn ids<'a>(&self) -> Result<&'a [i64]> {
        if self.dtype == "torch.int64" && self.device == "cpu" && self.is_contiguous {
            // SAFETY: callers keep the tensor alive and unwritten during the call.
            return Ok(unsafe { std::slice::from_raw_parts(self.address as *const i64, self.len()) });
        }
        Err(Error::InvalidArgument(format!("ids must be a contiguous int64 tensor on the CPU, got {}", self.dtype)))
    }

    /// Returns the number format, provided that kernels can read the tensor in place.
    pub(super) fn dtype(&self) -> Result<Dtype> {
        let dtype = match &*self.dtype {
            "torch.float32" => Some(Dtype::F32),
            "torch.bfloat16" => Some(Dtype::Bf16),
            _ => None,
        };
        dtype.filter(|_| self.device == "cpu" && self.is_contiguous).ok_or_else(|| {
            let (shape, device) = (&self.shape, &self.device);
            let contiguous = if self.is_contiguous { "" } else { ", not contiguous" };
            Error::InvalidArgument(format!(
                "the kernels need contiguous float32 or bfloat16 tensors on the CPU, got {} of shape {shape:?} on \
                 {device}{contiguous}\nhint: run this model through PyTorch",
                self.dtype
            ))
        })
    }

    /// Returns the tensor as a matrix.
    fn matrix(&self) -> Result<Matrix> {
        let [rows, cols] = self.shape[..] else {
            return Err(Error::InvalidArgument(format!("a weight must have 2 dimensions, got {:?}", self.shape)));
        };
        self.part(0, rows, cols)
    }

    /// Returns the matrices stacked along the first of three dimensions.
    fn stacked(&self) -> Result<Vec<Matrix>> {
        let [num, rows, cols] = self.shape[..] else {
            return Err(Error::InvalidArgument(format!(
                "stacked weights must have 3 dimensions, got {:?}",
                self.shape
            )));
        };
        (0..num).map(|idx| self.part(idx * rows * cols, rows, cols)).collect()
    }

    /// Returns the `rows × cols` matrix that begins at element `start`.
    fn part(&self, start: usize, rows: usize, cols: usize) -> Result<Matrix> {
        let dtype = self.dtype()?;
        let address = self.address + start * dtype.size();
        // SAFETY: `dtype` found the tensor contiguous, and it holds this matrix from `start` on; `PyCpuModel` keeps the
        // tensor alive, and nothing writes to weights during inference.
        #[expect(unsafe_code, reason = "PyTorch owns the memory")]
        unsafe {
            Matrix::from_raw(address as *const u8, rows, cols, dtype)
        }
    }
}

/// Reads one entry of a dictionary of weights.
fn entry<'py, T: FromPyObjectOwned<'py>>(weights: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    let value = weights.get_item(name)?;
    let value = value.ok_or_else(|| Error::InvalidArgument(format!("the kernels' weights lack `{name}`")))?;
    value.extract().map_err(Into::into)
}

/// Reads a type of the kernels from a dictionary keyed by the type's field names.
macro_rules! from_dict {
    ($type:ty, |$weights:ident| $read:expr) => {
        impl<'a, 'py> FromPyObject<'a, 'py> for $type {
            type Error = PyErr;

            fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
                let $weights = &object.cast::<PyDict>()?;
                Ok($read)
            }
        }
    };
}

/// Numbers copied from a NumPy array.
struct Floats(Vec<f32>);

impl<'a, 'py> FromPyObject<'a, 'py> for Floats {
    type Error = PyErr;

    fn extract(array: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(array.extract::<PyReadonlyArray1<'_, f32>>()?.as_array().to_vec()))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Matrix {
    type Error = PyErr;

    fn extract(tensor: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match tensor.cast::<PyDict>() {
            Ok(packed) => packed_matrix(&packed),
            Err(_) => Ok(tensor.extract::<Tensor>()?.matrix()?),
        }
    }
}

/// A matrix for each expert: a tensor of three dimensions, or packed matrices.
struct Stack(Vec<Matrix>);

impl Stack {
    /// Returns linear layers with one row of biases each.
    fn linears(self, biases: Option<Vec<Floats>>) -> Result<Vec<Linear>> {
        if biases.as_ref().is_some_and(|biases| biases.len() != self.0.len()) {
            return Err(Error::InvalidArgument(format!("{} experts must have as many rows of biases", self.0.len())));
        }
        let bias_of = |idx: usize| biases.as_ref().map(|biases| biases[idx].0.clone());
        Ok(self.0.into_iter().enumerate().map(|(idx, weight)| Linear::new(weight, bias_of(idx))).collect())
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Stack {
    type Error = PyErr;

    fn extract(stack: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        match stack.cast::<PyList>() {
            Ok(matrices) => Ok(Self(matrices.extract()?)),
            Err(_) => Ok(Self(stack.extract::<Tensor>()?.stacked()?)),
        }
    }
}

/// Reads a matrix of strips that `pack_rows` filled.
fn packed_matrix(packed: &Bound<'_, PyDict>) -> PyResult<Matrix> {
    let parts = entry::<Vec<(String, usize)>>(packed, "parts")?;
    let parts: Result<Vec<Part>> =
        parts.iter().map(|(name, rows)| Ok(Part { scheme: named_scheme(name)?, rows: *rows })).collect();
    let (parts, cols) = (parts?, entry(packed, "cols")?);
    let tensor: Tensor = entry(packed, "packed")?;
    let is_bytes = tensor.dtype == "torch.uint8" && tensor.device == "cpu" && tensor.is_contiguous;
    let [num_bytes] = tensor.shape[..] else {
        return Err(Error::InvalidArgument(format!("packed weights must be a vector, got {:?}", tensor.shape)).into());
    };
    if !is_bytes {
        let message = format!("packed weights must be contiguous bytes on the CPU, got {}", tensor.dtype);
        return Err(Error::InvalidArgument(message).into());
    }
    // SAFETY: the tensor holds `num_bytes` contiguous bytes; `PyCpuModel` keeps it alive, and nothing writes to weights
    // during inference.
    #[expect(unsafe_code, reason = "PyTorch owns the memory")]
    let matrix = unsafe { Matrix::from_packed(tensor.address as *const u8, num_bytes, cols, &parts) };
    Ok(matrix?)
}

impl<'a, 'py> FromPyObject<'a, 'py> for Activation {
    type Error = PyErr;

    fn extract(name: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(limit) = name.extract::<f32>() {
            return Ok(Self::ClampedSwiglu { limit });
        }
        Ok(match name.extract::<&str>()? {
            "silu" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" => Self::GeluTanh,
            other => return Err(Error::InvalidArgument(format!("the kernels have no activation {other:?}")).into()),
        })
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Scoring {
    type Error = PyErr;

    fn extract(name: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(match name.extract::<&str>()? {
            "softmax_of_all" => Self::SoftmaxOfAll,
            "softmax_of_chosen" => Self::SoftmaxOfChosen,
            "sigmoid" => Self::Sigmoid,
            other => return Err(Error::InvalidArgument(format!("the kernels have no scoring {other:?}")).into()),
        })
    }
}

from_dict!(QueryGrowth, |growth| Self { rate: entry(growth, "rate")?, context: entry(growth, "context")? });

from_dict!(Norm, |norm| Self {
    weight: entry::<Floats>(norm, "weight")?.0,
    bias: entry::<Option<Floats>>(norm, "bias")?.map(|bias| bias.0),
    eps: entry(norm, "eps")?,
});

from_dict!(Linear, |linear| {
    let found = Self::new(entry(linear, "weight")?, entry::<Option<Floats>>(linear, "bias")?.map(|bias| bias.0));
    let weight = entry::<Bound<'_, PyAny>>(linear, "weight")?;
    let order = match weight.cast::<PyDict>() {
        Ok(packed) => entry::<Option<PyReadonlyArray1<'_, u32>>>(packed, "order")?,
        Err(_) => None,
    };
    match order {
        Some(order) => found.with_order(order.as_array().to_vec())?,
        None => found,
    }
});

from_dict!(LowRank, |adapter| {
    let parts = entry::<Vec<(usize, usize, Floats)>>(adapter, "parts")?;
    let parts = parts.into_iter().map(|(first, rank, second)| LowRankPart { first, rank, second: second.0 });
    Self::new(entry(adapter, "first")?, parts.collect())?
});

from_dict!(Rope, |rope| Self { frequencies: entry(rope, "frequencies")?, factor: entry(rope, "factor")? });

from_dict!(SharedExpert, |shared| Self {
    gate_up: entry(shared, "gate_up")?,
    down: entry(shared, "down")?,
    gate: entry(shared, "gate")?,
});

from_dict!(Experts, |experts| Self {
    router: entry(experts, "router")?,
    gate_up: entry::<Stack>(experts, "gate_up")?.linears(entry(experts, "gate_up_biases")?)?,
    down: entry::<Stack>(experts, "down")?.linears(entry(experts, "down_biases")?)?,
    activation: entry(experts, "activation")?,
    num_chosen: entry(experts, "num_chosen")?,
    scoring: entry(experts, "scoring")?,
    correction: entry::<Option<Floats>>(experts, "correction")?.map(|correction| correction.0),
    num_groups: entry(experts, "num_groups")?,
    num_chosen_groups: entry(experts, "num_chosen_groups")?,
    normalized: entry(experts, "normalized")?,
    scale: entry(experts, "scale")?,
    shared: entry(experts, "shared")?,
});

from_dict!(FeedForward, |mlp| match (mlp.contains("router")?, mlp.contains("up")?) {
    (true, _) => Self::Experts(Box::new(mlp.extract()?)),
    (_, true) => Self::Plain { up: entry(mlp, "up")?, down: entry(mlp, "down")? },
    _ => Self::Gated { gate_up: entry(mlp, "gate_up")?, down: entry(mlp, "down")? },
});

from_dict!(Layer, |layer| Self {
    norm1: entry(layer, "norm1")?,
    qkv: entry(layer, "qkv")?,
    query_norm: entry(layer, "query_norm")?,
    key_norm: entry(layer, "key_norm")?,
    rope: entry(layer, "rope")?,
    sinks: entry::<Option<Floats>>(layer, "sinks")?.map(|sinks| sinks.0),
    out: entry(layer, "out")?,
    post_norm1: entry(layer, "post_norm1")?,
    norm2: entry(layer, "norm2")?,
    is_parallel: entry(layer, "is_parallel")?,
    feed_forward: entry(layer, "feed_forward")?,
    post_norm2: entry(layer, "post_norm2")?,
    window: entry(layer, "window")?,
});

from_dict!(ModelSpec, |model| Self {
    embedding: entry(model, "embedding")?,
    embedding_scale: entry(model, "embedding_scale")?,
    positions: entry(model, "positions")?,
    ropes: entry(model, "ropes")?,
    layers: entry(model, "layers")?,
    norm: entry(model, "norm")?,
    head: entry(model, "head")?,
    num_heads: entry(model, "num_heads")?,
    attention_scale: entry(model, "attention_scale")?,
    query_growth: entry(model, "query_growth")?,
    residual_scale: entry(model, "residual_scale")?,
    attention_softcap: entry(model, "attention_softcap")?,
    logit_softcap: entry(model, "logit_softcap")?,
    activation: entry(model, "activation")?,
});

/// A model on the CPU kernels; PyTorch owns its weights and cache.
#[pyclass(frozen, name = "CpuModel", module = "llm._rust")]
struct PyCpuModel {
    model: Mutex<CpuModel>,
    isa: Isa,
    num_threads: usize,
    /// Owners of the memory that the kernels read and write.
    _owners: [Py<PyAny>; 3],
    /// Owners of the adapters' memory, by their numbers.
    adapters: Mutex<BTreeMap<u16, Py<PyAny>>>,
}

#[pymethods]
impl PyCpuModel {
    #[new]
    #[pyo3(signature = (weights, keys, values, *, num_threads, instruction_set=None))]
    fn new(
        weights: &Bound<'_, PyAny>,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        num_threads: usize,
        instruction_set: Option<&str>,
    ) -> PyResult<Self> {
        let spec = weights.extract::<ModelSpec>()?;
        let isa = named_set(instruction_set)?;
        let (shape, caches) = caches_of(&keys.extract::<Vec<Tensor>>()?, &values.extract::<Vec<Tensor>>()?)?;
        let model = CpuModel::new(spec, shape, caches, num_threads, isa)?;
        let owners = [weights, keys, values].map(|owner| owner.clone().unbind());
        Ok(Self { model: Mutex::new(model), isa, num_threads, _owners: owners, adapters: Mutex::default() })
    }

    #[pyo3(signature = (token_ids, positions, slot_mapping, query_start, block_tables, logits_indices, logits, adapters=None))]
    #[expect(clippy::too_many_arguments, reason = "the arrays of a step")]
    fn run(
        &self,
        py: Python<'_>,
        token_ids: PyReadonlyArray1<'_, i64>,
        positions: PyReadonlyArray1<'_, i64>,
        slot_mapping: PyReadonlyArray1<'_, i64>,
        query_start: PyReadonlyArray1<'_, i32>,
        block_tables: PyReadonlyArray2<'_, i32>,
        logits_indices: PyReadonlyArray1<'_, i64>,
        logits: &Bound<'_, PyAny>,
        adapters: Option<PyReadonlyArray1<'_, u16>>,
    ) -> PyResult<()> {
        let mut logits = writable_logits(logits)?;
        let shape = (logits.shape()[0], logits.shape()[1]);
        let none = vec![0; query_start.len().saturating_sub(1)];
        let step = StepInput {
            token_ids: token_ids.as_slice()?,
            positions: positions.as_slice()?,
            slot_mapping: slot_mapping.as_slice()?,
            query_start: query_start.as_slice()?,
            block_tables: block_tables.as_slice()?,
            max_blocks: block_tables.shape()[1],
            logits_indices: logits_indices.as_slice()?,
            adapters: adapters.as_ref().map_or(Ok(&none[..]), PyReadonlyArray1::as_slice)?,
        };
        let logits = logits.as_slice_mut()?;
        py.detach(|| {
            let mut model = self.model.lock().map_err(|_| Error::Internal("an earlier step panicked".to_owned()))?;
            if shape != (step.logits_indices.len(), model.vocab_size()) {
                return Err(Error::InvalidArgument(format!(
                    "`logits` must be ({}, {}), got {shape:?}",
                    step.logits_indices.len(),
                    model.vocab_size()
                )));
            }
            model.run(&step, logits)
        })?;
        Ok(())
    }

    #[pyo3(signature = (number, layers))]
    fn set_adapter(&self, number: u16, layers: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let read = layers.map(|layers| layers.extract::<Vec<BTreeMap<String, Option<LowRank>>>>()).transpose()?;
        let poisoned = || Error::Internal("an earlier step panicked".to_owned());
        let mut owners = self.adapters.lock().map_err(|_| poisoned())?;
        self.model.lock().map_err(|_| poisoned())?.set_adapter(number, read)?;
        match layers {
            Some(layers) => owners.insert(number, layers.clone().unbind()),
            None => owners.remove(&number),
        };
        Ok(())
    }

    /// Returns the name of the kernels' instruction set.
    #[getter]
    fn instruction_set(&self) -> &'static str {
        self.isa.name()
    }

    /// Returns the number of threads that share a step, including the calling thread.
    #[getter]
    fn num_threads(&self) -> usize {
        self.num_threads
    }
}

fn named_set(name: Option<&str>) -> Result<Isa> {
    let Some(name) = name else { return Ok(Isa::detect()) };
    let supported = Isa::supported();
    supported.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
        let names: Vec<_> = supported.iter().map(|isa| isa.name()).collect();
        Error::InvalidArgument(format!("`instruction_set` must be one of this machine's {names:?}, got {name:?}"))
    })
}

/// Returns the instruction sets that this machine supports and the kernels are compiled for, the best one last.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Isa::supported().into_iter().map(Isa::name).collect()
}

fn named_scheme(name: &str) -> Result<Scheme> {
    Scheme::ALL.into_iter().find(|scheme| scheme.name() == name).ok_or_else(|| {
        let names = Scheme::ALL.map(Scheme::name);
        Error::InvalidArgument(format!("`scheme` must be one of {names:?}, got {name:?}"))
    })
}

/// Returns the bytes of a packed matrix.
#[pyfunction]
fn packed_bytes(scheme: &str, rows: usize, cols: usize) -> PyResult<usize> {
    let scheme = named_scheme(scheme)?;
    let size = scheme.block_cols();
    let is_sound = cols.is_multiple_of(size) && rows.checked_mul(cols).is_some_and(|size| size < 1 << 48);
    if !is_sound {
        let message = format!("`cols` must be a multiple of {size}, got {rows} rows of {cols}");
        return Err(Error::InvalidArgument(message).into());
    }
    Ok(scheme.packed_bytes(rows, cols))
}

/// Packs rows of a file's blocks as rows `first..` of a packed matrix.
#[pyfunction]
fn pack_rows(
    py: Python<'_>,
    scheme: &str,
    blocks: PyReadonlyArray1<'_, u8>,
    cols: usize,
    mut packed: PyReadwriteArray1<'_, u8>,
    first: usize,
) -> PyResult<()> {
    let scheme = named_scheme(scheme)?;
    let (blocks, packed) = (blocks.as_slice()?, packed.as_slice_mut()?);
    py.detach(|| scheme.pack(blocks, cols, packed, first))?;
    Ok(())
}

/// Writes the values of some rows of a packed matrix.
#[pyfunction]
fn unpack_rows(
    py: Python<'_>,
    scheme: &str,
    packed: PyReadonlyArray1<'_, u8>,
    rows: PyReadonlyArray1<'_, i64>,
    mut out: PyReadwriteArray2<'_, f32>,
) -> PyResult<()> {
    let scheme = named_scheme(scheme)?;
    let [num_out, cols] = *out.shape() else { unreachable!("an array of two dimensions") };
    let (packed, rows, out) = (packed.as_slice()?, rows.as_slice()?, out.as_slice_mut()?);
    let size = scheme.block_cols();
    if num_out != rows.len() || cols == 0 || !cols.is_multiple_of(size) {
        let message = format!("`out` must be ({}, a multiple of {size}), got ({num_out}, {cols})", rows.len());
        return Err(Error::InvalidArgument(message).into());
    }
    let num_rows = packed.len() / scheme.packed_bytes(1, cols) * scheme.rows_per_strip();
    if let Some(row) = rows.iter().find(|row| **row < 0 || **row as usize >= num_rows) {
        return Err(Error::InvalidArgument(format!("`rows` must be in [0, {num_rows}), got {row}")).into());
    }
    py.detach(|| {
        for (row, to) in rows.iter().zip(out.chunks_exact_mut(cols)) {
            scheme.unpack_row(packed, *row as usize, to);
        }
    });
    Ok(())
}

/// Returns the format of a cache's tensors and the width of a head whose tensor is `width` wide.
fn cache_format(tensor: &Tensor, width: usize) -> Result<(CacheFormat, usize)> {
    let is_int8 = tensor.dtype == "torch.int8" && tensor.device == "cpu" && tensor.is_contiguous;
    if !is_int8 {
        return Ok((CacheFormat::Plain(tensor.dtype()?), width));
    }
    let head_dim = width.checked_sub(SCALE_BYTES).filter(|width| *width > 0).ok_or_else(|| {
        Error::InvalidArgument(format!("heads in int8 must be wider than their scale of {SCALE_BYTES}, got {width}"))
    })?;
    Ok((CacheFormat::Int8, head_dim))
}

fn caches_of(keys: &[Tensor], values: &[Tensor]) -> Result<(CacheShape, Vec<CacheLayer>)> {
    let first = keys.first().ok_or_else(|| Error::InvalidArgument("a cache must have a layer, got none".to_owned()))?;
    let [num_blocks, block_size, num_kv_heads, width] = first.shape[..] else {
        return Err(Error::InvalidArgument(format!("a cache must have 4 dimensions, got {:?}", first.shape)));
    };
    let found = cache_format(first, width)?;
    let is_same =
        |tensor: &Tensor| tensor.shape == first.shape && cache_format(tensor, width).is_ok_and(|other| other == found);
    if keys.len() != values.len() || !keys.iter().chain(values).all(is_same) {
        return Err(Error::InvalidArgument("keys and values of all layers must be of one shape and dtype".to_owned()));
    }
    // SAFETY: the checks above found contiguous tensors of one shape; `PyCpuModel` keeps them alive, and its mutex
    // admits one step at a time.
    #[expect(unsafe_code, reason = "PyTorch owns the memory")]
    let part = |tensor: &Tensor| unsafe { CachePart::from_raw(tensor.address as *mut u8) };
    let caches =
        keys.iter().zip(values).map(|(keys, values)| CacheLayer { keys: part(keys), values: part(values) }).collect();
    let (format, head_dim) = found;
    Ok((CacheShape { num_blocks, block_size, num_kv_heads, head_dim, format }, caches))
}

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyCpuModel>()?;
    for function in [
        wrap_pyfunction!(instruction_sets, module)?,
        wrap_pyfunction!(packed_bytes, module)?,
        wrap_pyfunction!(pack_rows, module)?,
        wrap_pyfunction!(unpack_rows, module)?,
    ] {
        module.add_function(function)?;
    }
    module.add("PACKED_STRIP_ROWS", Scheme::Q8_0.rows_per_strip())?;
    module.add("PACKED_SCHEMES", Scheme::OF_GGUF.map(Scheme::name).to_vec())
}
