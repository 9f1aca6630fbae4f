//! The binding `llm._rust`: converts arguments, releases the GIL, maps errors.

mod answer;
mod attention;
mod convert;
mod corpus;
mod engine;
mod error;
mod fields;
mod grammar;
mod kernels;
mod pointwise;
mod sampling;
mod shared_ints;
mod simulation;
mod tokenizer;
mod tokenizer_batch;
mod tokenizer_stream;

use pyo3::prelude::*;

#[pymodule]
fn _rust(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    answer::register(module)?;
    attention::register(module)?;
    pointwise::register(module)?;
    corpus::register(module)?;
    tokenizer::register(module)?;
    tokenizer_batch::register(module)?;
    tokenizer_stream::register(module)?;
    sampling::register(module)?;
    engine::register(module)?;
    grammar::register(module)?;
    kernels::register(module)?;
    simulation::register(module)?;
    Ok(())
}
