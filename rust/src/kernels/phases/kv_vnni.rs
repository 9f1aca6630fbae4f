//! Attention over one KV split of a cache in int8, in whole numbers, by AVX-512-VNNI.
//!
//! Query heads become whole numbers of 16 bits, and so do the weights of a split's values times their scales. Each is taken
//! apart into two bytes, and `vpdpbusd` multiplies these with four codes at a time, without conversions and f32 products.
//! Sums of products are exact, so their order doesn't matter; only their last steps are rounded. Scores are off by at most
//! 1/65,534 of a query's largest channel for each of a key's, and sums of values by half a code's step at the very most.
//!
//! Nothing saturates or wraps: the product of an unsigned byte and a code is within ±255 · 127, and whole sums, the higher
//! byte's taken 256 times, are within ±256 · 127 · 65,535 < 2^31, for the widest head and for the tokens of a split.
//!
//! The twin is `kv_split` in f32.

use std::arch::x86_64::*;

use super::kv_split::{KvPrefetch, KvSplit, Run, weigh};
use crate::kernels::cache::{Cached, InInt8, SPLIT_TOKENS};
use crate::kernels::simd::{Avx512, Isa};
use crate::prefetch::near;

/// The widest head, for which sums fit 32 bits.
const WIDEST: usize = 256;
/// Channels of a block, which `vpdpbusd` meets in every quarter of a vector.
const BLOCK: usize = 16;
/// Tokens that are taken together.
const TOKENS: usize = 4;
/// Query heads that are taken together, at most.
const HEADS: usize = 3;

/// Largest whole number of a query, with a sign.
const LARGEST_QUERY: f32 = 32_767.0;
/// Largest whole number of a weight.
const LARGEST_WEIGHT: f32 = 65_535.0;

const _: () = assert!(WIDEST * 127 * 65_535 < 1 << 31 && SPLIT_TOKENS * 127 * 65_535 < 1 << 31);

/// Returns whether the kernel takes heads of this width, with an instruction set of this machine.
#[inline]
pub(super) fn takes(isa: Isa, width: usize) -> bool {
    let has_width = width > 0 && width.is_multiple_of(BLOCK) && width <= WIDEST;
    has_width && isa >= Isa::Avx512 && is_x86_feature_detected!("avx512vnni")
}

/// As [`KvSplit::attend`], which has checked the buffers.
///
/// # Safety
///
/// [`takes`] holds for the split's heads, which are in int8; `out` and `scratch` have the sizes that `attend` asks for.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni,avx2,fma")]
pub(super) unsafe fn attend(split: &KvSplit<'_>, out: &mut [f32], scratch: &mut [f32], prefetch: &mut KvPrefetch<'_>) {
    let groups = split.queries.len() / split.shape.head_dim;
    // SAFETY: query heads are taken up to three at a time, all within the split; the caller answers for the rest.
    unsafe {
        let tokens = Tokens::of(split);
        for first in (0..groups).step_by(HEADS) {
            match groups - first {
                1 => score::<1, 1>(split, &tokens, first, scratch, prefetch),
                2 => score::<2, 2>(split, &tokens, first, scratch, prefetch),
                _ => score::<3, 2>(split, &tokens, first, scratch, prefetch),
            }
        }
        weigh::<Avx512>(split, out, scratch);
        for first in (0..groups).step_by(HEADS) {
            match groups - first {
                1 => mix_values::<1>(split, &tokens, (first, scratch), out, prefetch),
                2 => mix_values::<2>(split, &tokens, (first, scratch), out, prefetch),
                _ => mix_values::<3>(split, &tokens, (first, scratch), out, prefetch),
            }
        }
    }
}

/// Where the tokens of a split are.
#[repr(align(64))]
struct Tokens {
    /// Scales of keys, and zeros behind them.
    key_scales: [f32; SPLIT_TOKENS],
    /// Scales of values, and zeros behind them.
    value_scales: [f32; SPLIT_TOKENS],
    /// Byte offsets of the heads, the same in keys and values. The last one is repeated to whole groups of tokens.
    offsets: [usize; SPLIT_TOKENS],
    /// Number of tokens.
    count: usize,
}

impl Tokens {
    /// Reads the scales of all tokens, so that all their memory is asked for before anything waits for it.
    #[inline(always)]
    unsafe fn of(split: &KvSplit<'_>) -> Self {
        let (width, pitch) = (split.shape.head_dim, split.shape.token_bytes());
        let [keys, values] = [split.cache.keys.data, split.cache.values.data].map(<*mut u8>::cast_const);
        let count = split.end - split.start;
        let scales = [0.0; SPLIT_TOKENS];
        let mut found = Self { key_scales: scales, value_scales: scales, offsets: [0; SPLIT_TOKENS], count };
        let mut last = 0;
        for Run { place, count, slot } in split.runs() {
            let mut offset = split.shape.offset(slot, split.head);
            for token in place..place + count {
                near(keys.wrapping_add(offset));
                near(values.wrapping_add(offset));
                for line in (64..width).step_by(64) {
                    near(keys.wrapping_add(offset + line));
                    near(values.wrapping_add(offset + line));
                }
                found.offsets[token] = offset;
                // SAFETY: the tokens lie in blocks that exist.
                unsafe {
                    found.key_scales[token] = InInt8::scale(keys.add(offset), width);
                    found.value_scales[token] = InInt8::scale(values.add(offset), width);
                }
                last = offset;
                offset += pitch;
            }
        }
        found.offsets[count..count.next_multiple_of(TOKENS)].fill(last);
        found
    }

    /// Returns the offsets of a group of tokens.
    #[inline(always)]
    fn group(&self, token: usize) -> [usize; TOKENS] {
        std::array::from_fn(|t| self.offsets[token + t])
    }
}

/// Reciprocals and steps of whole numbers up to `largest`, for floats whose largest magnitude has these bits: `(1 / step, step)`.
/// As bits, magnitudes are in order, and NaN is the largest: a float that is not finite makes the step NaN.
#[inline(always)]
fn steps(bits: u32, largest: f32) -> (f32, f32) {
    let magnitude = f32::from_bits(bits);
    if !magnitude.is_finite() {
        return (0.0, f32::NAN);
    }
    // The reciprocal of a smaller step may be infinite.
    let step = (magnitude / largest).max(f32::MIN_POSITIVE);
    (1.0 / step, step)
}

/// `G` query heads in bytes. Quarter `2 g` of a block's vectors holds the higher bytes of head `g` for the block's channels,
/// the next one the lower bytes; quarter `2 G` holds 128, to take away what higher bytes are too high.
#[repr(align(64))]
struct Queries<const G: usize> {
    bytes: [[[u8; BLOCK]; 2 * HEADS + 2]; WIDEST / BLOCK],
    steps: [f32; G],
}

impl<const G: usize> Queries<G> {
    #[inline(always)]
    unsafe fn of(split: &KvSplit<'_>, first: usize) -> Self {
        let width = split.shape.head_dim;
        let mut found = Self { bytes: [[[0; BLOCK]; 2 * HEADS + 2]; WIDEST / BLOCK], steps: [0.0; G] };
        // SAFETY: the caller's machine has AVX-512; a query head has `width` numbers, a multiple of a vector's.
        unsafe {
            for g in 0..G {
                let query = split.queries[(first + g) * width..][..width].as_ptr();
                let mut largest = _mm512_setzero_si512();
                for channel in (0..width).step_by(BLOCK) {
                    let bits = _mm512_castps_si512(_mm512_loadu_ps(query.add(channel)));
                    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFF_FFFF)));
                }
                let (factor, step) = steps(_mm512_reduce_max_epi32(largest) as u32, LARGEST_QUERY);
                found.steps[g] = step;
                for channel in (0..width).step_by(BLOCK) {
                    let number = _mm512_mul_ps(_mm512_loadu_ps(query.add(channel)), _mm512_set1_ps(factor));
                    let number = _mm512_add_epi32(_mm512_cvtps_epi32(number), _mm512_set1_epi32(1 << 15));
                    let to = &mut found.bytes[channel / BLOCK];
                    for (part, number) in [_mm512_srli_epi32::<8>(number), number].into_iter().enumerate() {
                        _mm_storeu_si128(to[2 * g + part].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(number));
                    }
                    to[2 * G] = [128; BLOCK];
                }
            }
        }
        found
    }
}

/// Adds the four numbers in every quarter of four vectors: number `i` of a quarter is vector `i`'s sum.
#[inline(always)]
unsafe fn sums(vectors: [__m512i; TOKENS]) -> __m512i {
    let [a, b, c, d] = vectors;
    // SAFETY: the caller's machine has AVX-512.
    unsafe {
        let first = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let second = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second))
    }
}

/// Returns `256 a + b` in f32.
#[inline(always)]
unsafe fn whole(a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: the caller's machine has AVX-512.
    unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(a), b)) }
}

/// Gathers the quarters of four vectors: vector `i` of the result has quarter `i` of each.
#[inline(always)]
unsafe fn quarters(vectors: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = vectors;
    // SAFETY: the caller's machine has AVX-512.
    unsafe {
        let (low, other_low) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        let (high, other_high) = (_mm512_shuffle_i32x4::<0xEE>(a, b), _mm512_shuffle_i32x4::<0xEE>(c, d));
        [
            _mm512_shuffle_i32x4::<0x88>(low, other_low),
            _mm512_shuffle_i32x4::<0xDD>(low, other_low),
            _mm512_shuffle_i32x4::<0x88>(high, other_high),
            _mm512_shuffle_i32x4::<0xDD>(high, other_high),
        ]
    }
}

/// Computes the scores of `G` query heads, whose 2 G + 1 quarters are `V` vectors, for every key, sixteen keys at a time.
#[inline(always)]
unsafe fn score<const G: usize, const V: usize>(
    split: &KvSplit<'_>,
    tokens: &Tokens,
    first: usize,
    scratch: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let width = split.shape.head_dim;
    let keys = split.cache.keys.data.cast_const();
    // SAFETY: the tokens lie in blocks that exist; `scratch` has room for `SPLIT_TOKENS` scores of each head.
    unsafe {
        let queries = Queries::<G>::of(split, first);
        let mut products = [[_mm512_setzero_si512(); 4]; V];
        for start in (0..tokens.count).step_by(16) {
            for group in 0..(tokens.count - start).div_ceil(TOKENS).min(4) {
                prefetch.proceed(TOKENS);
                let found = products_of::<G, V>(&queries, keys, tokens.group(start + TOKENS * group), width);
                for v in 0..V {
                    products[v][group] = found[v];
                }
            }
            let mut all = [[_mm512_setzero_si512(); 4]; V];
            for v in 0..V {
                all[v] = quarters(products[v]);
            }
            let quarter = |idx: usize| all[idx / 4][idx % 4];
            let scales = _mm512_loadu_ps(tokens.key_scales[start..][..16].as_ptr());
            for g in 0..G {
                let high = _mm512_sub_epi32(quarter(2 * g), quarter(2 * G));
                let scores = _mm512_mul_ps(whole(high, quarter(2 * g + 1)), scales);
                let to = &mut scratch[(first + g) * SPLIT_TOKENS + start..][..16];
                _mm512_storeu_ps(to.as_mut_ptr(), _mm512_mul_ps(scores, _mm512_set1_ps(queries.steps[g])));
            }
        }
    }
}

/// Returns the products of [`Queries`] with four keys: number `i` of a quarter is that with key `i`.
#[inline(always)]
unsafe fn products_of<const G: usize, const V: usize>(
    queries: &Queries<G>,
    keys: *const u8,
    offsets: [usize; TOKENS],
    width: usize,
) -> [__m512i; V] {
    // SAFETY: the caller's machine has AVX-512 and VNNI, and four keys of `width` codes lie at the offsets.
    unsafe {
        let mut products = [[_mm512_setzero_si512(); TOKENS]; V];
        for (block, bytes) in queries.bytes[..width / BLOCK].iter().enumerate() {
            for t in 0..TOKENS {
                let codes = _mm_loadu_si128(keys.add(offsets[t] + BLOCK * block).cast());
                let codes = _mm512_broadcast_i32x4(codes);
                for v in 0..V {
                    let query = _mm512_loadu_si512(bytes[4 * v].as_ptr().cast());
                    products[v][t] = _mm512_dpbusd_epi32(products[v][t], query, codes);
                }
            }
        }
        let mut found = [_mm512_setzero_si512(); V];
        for v in 0..V {
            found[v] = sums(products[v]);
        }
        found
    }
}

/// Weights of one query head in bytes: for each four tokens their higher bytes, the lower ones, and zeros.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Weights([[[u8; TOKENS]; 4]; SPLIT_TOKENS / TOKENS]);

/// Multiplies a head's weights by the scales of values, and returns them in bytes with their step.
#[inline(always)]
unsafe fn weights_in_bytes(weights: &[f32], scales: &[f32; SPLIT_TOKENS], bytes: &mut Weights) -> f32 {
    // SAFETY: the caller's machine has AVX-512; vectors that reach beyond the weights are loaded in part, and whole vectors
    // of all tokens fit the arrays.
    unsafe {
        let mut scaled = [0.0_f32; SPLIT_TOKENS];
        let mut largest = _mm512_setzero_si512();
        for start in (0..weights.len()).step_by(16) {
            let mask = 0xFFFF_u16 >> 16_usize.saturating_sub(weights.len() - start);
            let weight = _mm512_maskz_loadu_ps(mask, weights.as_ptr().add(start));
            let product = _mm512_mul_ps(weight, _mm512_loadu_ps(scales[start..].as_ptr()));
            let bits = _mm512_and_si512(_mm512_castps_si512(product), _mm512_set1_epi32(0x7FFF_FFFF));
            largest = _mm512_max_epi32(largest, bits);
            _mm512_storeu_ps(scaled[start..].as_mut_ptr(), product);
        }
        let (factor, step) = steps(_mm512_reduce_max_epi32(largest) as u32, LARGEST_WEIGHT);
        // Byte 1 of four numbers, then byte 0.
        let order = _mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
        let order = _mm512_broadcast_i32x4(order);
        for start in (0..weights.len()).step_by(16) {
            let number = _mm512_mul_ps(_mm512_loadu_ps(scaled[start..].as_ptr()), _mm512_set1_ps(factor));
            let to = bytes.0[start / TOKENS..].as_mut_ptr();
            _mm512_storeu_si512(to.cast(), _mm512_shuffle_epi8(_mm512_cvtps_epi32(number), order));
        }
        step
    }
}

/// Computes the weighted sums of values for `G` query heads from the first of `(first, weights)` on.
#[inline(always)]
unsafe fn mix_values<const G: usize>(
    split: &KvSplit<'_>,
    tokens: &Tokens,
    (first, weights): (usize, &[f32]),
    out: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let width = split.shape.head_dim;
    let mut bytes = [Weights([[[0; TOKENS]; 4]; SPLIT_TOKENS / TOKENS]); G];
    let mut steps = [0.0; G];
    for g in 0..G {
        let weights = &weights[(first + g) * SPLIT_TOKENS..][..tokens.count];
        // SAFETY: the caller's machine has AVX-512.
        steps[g] = unsafe { weights_in_bytes(weights, &tokens.value_scales, &mut bytes[g]) };
    }
    let values = split.cache.values.data.cast_const();
    for channel in (0..width).step_by(64) {
        let num_channels = 64.min(width - channel);
        // SAFETY: the tokens lie in blocks that exist, and the channels in their heads.
        let sums = unsafe { mix_channels(values.add(channel), tokens, num_channels, &bytes, prefetch) };
        for g in 0..G {
            let head = &mut out[(first + g) * (width + 2) + channel..][..num_channels];
            for quad in 0..4 {
                let mut numbers = [0.0_f32; 16];
                // SAFETY: the caller's machine has AVX-512, and the array takes a vector.
                unsafe {
                    let [high, low] = sums[g][quad];
                    let product = _mm512_mul_ps(whole(high, low), _mm512_set1_ps(steps[g]));
                    _mm512_storeu_ps(numbers.as_mut_ptr(), product);
                }
                for (block, numbers) in head.chunks_exact_mut(BLOCK).zip(numbers.chunks_exact(4)) {
                    block[4 * quad..][..4].copy_from_slice(numbers);
                }
            }
        }
    }
}

/// Computes up to 64 channels for `G` query heads. Vector `i` of a head's four, each for both bytes of weights, holds channels
/// `4 i` to `4 i + 3` of each block in a quarter.
#[inline(always)]
unsafe fn mix_channels<const G: usize>(
    values: *const u8,
    tokens: &Tokens,
    num_channels: usize,
    bytes: &[Weights; G],
    prefetch: &mut KvPrefetch<'_>,
) -> [[[__m512i; 2]; 4]; G] {
    let mask = 0xFFFF_u16 >> (16 - num_channels / 4);
    // SAFETY: the caller's machine has AVX-512 and VNNI; `num_channels` codes lie at each offset.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); 2]; 4]; G];
        for token in (0..tokens.count).step_by(TOKENS) {
            prefetch.proceed(TOKENS);
            let offsets = tokens.group(token);
            let load = |t: usize| _mm512_maskz_loadu_epi32(mask, values.add(offsets[t]).cast());
            let [a, b, c, d] = [load(0), load(1), load(2), load(3)];
            let (first, second) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (third, fourth) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            let quads = [
                _mm512_unpacklo_epi16(first, second),
                _mm512_unpackhi_epi16(first, second),
                _mm512_unpacklo_epi16(third, fourth),
                _mm512_unpackhi_epi16(third, fourth),
            ];
            for g in 0..G {
                for part in 0..2 {
                    let weights = i32::from_le_bytes(bytes[g].0[token / TOKENS][part]);
                    let weights = _mm512_set1_epi32(weights);
                    for quad in 0..4 {
                        sums[g][quad][part] = _mm512_dpbusd_epi32(sums[g][quad][part], weights, quads[quad]);
                    }
                }
            }
        }
        sums
    }
}
