//! Rows of heads on their way between PyTorch's tensors and scratch memory: widened, rotated, scaled, transposed.

use crate::kernels::simd::{Simd, narrow, widen};

/// Rows of queries, and of keys, in a block: scores and a head's keys of a block fit in the first-level cache.
pub(super) const BLOCK: usize = 64;

/// A number of PyTorch's tensors.
pub trait Number: Copy + Send + Sync + 'static {
    /// Returns the number as f32.
    fn wide(self) -> f32;
    /// Returns the nearest number of this type.
    fn of(value: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
}

/// The bits of a bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Number for Bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        widen(self.0)
    }
    #[inline(always)]
    fn of(value: f32) -> Self {
        Self(narrow(value))
    }
}

/// Cosines and sines of a token's rotation, one of each for every pair of channels.
pub(super) type Turn<'a> = (&'a [f32], &'a [f32]);

/// Widens a head, rotates it and multiplies it by `factor`.
#[inline(always)]
pub(super) fn load<N: Number>(from: &[N], turn: Option<Turn<'_>>, factor: f32, to: &mut [f32]) {
    let Some((cosine, sine)) = turn else {
        let to = &mut to[..from.len()];
        for channel in 0..from.len() {
            to[channel] = from[channel].wide() * factor;
        }
        return;
    };
    let half = from.len() / 2;
    let ((first, second), (to_first, to_second)) = (from.split_at(half), to.split_at_mut(half));
    let (cosine, sine) = (&cosine[..half], &sine[..half]);
    let (second, to_second) = (&second[..half], &mut to_second[..half]);
    for pair in 0..half {
        let (a, b) = (first[pair].wide(), second[pair].wide());
        to_first[pair] = (a * cosine[pair] - b * sine[pair]) * factor;
        to_second[pair] = (b * cosine[pair] + a * sine[pair]) * factor;
    }
}

/// Multiplies a head by `factor`, rotates it back and narrows it.
#[inline(always)]
pub(super) fn store<N: Number>(from: &[f32], turn: Option<Turn<'_>>, factor: f32, to: &mut [N]) {
    let Some((cosine, sine)) = turn else {
        let to = &mut to[..from.len()];
        for channel in 0..from.len() {
            to[channel] = N::of(from[channel] * factor);
        }
        return;
    };
    let half = from.len() / 2;
    let ((first, second), (to_first, to_second)) = (from.split_at(half), to.split_at_mut(half));
    let (cosine, sine) = (&cosine[..half], &sine[..half]);
    let (second, to_second) = (&second[..half], &mut to_second[..half]);
    for pair in 0..half {
        let (a, b) = (first[pair] * factor, second[pair] * factor);
        to_first[pair] = N::of(a * cosine[pair] + b * sine[pair]);
        to_second[pair] = N::of(b * cosine[pair] - a * sine[pair]);
    }
}

/// Returns the product of two heads, summed over channels.
#[inline(always)]
pub(super) unsafe fn product<S: Simd>(first: &[f32], second: &[f32]) -> f32 {
    let (first, second) = (first, &second[..first.len()]);
    // SAFETY: the caller's machine has the instruction set, and a head's width is a multiple of every vector's.
    unsafe {
        let mut sums = S::splat(0.0);
        for channel in (0..first.len()).step_by(S::LANES) {
            sums = S::fma(S::load(first.as_ptr().add(channel)), S::load(second.as_ptr().add(channel)), sums);
        }
        S::sum(sums)
    }
}

/// Writes the transpose of `BLOCK` rows of `width` numbers, a multiple of four.
#[inline(always)]
pub(super) fn transpose(from: &[f32], width: usize, to: &mut [f32]) {
    assert!(from.len() == BLOCK * width && to.len() == BLOCK * width && width.is_multiple_of(4), "whole blocks");
    let (from, to) = (from.as_ptr(), to.as_mut_ptr());
    for row in (0..BLOCK).step_by(4) {
        for col in (0..width).step_by(4) {
            // SAFETY: four rows and four columns from here on lie within both matrices.
            unsafe { transpose_four(from.add(row * width + col), width, to.add(col * BLOCK + row)) }
        }
    }
}

/// Writes the transpose of four by four numbers, with `BLOCK` numbers from row to row of the result.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose_four(from: *const f32, pitch: usize, to: *mut f32) {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    // SAFETY: every x86-64 machine has SSE, and the caller promises the rows. Plain code compiles to scattered stores with
    // AVX-512, which take several times as long.
    unsafe {
        let [mut a, mut b] = [_mm_loadu_ps(from), _mm_loadu_ps(from.add(pitch))];
        let [mut c, mut d] = [_mm_loadu_ps(from.add(2 * pitch)), _mm_loadu_ps(from.add(3 * pitch))];
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        for (channel, column) in [a, b, c, d].into_iter().enumerate() {
            _mm_storeu_ps(to.add(channel * BLOCK), column);
        }
    }
}

/// Writes the transpose of four by four numbers, with `BLOCK` numbers from row to row of the result.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
unsafe fn transpose_four(from: *const f32, pitch: usize, to: *mut f32) {
    // SAFETY: the caller promises the rows.
    unsafe {
        let row_of = |r: usize| from.add(r * pitch).cast::<[f32; 4]>().read_unaligned();
        let [a, b, c, d] = [row_of(0), row_of(1), row_of(2), row_of(3)];
        for channel in 0..4 {
            let column = [a[channel], b[channel], c[channel], d[channel]];
            to.add(channel * BLOCK).cast::<[f32; 4]>().write_unaligned(column);
        }
    }
}
