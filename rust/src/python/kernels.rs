//! Binding of the `kernels` module: tensors that PyTorch owns as addresses, checked here and kept alive.

use std::sync::Mutex;

use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::sampling::writable_logits;
use crate::kernels::{
    Activation, CachePart, CacheShape, Decoder, DecoderSpec, Dtype, Experts, FeedForward, Isa, Layer, Linear, Matrix,
    Norm, Rope, Step,
};
use crate::{Error, Result};

/// Where a PyTorch tensor lies and what it is; judged where it is used, since `FromPyObject` hides errors of its own.
struct Tensor {
    address: usize,
    shape: Vec<usize>,
    dtype: String,
    device: String,
    is_contiguous: bool,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Tensor {
    type Error = PyErr;

    fn extract(tensor: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self {
            address: tensor.call_method0("data_ptr")?.extract()?,
            shape: tensor.getattr("shape")?.extract()?,
            dtype: tensor.getattr("dtype")?.str()?.to_string(),
            device: tensor.getattr("device")?.getattr("type")?.extract()?,
            is_contiguous: tensor.call_method0("is_contiguous")?.extract()?,
        })
    }
}

impl Tensor {
    /// The format of its numbers, if kernels can read them where they are.
    fn dtype(&self) -> Result<Dtype> {
        let dtype = match self.dtype.as_str() {
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

    fn matrix(&self) -> Result<Matrix> {
        let [rows, cols] = self.shape[..] else {
            return Err(Error::InvalidArgument(format!("a weight must have 2 dimensions, got {:?}", self.shape)));
        };
        self.part(0, rows, cols)
    }

    /// The layers along the first of three dimensions.
    fn stacked(&self) -> Result<Vec<Linear>> {
        let [num, rows, cols] = self.shape[..] else {
            return Err(Error::InvalidArgument(format!(
                "stacked weights must have 3 dimensions, got {:?}",
                self.shape
            )));
        };
        (0..num).map(|idx| Ok(Linear { weight: self.part(idx * rows * cols, rows, cols)?, bias: None })).collect()
    }

    fn part(&self, start: usize, rows: usize, cols: usize) -> Result<Matrix> {
        let dtype = self.dtype()?;
        let address = self.address + start * dtype.size();
        // SAFETY: the tensor is contiguous and of this size; `PyDecoder` keeps it alive, and nobody trains it.
        #[expect(unsafe_code, reason = "PyTorch owns the memory")]
        unsafe {
            Matrix::from_raw(address as *const u8, rows, cols, dtype)
        }
    }
}

#[derive(FromPyObject)]
struct NormWeights<'py> {
    weight: PyReadonlyArray1<'py, f32>,
    bias: Option<PyReadonlyArray1<'py, f32>>,
    eps: f32,
}

impl NormWeights<'_> {
    fn read(&self) -> Norm {
        let values = |array: &PyReadonlyArray1<'_, f32>| array.as_array().to_vec();
        Norm { weight: values(&self.weight), bias: self.bias.as_ref().map(values), eps: self.eps }
    }
}

#[derive(FromPyObject)]
struct LinearWeights<'py> {
    weight: Tensor,
    bias: Option<PyReadonlyArray1<'py, f32>>,
}

impl LinearWeights<'_> {
    fn read(&self) -> Result<Linear> {
        let bias = self.bias.as_ref().map(|bias| bias.as_array().to_vec());
        Ok(Linear { weight: self.weight.matrix()?, bias })
    }
}

#[derive(FromPyObject)]
struct ExpertWeights<'py> {
    router: LinearWeights<'py>,
    gate_up: Tensor,
    down: Tensor,
    num_chosen: usize,
    softmax_first: bool,
    normalized: bool,
    scale: f32,
    shared_up: Option<LinearWeights<'py>>,
    shared_down: Option<LinearWeights<'py>>,
    shared_gate: Option<LinearWeights<'py>>,
}

impl ExpertWeights<'_> {
    fn read(&self) -> Result<Experts> {
        let read = |linear: &Option<LinearWeights<'_>>| linear.as_ref().map(LinearWeights::read).transpose();
        Ok(Experts {
            router: self.router.read()?,
            gate_up: self.gate_up.stacked()?,
            down: self.down.stacked()?,
            num_chosen: self.num_chosen,
            softmax_first: self.softmax_first,
            normalized: self.normalized,
            scale: self.scale,
            shared: read(&self.shared_up)?.zip(read(&self.shared_down)?),
            shared_gate: read(&self.shared_gate)?,
        })
    }
}

#[derive(FromPyObject)]
struct LayerWeights<'py> {
    norm1: NormWeights<'py>,
    norm2: NormWeights<'py>,
    post_norm1: Option<NormWeights<'py>>,
    post_norm2: Option<NormWeights<'py>>,
    query_norm: Option<NormWeights<'py>>,
    key_norm: Option<NormWeights<'py>>,
    qkv: LinearWeights<'py>,
    out: LinearWeights<'py>,
    window: Option<usize>,
    /// Gate and up, or up alone, and down; or experts.
    up: Option<LinearWeights<'py>>,
    down: Option<LinearWeights<'py>>,
    is_gated: bool,
    experts: Option<ExpertWeights<'py>>,
}

impl LayerWeights<'_> {
    fn read(&self) -> Result<Layer> {
        let norm = |norm: &Option<NormWeights<'_>>| norm.as_ref().map(NormWeights::read);
        Ok(Layer {
            norm1: self.norm1.read(),
            qkv: self.qkv.read()?,
            qk_norms: norm(&self.query_norm).zip(norm(&self.key_norm)),
            out: self.out.read()?,
            post_norms: norm(&self.post_norm1).zip(norm(&self.post_norm2)),
            norm2: self.norm2.read(),
            feed_forward: self.feed_forward()?,
            window: self.window,
        })
    }

    fn feed_forward(&self) -> Result<FeedForward> {
        match (&self.experts, &self.up, &self.down) {
            (Some(experts), _, _) => Ok(FeedForward::Experts(Box::new(experts.read()?))),
            (None, Some(up), Some(down)) => {
                let (up, down) = (up.read()?, down.read()?);
                Ok(match self.is_gated {
                    true => FeedForward::Gated { gate_up: up, down },
                    false => FeedForward::Plain { up, down },
                })
            }
            _ => Err(Error::InvalidArgument("a layer must have a feed-forward".to_owned())),
        }
    }
}

#[derive(FromPyObject)]
struct ModelWeights<'py> {
    embedding: Tensor,
    embedding_scale: f32,
    positions: Option<Tensor>,
    rope_frequencies: Option<Vec<f64>>,
    rope_factor: f64,
    layers: Vec<LayerWeights<'py>>,
    norm: NormWeights<'py>,
    head: LinearWeights<'py>,
    num_heads: usize,
    attention_scale: f32,
    attention_softcap: Option<f32>,
    logit_softcap: Option<f32>,
    activation: String,
}

impl ModelWeights<'_> {
    fn read(&self) -> Result<DecoderSpec> {
        let activation = match self.activation.as_str() {
            "silu" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_pytorch_tanh" => Activation::GeluTanh,
            other => return Err(Error::InvalidArgument(format!("the kernels have no activation {other:?}"))),
        };
        Ok(DecoderSpec {
            embedding: self.embedding.matrix()?,
            embedding_scale: self.embedding_scale,
            positions: self.positions.as_ref().map(Tensor::matrix).transpose()?,
            rope: self
                .rope_frequencies
                .as_ref()
                .map(|frequencies| Rope { frequencies: frequencies.clone(), factor: self.rope_factor }),
            layers: self.layers.iter().map(LayerWeights::read).collect::<Result<_>>()?,
            norm: self.norm.read(),
            head: self.head.read()?,
            num_heads: self.num_heads,
            attention_scale: self.attention_scale,
            attention_softcap: self.attention_softcap,
            logit_softcap: self.logit_softcap,
            activation,
        })
    }
}

/// A model's decode kernels on the CPU, over weights and a cache that PyTorch owns.
#[pyclass(frozen, name = "Decoder", module = "llm._rust")]
struct PyDecoder {
    decoder: Mutex<Decoder>,
    isa: Isa,
    num_threads: usize,
    /// Owners of the memory that the decoder reads and writes.
    _owners: [Py<PyAny>; 3],
}

#[pymethods]
impl PyDecoder {
    #[new]
    #[pyo3(signature = (weights, keys, values, *, num_threads, instruction_set=None))]
    fn new(
        weights: &Bound<'_, PyAny>,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        num_threads: usize,
        instruction_set: Option<&str>,
    ) -> PyResult<Self> {
        let spec = weights.extract::<ModelWeights<'_>>()?.read()?;
        let isa = named_set(instruction_set)?;
        let (shape, caches) = caches_of(&keys.extract::<Vec<Tensor>>()?, &values.extract::<Vec<Tensor>>()?)?;
        let decoder = Decoder::new(spec, shape, caches, num_threads, isa)?;
        let owners = [weights, keys, values].map(|owner| owner.clone().unbind());
        Ok(Self { decoder: Mutex::new(decoder), isa, num_threads, _owners: owners })
    }

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
    ) -> PyResult<()> {
        let mut logits = writable_logits(logits)?;
        let shape = (logits.shape()[0], logits.shape()[1]);
        let step = Step {
            token_ids: token_ids.as_slice()?,
            positions: positions.as_slice()?,
            slot_mapping: slot_mapping.as_slice()?,
            query_start: query_start.as_slice()?,
            block_tables: block_tables.as_slice()?,
            max_blocks: block_tables.shape()[1],
            logits_indices: logits_indices.as_slice()?,
        };
        let logits = logits.as_slice_mut()?;
        py.detach(|| {
            let mut decoder =
                self.decoder.lock().map_err(|_| Error::Internal("an earlier step panicked".to_owned()))?;
            if shape != (step.logits_indices.len(), decoder.vocab_size()) {
                return Err(Error::InvalidArgument(format!(
                    "`logits` must be ({}, {}), got {shape:?}",
                    step.logits_indices.len(),
                    decoder.vocab_size()
                )));
            }
            decoder.run(&step, logits)
        })?;
        Ok(())
    }

    /// The instruction set the kernels run with.
    #[getter]
    fn instruction_set(&self) -> &'static str {
        self.isa.name()
    }

    /// Threads that share a step, the caller's included.
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

/// Instruction sets of this machine that the kernels are compiled for, best last.
#[pyfunction]
fn instruction_sets() -> Vec<&'static str> {
    Isa::supported().into_iter().map(Isa::name).collect()
}

fn caches_of(keys: &[Tensor], values: &[Tensor]) -> Result<(CacheShape, Vec<(CachePart, CachePart)>)> {
    let first = keys.first().ok_or_else(|| Error::InvalidArgument("a cache must have a layer, got none".to_owned()))?;
    let [num_blocks, block_size, num_kv_heads, head_dim] = first.shape[..] else {
        return Err(Error::InvalidArgument(format!("a cache must have 4 dimensions, got {:?}", first.shape)));
    };
    let is_same =
        |tensor: &Tensor| tensor.dtype().is_ok() && tensor.shape == first.shape && tensor.dtype == first.dtype;
    if keys.len() != values.len() || !keys.iter().chain(values).all(is_same) {
        return Err(Error::InvalidArgument("keys and values of all layers must be of one shape and dtype".to_owned()));
    }
    // SAFETY: the tensors are contiguous and of this shape; `PyDecoder` keeps them alive, one thread runs steps.
    #[expect(unsafe_code, reason = "PyTorch owns the memory")]
    let part = |tensor: &Tensor| unsafe { CachePart::from_raw(tensor.address as *mut u8) };
    let caches = keys.iter().zip(values).map(|(key, value)| (part(key), part(value))).collect();
    Ok((CacheShape { num_blocks, block_size, num_kv_heads, head_dim, dtype: first.dtype()? }, caches))
}

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyDecoder>()?;
    module.add_function(wrap_pyfunction!(instruction_sets, module)?)
}
