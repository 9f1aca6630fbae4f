//! The product by AVX2: eight lanes, two for each of four outputs.
//!
//! `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits and saturates there, which with weights of
//! eight bits (2 · 255 · 127 = 64,770) would change results. Here nothing saturates. With four bits, the eight products that
//! are added in 16 bits stay within 8 · 15 · 127 = 15,240. With eight bits, the sign moves from the weight to the
//! activation: magnitudes are at most 128 · 127, and two products 32,512, below 2^15.

use std::arch::x86_64::*;

use super::activations::Group;
use super::scheme::Scheme;
use super::task::{PREFETCH_BYTES, PackedTask};
use crate::kernels::product::strip::STRIP;
use crate::prefetch::near;

/// Rows of activations in the largest tile.
const MAX_TILE_ROWS: usize = 4;
/// Outputs of a vector.
const HALF: usize = STRIP / 2;

/// Returns whether the machine converts half-precision numbers beside AVX2 and FMA.
#[inline]
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("f16c")
}

/// Multiplies all rows of activations with a strip.
///
/// # Safety
///
/// The machine has AVX2, FMA and F16C, and the task's pointers are valid for its sizes.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_strip(task: &PackedTask) {
    // SAFETY: the caller promises a valid task.
    unsafe {
        match task.scheme {
            Scheme::Q8_0 => all_rows::<Q8_0>(task),
            Scheme::Q4_0 => all_rows::<Q4_0>(task),
            Scheme::Q4_1 => all_rows::<Q4_1>(task),
        }
    }
}

/// The codes of one scheme.
trait Codes {
    const SCHEME: Scheme;
    /// Loads half of a group's outputs: vector `i` holds columns `8 i..8 i + 8` of four outputs.
    unsafe fn load(codes: *const u8) -> [__m256i; 4];
    /// Returns the group's products, summed exactly.
    unsafe fn product(weights: &[__m256i; 4], x: &Group) -> __m256i;
}

struct Q8_0;
struct Q4_0;
struct Q4_1;

/// Repeats eight activations in all lanes.
#[inline(always)]
unsafe fn eight(x: &Group, block: usize) -> __m256i {
    // SAFETY: a group has four blocks of eight codes, and the caller's machine has AVX2.
    unsafe { _mm256_set1_epi64x(x.codes.as_ptr().add(8 * block).cast::<i64>().read_unaligned()) }
}

#[inline(always)]
unsafe fn load_halves(codes: *const u8) -> [__m256i; 4] {
    // SAFETY: the caller's machine has AVX2, and the group's two vectors are there.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let (a, b) = (_mm256_loadu_si256(codes.cast()), _mm256_loadu_si256(codes.add(8 * STRIP).cast()));
        let high = |codes| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
        [_mm256_and_si256(a, low), _mm256_and_si256(b, low), high(a), high(b)]
    }
}

/// Multiplies codes of four bits: four times two products are added in 16 bits.
#[inline(always)]
unsafe fn product_of_halves(weights: &[__m256i; 4], x: &Group) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe {
        let [a, b, c, d] = [0, 1, 2, 3].map(|block| _mm256_maddubs_epi16(weights[block], eight(x, block)));
        let sums = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
        _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
    }
}

impl Codes for Q8_0 {
    const SCHEME: Scheme = Scheme::Q8_0;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's machine has AVX2, and the group's four vectors are there.
        unsafe {
            let sign = _mm256_set1_epi8(-128);
            [0, 1, 2, 3].map(|block| _mm256_xor_si256(_mm256_loadu_si256(codes.add(8 * STRIP * block).cast()), sign))
        }
    }
    #[inline(always)]
    unsafe fn product(weights: &[__m256i; 4], x: &Group) -> __m256i {
        // SAFETY: the caller's machine has AVX2.
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(|block| {
                let signed = _mm256_sign_epi8(eight(x, block), weights[block]);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[block]), signed);
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            });
            _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d))
        }
    }
}

impl Codes for Q4_0 {
    const SCHEME: Scheme = Scheme::Q4_0;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller answers for machine and group.
        unsafe { load_halves(codes) }
    }
    #[inline(always)]
    unsafe fn product(weights: &[__m256i; 4], x: &Group) -> __m256i {
        // SAFETY: the caller's machine has AVX2.
        unsafe { _mm256_add_epi32(product_of_halves(weights, x), _mm256_set1_epi32(x.offset)) }
    }
}

impl Codes for Q4_1 {
    const SCHEME: Scheme = Scheme::Q4_1;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller answers for machine and group.
        unsafe { load_halves(codes) }
    }
    #[inline(always)]
    unsafe fn product(weights: &[__m256i; 4], x: &Group) -> __m256i {
        // SAFETY: the caller's machine has AVX2.
        unsafe { product_of_halves(weights, x) }
    }
}

#[inline(always)]
unsafe fn all_rows<C: Codes>(task: &PackedTask) {
    for row in (0..task.num_rows).step_by(MAX_TILE_ROWS) {
        // SAFETY: the caller promises a valid task, and the tile lies within its rows.
        unsafe {
            match MAX_TILE_ROWS.min(task.num_rows - row) {
                1 => tile::<C, 1>(task, row),
                2 => tile::<C, 2>(task, row),
                3 => tile::<C, 3>(task, row),
                _ => tile::<C, 4>(task, row),
            }
        }
    }
}

/// Multiplies `M` rows of activations with the strip, four outputs at a time within each group.
#[inline(always)]
unsafe fn tile<C: Codes, const M: usize>(task: &PackedTask, row: usize) {
    let num_groups = task.num_groups();
    let (scale_step, code_step) = (STRIP * C::SCHEME.scale_bytes(), STRIP * C::SCHEME.code_bytes());
    let (mut scales, mut codes) = (task.strip, task.codes());
    // SAFETY: the task has `row + M` rows of activations and a strip of `num_groups` groups; `out` has a strip per row.
    unsafe {
        let x = task.x.add(row * num_groups);
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for group in 0..num_groups {
            for line in (0..code_step).step_by(64) {
                near(codes.wrapping_add(PREFETCH_BYTES + line));
            }
            for half in 0..2 {
                let weights = C::load(codes.add(8 * HALF * half));
                let numbers = _mm_loadl_epi64(scales.add(2 * HALF * half).cast());
                let scale = _mm256_cvtph_ps(_mm_unpacklo_epi16(numbers, numbers));
                let min = match C::SCHEME {
                    // A minimum in every other lane, 0 between: the two lanes of an output are added in the end.
                    Scheme::Q4_1 => _mm256_cvtph_ps(_mm_cvtepu16_epi32(_mm_loadl_epi64(
                        scales.add(2 * STRIP + 2 * HALF * half).cast(),
                    ))),
                    Scheme::Q8_0 | Scheme::Q4_0 => _mm256_setzero_ps(),
                };
                for m in 0..M {
                    let x = &*x.add(m * num_groups + group);
                    let sum = _mm256_cvtepi32_ps(C::product(&weights, x));
                    let scaled = _mm256_mul_ps(sum, _mm256_set1_ps(x.scale));
                    sums[m][half] = _mm256_fmadd_ps(scaled, scale, sums[m][half]);
                    if C::SCHEME == Scheme::Q4_1 {
                        sums[m][half] = _mm256_fmadd_ps(min, _mm256_set1_ps(x.scaled_sum), sums[m][half]);
                    }
                }
            }
            (scales, codes) = (scales.add(scale_step), codes.add(code_step));
        }
        for m in 0..M {
            // Each 128 bits: outputs 0 and 1 of the first half, then of the second; the permutation sorts them.
            let pairs = _mm256_castps_pd(_mm256_hadd_ps(sums[m][0], sums[m][1]));
            let outputs = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(pairs));
            _mm256_storeu_ps(task.out.add((row + m) * STRIP), outputs);
        }
    }
}
