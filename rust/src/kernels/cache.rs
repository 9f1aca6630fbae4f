//! The paged cache of keys and values, in memory that PyTorch owns.

use super::memory::Dtype;
use super::simd::{Isa, Simd, dispatch, narrow, widen};

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

/// Format of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFormat {
    /// Numbers as they are.
    Plain(Dtype),
    /// A head's codes from -127 to 127, then their scale in bf16.
    Int8,
}

impl CacheFormat {
    /// Returns the bytes of a head of `width` channels.
    #[inline(always)]
    pub fn head_bytes(self, width: usize) -> usize {
        match self {
            Self::Plain(dtype) => width * dtype.size(),
            Self::Int8 => width + SCALE_BYTES,
        }
    }
}

/// Bytes of the scale after a head's codes.
pub const SCALE_BYTES: usize = 2;
/// The largest code.
const LARGEST_CODE: f32 = 127.0;

/// A format of cached heads, as kernels read them.
///
/// # Safety
///
/// Every function requires the address of a whole head in this format, and channels within it.
pub(crate) trait Cached: Copy {
    /// Loads a vector of channels, to be multiplied by the scale.
    unsafe fn load<S: Simd>(head: *const u8, channel: usize) -> S::V;
    /// Loads one channel, to be multiplied by the scale.
    unsafe fn one(head: *const u8, channel: usize) -> f32;
    /// Returns the scale of a head of `width` channels.
    #[inline(always)]
    unsafe fn scale(_head: *const u8, _width: usize) -> f32 {
        1.0
    }
}

/// Heads in f32.
#[derive(Clone, Copy)]
pub(crate) struct InF32;
/// Heads in bf16.
#[derive(Clone, Copy)]
pub(crate) struct InBf16;
/// Heads in [`CacheFormat::Int8`].
#[derive(Clone, Copy)]
pub(crate) struct InInt8;

#[expect(unsafe_op_in_unsafe_fn, reason = "every function has the contract of the trait: a whole head")]
impl Cached for InF32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(head: *const u8, channel: usize) -> S::V {
        S::load(head.cast::<f32>().add(channel))
    }
    #[inline(always)]
    unsafe fn one(head: *const u8, channel: usize) -> f32 {
        *head.cast::<f32>().add(channel)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "every function has the contract of the trait: a whole head")]
impl Cached for InBf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(head: *const u8, channel: usize) -> S::V {
        S::load_bf16(head.cast::<u16>().add(channel))
    }
    #[inline(always)]
    unsafe fn one(head: *const u8, channel: usize) -> f32 {
        widen(*head.cast::<u16>().add(channel))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "every function has the contract of the trait: a whole head")]
impl Cached for InInt8 {
    #[inline(always)]
    unsafe fn load<S: Simd>(head: *const u8, channel: usize) -> S::V {
        S::load_i8(head.cast::<i8>().add(channel))
    }
    #[inline(always)]
    unsafe fn one(head: *const u8, channel: usize) -> f32 {
        f32::from(*head.cast::<i8>().add(channel))
    }
    #[inline(always)]
    unsafe fn scale(head: *const u8, width: usize) -> f32 {
        widen(head.add(width).cast::<u16>().read_unaligned())
    }
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
    /// Format of a head.
    pub format: CacheFormat,
}

impl CacheShape {
    /// Returns the distance between one head's vectors of two neighbouring tokens, in bytes.
    #[inline(always)]
    pub(crate) fn token_bytes(&self) -> usize {
        self.num_kv_heads * self.format.head_bytes(self.head_dim)
    }

    /// Returns the byte offset of one head's key or value in a slot.
    #[inline(always)]
    pub(crate) fn offset(&self, slot: usize, head: usize) -> usize {
        (slot * self.num_kv_heads + head) * self.format.head_bytes(self.head_dim)
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
            match self.format {
                CacheFormat::Plain(Dtype::F32) => {
                    to.cast::<f32>().copy_from_nonoverlapping(values.as_ptr(), values.len());
                }
                CacheFormat::Plain(Dtype::Bf16) => {
                    narrow_all(isa, values, std::slice::from_raw_parts_mut(to.cast(), values.len()));
                }
                CacheFormat::Int8 => {
                    let (codes, scale) = (to.cast::<i8>(), to.add(values.len()));
                    let mut bits = 0;
                    encode_head(isa, values, std::slice::from_raw_parts_mut(codes, values.len()), &mut bits);
                    scale.cast::<u16>().write_unaligned(bits);
                }
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

dispatch! { unsafe fn encode_head = run_encode(from: &[f32], codes: &mut [i8], scale: &mut u16) }

/// Encodes a head: whole multiples of the largest magnitude over 127, which is rounded up to bf16 so that no code is larger.
/// A head that is not finite gets NaN as its scale.
///
/// Every instruction set, and PyTorch's `cached.keep`, yields the same bytes: each operation is exact or rounds once.
///
/// Source: Dettmers et al. 2022, «LLM.int8()», section 2.1 (absmax quantization), per head.
#[inline(always)]
unsafe fn run_encode<S: Simd>(from: &[f32], codes: &mut [i8], scale: &mut u16) {
    // Adding and subtracting it rounds a number below 2^22 to the nearest whole one, ties to even.
    const ROUNDER: f32 = 12_582_912.0;
    // As bits, magnitudes are in order, and NaN is the largest.
    let largest = from.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7FFF_FFFF));
    let step = f32::from_bits(largest) / LARGEST_CODE;
    if !step.is_finite() {
        codes.fill(0);
        *scale = narrow(f32::NAN);
        return;
    }
    // The reciprocal of a smaller scale may be infinite.
    *scale = ((step.max(f32::MIN_POSITIVE).to_bits() + 0xFFFF) >> 16) as u16;
    let factor = 1.0 / widen(*scale);
    for (value, code) in from.iter().zip(codes) {
        *code = ((value * factor + ROUNDER) - ROUNDER) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a head into a cache of one slot and returns its codes and scale.
    fn encoded(isa: Isa, values: &[f32]) -> (Vec<i8>, f32) {
        let format = CacheFormat::Int8;
        let shape = CacheShape { num_blocks: 1, block_size: 1, num_kv_heads: 1, head_dim: values.len(), format };
        let mut memory = vec![0x55_u8; shape.token_bytes()];
        let part = CachePart { data: memory.as_mut_ptr() };
        // SAFETY: the cache has room for one head, which nobody else uses.
        unsafe { shape.store(isa, part, 0, 0, values) };
        let (codes, scale) = memory.split_at(values.len());
        (codes.iter().map(|code| *code as i8).collect(), widen(u16::from_le_bytes([scale[0], scale[1]])))
    }

    #[test]
    fn a_head_is_encoded_alike_by_every_set_within_half_a_step() {
        let mut state = 9_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        for width in [1, 7, 16, 64, 70, 128] {
            for size in [1.0, 1e-30, 3e37, 40.0] {
                let mut values: Vec<f32> = (0..width).map(|_| number() * size).collect();
                values[width / 2] *= 30.0_f32.min(f32::MAX / size / 2.0);
                let (codes, scale) = encoded(Isa::Portable, &values);
                let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                assert!(scale >= largest / 127.0 && scale <= 1.008 * largest / 127.0, "{scale} for {largest}");
                for (code, value) in codes.iter().zip(&values) {
                    let error = (f64::from(*code) * f64::from(scale) - f64::from(*value)).abs();
                    assert!(error <= 0.500_001 * f64::from(scale), "{code} for {value}");
                }
                for isa in Isa::supported() {
                    assert_eq!(encoded(isa, &values), (codes.clone(), scale), "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn heads_of_zeros_and_of_tiny_numbers_become_zeros_and_bad_ones_nan() {
        for isa in Isa::supported() {
            assert_eq!(encoded(isa, &[0.0, -0.0, 1e-42]), (vec![0, 0, 0], f32::MIN_POSITIVE));
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xFFFF_FFFF)] {
                let (codes, scale) = encoded(isa, &[1.0, bad, 2.0]);
                assert!(codes == [0, 0, 0] && scale.is_nan(), "{bad}");
            }
        }
    }
}
