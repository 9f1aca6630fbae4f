//! The paged cache of keys and values, in memory that PyTorch owns.

use super::memory::Dtype;
use super::simd::{Isa, Simd, dispatch, narrow};

/// Tokens of a KV split. Splits begin at multiples of this number, so a token's result is the same in every batch.
pub(crate) const SPLIT_TOKENS: usize = 256;

/// One layer's keys or values: `[blocks, block_size, kv_heads, head_dim]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct CachePart {
    pub(crate) data: *mut u8,
}

// SAFETY: threads write to different slots, and read only what was written before the last barrier.
unsafe impl Send for CachePart {}
// SAFETY: the same split of slots among threads makes shared handles safe.
unsafe impl Sync for CachePart {}

impl CachePart {
    /// Creates a view of a layer's keys or values.
    ///
    /// # Safety
    ///
    /// The memory must hold a whole cache of the shape and format given to the model, stay in place, and be used by
    /// nobody else during a step.
    pub unsafe fn from_raw(data: *mut u8) -> Self {
        Self { data }
    }
}

/// One layer's cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheLayer {
    /// Keys.
    pub keys: CachePart,
    /// Values.
    pub values: CachePart,
}

/// The shape of every layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of blocks.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Number of key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number format.
    pub dtype: Dtype,
}

impl CacheShape {
    /// Returns the distance between one head's vectors of two neighbouring tokens, in bytes.
    #[inline(always)]
    pub(crate) fn token_bytes(&self) -> usize {
        self.num_kv_heads * self.head_dim * self.dtype.size()
    }

    /// Returns the byte offset of one head's key or value in a slot.
    #[inline(always)]
    pub(crate) fn offset(&self, slot: usize, head: usize) -> usize {
        (slot * self.num_kv_heads + head) * self.head_dim * self.dtype.size()
    }

    /// Writes one head's key or value into a slot.
    ///
    /// # Safety
    ///
    /// `slot` and `head` are within the shape, and nobody else uses that place until the next barrier.
    pub(crate) unsafe fn store(&self, isa: Isa, part: CachePart, slot: usize, head: usize, values: &[f32]) {
        debug_assert!(slot < self.num_blocks * self.block_size && head < self.num_kv_heads);
        // SAFETY: the caller promises a place within the cache that nobody else uses, and `values` is one head wide.
        unsafe {
            let to = part.data.add(self.offset(slot, head));
            match self.dtype {
                Dtype::F32 => to.cast::<f32>().copy_from_nonoverlapping(values.as_ptr(), values.len()),
                Dtype::Bf16 => narrow_all(isa, values, std::slice::from_raw_parts_mut(to.cast(), values.len())),
            }
        }
    }
}

dispatch! { unsafe fn narrow_all = run_narrow(from: &[f32], to: &mut [u16]) }

#[inline(always)]
unsafe fn run_narrow<S: Simd>(from: &[f32], to: &mut [u16]) {
    for (from, to) in from.iter().zip(to) {
        *to = narrow(*from);
    }
}
