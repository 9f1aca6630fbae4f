//! The scheduler: which tokens run next, and where their keys and values live.
//!
//! One rule covers every case: each step has a token budget, and each request advances its number of computed tokens.
//! Chunked prefill, prefix-cache hits, decoding and resuming after preemption all follow from it.

mod block_events;
mod block_index;
mod block_pool;
mod config;
mod hash;
mod integrity;
mod load;
mod plan;
mod policy;
mod request;
#[expect(clippy::module_inception, reason = "the scheduler proper is the noun of this folder")]
mod scheduler;
mod simulate;
mod slots;

pub use block_events::{BlockEvent, StoredBlocks};
pub use block_pool::BlockPool;
pub use config::{SchedulerConfig, SchedulerStats};
pub use hash::{BlockHash, BlockHasher, BlockId};
pub use load::{SimulatedRequest, SyntheticLoad};
pub use plan::{LogitsRow, RowKind, StepPlan};
pub use request::{Request, RequestOptions};
pub use scheduler::Scheduler;
pub use simulate::{SimulationConfig, SimulationReport, simulate};
