//! What attention is given, and its division into units of work.

use std::ops::Range;

use super::rows::{self, BLOCK, Number, Turn};
use crate::kernels::simd::Isa;

/// Widths of heads are multiples of this number: the widest vector of all instruction sets.
pub const HEAD_MULTIPLE: usize = 16;

/// Sizes of attention, and the factor on its scores.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRule {
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads, which divides the number of query heads.
    pub num_kv_heads: usize,
    /// Channels of a head, a multiple of [`HEAD_MULTIPLE`].
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
}

/// Cosines and sines of each token's rotation, `[T, D / 2]` each; channel `i` is paired with `i + D / 2`.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cosine: &'a [f32],
    /// Sines.
    pub sine: &'a [f32],
}

/// Sequences of queries, keys and values in training.
#[derive(Debug, Clone, Copy)]
pub struct CausalAttention<'a, N> {
    /// Sizes and scale.
    pub rule: AttentionRule,
    /// Index of the first token of each sequence, then the number of tokens.
    pub starts: &'a [usize],
    /// Rotation of queries and keys.
    pub rotation: Option<Rotation<'a>>,
    /// Query heads, key heads and value heads of each token, `[T, H + 2 K, D]`.
    pub joined: &'a [N],
    /// The instruction set.
    pub isa: Isa,
    /// Number of threads that share the work.
    pub num_threads: usize,
}

/// What a forward pass keeps for the backward pass.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a, N> {
    /// Output, `[T, H, D]`.
    pub mixed: &'a [N],
    /// Logarithm of the sum of each row's exponentials, `[T, H]`.
    pub logsumexp: &'a [f32],
}

/// Memory that threads write to, each to parts of its own.
pub(super) struct Shared<T>(pub *mut T);

// SAFETY: units of work write to heads of tokens that are theirs alone.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Returns `len` numbers from `start` on.
    ///
    /// # Safety
    ///
    /// The numbers exist, and nobody else reads or writes them meanwhile.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "threads write to parts of their own")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller promises numbers that nobody else uses.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// A sequence and a head of keys and values, with its query heads.
pub(super) struct Unit {
    pub tokens: Range<usize>,
    pub kv_head: usize,
}

impl Unit {
    /// Returns the number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the number of tokens, filled up to whole blocks.
    pub(super) fn padded(&self) -> usize {
        self.len().next_multiple_of(BLOCK)
    }

    /// Returns the tokens of a block.
    pub(super) fn block(&self, block: usize) -> Range<usize> {
        let start = self.tokens.start + block * BLOCK;
        start..self.tokens.end.min(start + BLOCK)
    }
}

impl<'a, N: Number> CausalAttention<'a, N> {
    /// Returns a head of a token, counted over query, key and value heads.
    #[inline(always)]
    pub(super) fn head(&self, token: usize, head: usize) -> &'a [N] {
        let width = self.rule.head_dim;
        let start = (token * (self.rule.num_heads + 2 * self.rule.num_kv_heads) + head) * width;
        &self.joined[start..start + width]
    }

    /// Returns the rotation of a token.
    #[inline(always)]
    pub(super) fn turn(&self, token: usize) -> Option<Turn<'a>> {
        let half = self.rule.head_dim / 2;
        let range = token * half..(token + 1) * half;
        self.rotation.map(|rotation| (&rotation.cosine[range.clone()], &rotation.sine[range]))
    }

    /// Loads up to `to.len() / D` tokens' keys (rotated) or queries, and fills up with zeros.
    #[inline(always)]
    pub(super) fn load_heads(&self, tokens: Range<usize>, head: usize, factor: f32, to: &mut [f32]) {
        let width = self.rule.head_dim;
        let is_value = head >= self.rule.num_heads + self.rule.num_kv_heads;
        let (filled, rest) = to.split_at_mut(tokens.len() * width);
        for (token, to) in tokens.zip(filled.chunks_exact_mut(width)) {
            rows::load(self.head(token, head), if is_value { None } else { self.turn(token) }, factor, to);
        }
        rest.fill(0.0);
    }
}
