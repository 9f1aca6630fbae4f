//! Binding of the `kernels::pointwise` module: checks PyTorch's tensors, and reads and writes them in place.

use pyo3::prelude::*;

use super::attention::{common, expect_floats, numbers, written};
use super::kernels::Tensor;
use crate::kernels::{
    AdamW, Bf16, Dtype, Gelu, Gradient, Isa, Labels, Normed, Number, RowNorm, Team, Trained, Upstream, adamw,
    gradient_norm,
};
use crate::{Error, Result};

fn team(threads: usize) -> Team {
    Team { isa: Isa::detect(), threads }
}

#[pyfunction]
#[pyo3(name = "gelu")]
fn py_gelu(
    py: Python<'_>,
    given: Tensor,
    active: Tensor,
    gradient: Option<Tensor>,
    is_tanh: bool,
    threads: usize,
) -> PyResult<()> {
    for tensor in [&given, &active].into_iter().chain(&gradient) {
        expect_floats(tensor)?;
    }
    let form = if is_tanh { Gelu::Tanh } else { Gelu::Exact };
    let (active, gradient) = (written(&active), gradient.as_ref().map(written));
    py.detach(|| crate::kernels::gelu(form, numbers(&given), active, gradient, team(threads)))?;
    Ok(())
}

#[pyfunction]
fn label_logprobs(
    py: Python<'_>,
    given: (Tensor, Tensor, Tensor, Option<Tensor>),
    has_gradient: bool,
    scale: f32,
    threads: usize,
) -> PyResult<()> {
    let (logits, labels, found, gradient) = given;
    expect_floats(&found)?;
    gradient.iter().try_for_each(expect_floats)?;
    let dtype = logits.dtype()?;
    let rule = Labels { labels: labels.ids()?, scale };
    let upstream = match &gradient {
        Some(gradient) => Upstream::Each(numbers(gradient)),
        None if has_gradient => Upstream::Ones,
        None => Upstream::None,
    };
    py.detach(|| match dtype {
        Dtype::F32 => rule.softmax::<f32>(written(&logits), written(&found), upstream, team(threads)),
        Dtype::Bf16 => rule.softmax::<Bf16>(written(&logits), written(&found), upstream, team(threads)),
    })?;
    Ok(())
}

/// Normalization of rows; rows are given with each call.
#[pyclass(frozen, name = "RowNorm", module = "llm._rust")]
struct PyRowNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
    is_centered: bool,
    team: Team,
    /// Owners of the weights' memory.
    _owners: (Py<PyAny>, Py<PyAny>),
}

/// The tensors from which a gradient is computed: rows, what `forward` kept, gradient, residual.
type Given = (Tensor, Tensor, Tensor, Tensor);

impl PyRowNorm {
    fn rule(&self) -> RowNorm<'_> {
        let bias = self.bias.as_ref().map(numbers);
        let (eps, is_centered, team) = (self.eps, self.is_centered, self.team);
        RowNorm { weight: numbers(&self.weight), bias, eps, is_centered, team }
    }

    fn gradients<N: Number>(&self, given: &Given, to_rows: &Tensor, to_weights: &Tensor) -> Result<()> {
        let (rows, kept, gradient, residual) = given;
        let given = Normed {
            rows: numbers(rows),
            kept: numbers(kept),
            gradient: numbers::<N>(gradient),
            residual: numbers(residual),
        };
        self.rule().backward(given, written(to_rows), written(to_weights))
    }
}

#[pymethods]
impl PyRowNorm {
    #[new]
    fn new(
        weight: Bound<'_, PyAny>,
        bias: Bound<'_, PyAny>,
        eps: f32,
        is_centered: bool,
        threads: usize,
    ) -> PyResult<Self> {
        let owners = (weight.clone().unbind(), bias.clone().unbind());
        let (weight, bias): (Tensor, Option<Tensor>) = (weight.extract()?, bias.extract()?);
        for tensor in bias.iter().chain([&weight]) {
            expect_floats(tensor)?;
        }
        Ok(Self { weight, bias, eps, is_centered, team: team(threads), _owners: owners })
    }

    fn forward(&self, py: Python<'_>, rows: Tensor, normed: Tensor, kept: Tensor) -> PyResult<()> {
        expect_floats(&rows)?;
        expect_floats(&kept)?;
        let dtype = normed.dtype()?;
        py.detach(|| match dtype {
            Dtype::F32 => self.rule().forward::<f32>(numbers(&rows), written(&normed), written(&kept)),
            Dtype::Bf16 => self.rule().forward::<Bf16>(numbers(&rows), written(&normed), written(&kept)),
        })?;
        Ok(())
    }

    fn backward(&self, py: Python<'_>, given: Given, to_rows: Tensor, to_weights: Tensor) -> PyResult<()> {
        for tensor in [&given.0, &given.1, &given.3, &to_rows, &to_weights] {
            expect_floats(tensor)?;
        }
        let dtype = common(&[&given.2])?;
        py.detach(|| match dtype {
            Dtype::F32 => self.gradients::<f32>(&given, &to_rows, &to_weights),
            Dtype::Bf16 => self.gradients::<Bf16>(&given, &to_rows, &to_weights),
        })?;
        Ok(())
    }
}

/// AdamW of parameters; gradients are given with each call.
#[pyclass(frozen, name = "AdamW", module = "llm._rust")]
struct PyAdamW {
    /// Parameter, mean of gradients, mean of squares and count of steps.
    trained: Vec<[Tensor; 4]>,
    team: Team,
    /// Owners of all memory.
    _owners: Vec<Owners>,
}

/// The tensors of a parameter.
type Owners = [Py<PyAny>; 4];
/// Learning rate, weight decay, both decay rates, and what is added to the root.
type Rule = (f64, f64, f64, f64, f64);

#[pymethods]
impl PyAdamW {
    #[new]
    fn new(py: Python<'_>, owners: Vec<Owners>, threads: usize) -> PyResult<Self> {
        let mut trained = Vec::with_capacity(owners.len());
        for [a, b, c, d] in &owners {
            let tensors: [Tensor; 4] = [a.extract(py)?, b.extract(py)?, c.extract(py)?, d.extract(py)?];
            tensors.iter().try_for_each(expect_floats)?;
            expect_count("step", tensors[3].len(), 1)?;
            trained.push(tensors);
        }
        Ok(Self { trained, team: team(threads), _owners: owners })
    }

    fn norm(&self, py: Python<'_>, gradients: Vec<Tensor>) -> PyResult<f64> {
        let gradients: Vec<Gradient<'_>> = gradients.iter().map(gradient_of).collect::<Result<_>>()?;
        Ok(py.detach(|| gradient_norm(&gradients, self.team))?)
    }

    fn step(&self, py: Python<'_>, gradients: Vec<Tensor>, rules: Vec<Rule>, scale: f32) -> PyResult<()> {
        let gradients: Vec<Gradient<'_>> = gradients.iter().map(gradient_of).collect::<Result<_>>()?;
        for (name, len) in [("gradients", gradients.len()), ("rules", rules.len())] {
            expect_count(name, len, self.trained.len())?;
        }
        let with_gradients = self.trained.iter().zip(gradients).zip(rules);
        let mut trained: Vec<Trained<'_>> = with_gradients
            .map(|(([parameter, first, second, step], gradient), (rate, decay, beta1, beta2, eps))| Trained {
                parameter: written(parameter),
                first: written(first),
                second: written(second),
                gradient,
                step: f64::from(numbers::<f32>(step)[0]) + 1.0,
                rule: AdamW { rate, decay, beta1, beta2, eps },
            })
            .collect();
        py.detach(|| adamw(&mut trained, scale, self.team))?;
        for [.., step] in &self.trained {
            written::<f32>(step)[0] += 1.0;
        }
        Ok(())
    }
}

/// Returns the numbers of a gradient, in either type.
fn gradient_of<'a>(tensor: &Tensor) -> Result<Gradient<'a>> {
    Ok(match tensor.dtype()? {
        Dtype::F32 => Gradient::Wide(numbers(tensor)),
        Dtype::Bf16 => Gradient::Narrow(numbers(tensor)),
    })
}

fn expect_count(name: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("`{name}` must hold {wanted}, got {got}")))
}

/// Adds this module's functions and class to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(py_gelu, module)?)?;
    module.add_function(wrap_pyfunction!(label_logprobs, module)?)?;
    module.add_class::<PyAdamW>()?;
    module.add_class::<PyRowNorm>()
}
