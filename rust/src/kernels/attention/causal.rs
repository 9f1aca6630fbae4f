//! Forward and backward passes for callers: checks, and units of work shared among threads.

use super::problem::{AttentionRule, CausalAttention, HEAD_MULTIPLE, Kept, Rotation, Shared, Unit};
use super::rows::Number;
use super::{backward, forward};
use crate::kernels::memory::AlignedBuffer;
use crate::kernels::openmp;
use crate::kernels::simd::Isa;
use crate::{Error, Result};

/// Numbers in a cache line.
const LINE: usize = 16;

impl<'a, N: Number> CausalAttention<'a, N> {
    /// Writes the output, `[T, H, D]`, and the logarithm of the sum of each row's exponentials, `[T, H]`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other or the machine lacks the instruction set.
    pub fn forward(&self, mixed: &mut [N], logsumexp: &mut [f32]) -> Result<()> {
        let tokens = self.checked()?;
        let heads = tokens * self.rule.num_heads;
        expect("mixed", mixed.len(), heads * self.rule.head_dim)?;
        expect("logsumexp", logsumexp.len(), heads)?;
        let task =
            forward::Forward { given: self, mixed: Shared(mixed.as_mut_ptr()), sums: Shared(logsumexp.as_mut_ptr()) };
        self.each_unit(forward::scratch_len(self.rule, self.longest()), |unit, scratch| {
            // SAFETY: `checked` found the machine's instruction set and all sizes right; units share no part.
            unsafe { forward::run(self.isa, &task, unit, scratch) }
        });
        Ok(())
    }

    /// Writes the gradient of the joined queries, keys and values for that of the output.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other or the machine lacks the instruction set.
    pub fn backward(&self, kept: Kept<'_, N>, gradient: &[N], to_joined: &mut [N]) -> Result<()> {
        let tokens = self.checked()?;
        let heads = tokens * self.rule.num_heads;
        expect("mixed", kept.mixed.len(), heads * self.rule.head_dim)?;
        expect("logsumexp", kept.logsumexp.len(), heads)?;
        expect("gradient", gradient.len(), kept.mixed.len())?;
        expect("to_joined", to_joined.len(), self.joined.len())?;
        let task = backward::Backward { given: self, kept, gradient, to_joined: Shared(to_joined.as_mut_ptr()) };
        self.each_unit(backward::scratch_len(self.rule, self.longest()), |unit, scratch| {
            // SAFETY: `checked` found the machine's instruction set and all sizes right; units share no part.
            unsafe { backward::run(self.isa, &task, unit, scratch) }
        });
        Ok(())
    }

    /// Returns the number of tokens, provided that all sizes agree.
    fn checked(&self) -> Result<usize> {
        let AttentionRule { num_heads, num_kv_heads, head_dim, .. } = self.rule;
        let is_sound = num_kv_heads > 0 && num_heads > 0 && num_heads.is_multiple_of(num_kv_heads) && head_dim > 0;
        if !is_sound || !head_dim.is_multiple_of(HEAD_MULTIPLE) {
            return Err(Error::InvalidArgument(format!(
                "key heads must divide query heads, and channels be a multiple of {HEAD_MULTIPLE}, got {num_kv_heads} key \
                 heads and {num_heads} query heads of {head_dim} channels"
            )));
        }
        let is_rising = self.starts.first() == Some(&0) && self.starts.is_sorted();
        let tokens = self.starts.last().copied().filter(|_| is_rising).ok_or_else(|| {
            Error::InvalidArgument(format!("`starts` must begin with 0 and not fall, got {:?}", self.starts))
        })?;
        expect("joined", self.joined.len(), tokens * (num_heads + 2 * num_kv_heads) * head_dim)?;
        if let Some(Rotation { cosine, sine }) = self.rotation {
            expect("cosine", cosine.len(), tokens * head_dim / 2)?;
            expect("sine", sine.len(), tokens * head_dim / 2)?;
        }
        if !Isa::supported().contains(&self.isa) {
            return Err(Error::InvalidArgument(format!("this machine lacks {}", self.isa.name())));
        }
        Ok(tokens)
    }

    /// Returns the number of tokens of the longest sequence.
    fn longest(&self) -> usize {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// Runs `work` for each unit, with scratch memory of `len` numbers whose values are arbitrary.
    fn each_unit(&self, len: usize, work: impl Fn(&Unit, &mut [f32]) + Sync) {
        let heads = self.rule.num_kv_heads;
        let num_units = (self.starts.len() - 1) * heads;
        // A vector that crosses a cache line takes two accesses.
        let len = len.next_multiple_of(LINE);
        let mut scratch = AlignedBuffer::new(len * self.num_threads.clamp(1, num_units.max(1)));
        let shared = scratch.shared();
        openmp::each(self.num_threads, num_units, |worker, idx| {
            // SAFETY: a worker has one unit at a time, and a part of its own.
            let scratch = unsafe { shared.write(worker * len, len) };
            let sequence = idx / heads;
            let tokens = self.starts[sequence]..self.starts[sequence + 1];
            work(&Unit { tokens, kv_head: idx % heads }, scratch);
        });
    }
}

fn expect(name: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("`{name}` must hold {wanted} numbers, got {got}")))
}
