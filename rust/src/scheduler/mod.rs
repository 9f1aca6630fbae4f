//! Which tokens run next, and where their keys and values live.
//!
//! One rule schedules everything: a step has a token budget, and each request just advances the number of its tokens
//! that are computed. Chunked prefill, hits in the prefix cache, decoding and resuming after preemption are that one
//! case.

mod block_index;
mod block_pool;
mod config;
mod hash;
mod integrity;
mod load;
mod plan;
mod request;
#[expect(clippy::module_inception, reason = "the scheduler proper is the noun of this folder")]
mod scheduler;
mod simulate;
mod slots;
mod step;

pub use block_pool::BlockPool;
pub use config::{SchedulerConfig, SchedulerStats};
pub use hash::{BlockHash, BlockHasher, BlockId};
pub use load::{SimulatedRequest, SyntheticLoad};
pub use plan::{LogitsRow, RowKind, StepPlan};
pub use request::{Request, RequestOptions};
pub use scheduler::Scheduler;
pub use simulate::{SimulationConfig, SimulationReport, simulate};
