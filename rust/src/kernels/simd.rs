//! Vectors of f32 for each instruction set, and the one place that picks the set of a kernel.
//!
//! Each kernel is written once over [`Simd`]; [`dispatch`] compiles the kernel for every set and picks one at run time.
//! Results may differ between sets in the last bits (another number of partial sums), never between calls on one machine.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::amx;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of the architecture: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW and DQ.
    Avx512,
    /// AVX-512 with products of bf16 pairs; activations are rounded to bf16 if the weights are bf16.
    Avx512Bf16,
    /// The same with tiles for products of bf16.
    Amx,
}

impl Isa {
    /// Returns the best set of this machine.
    pub fn detect() -> Self {
        Self::supported().pop().unwrap_or(Self::Portable)
    }

    /// Returns all sets of this machine, best last.
    pub fn supported() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let avx512 = avx512 && is_x86_feature_detected!("avx512dq");
            let bf16 = avx512 && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bf16");
            let amx = bf16 && amx::is_allowed();
            let sets = [(avx2, Self::Avx2), (avx512, Self::Avx512), (bf16, Self::Avx512Bf16), (amx, Self::Amx)];
            found.extend(sets.into_iter().filter(|(has, _)| *has).map(|(_, isa)| isa));
        }
        found
    }

    /// Returns whether products of bf16 are of pairs, with activations rounded to bf16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_bf16_products(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::Amx)
    }

    /// Returns the set's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable if cfg!(target_arch = "aarch64") => "NEON",
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Bf16 => "AVX-512-BF16",
            Self::Amx => "AMX",
        }
    }
}

/// The vector operations of an instruction set, on `LANES` f32 at a time.
///
/// # Safety
///
/// Every function requires a machine with the instruction set, and pointers that are valid for all elements accessed.
pub(crate) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;
    /// Rows of activations per tile; a tile's sums fit in registers.
    const TILE_ROWS: usize;
    /// Rows of weights per tile.
    const TILE_COLS: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Returns `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sqrt(value: Self::V) -> Self::V;
    /// Loads `LANES` bf16 in order.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Loads `LANES` whole numbers of 8 bits.
    unsafe fn load_i8(from: *const i8) -> Self::V;
    /// Loads the numbers with an even index of `2 * LANES` bf16.
    unsafe fn even_bf16(from: *const u16) -> Self::V;
    /// Loads the numbers with an odd index of `2 * LANES` bf16.
    unsafe fn odd_bf16(from: *const u16) -> Self::V;
    /// Returns `2^n` for whole `n` in [-126, 127].
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// Rounds to the nearest whole number.
    unsafe fn round(value: Self::V) -> Self::V;
    /// Returns the sum of the lanes, neighbours first: an order that never changes.
    unsafe fn sum(value: Self::V) -> f32;
    /// Returns [`Self::sum`] of each vector, with the same bits.
    #[inline(always)]
    unsafe fn sums(values: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the caller's machine has this instruction set.
        values.map(|value| unsafe { Self::sum(value) })
    }
    /// Returns the highest lane; lanes must not be NaN.
    unsafe fn highest(value: Self::V) -> f32;
}

/// Returns `e^x` within about 2 units in the last place for x in [-87, 88]; x outside is clamped.
///
/// Source: Cody and Waite 1980, «Software Manual for the Elementary Functions», chapter 6 (reduction by ln 2 in two
/// parts); the polynomial is the Taylor series to degree 7, whose error on ±ln 2 / 2 is below fp32's.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const SERIES: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: the caller's machine has this instruction set, and no pointer is used.
    unsafe {
        let x = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN_2_LOW), S::fma(n, S::splat(-LN_2_HIGH), x));
        let mut sum = S::splat(1.0 / 5040.0);
        for coefficient in SERIES {
            sum = S::fma(sum, r, S::splat(coefficient));
        }
        S::mul(sum, S::pow2(n))
    }
}

/// Converts a bf16 to f32.
#[inline(always)]
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Returns the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Eight lanes in plain Rust, which the compiler maps to the baseline of the architecture.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn each(a: [f32; 8], b: [f32; 8], with: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|lane| with(a[lane], b[lane]))
    }
}

#[expect(
    unsafe_op_in_unsafe_fn,
    reason = "every function has the contract of the trait: pointers good for its elements"
)]
impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 2;
    const TILE_COLS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        from.cast::<[f32; 8]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        to.cast::<[f32; 8]>().write_unaligned(value)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        Self::each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        Self::each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        Self::each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Self::each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        Self::each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without the instruction, `mul_add` is a slow call; only AArch64 always has the instruction.
        std::array::from_fn(|lane| match cfg!(target_arch = "aarch64") {
            true => a[lane].mul_add(b[lane], c[lane]),
            false => a[lane] * b[lane] + c[lane],
        })
    }
    #[inline(always)]
    unsafe fn sqrt(value: Self::V) -> Self::V {
        value.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        from.cast::<[u16; 8]>().read_unaligned().map(widen)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        from.cast::<[i8; 8]>().read_unaligned().map(f32::from)
    }
    #[inline(always)]
    unsafe fn even_bf16(from: *const u16) -> Self::V {
        let pairs = from.cast::<[[u16; 2]; 8]>().read_unaligned();
        pairs.map(|pair| widen(pair[0]))
    }
    #[inline(always)]
    unsafe fn odd_bf16(from: *const u16) -> Self::V {
        let pairs = from.cast::<[[u16; 2]; 8]>().read_unaligned();
        pairs.map(|pair| widen(pair[1]))
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn round(value: Self::V) -> Self::V {
        // Adding and subtracting 1.5 · 2^23 rounds to whole numbers below 2^22; `exp` never needs larger ones.
        value.map(|value| (value + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        let [a, b, c, d, e, f, g, h] = value;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
    #[inline(always)]
    unsafe fn highest(value: Self::V) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, |highest, lane| if lane > highest { lane } else { highest })
    }
}

/// Eight lanes of AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[expect(unsafe_op_in_unsafe_fn, reason = "every function has the contract of the trait: a machine with AVX2 and FMA")]
#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const TILE_COLS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        _mm256_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        _mm256_storeu_ps(to, value)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn sqrt(value: Self::V) -> Self::V {
        _mm256_sqrt_ps(value)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))
    }
    #[inline(always)]
    unsafe fn even_bf16(from: *const u16) -> Self::V {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast())))
    }
    #[inline(always)]
    unsafe fn odd_bf16(from: *const u16) -> Self::V {
        let high = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(from.cast()), high))
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn round(value: Self::V) -> Self::V {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value)
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        let pairs = _mm256_hadd_ps(value, value);
        let fours = _mm256_hadd_ps(pairs, pairs);
        _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours)))
    }
    #[inline(always)]
    unsafe fn sums(values: [Self::V; 4]) -> [f32; 4] {
        let [a, b, c, d] = values;
        let fours = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let whole = _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours));
        std::mem::transmute::<__m128, [f32; 4]>(whole)
    }
    #[inline(always)]
    unsafe fn highest(value: Self::V) -> f32 {
        let four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Sixteen lanes of AVX-512 F, BW and DQ.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// Adds the upper half to the lower half.
    ///
    /// # Safety
    ///
    /// The machine has AVX-512 F and DQ.
    #[expect(unsafe_op_in_unsafe_fn, reason = "the contract of this function is that of its instructions")]
    #[inline(always)]
    unsafe fn folded(value: __m512) -> __m256 {
        _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "every function has the contract of the trait: a machine with AVX-512")]
#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 6;
    const TILE_COLS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        _mm512_set1_ps(value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        _mm512_storeu_ps(to, value)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn sqrt(value: Self::V) -> Self::V {
        _mm512_sqrt_ps(value)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::V {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
    }
    #[inline(always)]
    unsafe fn even_bf16(from: *const u16) -> Self::V {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast())))
    }
    #[inline(always)]
    unsafe fn odd_bf16(from: *const u16) -> Self::V {
        let high = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from.cast()), high))
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }
    #[inline(always)]
    unsafe fn round(value: Self::V) -> Self::V {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value)
    }
    #[inline(always)]
    unsafe fn sum(value: Self::V) -> f32 {
        Avx2::sum(Self::folded(value))
    }
    #[inline(always)]
    unsafe fn sums(values: [Self::V; 4]) -> [f32; 4] {
        let [a, b, c, d] = values;
        Avx2::sums([Self::folded(a), Self::folded(b), Self::folded(c), Self::folded(d)])
    }
    #[inline(always)]
    unsafe fn highest(value: Self::V) -> f32 {
        Avx2::highest(_mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value)))
    }
}

/// Compiles a kernel over [`Simd`] for every instruction set, behind a function that takes the set as first argument. The
/// kernel may have a second type parameter.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident $(<$number:ident: $bound:path>)? = $kernel:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$doc])*
        #[inline]
        $vis unsafe fn $name $(<$number: $bound>)? (isa: $crate::kernels::simd::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::kernels::simd::{Avx2, Avx512, Isa};
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2 $(<$number: $bound>)? ($($arg: $type),*) {
                    // SAFETY: this function is compiled for AVX2 and FMA; its caller answers for the arguments.
                    unsafe { $kernel::<Avx2 $(, $number)?>($($arg),*) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma")]
                unsafe fn avx512 $(<$number: $bound>)? ($($arg: $type),*) {
                    // SAFETY: this function is compiled for AVX-512; its caller answers for the arguments.
                    unsafe { $kernel::<Avx512 $(, $number)?>($($arg),*) }
                }
                match isa {
                    // SAFETY: callers refuse sets that the machine lacks; the caller answers for the arguments.
                    Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => return unsafe { avx512 $(::<$number>)? ($($arg),*) },
                    // SAFETY: callers refuse sets that the machine lacks; the caller answers for the arguments.
                    Isa::Avx2 => return unsafe { avx2 $(::<$number>)? ($($arg),*) },
                    Isa::Portable => {}
                }
            }
            let _ = isa;
            // SAFETY: plain Rust runs on every machine; the caller answers for the arguments.
            unsafe { $kernel::<$crate::kernels::simd::Portable $(, $number)?>($($arg),*) }
        }
    };
}
pub(crate) use dispatch;
