//! The activation GELU with its derivative, which share their exponential.

use super::{Parts, Team, expect};
use crate::Result;
use crate::kernels::simd::{Simd, dispatch, exp};

/// Numbers of a chunk: with their results, they fit in the second-level cache.
const CHUNK: usize = 1 << 13;
/// Numbers of the widest vector.
const WIDEST: usize = 16;

/// A form of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x · Φ(x)` with the normal distribution Φ, within 2e-7 of it.
    Exact,
    /// The approximation by a hyperbolic tangent.
    Tanh,
}

/// Writes `gelu(x)` for each number, and multiplies `gradient`, if it is given, by the derivative.
///
/// # Errors
///
/// [`crate::Error::InvalidArgument`] if lengths differ or the machine lacks the instruction set.
///
/// Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
pub fn gelu(form: Gelu, given: &[f32], active: &mut [f32], gradient: Option<&mut [f32]>, team: Team) -> Result<()> {
    expect("active", active.len(), given.len())?;
    let (team, actives) = (team.checked()?, Parts(active.as_mut_ptr()));
    if let Some(gradient) = &gradient {
        expect("gradient", gradient.len(), given.len())?;
    }
    let gradients = gradient.map(|gradient| Parts(gradient.as_mut_ptr()));
    team.each(given.len().div_ceil(CHUNK), |chunk| {
        let start = chunk * CHUNK;
        let given = &given[start..given.len().min(start + CHUNK)];
        // SAFETY: `checked` found the instruction set, and each chunk has a part of its own.
        unsafe {
            let (active, gradient) = (actives.part(start, given.len()), gradients.as_ref());
            run(team.isa, form, given, active, gradient.map(|all| all.part(start, given.len())));
        }
    });
    Ok(())
}

dispatch! {
    /// Computes a chunk, and the gradient of its numbers if it is given.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, and all slices are as long.
    unsafe fn run = run_chunk(form: Gelu, given: &[f32], active: &mut [f32], gradient: Option<&mut [f32]>)
}

#[inline(always)]
unsafe fn run_chunk<S: Simd>(form: Gelu, given: &[f32], active: &mut [f32], mut gradient: Option<&mut [f32]>) {
    let whole = given.len() / S::LANES * S::LANES;
    // SAFETY: the caller promises the instruction set; vectors lie within the slices and the arrays.
    unsafe {
        for at in (0..whole).step_by(S::LANES) {
            let (value, rise) = both::<S>(form, S::load(given.as_ptr().add(at)));
            S::store(active.as_mut_ptr().add(at), value);
            if let Some(gradient) = &mut gradient {
                let place = gradient.as_mut_ptr().add(at);
                S::store(place, S::mul(S::load(place), rise));
            }
        }
        let mut rest = [0.0; WIDEST];
        rest[..given.len() - whole].copy_from_slice(&given[whole..]);
        let (mut values, mut rises) = ([0.0; WIDEST], [0.0; WIDEST]);
        let (value, rise) = both::<S>(form, S::load(rest.as_ptr()));
        S::store(values.as_mut_ptr(), value);
        S::store(rises.as_mut_ptr(), rise);
        active[whole..].copy_from_slice(&values[..given.len() - whole]);
        if let Some(gradient) = gradient {
            gradient[whole..].iter_mut().zip(rises).for_each(|(gradient, rise)| *gradient *= rise);
        }
    }
}

/// Returns `x · p` and its derivative `p + x · p'`, where `p` is the share of `x` that the form lets through.
#[inline(always)]
unsafe fn both<S: Simd>(form: Gelu, x: S::V) -> (S::V, S::V) {
    // SAFETY: the caller promises the instruction set, and no pointer is used.
    unsafe {
        let (share, rise) = match form {
            Gelu::Exact => normal::<S>(x),
            Gelu::Tanh => logistic::<S>(x),
        };
        (S::mul(x, share), S::fma(x, rise, share))
    }
}

/// Returns `Φ(x)` and its derivative.
///
/// For `x ≤ 0`, `Φ(x) = e^(-x² / 2) · t · P(t)` with `t = 1 / (1 + k · |x|)`; the polynomial is the best one of degree 8 for
/// `k = 0.3 / √2`, with a relative error of 2e-8, found by least squares with weights.
#[inline(always)]
unsafe fn normal<S: Simd>(x: S::V) -> (S::V, S::V) {
    const SLOPE: f32 = 0.3 * std::f32::consts::FRAC_1_SQRT_2;
    const DENSITY: f32 = 0.398_942_3;
    const NEXT_TO_ZERO: f32 = 1e-30;
    const P: [f32; 8] = [
        0.242_424_7,
        -0.255_334_23,
        0.272_845_1,
        -0.046_543_68,
        0.107_087_07,
        0.074_279_69,
        0.085_339_69,
        0.084_595_24,
    ];
    // SAFETY: the caller promises the instruction set, and no pointer is used.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let negative = S::mul(x, S::splat(-1.0));
        let t = S::div(one, S::fma(S::max(x, negative), S::splat(SLOPE), one));
        let bell = exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5)));
        let mut sum = S::splat(-0.064_693_58);
        for coefficient in P {
            sum = S::fma(sum, t, S::splat(coefficient));
        }
        let tail = S::mul(S::mul(sum, t), bell);
        // Φ(x) = 1 - Φ(-x). The sign is 1 or -1, and 1 for 0.
        let shifted = S::add(x, S::splat(NEXT_TO_ZERO));
        let sign = S::max(S::min(S::mul(shifted, S::splat(f32::MAX)), one), S::splat(-1.0));
        let share = S::fma(S::mul(sign, S::splat(-1.0)), tail, S::max(sign, zero));
        (share, S::mul(bell, S::splat(DENSITY)))
    }
}

/// Returns `σ(2u)`, which is `(1 + tanh u) / 2`, for `u = √(2 / π) · (x + 0.044715 · x³)`, and its derivative.
#[inline(always)]
unsafe fn logistic<S: Simd>(x: S::V) -> (S::V, S::V) {
    const TWICE: f32 = 1.595_769;
    const CUBE: f32 = 0.044_715;
    // SAFETY: the caller promises the instruction set, and no pointer is used.
    unsafe {
        let (one, square) = (S::splat(1.0), S::mul(x, x));
        let double = S::mul(S::mul(x, S::splat(TWICE)), S::fma(square, S::splat(CUBE), one));
        let share = S::div(one, S::add(one, exp::<S>(S::mul(double, S::splat(-1.0)))));
        let rise = S::mul(share, S::fma(share, S::splat(-1.0), one));
        (share, S::mul(rise, S::fma(square, S::splat(3.0 * CUBE * TWICE), S::splat(TWICE))))
    }
}
