//! What happens to one row of activations between two products: norms, rotation, activation functions.

use super::simd::{Isa, Simd, dispatch, exp};

/// A norm over the last dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Scale of each channel.
    pub weight: Vec<f32>,
    /// Shift of each channel; with it this is a layer norm, without an RMS norm.
    pub bias: Option<Vec<f32>>,
    /// Added under the root.
    pub eps: f32,
}

impl Norm {
    /// Normalises `row` in place.
    ///
    /// Source: Zhang and Sennrich 2019, «Root Mean Square Layer Normalization», equation 4; Ba, Kiros and Hinton 2016,
    /// «Layer Normalization», equation 4.
    pub(super) fn apply(&self, isa: Isa, row: &mut [f32]) {
        assert_eq!(row.len(), self.weight.len(), "a norm of {} channels", self.weight.len());
        // SAFETY: all slices are as long as the row.
        unsafe { normalize(isa, row, &self.weight, self.bias.as_deref(), self.eps) }
    }
}

dispatch! { unsafe fn normalize = run_norm(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) }

#[inline(always)]
unsafe fn run_norm<S: Simd>(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let num = row.len() as f32;
    // SAFETY: passed on.
    unsafe {
        if bias.is_some() {
            let mean = sum_of::<S>(row, 0.0, false) / num;
            row.iter_mut().for_each(|value| *value -= mean);
        }
        let scale = 1.0 / (sum_of::<S>(row, 0.0, true) / num + eps).sqrt();
        match bias {
            None => row.iter_mut().zip(weight).for_each(|(value, weight)| *value = *value * scale * weight),
            Some(bias) => row
                .iter_mut()
                .zip(weight.iter().zip(bias))
                .for_each(|(value, (weight, bias))| *value = *value * scale * weight + bias),
        }
    }
}

/// Sum of the row or of its squares.
#[inline(always)]
unsafe fn sum_of<S: Simd>(row: &[f32], start: f32, squared: bool) -> f32 {
    let tail = row.len() - row.len() % S::LANES;
    // SAFETY: whole vectors within the row.
    unsafe {
        let mut sums = S::splat(0.0);
        for place in (0..tail).step_by(S::LANES) {
            let values = S::load(row.as_ptr().add(place));
            sums = if squared { S::fma(values, values, sums) } else { S::add(values, sums) };
        }
        let rest = row[tail..].iter().fold(start, |sum, value| sum + if squared { value * value } else { *value });
        S::sum(sums) + rest
    }
}

/// Cosines and sines of one position, `head_dim / 2` each, as rotary positions need them.
///
/// Source: Su et al. 2021, «RoFormer», equation 34.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle per position of each pair of channels.
    pub frequencies: Vec<f64>,
    /// On cosines and sines.
    pub factor: f64,
}

impl Rope {
    /// Writes the cosines of `position`, then its sines.
    pub(super) fn fill(&self, position: i64, to: &mut [f32]) {
        let (cosines, sines) = to.split_at_mut(self.frequencies.len());
        for (frequency, (cosine, sine)) in self.frequencies.iter().zip(cosines.iter_mut().zip(sines)) {
            let angle = position as f64 * frequency;
            *cosine = (angle.cos() * self.factor) as f32;
            *sine = (angle.sin() * self.factor) as f32;
        }
    }
}

/// Rotates channel `i` and `i + D/2` of one head by the angles of `turns`: cosines, then sines.
pub(super) fn rotate(isa: Isa, head: &mut [f32], turns: &[f32]) {
    assert!(head.len().is_multiple_of(2) && turns.len() == head.len(), "a head of {}", head.len());
    // SAFETY: both are of one length.
    unsafe { turn(isa, head, turns) }
}

dispatch! { unsafe fn turn = run_turn(head: &mut [f32], turns: &[f32]) }

#[inline(always)]
unsafe fn run_turn<S: Simd>(head: &mut [f32], turns: &[f32]) {
    let half = head.len() / 2;
    let tail = half - half % S::LANES;
    let (first, second) = head.split_at_mut(half);
    let (cosines, sines) = turns.split_at(half);
    for place in (0..tail).step_by(S::LANES) {
        // SAFETY: whole vectors within the halves.
        unsafe {
            let (a, b) = (S::load(first.as_ptr().add(place)), S::load(second.as_ptr().add(place)));
            let (cosine, sine) = (S::load(cosines.as_ptr().add(place)), S::load(sines.as_ptr().add(place)));
            let minus = S::mul(sine, S::splat(-1.0));
            S::store(first.as_mut_ptr().add(place), S::fma(a, cosine, S::mul(b, minus)));
            S::store(second.as_mut_ptr().add(place), S::fma(b, cosine, S::mul(a, sine)));
        }
    }
    for place in tail..half {
        let (a, b, cosine, sine) = (first[place], second[place], cosines[place], sines[place]);
        (first[place], second[place]) = (a * cosine - b * sine, b * cosine + a * sine);
    }
}

/// Activation of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x Φ(x)` by the error function.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

impl Activation {
    /// `gate` becomes its activation, times `up` where there is one.
    ///
    /// Source: Shazeer 2020, «GLU Variants Improve Transformer», equation 6; Hendrycks and Gimpel 2016, «Gaussian Error
    /// Linear Units», section 2.
    pub(super) fn apply(self, isa: Isa, gate: &mut [f32], up: Option<&[f32]>) {
        assert!(up.is_none_or(|up| up.len() == gate.len()), "gate and up differ in length");
        // SAFETY: the lengths agree.
        unsafe { activate(isa, self, gate, up) }
    }
}

dispatch! { unsafe fn activate = run_activation(kind: Activation, gate: &mut [f32], up: Option<&[f32]>) }

#[inline(always)]
unsafe fn run_activation<S: Simd>(kind: Activation, gate: &mut [f32], up: Option<&[f32]>) {
    match kind {
        // SAFETY: passed on.
        Activation::Silu => unsafe { each::<S, Silu>(gate, up) },
        // SAFETY: passed on.
        Activation::GeluTanh => unsafe { each::<S, GeluTanh>(gate, up) },
        Activation::Gelu => {
            for (place, gate) in gate.iter_mut().enumerate() {
                let phi = 0.5 * (1.0 + libm::erff(*gate * std::f32::consts::FRAC_1_SQRT_2));
                *gate *= phi * up.map_or(1.0, |up| up[place]);
            }
        }
    }
}

/// A function of vectors: a type and no closure, since a closure isn't sure to be compiled for the caller's set.
trait Function {
    unsafe fn of<S: Simd>(x: S::V) -> S::V;
}

/// `x / (1 + e^-x)`.
struct Silu;

impl Function for Silu {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        // SAFETY: passed on.
        unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.0))))) }
    }
}

/// `x / (1 + e^(-2u))` with u = √(2/π) (x + 0.044715 x³): the tanh form, solved for one exponential.
struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V) -> S::V {
        const MINUS_2_ROOT: f32 = -1.595_769; // -2 · √(2/π)
        // SAFETY: passed on.
        unsafe {
            let cube = S::mul(S::mul(x, x), x);
            let inner = S::fma(cube, S::splat(0.044_715), x);
            S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(inner, S::splat(MINUS_2_ROOT)))))
        }
    }
}

/// Applies a function to each number of `gate`, times that of `up`; the last few go through padded vectors.
#[inline(always)]
unsafe fn each<S: Simd, F: Function>(gate: &mut [f32], up: Option<&[f32]>) {
    let tail = gate.len() - gate.len() % S::LANES;
    let rest = gate.len() - tail;
    let (mut gates, mut ups) = ([0.0_f32; 16], [1.0_f32; 16]);
    gates[..rest].copy_from_slice(&gate[tail..]);
    // SAFETY: whole vectors within both rows, or the padding.
    unsafe {
        if let Some(up) = up {
            ups[..rest].copy_from_slice(&up[tail..]);
            for place in (0..tail).step_by(S::LANES) {
                let at = gate.as_mut_ptr().add(place);
                S::store(at, S::mul(F::of::<S>(S::load(at)), S::load(up.as_ptr().add(place))));
            }
        } else {
            for place in (0..tail).step_by(S::LANES) {
                let at = gate.as_mut_ptr().add(place);
                S::store(at, F::of::<S>(S::load(at)));
            }
        }
        S::store(gates.as_mut_ptr(), S::mul(F::of::<S>(S::load(gates.as_ptr())), S::load(ups.as_ptr())));
    }
    gate[tail..].copy_from_slice(&gates[..rest]);
}
