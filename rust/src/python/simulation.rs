//! Binding of the scheduler's simulation.

use std::collections::BTreeMap;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use super::fields::Attributes;
use crate::scheduler::{
    SchedulerConfig, SimulatedRequest, SimulationConfig, SimulationReport, SyntheticLoad, simulate,
};
use crate::{Error, Result};

/// A load of requests for `simulate_scheduler`.
#[pyclass(frozen, name = "SimulatedLoad", module = "llm._rust")]
struct PySimulatedLoad(Load);

enum Load {
    Synthetic(SyntheticLoad),
    Trace(Vec<SimulatedRequest>),
}

#[pymethods]
impl PySimulatedLoad {
    #[staticmethod]
    #[pyo3(signature = (*, num_requests, mean_prompt_tokens, mean_output_tokens, max_tokens, rate_per_s=None,
        num_prefixes=0, prefix_tokens=0, seed=0))]
    #[expect(clippy::too_many_arguments, reason = "Python's keyword arguments are the load's fields")]
    fn synthetic(
        num_requests: usize,
        mean_prompt_tokens: f64,
        mean_output_tokens: f64,
        max_tokens: usize,
        rate_per_s: Option<f64>,
        num_prefixes: usize,
        prefix_tokens: usize,
        seed: u64,
    ) -> Self {
        Self(Load::Synthetic(SyntheticLoad {
            num_requests,
            mean_prompt_tokens,
            mean_output_tokens,
            max_tokens,
            rate_per_s,
            num_prefixes,
            prefix_tokens,
            seed,
        }))
    }

    #[staticmethod]
    fn trace(
        arrival_s: PyReadonlyArray1<'_, f64>,
        prompt_tokens: PyReadonlyArray1<'_, u32>,
        output_tokens: PyReadonlyArray1<'_, u32>,
        prefix_ids: PyReadonlyArray1<'_, u64>,
        prefix_tokens: PyReadonlyArray1<'_, u32>,
    ) -> Result<Self> {
        let columns = (arrival_s.as_array(), prompt_tokens.as_array(), output_tokens.as_array());
        let (prefix_ids, prefix_tokens) = (prefix_ids.as_array(), prefix_tokens.as_array());
        let num_requests = columns.0.len();
        if [columns.1.len(), columns.2.len(), prefix_ids.len(), prefix_tokens.len()] != [num_requests; 4] {
            return Err(Error::InvalidArgument("a trace's columns must be of one length".to_owned()));
        }
        let request = |row: usize| SimulatedRequest {
            arrival_s: columns.0[row],
            prompt_tokens: columns.1[row] as usize,
            output_tokens: columns.2[row] as usize,
            prefix: (prefix_tokens[row] > 0).then(|| (prefix_ids[row], prefix_tokens[row] as usize)),
        };
        Ok(Self(Load::Trace((0..num_requests).map(request).collect())))
    }

    fn __len__(&self) -> usize {
        match &self.0 {
            Load::Synthetic(load) => load.num_requests,
            Load::Trace(requests) => requests.len(),
        }
    }
}

/// Runs a load through a scheduler without a model.
#[pyfunction]
#[pyo3(signature = (load, config, *, num_blocks, step_s=0.0, token_s=0.0, progress=None))]
fn simulate_scheduler(
    load: &Bound<'_, PySimulatedLoad>,
    config: &Bound<'_, PyAny>,
    num_blocks: usize,
    step_s: f64,
    token_s: f64,
    progress: Option<Py<PyAny>>,
) -> PyResult<BTreeMap<&'static str, f64>> {
    let py = load.py();
    let scheduler = SchedulerConfig { num_blocks, ..SchedulerConfig::read(&Attributes(config))? };
    let config = SimulationConfig { scheduler, step_s, token_s };
    let mut raised = None;
    let mut report = |num_finished: usize| {
        let result = Python::attach(|py| {
            py.check_signals()?;
            progress.as_ref().map_or(Ok(()), |callback| callback.call1(py, (num_finished,)).map(drop))
        });
        raised = result.err();
        raised.is_none()
    };
    let load = &load.get().0;
    let result = py.detach(|| match load {
        Load::Synthetic(load) => simulate(config, load.requests()?, &mut report),
        Load::Trace(requests) => simulate(config, requests.iter().copied(), &mut report),
    });
    match raised {
        Some(error) => Err(error),
        None => Ok(fields(&result?)),
    }
}

fn fields(report: &SimulationReport) -> BTreeMap<&'static str, f64> {
    BTreeMap::from([
        ("num_finished", report.num_finished as f64),
        ("num_refused", report.num_refused as f64),
        ("output_tokens", report.output_tokens as f64),
        ("wall_s", report.wall_s),
        ("simulated_s", report.simulated_s),
        ("step_us_p50", report.step_us_p50),
        ("step_us_p99", report.step_us_p99),
        ("step_us_max", report.step_us_max),
        ("step_us_mean", report.step_us_mean),
        ("add_us_mean", report.add_us_mean),
        ("mean_batch", report.mean_batch),
        ("peak_waiting", report.peak_waiting as f64),
        ("peak_blocks", report.peak_blocks as f64),
        ("num_steps", report.stats.num_steps as f64),
        ("tokens_scheduled", report.stats.tokens_scheduled as f64),
        ("num_preemptions", report.stats.num_preemptions as f64),
        ("prefix_query_tokens", report.stats.prefix_query_tokens as f64),
        ("prefix_hit_tokens", report.stats.prefix_hit_tokens as f64),
    ])
}

/// Adds this module's classes and functions to `llm._rust`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySimulatedLoad>()?;
    module.add_function(wrap_pyfunction!(simulate_scheduler, module)?)
}
