//! Training's operations between products, and its optimizer: each reads its rows once and writes all that its gradient needs.
//!
//! Rows are shared among the threads of `openmp` in chunks of a fixed size, so bits don't depend on the number of threads.

pub(crate) mod adamw;
pub(crate) mod gelu;
pub(crate) mod logprobs;
pub(crate) mod norm;

use super::openmp;
use super::simd::Isa;
use crate::{Error, Result};

/// Who computes an operation.
#[derive(Debug, Clone, Copy)]
pub struct Team {
    /// The instruction set.
    pub isa: Isa,
    /// Number of threads that share the work.
    pub threads: usize,
}

impl Team {
    /// Runs `work` for each chunk below `num_chunks`.
    fn each(self, num_chunks: usize, work: impl Fn(usize) + Sync) {
        openmp::each(self.threads, num_chunks, |_, chunk| work(chunk));
    }

    fn checked(self) -> Result<Self> {
        if Isa::supported().contains(&self.isa) {
            return Ok(self);
        }
        Err(Error::InvalidArgument(format!("this machine lacks {}", self.isa.name())))
    }
}

/// Memory of a result, of which each chunk writes a part of its own.
struct Parts<T>(*mut T);

// SAFETY: chunks write to parts of their own.
unsafe impl<T> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// Returns `len` numbers from `start` on.
    ///
    /// # Safety
    ///
    /// The numbers exist, and nobody else reads or writes them meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "chunks write to parts of their own")]
    unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller promises numbers that nobody else uses.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

fn expect(name: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("`{name}` must hold {wanted} numbers, got {got}")))
}
