//! One row of logits with its chunks' maxima kept in step, and rows side by side on several threads.

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock};

use super::draw::DrawScratch;
use super::penalties::{Seen, TokenCounts};
use super::scan::{CHUNK, chunk_max, scan_maxima, widen};
use crate::{Error, Result};

/// Below this many logits a batch is done by the caller alone: waking a thread costs as much.
const PARALLEL_FROM: usize = 1 << 16;

/// A number that logits are given in: `f32`, or bfloat16 as the `u16` of its bits.
///
/// Rows of `f32` are worked on in place; those of bfloat16 are widened aside, so that no rounding comes in between.
pub trait Logit: Copy + Send + Sync + private::Sealed {
    /// The row as `f32`: itself, or a copy in `buffer`.
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

/// Memory that a thread keeps from row to row and from call to call.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub maxima: Maxima,
    pub counts: TokenCounts,
    pub seen: Seen,
    pub draw: DrawScratch,
    pub sums: Vec<f64>,
    pub raw: RawRow,
}

/// A row as the model gave it, kept where it is changed and log-probabilities are asked for.
#[derive(Debug, Default)]
pub(super) struct RawRow {
    pub logits: Vec<f32>,
    pub maxima: Vec<f32>,
}

impl RawRow {
    pub fn copy(&mut self, row: &Row<'_>) {
        self.logits.clear();
        self.logits.extend_from_slice(row.logits());
        self.maxima.clear();
        self.maxima.extend_from_slice(row.maxima());
    }
}

/// The highest logit of each chunk. While a chunk's isn't known, it is NaN here and the chunk's index in `stale`.
#[derive(Debug, Default)]
pub(super) struct Maxima {
    of_chunk: Vec<f32>,
    stale: Vec<usize>,
}

/// A row being sampled.
#[derive(Debug)]
pub(super) struct Row<'a> {
    logits: &'a mut [f32],
    maxima: &'a mut Maxima,
    has_nan: bool,
}

impl<'a> Row<'a> {
    /// Reads the whole row once.
    pub fn new(logits: &'a mut [f32], maxima: &'a mut Maxima) -> Self {
        let mut row = Self { logits, maxima, has_nan: false };
        row.rescan();
        row
    }

    /// Finds all maxima anew.
    fn rescan(&mut self) {
        self.maxima.stale.clear();
        self.has_nan = scan_maxima(self.logits, &mut self.maxima.of_chunk);
    }

    pub fn logits(&self) -> &[f32] {
        self.logits
    }

    /// Each chunk's maximum; those of changed chunks are right after [`Self::finite_max`].
    pub fn maxima(&self) -> &[f32] {
        &self.maxima.of_chunk
    }

    /// Changes one logit; an id past the row is ignored.
    pub fn change(&mut self, id: u32, to: impl FnOnce(f32) -> f32) {
        let Some(logit) = self.logits.get_mut(id as usize) else { return };
        let (old, new) = (*logit, to(*logit));
        *logit = new;
        self.has_nan |= new.is_nan();
        let max = &mut self.maxima.of_chunk[id as usize / CHUNK];
        if new >= *max {
            *max = new;
        } else if old == *max {
            *max = f32::NAN;
            self.maxima.stale.push(id as usize / CHUNK);
        }
    }

    /// Changes any number of logits.
    pub fn change_all(&mut self, change: impl FnOnce(&mut [f32])) {
        change(self.logits);
        self.rescan();
    }

    /// The row's maximum.
    ///
    /// # Errors
    ///
    /// A NaN or +inf anywhere, or nothing but -inf: softmax would hand out nonsense in silence.
    pub fn finite_max(&mut self, what: &str) -> Result<f32> {
        while let Some(chunk) = self.maxima.stale.pop() {
            let start = chunk * CHUNK;
            let end = self.logits.len().min(start + CHUNK);
            self.maxima.of_chunk[chunk] = chunk_max(&self.logits[start..end]);
        }
        if self.has_nan {
            // It may have been masked since.
            self.rescan();
        }
        let max = chunk_max(&self.maxima.of_chunk);
        if max.is_finite() && !self.has_nan {
            return Ok(max);
        }
        let found = match self.logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            Some(id) => format!("{} at token id {id}", self.logits[id]),
            None => "-inf everywhere".to_owned(),
        };
        Err(Error::InvalidArgument(format!(
            "{what} must hold no NaN or +inf and at least one finite value, got {found}\n\
             hint: check the checkpoint's weights, or run the model in float32"
        )))
    }
}

/// Does `work` for each row of `logits` and its entry of `specs`, on all threads where the batch is worth it.
///
/// # Panics
///
/// If `logits` isn't `specs.len() × vocab_len` long, or `vocab_len` is 0; callers check the shape.
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
        // The caller works too: it has begun before another thread wakes.
        rayon::in_place_scope(|scope| {
            (1..num_threads).for_each(|_| scope.spawn(|_| drain()));
            drain();
        });
    }
    results.into_iter().flatten().collect()
}

/// Threads of the pool; 1 in a process forked from the one that started it, where the pool has no threads.
fn num_threads() -> usize {
    static POOL_PROCESS: OnceLock<u32> = OnceLock::new();
    let process = std::process::id();
    if *POOL_PROCESS.get_or_init(|| process) == process { rayon::current_num_threads() } else { 1 }
}

fn with_scratch(work: impl FnOnce(&mut Scratch, &mut Vec<f32>)) {
    thread_local! {
        static SCRATCH: RefCell<(Scratch, Vec<f32>)> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|(scratch, wide)| work(scratch, wide));
}
