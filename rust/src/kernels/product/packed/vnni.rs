//! The product by AVX-512-VNNI: 16 lanes, two for each output.
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to a lane of 32 bits. Nothing saturates: the products fit
//! in 16 bits, their sums are formed in 32, and a group's sum in a lane is below 16 · 255 · 127 < 2^19. (`vpdpbusds` would
//! saturate at 2^31, which no sum reaches either.) Lanes below 2^24 are exact as f32, too. Only a lane of six bits with a
//! multiple for each half may exceed that, below 2^25, where f32 rounds to even numbers.

use std::arch::x86_64::*;

use super::activations::Group;
use super::kind::{self, Kind, for_kind};
use super::layout::{FLOATS, Scales, Width};
use super::scheme::Scheme;
use super::task::{PREFETCH_BYTES, PackedTask, SINGLE_ROW_PREFETCH_BYTES};
use crate::kernels::product::strip::STRIP;
use crate::prefetch::{far, near};

/// Rows of activations in the largest tile.
const MAX_TILE_ROWS: usize = 12;

/// Returns whether the machine has these instructions beside AVX-512 F, BW and DQ.
#[inline]
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// Loads a group's codes, as high as they are stored: vector `i` holds columns `8 i..8 i + 8` of eight outputs.
#[inline(always)]
unsafe fn load<K: Kind>(codes: *const u8, bits: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller's machine has AVX-512, and the group's vectors are there.
    unsafe {
        let vector = |idx: usize| _mm512_loadu_si512(codes.add(64 * idx).cast());
        if K::LAYOUT.width == Width::Eight {
            return [vector(0), vector(1), vector(2), vector(3)];
        }
        let low = _mm512_set1_epi8(15);
        let (a, b) = (vector(0), vector(1));
        let high = |codes| _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
        let mut found = [_mm512_and_si512(a, low), _mm512_and_si512(b, low), high(a), high(b)];
        match K::LAYOUT.width {
            Width::Five => {
                for block in 0..4 {
                    let bits = bits.add(STRIP * block).cast::<u64>().read_unaligned();
                    found[block] = _mm512_mask_add_epi8(found[block], bits, found[block], _mm512_set1_epi8(16));
                }
            }
            Width::Six => {
                // Bits that a shift brings from the next byte are outside the two that count.
                let high = vector(2);
                let high =
                    [_mm512_slli_epi16::<4>(high), _mm512_slli_epi16::<2>(high), high, _mm512_srli_epi16::<2>(high)];
                let upper = _mm512_set1_epi8(0x30);
                for block in 0..4 {
                    found[block] = _mm512_or_si512(found[block], _mm512_and_si512(high[block], upper));
                }
            }
            Width::Float => {
                let floats = _mm512_broadcast_i32x4(_mm_loadu_si128(FLOATS.as_ptr().cast()));
                found = found.map(|places| _mm512_shuffle_epi8(floats, places));
            }
            Width::Four | Width::Eight => {}
        }
        found
    }
}

/// What scales a group of eight outputs, two lanes each.
#[derive(Clone, Copy)]
struct Scaling {
    scale: __m512,
    /// A minimum or a zero point in even lanes, 0 between: the two lanes of an output are added in the end.
    min: __m512,
    /// Multiples of the scale for each half of the group.
    halves: [__m512; 2],
}

/// Loads the half-precision numbers of a block.
#[inline(always)]
unsafe fn block_scaling<K: Kind>(head: *const u8) -> Scaling {
    // SAFETY: the caller's machine has AVX-512, and the block's head is there.
    unsafe {
        let numbers = _mm_loadu_si128(head.cast());
        let twice = _mm256_set_m128i(_mm_unpackhi_epi16(numbers, numbers), _mm_unpacklo_epi16(numbers, numbers));
        let zero = _mm512_setzero_ps();
        let min = match K::NUM_HALVES {
            2 => _mm512_cvtph_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(head.add(2 * STRIP).cast()))),
            _ => zero,
        };
        Scaling { scale: _mm512_cvtph_ps(twice), min, halves: [zero; 2] }
    }
}

/// Applies a group's multiples to the numbers of its block.
#[inline(always)]
unsafe fn group_scaling<K: Kind>(block: Scaling, multiples: *const u8) -> Scaling {
    // SAFETY: the caller's machine has AVX-512, and the group's multiples are there.
    unsafe {
        let eight = |kind: usize| _mm_loadl_epi64(multiples.add(kind * STRIP).cast());
        let twice = |kind: usize| _mm_unpacklo_epi8(eight(kind), eight(kind));
        match K::LAYOUT.scales {
            Scales::One | Scales::WithMin => block,
            Scales::WithZero => {
                let min = _mm512_mul_ps(block.scale, block.min);
                Scaling { min: _mm512_sub_ps(_mm512_setzero_ps(), min), ..block }
            }
            Scales::Multiples => {
                let scale = _mm512_mul_ps(block.scale, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(twice(0))));
                let min = _mm512_mul_ps(block.min, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi64(eight(1))));
                Scaling { scale, min: _mm512_sub_ps(_mm512_setzero_ps(), min), ..block }
            }
            Scales::PerHalf => {
                let (first, second) = (_mm512_cvtepi8_epi32(twice(0)), _mm512_cvtepi8_epi32(twice(1)));
                Scaling { halves: [_mm512_cvtepi32_ps(first), _mm512_cvtepi32_ps(second)], ..block }
            }
        }
    }
}

/// Multiplies a group with one of activations: whole numbers exactly, without what codes are too high.
#[inline(always)]
unsafe fn product<K: Kind>(weights: &[__m512i; 4], x: &Group, scaling: &Scaling) -> __m512 {
    // SAFETY: the caller's machine has AVX-512 and VNNI.
    unsafe {
        let add = |sum, block: usize| {
            let eight = x.codes.as_ptr().add(8 * block).cast::<i64>().read_unaligned();
            _mm512_dpbusd_epi32(sum, weights[block], _mm512_set1_epi64(eight))
        };
        // Minus half the sum of activations, times what codes are too high.
        let start = |offset: i32| match K::LAYOUT.middle {
            0 => _mm512_setzero_si512(),
            _ => _mm512_sll_epi32(_mm512_set1_epi32(offset), _mm_cvtsi32_si128(K::SHIFT as i32)),
        };
        if K::LAYOUT.scales == Scales::PerHalf {
            let first = add(add(start(x.first_offset), 0), 1);
            let second = add(add(start(x.offset - x.first_offset), 2), 3);
            let first = _mm512_mul_ps(_mm512_cvtepi32_ps(first), scaling.halves[0]);
            return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), scaling.halves[1], first);
        }
        _mm512_cvtepi32_ps(add(add(add(add(start(x.offset), 0), 1), 2), 3))
    }
}

/// Multiplies all rows of activations with a strip.
///
/// # Safety
///
/// The machine has AVX-512 F, BW, DQ and VNNI, and the task's pointers are valid for its sizes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply_strip(task: &PackedTask) {
    // SAFETY: the caller promises a valid task.
    unsafe {
        for_kind!(task.scheme, all_rows, task);
    }
}

/// Runs tiles of about the same number of rows.
#[inline(always)]
unsafe fn all_rows<K: Kind>(task: &PackedTask) {
    let size = task.num_rows.div_ceil(task.num_rows.div_ceil(MAX_TILE_ROWS).max(1)).max(1);
    macro_rules! of {
        ($row:expr, $($count:literal)*) => {
            match size.min(task.num_rows - $row) {
                // SAFETY: the caller promises a valid task, and the tile lies within its rows.
                $($count => unsafe { tile::<K, $count>(task, $row) },)*
                num_rows => unreachable!("a tile of {num_rows} rows"),
            }
        };
    }
    for row in (0..task.num_rows).step_by(size) {
        of! { row, 1 2 3 4 5 6 7 8 9 10 11 12 }
    }
}

/// Prefetches what follows these bytes of a strip. One row waits for memory: its lines come from farther away, into the
/// second-level cache, which has more of them on their way than the first.
#[inline(always)]
fn prefetch<const M: usize>(from: *const u8, num_bytes: usize) {
    for line in (0..num_bytes).step_by(64) {
        match M {
            1 => far(from.wrapping_add(SINGLE_ROW_PREFETCH_BYTES + line)),
            _ => near(from.wrapping_add(PREFETCH_BYTES + line)),
        }
    }
}

/// Multiplies `M` rows of activations with the strip, with all sums in registers.
#[inline(always)]
unsafe fn tile<K: Kind, const M: usize>(task: &PackedTask, row: usize) {
    let num_groups = task.num_groups();
    let (mut head, mut codes) = (task.strip, task.codes());
    // SAFETY: the task has `row + M` rows of activations and a strip of `num_groups` groups; `out` has a strip per row.
    unsafe {
        let x = task.x.add(row * num_groups);
        let mut sums = [_mm512_setzero_ps(); M];
        for first in (0..num_groups).step_by(K::GROUPS) {
            prefetch::<M>(head, STRIP * K::LAYOUT.block_head());
            let block = block_scaling::<K>(head);
            head = head.add(2 * STRIP * K::NUM_HALVES);
            for group in first..first + K::GROUPS {
                prefetch::<M>(codes, STRIP * K::CODE_BYTES);
                let weights = load::<K>(codes, head.add(STRIP * K::NUM_MULTIPLES));
                let scaling = group_scaling::<K>(block, head);
                for m in 0..M {
                    let x = &*x.add(m * num_groups + group);
                    let scaled = _mm512_mul_ps(product::<K>(&weights, x, &scaling), _mm512_set1_ps(x.scale));
                    sums[m] = _mm512_fmadd_ps(scaled, scaling.scale, sums[m]);
                    if K::NUM_HALVES == 2 {
                        sums[m] = _mm512_fmadd_ps(scaling.min, _mm512_set1_ps(x.scaled_sum), sums[m]);
                    }
                }
                head = head.add(STRIP * K::GROUP_HEAD);
                codes = codes.add(STRIP * K::CODE_BYTES);
            }
        }
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        for m in 0..M {
            let pairs = _mm512_add_ps(sums[m], _mm512_permute_ps::<0b10_11_00_01>(sums[m]));
            let outputs = _mm512_castps512_ps256(_mm512_permutexvar_ps(evens, pairs));
            _mm256_storeu_ps(task.out.add((row + m) * STRIP), outputs);
        }
    }
}
