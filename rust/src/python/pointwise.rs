//! Binding of the `kernels::pointwise` module: checks PyTorch's tensors, and reads and writes them in place.

use pyo3::prelude::*;

use super::attention::{expect_floats, numbers, written};
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

/// Weight, bias, what is added to the mean square, whether rows are centered, number of threads.
type NormRule = (Tensor, Option<Tensor>, f32, bool, usize);

fn norm_of(rule: &NormRule) -> Result<RowNorm<'_>> {
    let (weight, bias, eps, is_centered, threads) = rule;
    for tensor in bias.iter().chain([weight]) {
        expect_floats(tensor)?;
    }
    let (eps, is_centered) = (*eps, *is_centered);
    Ok(RowNorm { weight: numbers(weight), bias: bias.as_ref().map(numbers), eps, is_centered, team: team(*threads) })
}

#[pyfunction]
fn row_norm(py: Python<'_>, rule: NormRule, rows: Tensor, normed: Tensor, kept: Tensor) -> PyResult<()> {
    let norm = norm_of(&rule)?;
    expect_floats(&rows)?;
    expect_floats(&kept)?;
    let dtype = normed.dtype()?;
    py.detach(|| match dtype {
        Dtype::F32 => norm.forward::<f32>(numbers(&rows), written(&normed), written(&kept)),
        Dtype::Bf16 => norm.forward::<Bf16>(numbers(&rows), written(&normed), written(&kept)),
    })?;
    Ok(())
}

/// The tensors from which a gradient is computed: rows, what `row_norm` kept, gradient, residual.
type Given = (Tensor, Tensor, Tensor, Option<Tensor>);

/// The gradients of rows, weight and bias.
type Found = (Tensor, Tensor, Option<Tensor>);

#[pyfunction]
fn row_norm_gradients(py: Python<'_>, rule: NormRule, given: Given, found: Found) -> PyResult<()> {
    let norm = norm_of(&rule)?;
    let (to_rows, to_weight, to_bias) = &found;
    for tensor in [&given.0, &given.1, to_rows, to_weight].into_iter().chain(&given.3).chain(to_bias) {
        expect_floats(tensor)?;
    }
    let dtype = given.2.dtype()?;
    let to_weights = (written(to_weight), to_bias.as_ref().map(written));
    py.detach(|| match dtype {
        Dtype::F32 => norm.backward::<f32>(normed_of(&given), written(to_rows), to_weights),
        Dtype::Bf16 => norm.backward::<Bf16>(normed_of(&given), written(to_rows), to_weights),
    })?;
    Ok(())
}

fn normed_of<N: Number>((rows, kept, gradient, residual): &Given) -> Normed<'_, N> {
    let residual = residual.as_ref().map(numbers);
    Normed { rows: numbers(rows), kept: numbers(kept), gradient: numbers(gradient), residual }
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
    module.add_function(wrap_pyfunction!(row_norm, module)?)?;
    module.add_function(wrap_pyfunction!(row_norm_gradients, module)?)?;
    module.add_class::<PyAdamW>()
}
