//! Picks the arithmetic of a KV split.

use super::kv_split::{KvPrefetch, KvSplit, attend_in};
#[cfg(target_arch = "x86_64")]
use super::kv_vnni;
use crate::kernels::cache::{CacheFormat, CacheShape, InBf16, InF32, InInt8, SPLIT_TOKENS};
use crate::kernels::memory::Dtype;
use crate::kernels::simd::Isa;

/// How a split is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// In f32.
    Floats(Isa),
    /// A cache in int8 in whole numbers, by AVX-512-VNNI.
    #[cfg(target_arch = "x86_64")]
    WholeNumbers,
}

impl Arithmetic {
    /// Returns the fastest for an instruction set and a cache.
    #[inline(always)]
    pub(super) fn best(isa: Isa, shape: &CacheShape) -> Self {
        #[cfg(target_arch = "x86_64")]
        if shape.format == CacheFormat::Int8 && kv_vnni::takes(isa, shape.head_dim) {
            return Self::WholeNumbers;
        }
        let _ = shape;
        Self::Floats(isa)
    }
}

impl KvSplit<'_> {
    /// Computes the partial result `[groups, head_dim + 2]`: weighted values, then sum and maximum of the weights.
    ///
    /// `scratch` has room for `groups * SPLIT_TOKENS` scores; `prefetch` proceeds meanwhile.
    pub(super) fn attend(&self, isa: Isa, out: &mut [f32], scratch: &mut [f32], prefetch: &mut KvPrefetch<'_>) {
        self.attend_by(Arithmetic::best(isa, self.shape), out, scratch, prefetch);
    }

    /// As [`Self::attend`], by an arithmetic that the machine has and the cache allows.
    pub(super) fn attend_by(
        &self,
        arithmetic: Arithmetic,
        out: &mut [f32],
        scratch: &mut [f32],
        prefetch: &mut KvPrefetch<'_>,
    ) {
        let groups = self.queries.len() / self.shape.head_dim;
        assert!(out.len() == groups * (self.shape.head_dim + 2) && scratch.len() >= groups * SPLIT_TOKENS);
        assert!(self.end - self.start <= SPLIT_TOKENS && self.end <= self.blocks.len() * self.shape.block_size);
        // SAFETY: sizes are checked above, blocks by the step; the model runs with a set of this machine.
        unsafe {
            match (arithmetic, self.shape.format) {
                #[cfg(target_arch = "x86_64")]
                (Arithmetic::WholeNumbers, _) => kv_vnni::attend(self, out, scratch, prefetch),
                (Arithmetic::Floats(isa), CacheFormat::Plain(Dtype::F32)) => {
                    attend_in::<InF32>(isa, self, out, scratch, prefetch);
                }
                (Arithmetic::Floats(isa), CacheFormat::Plain(Dtype::Bf16)) => {
                    attend_in::<InBf16>(isa, self, out, scratch, prefetch);
                }
                (Arithmetic::Floats(isa), CacheFormat::Int8) => attend_in::<InInt8>(isa, self, out, scratch, prefetch),
            }
        }
    }
}
