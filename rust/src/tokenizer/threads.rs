//! Thread pools of a chosen size.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Maximum number of threads that may be asked for: more is a mistake, and each thread costs a stack.
pub const MAX_THREADS: usize = 1024;

/// Pools by process and number of threads. A pool is never dropped, because its threads keep what they have cached. A
/// forked process has the table but not the threads, and would wait for them forever, so the process id is part of the
/// key.
static POOLS: Mutex<BTreeMap<(u32, usize), Arc<ThreadPool>>> = Mutex::new(BTreeMap::new());

/// Default number of threads: as many as this process may use at once.
pub fn default_num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The pool of `num_threads` threads, or of one per core if `None`; created on first use.
///
/// # Errors
///
/// `InvalidArgument` if `num_threads` is 0 or above [`MAX_THREADS`]; `Internal` if the threads cannot be started.
pub fn pool(num_threads: Option<usize>) -> Result<Arc<ThreadPool>> {
    let num_threads = num_threads.unwrap_or_else(default_num_threads);
    if num_threads == 0 || num_threads > MAX_THREADS {
        return Err(Error::InvalidArgument(format!(
            "`num_threads` must be from 1 to {MAX_THREADS}, got {num_threads}"
        )));
    }
    let failed = |reason: String| Error::Internal(format!("{num_threads} threads can't be started: {reason}"));
    let mut pools = POOLS.lock().map_err(|error| failed(error.to_string()))?;
    let key = (std::process::id(), num_threads);
    if let Some(pool) = pools.get(&key) {
        return Ok(Arc::clone(pool));
    }
    let name = |index| format!("llm-tokenizer-{index}");
    let pool = ThreadPoolBuilder::new().num_threads(num_threads).thread_name(name).build();
    let pool = Arc::new(pool.map_err(|error| failed(error.to_string()))?);
    pools.insert(key, Arc::clone(&pool));
    Ok(pool)
}
