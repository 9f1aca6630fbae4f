//! The product by AVX-512-VNNI: 16 lanes, two for each output.
//!
//! `vpdpbusd` adds four products of an unsigned and a signed byte to a lane of 32 bits. Nothing saturates: the products fit
//! in 16 bits, their sums are formed in 32, and a group's sum in a lane is below 16 · 255 · 127 < 2^19. (`vpdpbusds` would
//! saturate at 2^31, which no sum reaches either.) Lanes below 2^24 are exact as f32, too.

use std::arch::x86_64::*;

use super::activations::Group;
use super::scheme::Scheme;
use super::task::{PREFETCH_BYTES, PackedTask};
use crate::kernels::product::strip::STRIP;
use crate::prefetch::near;

/// Rows of activations in the largest tile.
const MAX_TILE_ROWS: usize = 12;

/// Returns whether the machine has these instructions beside AVX-512 F, BW and DQ.
#[inline]
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// The codes of one scheme.
trait Codes {
    const SCHEME: Scheme;
    /// Loads a group: vector `i` holds columns `8 i..8 i + 8` of eight outputs, without signs.
    unsafe fn load(codes: *const u8) -> [__m512i; 4];
    /// Returns what a lane's sum begins with: minus half the sum of activations, times what codes are too high.
    unsafe fn start(x: &Group) -> __m512i;
}

struct Q8_0;
struct Q4_0;
struct Q4_1;

#[inline(always)]
unsafe fn load_halves(codes: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller's machine has AVX-512, and the group's two vectors are there.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let (a, b) = (_mm512_loadu_si512(codes.cast()), _mm512_loadu_si512(codes.add(64).cast()));
        let high = |codes| _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low);
        [_mm512_and_si512(a, low), _mm512_and_si512(b, low), high(a), high(b)]
    }
}

impl Codes for Q8_0 {
    const SCHEME: Scheme = Scheme::Q8_0;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's machine has AVX-512, and the group's four vectors are there.
        std::array::from_fn(|idx| unsafe { _mm512_loadu_si512(codes.add(64 * idx).cast()) })
    }
    #[inline(always)]
    unsafe fn start(x: &Group) -> __m512i {
        // SAFETY: the caller's machine has AVX-512. Codes are 128 too high, 16 times as much as those of four bits.
        unsafe { _mm512_slli_epi32::<4>(_mm512_set1_epi32(x.offset)) }
    }
}

impl Codes for Q4_0 {
    const SCHEME: Scheme = Scheme::Q4_0;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller answers for machine and group.
        unsafe { load_halves(codes) }
    }
    #[inline(always)]
    unsafe fn start(x: &Group) -> __m512i {
        // SAFETY: the caller's machine has AVX-512.
        unsafe { _mm512_set1_epi32(x.offset) }
    }
}

impl Codes for Q4_1 {
    const SCHEME: Scheme = Scheme::Q4_1;
    #[inline(always)]
    unsafe fn load(codes: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller answers for machine and group.
        unsafe { load_halves(codes) }
    }
    #[inline(always)]
    unsafe fn start(_: &Group) -> __m512i {
        // SAFETY: the caller's machine has AVX-512.
        unsafe { _mm512_setzero_si512() }
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
        match task.scheme {
            Scheme::Q8_0 => all_rows::<Q8_0>(task),
            Scheme::Q4_0 => all_rows::<Q4_0>(task),
            Scheme::Q4_1 => all_rows::<Q4_1>(task),
        }
    }
}

/// Runs tiles of about the same number of rows.
#[inline(always)]
unsafe fn all_rows<C: Codes>(task: &PackedTask) {
    let size = task.num_rows.div_ceil(task.num_rows.div_ceil(MAX_TILE_ROWS).max(1)).max(1);
    macro_rules! of {
        ($row:expr, $($count:literal)*) => {
            match size.min(task.num_rows - $row) {
                // SAFETY: the caller promises a valid task, and the tile lies within its rows.
                $($count => unsafe { tile::<C, $count>(task, $row) },)*
                num_rows => unreachable!("a tile of {num_rows} rows"),
            }
        };
    }
    for row in (0..task.num_rows).step_by(size) {
        of! { row, 1 2 3 4 5 6 7 8 9 10 11 12 }
    }
}

/// Multiplies `M` rows of activations with the strip, with all sums in registers.
#[inline(always)]
unsafe fn tile<C: Codes, const M: usize>(task: &PackedTask, row: usize) {
    let num_groups = task.num_groups();
    let (scale_step, code_step) = (STRIP * C::SCHEME.scale_bytes(), STRIP * C::SCHEME.code_bytes());
    let (mut scales, mut codes) = (task.strip, task.codes());
    // SAFETY: the task has `row + M` rows of activations and a strip of `num_groups` groups; `out` has a strip per row.
    unsafe {
        let x = task.x.add(row * num_groups);
        let mut sums = [_mm512_setzero_ps(); M];
        for group in 0..num_groups {
            for line in (0..code_step).step_by(64) {
                near(codes.wrapping_add(PREFETCH_BYTES + line));
            }
            let weights = C::load(codes);
            let numbers = _mm_loadu_si128(scales.cast());
            let twice = _mm256_set_m128i(_mm_unpackhi_epi16(numbers, numbers), _mm_unpacklo_epi16(numbers, numbers));
            let scale = _mm512_cvtph_ps(twice);
            let min = match C::SCHEME {
                // A minimum in every other lane, 0 between: the two lanes of an output are added in the end.
                Scheme::Q4_1 => _mm512_cvtph_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(scales.add(2 * STRIP).cast()))),
                Scheme::Q8_0 | Scheme::Q4_0 => _mm512_setzero_ps(),
            };
            for m in 0..M {
                let x = &*x.add(m * num_groups + group);
                let mut sum = C::start(x);
                for (block, weights) in weights.iter().enumerate() {
                    let eight = x.codes.as_ptr().add(8 * block).cast::<i64>().read_unaligned();
                    sum = _mm512_dpbusd_epi32(sum, *weights, _mm512_set1_epi64(eight));
                }
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.scale));
                sums[m] = _mm512_fmadd_ps(scaled, scale, sums[m]);
                if C::SCHEME == Scheme::Q4_1 {
                    sums[m] = _mm512_fmadd_ps(min, _mm512_set1_ps(x.scaled_sum), sums[m]);
                }
            }
            (scales, codes) = (scales.add(scale_step), codes.add(code_step));
        }
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        for m in 0..M {
            let pairs = _mm512_add_ps(sums[m], _mm512_permute_ps::<0b10_11_00_01>(sums[m]));
            let outputs = _mm512_castps512_ps256(_mm512_permutexvar_ps(evens, pairs));
            _mm256_storeu_ps(task.out.add((row + m) * STRIP), outputs);
        }
    }
}
