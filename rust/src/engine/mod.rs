//! One step of serving: schedule, (the model runs), update.
//!
//! Joins the tokenizer's streams, sampling, grammars and the scheduler; none of them knows the others.

mod constraint;
mod core;
mod outputs;
mod params;
mod sequence;

pub use self::core::{EngineConfig, EngineCore, Submission};
pub use outputs::{FinishReason, StepOutputs};
pub use params::RequestParams;
