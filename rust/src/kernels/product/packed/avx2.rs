//! The product by AVX2: eight lanes, two for each of four outputs.
//!
//! `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits and saturates there, which with weights of
//! eight bits (2 · 255 · 127 = 64,770) would change results. Here nothing saturates. With four and five bits and four-bit floats, the eight
//! products that are added in 16 bits stay within 8 · 31 · 127 = 31,496. With six, four are added, within 4 · 63 · 127 =
//! 32,004. With eight, the sign moves from the weight to the activation: magnitudes are at most 128 · 127, and two products
//! 32,512, below 2^15.

use std::arch::x86_64::*;

use super::activations::Group;
use super::kind::{self, Kind, for_kind};
use super::layout::{FLOATS, Scales, Width};
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
        for_kind!(task.scheme, all_rows, task);
    }
}

/// Loads a group's codes for four outputs: vector `i` holds columns `8 i..8 i + 8`. Codes of eight bits get their signs,
/// others are as high as they are stored.
#[inline(always)]
unsafe fn load<K: Kind>(codes: *const u8, bits: *const u8) -> [__m256i; 4] {
    // SAFETY: the caller's machine has AVX2, and the group's vectors are there.
    unsafe {
        let vector = |idx: usize| _mm256_loadu_si256(codes.add(8 * STRIP * idx).cast());
        if K::LAYOUT.width == Width::Eight {
            let sign = _mm256_set1_epi8(-128);
            let signed = |block: usize| _mm256_xor_si256(vector(block), sign);
            return [signed(0), signed(1), signed(2), signed(3)];
        }
        let low = _mm256_set1_epi8(15);
        let (a, b) = (vector(0), vector(1));
        let high = |codes| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
        let mut found = [_mm256_and_si256(a, low), _mm256_and_si256(b, low), high(a), high(b)];
        match K::LAYOUT.width {
            Width::Five => {
                for block in 0..4 {
                    let fifth = fifth_bits(bits.add(STRIP * block).cast::<i32>().read_unaligned());
                    found[block] = _mm256_or_si256(found[block], fifth);
                }
            }
            Width::Six => {
                // Bits that a shift brings from the next byte are outside the two that count.
                let high = vector(2);
                let high =
                    [_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<2>(high), high, _mm256_srli_epi16::<2>(high)];
                let upper = _mm256_set1_epi8(0x30);
                for block in 0..4 {
                    found[block] = _mm256_or_si256(found[block], _mm256_and_si256(high[block], upper));
                }
            }
            Width::Float => {
                let floats = _mm256_broadcastsi128_si256(_mm_loadu_si128(FLOATS.as_ptr().cast()));
                found = found.map(|places| _mm256_shuffle_epi8(floats, places));
            }
            Width::Four | Width::Eight => {}
        }
        found
    }
}

/// Spreads 32 bits over 32 bytes: 16 for a bit that is set.
#[inline(always)]
unsafe fn fifth_bits(bits: i32) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe {
        let bytes = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), bytes), mask);
        _mm256_and_si256(_mm256_cmpeq_epi8(spread, mask), _mm256_set1_epi8(16))
    }
}

/// What scales a group of four outputs, two lanes each.
#[derive(Clone, Copy)]
struct Scaling {
    scale: __m256,
    /// A minimum or a zero point in even lanes, 0 between: the two lanes of an output are added in the end.
    min: __m256,
    /// Multiples of the scale for each half of the group.
    halves: [__m256; 2],
}

/// Loads the half-precision numbers of a block.
#[inline(always)]
unsafe fn block_scaling<K: Kind>(head: *const u8) -> Scaling {
    // SAFETY: the caller's machine has AVX2 and F16C, and the block's head is there.
    unsafe {
        let numbers = _mm_loadl_epi64(head.cast());
        let zero = _mm256_setzero_ps();
        let min = match K::NUM_HALVES {
            2 => _mm256_cvtph_ps(_mm_cvtepu16_epi32(_mm_loadl_epi64(head.add(2 * STRIP).cast()))),
            _ => zero,
        };
        Scaling { scale: _mm256_cvtph_ps(_mm_unpacklo_epi16(numbers, numbers)), min, halves: [zero; 2] }
    }
}

/// Applies a group's multiples to the numbers of its block.
#[inline(always)]
unsafe fn group_scaling<K: Kind>(block: Scaling, multiples: *const u8) -> Scaling {
    // SAFETY: the caller's machine has AVX2, and the group's multiples are there.
    unsafe {
        let four = |kind: usize| _mm_cvtsi32_si128(multiples.add(kind * STRIP).cast::<i32>().read_unaligned());
        let twice = |kind: usize| _mm_unpacklo_epi8(four(kind), four(kind));
        match K::LAYOUT.scales {
            Scales::One | Scales::WithMin => block,
            Scales::WithZero => {
                let min = _mm256_mul_ps(block.scale, block.min);
                Scaling { min: _mm256_sub_ps(_mm256_setzero_ps(), min), ..block }
            }
            Scales::Multiples => {
                let scale = _mm256_mul_ps(block.scale, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(twice(0))));
                let min = _mm256_mul_ps(block.min, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi64(four(1))));
                Scaling { scale, min: _mm256_sub_ps(_mm256_setzero_ps(), min), ..block }
            }
            Scales::PerHalf => {
                let (first, second) = (_mm256_cvtepi8_epi32(twice(0)), _mm256_cvtepi8_epi32(twice(1)));
                Scaling { halves: [_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second)], ..block }
            }
        }
    }
}

/// Multiplies a group with one of activations: whole numbers exactly, without what codes are too high.
#[inline(always)]
unsafe fn product<K: Kind>(weights: &[__m256i; 4], x: &Group, scaling: &Scaling) -> __m256 {
    // SAFETY: the caller's machine has AVX2 and FMA.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let eight = |block: usize| _mm256_set1_epi64x(x.codes.as_ptr().add(8 * block).cast::<i64>().read_unaligned());
        if K::LAYOUT.width == Width::Eight {
            let mut sum = _mm256_setzero_si256();
            for block in 0..4 {
                let signed = _mm256_sign_epi8(eight(block), weights[block]);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights[block]), signed);
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
            return _mm256_cvtepi32_ps(sum);
        }
        let pairs = |block: usize| _mm256_maddubs_epi16(weights[block], eight(block));
        let (first, second) = (_mm256_add_epi16(pairs(0), pairs(1)), _mm256_add_epi16(pairs(2), pairs(3)));
        // Adds minus half the sum of activations, times what codes are too high.
        let lowered = |sums, offset: i32| match K::LAYOUT.middle {
            0 => _mm256_madd_epi16(sums, ones),
            _ => _mm256_add_epi32(_mm256_madd_epi16(sums, ones), _mm256_set1_epi32(offset << K::SHIFT)),
        };
        if K::LAYOUT.scales == Scales::PerHalf {
            let first = _mm256_cvtepi32_ps(lowered(first, x.first_offset));
            let second = _mm256_cvtepi32_ps(lowered(second, x.offset - x.first_offset));
            return _mm256_fmadd_ps(second, scaling.halves[1], _mm256_mul_ps(first, scaling.halves[0]));
        }
        const {
            assert!(
                !matches!(
                    (K::LAYOUT.width, K::LAYOUT.scales),
                    (Width::Six, Scales::One | Scales::WithMin | Scales::WithZero | Scales::Multiples)
                ),
                "eight products of six bits don't fit in 16 bits"
            )
        };
        _mm256_cvtepi32_ps(lowered(_mm256_add_epi16(first, second), x.offset))
    }
}

#[inline(always)]
unsafe fn all_rows<K: Kind>(task: &PackedTask) {
    for row in (0..task.num_rows).step_by(MAX_TILE_ROWS) {
        // SAFETY: the caller promises a valid task, and the tile lies within its rows.
        unsafe {
            match MAX_TILE_ROWS.min(task.num_rows - row) {
                1 => tile::<K, 1>(task, row),
                2 => tile::<K, 2>(task, row),
                3 => tile::<K, 3>(task, row),
                _ => tile::<K, 4>(task, row),
            }
        }
    }
}

/// Multiplies `M` rows of activations with the strip, four outputs at a time within each group.
#[inline(always)]
unsafe fn tile<K: Kind, const M: usize>(task: &PackedTask, row: usize) {
    let num_groups = task.num_groups();
    let (mut head, mut codes) = (task.strip, task.codes());
    // SAFETY: the task has `row + M` rows of activations and a strip of `num_groups` groups; `out` has a strip per row.
    unsafe {
        let x = task.x.add(row * num_groups);
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for first in (0..num_groups).step_by(K::GROUPS) {
            let blocks = [block_scaling::<K>(head), block_scaling::<K>(head.add(2 * HALF))];
            head = head.add(2 * STRIP * K::NUM_HALVES);
            for group in first..first + K::GROUPS {
                for line in (0..STRIP * K::CODE_BYTES).step_by(64) {
                    near(codes.wrapping_add(PREFETCH_BYTES + line));
                }
                for half in 0..2 {
                    let head = head.add(HALF * half);
                    let weights = load::<K>(codes.add(8 * HALF * half), head.add(STRIP * K::NUM_MULTIPLES));
                    let scaling = group_scaling::<K>(blocks[half], head);
                    for m in 0..M {
                        let x = &*x.add(m * num_groups + group);
                        let scaled = _mm256_mul_ps(product::<K>(&weights, x, &scaling), _mm256_set1_ps(x.scale));
                        sums[m][half] = _mm256_fmadd_ps(scaled, scaling.scale, sums[m][half]);
                        if K::NUM_HALVES == 2 {
                            let min_sum = _mm256_set1_ps(x.scaled_sum);
                            sums[m][half] = _mm256_fmadd_ps(scaling.min, min_sum, sums[m][half]);
                        }
                    }
                }
                head = head.add(STRIP * K::GROUP_HEAD);
                codes = codes.add(STRIP * K::CODE_BYTES);
            }
        }
        for m in 0..M {
            // Each 128 bits: outputs 0 and 1 of the first half, then of the second; the permutation sorts them.
            let pairs = _mm256_castps_pd(_mm256_hadd_ps(sums[m][0], sums[m][1]));
            let outputs = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(pairs));
            _mm256_storeu_ps(task.out.add((row + m) * STRIP), outputs);
        }
    }
}
