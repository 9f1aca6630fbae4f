//! Binding of the `kernels::attention` module: checks PyTorch's tensors, and reads and writes them in place.

use pyo3::prelude::*;

use super::kernels::Tensor;
use crate::kernels::{AttentionRule, Bf16, CausalAttention, Dtype, Isa, Kept, Number, Rotation};
use crate::{Error, Result};

/// Causal attention over sequences side by side; tensors are given with each call.
#[pyclass(frozen, name = "TrainingAttention", module = "llm._rust")]
struct PyTrainingAttention {
    rule: AttentionRule,
    starts: Vec<usize>,
    rotation: Option<(Tensor, Tensor)>,
    isa: Isa,
    num_threads: usize,
    /// Owner of the rotation's memory.
    _owner: Option<Py<PyAny>>,
}

/// Returns a tensor's numbers.
#[expect(unsafe_code, reason = "PyTorch owns the memory")]
pub(super) fn numbers<'a, N: Number>(tensor: &Tensor) -> &'a [N] {
    // SAFETY: callers have checked the dtype, and keep the tensor alive and unwritten during the call.
    unsafe { std::slice::from_raw_parts(tensor.address as *const N, tensor.len()) }
}

/// Returns a tensor's numbers, to be written.
#[expect(unsafe_code, reason = "PyTorch owns the memory")]
pub(super) fn written<'a, N: Number>(tensor: &Tensor) -> &'a mut [N] {
    // SAFETY: callers have checked the dtype, and made the tensor for this call alone.
    unsafe { std::slice::from_raw_parts_mut(tensor.address as *mut N, tensor.len()) }
}

/// Returns the common number format of tensors.
pub(super) fn common(tensors: &[&Tensor]) -> Result<Dtype> {
    let dtype = tensors[0].dtype()?;
    for tensor in tensors {
        if tensor.dtype()? != dtype {
            let [wanted, got] = [tensors[0], tensor].map(|tensor| tensor.dtype.trim_start_matches("torch."));
            return Err(Error::InvalidArgument(format!("all tensors must be {wanted}, got {got}")));
        }
    }
    Ok(dtype)
}

pub(super) fn expect_floats(tensor: &Tensor) -> Result<()> {
    match tensor.dtype()? {
        Dtype::F32 => Ok(()),
        Dtype::Bf16 => Err(Error::InvalidArgument("sums, cosines and sines must be float32, got bfloat16".to_owned())),
    }
}

impl PyTrainingAttention {
    fn over<'a, N: Number>(&'a self, joined: &Tensor) -> CausalAttention<'a, N> {
        let rotation =
            self.rotation.as_ref().map(|(cosine, sine)| Rotation { cosine: numbers(cosine), sine: numbers(sine) });
        let (isa, num_threads) = (self.isa, self.num_threads);
        CausalAttention { rule: self.rule, starts: &self.starts, rotation, joined: numbers(joined), isa, num_threads }
    }
}

#[pymethods]
impl PyTrainingAttention {
    #[new]
    fn new(
        sizes: (usize, usize, usize),
        scale: f32,
        starts: Vec<usize>,
        rotation: Option<Bound<'_, PyAny>>,
        num_threads: usize,
    ) -> PyResult<Self> {
        let turns = rotation.as_ref().map(|pair| pair.extract::<(Tensor, Tensor)>()).transpose()?;
        if let Some((cosine, sine)) = &turns {
            expect_floats(cosine)?;
            expect_floats(sine)?;
        }
        let (num_heads, num_kv_heads, head_dim) = sizes;
        let rule = AttentionRule { num_heads, num_kv_heads, head_dim, scale };
        Ok(Self { rule, starts, rotation: turns, isa: Isa::detect(), num_threads, _owner: rotation.map(Bound::unbind) })
    }

    fn forward(&self, py: Python<'_>, joined: Tensor, mixed: Tensor, logsumexp: Tensor) -> PyResult<()> {
        expect_floats(&logsumexp)?;
        let dtype = common(&[&joined, &mixed])?;
        py.detach(|| match dtype {
            Dtype::F32 => self.over::<f32>(&joined).forward(written(&mixed), written(&logsumexp)),
            Dtype::Bf16 => self.over::<Bf16>(&joined).forward(written(&mixed), written(&logsumexp)),
        })?;
        Ok(())
    }

    fn backward(
        &self,
        py: Python<'_>,
        joined: Tensor,
        kept: (Tensor, Tensor),
        gradient: Tensor,
        to_joined: Tensor,
    ) -> PyResult<()> {
        let (mixed, logsumexp) = kept;
        expect_floats(&logsumexp)?;
        let dtype = common(&[&joined, &mixed, &gradient, &to_joined])?;
        let sums = numbers(&logsumexp);
        py.detach(|| match dtype {
            Dtype::F32 => {
                let kept = Kept { mixed: numbers(&mixed), logsumexp: sums };
                self.over::<f32>(&joined).backward(kept, numbers(&gradient), written(&to_joined))
            }
            Dtype::Bf16 => {
                let kept = Kept { mixed: numbers(&mixed), logsumexp: sums };
                self.over::<Bf16>(&joined).backward(kept, numbers(&gradient), written(&to_joined))
            }
        })?;
        Ok(())
    }
}

/// Adds this module's class to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrainingAttention>()
}
