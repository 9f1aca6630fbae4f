//! All rows of a batch: the number format of their logits, scratch memory, and the threads that share them.

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock};

use super::draw::DrawScratch;
use super::penalties::{Seen, TokenCounts};
use super::row::{Maxima, RawRow};
use super::scan::widen;

/// Batches with fewer logits run on the calling thread alone, since waking another thread would cost as much.
const PARALLEL_FROM: usize = 1 << 16;

/// The number format of logits: `f32`, or bfloat16 as its bits in a `u16`.
///
/// `f32` rows are sampled in place; bfloat16 rows are first widened into a buffer, so that no step rounds to bfloat16.
pub trait Logit: Copy + Send + Sync + private::Sealed {
    /// Returns the row as `f32`: the row itself, or a copy in `buffer`.
    #[doc(hidden)]
    fn as_wide<'a>(row: &'a mut [Self], buffer: &'a mut Vec<f32>) -> &'a mut [f32];
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for u16 {}
}

impl Logit for f32 {
    fn as_wide<'a>(row: &'a mut [f32], _: &'a mut Vec<f32>) -> &'a mut [f32] {
        row
    }
}

impl Logit for u16 {
    fn as_wide<'a>(row: &'a mut [u16], buffer: &'a mut Vec<f32>) -> &'a mut [f32] {
        buffer.clear();
        widen(row, buffer);
        buffer
    }
}

/// Memory that a thread reuses for every row and call.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub maxima: Maxima,
    pub counts: TokenCounts,
    pub seen: Seen,
    pub draw: DrawScratch,
    pub sums: Vec<f64>,
    pub raw: RawRow,
}

/// Calls `work` with each row of `logits` and its entry of `specs`, on all threads if the batch is large enough.
///
/// # Panics
///
/// If `logits` is not `specs.len() × vocab_len` long, or if `vocab_len` is 0; callers check the shape.
pub(super) fn map_rows<L: Logit, S: Sync, R: Send>(
    logits: &mut [L],
    vocab_len: usize,
    specs: &[S],
    work: impl Fn(&mut [f32], &S, &mut Scratch) -> R + Sync,
) -> Vec<R> {
    assert_eq!(logits.len(), specs.len() * vocab_len, "logits and rows disagree");
    let num_threads = if logits.len() < PARALLEL_FROM { 1 } else { num_threads().min(specs.len()) };
    let mut results: Vec<Option<R>> = specs.iter().map(|_| None).collect();
    let queue = Mutex::new(logits.chunks_exact_mut(vocab_len).zip(specs).zip(&mut results));
    let next = || queue.lock().ok()?.next();
    let drain = || {
        with_scratch(|scratch, wide| {
            while let Some(((row, spec), result)) = next() {
                *result = Some(work(L::as_wide(row, wide), spec, scratch));
            }
        });
    };
    if num_threads <= 1 {
        drain();
    } else {
        // The calling thread works too, and starts before any other thread wakes.
        rayon::in_place_scope(|scope| {
            (1..num_threads).for_each(|_| scope.spawn(|_| drain()));
            drain();
        });
    }
    results.into_iter().flatten().collect()
}

/// Returns the number of threads in the pool; 1 without a pool.
fn num_threads() -> usize {
    if has_pool() { rayon::current_num_threads() } else { 1 }
}

/// Whether the pool of threads belongs to this process; a forked process does not inherit the threads.
pub(crate) fn has_pool() -> bool {
    static POOL_PROCESS: OnceLock<u32> = OnceLock::new();
    let process = std::process::id();
    *POOL_PROCESS.get_or_init(|| process) == process
}

fn with_scratch(work: impl FnOnce(&mut Scratch, &mut Vec<f32>)) {
    thread_local! {
        static SCRATCH: RefCell<(Scratch, Vec<f32>)> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|(scratch, wide)| work(scratch, wide));
}
