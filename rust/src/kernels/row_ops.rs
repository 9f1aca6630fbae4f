//! Operations on one row of activations between two products: norms, rotary positions, activation functions.

use super::simd::{Isa, Simd, dispatch, exp};

/// A norm over the last dimension: a layer norm if it has a bias, else an RMS norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Scale per channel.
    pub weight: Vec<f32>,
    /// Shift per channel of a layer norm.
    pub bias: Option<Vec<f32>>,
    /// Added to the mean square before taking the root.
    pub eps: f32,
}

impl Norm {
    /// Returns whether the norm is for rows of `width` channels.
    pub(crate) fn has_width(&self, width: usize) -> bool {
        self.weight.len() == width && self.bias.as_ref().is_none_or(|bias| bias.len() == width)
    }

    /// Normalizes `row` in place.
    ///
    /// Source: Zhang and Sennrich 2019, «Root Mean Square Layer Normalization», equation 4; Ba, Kiros and Hinton 2016,
    /// «Layer Normalization», equation 4.
    pub(crate) fn apply(&self, isa: Isa, row: &mut [f32]) {
        assert_eq!(row.len(), self.weight.len(), "a norm of {} channels", self.weight.len());
        // SAFETY: weight and bias are as long as the row; the model runs with a set of this machine.
        unsafe { normalize(isa, row, &self.weight, self.bias.as_deref(), self.eps) }
    }
}

dispatch! { unsafe fn normalize = run_norm(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) }

#[inline(always)]
unsafe fn run_norm<S: Simd>(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let num = row.len() as f32;
    // SAFETY: the caller's machine has this instruction set; `sum_of` takes a slice.
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

/// Returns the sum of the row, or of its squares.
#[inline(always)]
unsafe fn sum_of<S: Simd>(row: &[f32], start: f32, squared: bool) -> f32 {
    let tail = row.len() - row.len() % S::LANES;
    // SAFETY: whole vectors before `tail` lie within the row.
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

/// Rotary position encoding of the first channels of each head, in two halves.
///
/// Source: Su et al. 2021, «RoFormer», equation 34.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle per position, for each pair of channels; channels of a head beyond all pairs are not rotated.
    pub frequencies: Vec<f64>,
    /// Multiplier of cosines and sines.
    pub factor: f64,
}

impl Rope {
    /// Returns the number of channels that are rotated.
    pub(crate) fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Writes a row of the rotary table: the cosines of `position`, then its sines.
    pub(crate) fn fill(&self, position: i64, to: &mut [f32]) {
        let (cosines, sines) = to[..self.width()].split_at_mut(self.frequencies.len());
        for (frequency, (cosine, sine)) in self.frequencies.iter().zip(cosines.iter_mut().zip(sines)) {
            let angle = position as f64 * frequency;
            *cosine = (angle.cos() * self.factor) as f32;
            *sine = (angle.sin() * self.factor) as f32;
        }
    }
}

/// Growth of queries with the position, by steps of `context` tokens.
///
/// Source: Nakanishi 2025, «Scalable-Softmax», section 3; Ministral 3's published code for the steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// Multiplier of the logarithm of the number of steps.
    pub rate: f64,
    /// Tokens of a step.
    pub context: usize,
}

impl QueryGrowth {
    /// Returns the multiplier of the queries at a position.
    pub(crate) fn at(&self, position: usize) -> f32 {
        (1.0 + self.rate * ((position / self.context) as f64).ln_1p()) as f32
    }
}

/// Rotates channels `i` and `i + D/2` of one head by a row of the rotary table: cosines, then sines.
pub(crate) fn rotate(isa: Isa, head: &mut [f32], angles: &[f32]) {
    assert!(head.len().is_multiple_of(2) && angles.len() == head.len(), "a head of {}", head.len());
    // SAFETY: head and angles are of one length; the model runs with a set of this machine.
    unsafe { rotate_halves(isa, head, angles) }
}

dispatch! { unsafe fn rotate_halves = run_rotation(head: &mut [f32], angles: &[f32]) }

#[inline(always)]
unsafe fn run_rotation<S: Simd>(head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let tail = half - half % S::LANES;
    let (first, second) = head.split_at_mut(half);
    let (cosines, sines) = angles.split_at(half);
    for place in (0..tail).step_by(S::LANES) {
        // SAFETY: whole vectors before `tail` lie within the halves.
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

/// Multiplies each block of a head with the Walsh-Hadamard matrix, whose numbers are 1 and -1 and whose square is the block's
/// size times the identity; blocks have [`mixed_channels`].
///
/// A channel far above the others is spread over its block, so that the largest magnitude, which decides how coarse codes
/// are, shrinks. Every instruction set, and PyTorch's `cached.mixed`, adds in the same order.
///
/// Source: Ashkboos et al. 2024, «QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs», section 4, key rotation.
pub(crate) fn mix_channels(isa: Isa, head: &mut [f32]) {
    // SAFETY: the model runs with a set of this machine.
    unsafe { mix_blocks(isa, head) }
}

/// Returns the channels of a block of [`mix_channels`]: the largest power of two that divides the width.
pub(crate) fn mixed_channels(width: usize) -> usize {
    1 << width.trailing_zeros()
}

dispatch! { unsafe fn mix_blocks = run_mixing(head: &mut [f32]) }

#[inline(always)]
unsafe fn run_mixing<S: Simd>(head: &mut [f32]) {
    let size = mixed_channels(head.len());
    let mut half = 1;
    while half < size {
        for pair in head.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The activation function of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// SiLU: `x / (1 + e^-x)`.
    Silu,
    /// GELU: `x Φ(x)` by the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// `(up + 1) gate / (1 + e^(-1.702 gate))`, with the gate at most the limit, and up within the limit on both sides.
    ClampedSwiglu {
        /// The bound.
        limit: f32,
    },
}

impl Activation {
    /// Replaces `gate` by its activation, multiplied by `up` if given.
    ///
    /// Source: Shazeer 2020, «GLU Variants Improve Transformer», equation 6; Hendrycks and Gimpel 2016, «Gaussian Error
    /// Linear Units», section 2; OpenAI 2025, «gpt-oss model card», section 2.1.
    pub(crate) fn apply(self, isa: Isa, gate: &mut [f32], up: Option<&[f32]>) {
        assert!(up.is_none_or(|up| up.len() == gate.len()), "gate and up differ in length");
        // SAFETY: gate and up are of one length; the model runs with a set of this machine.
        unsafe { activate(isa, self, gate, up) }
    }
}

dispatch! { unsafe fn activate = run_activation(kind: Activation, gate: &mut [f32], up: Option<&[f32]>) }

#[inline(always)]
unsafe fn run_activation<S: Simd>(kind: Activation, gate: &mut [f32], up: Option<&[f32]>) {
    match kind {
        // SAFETY: the caller promises the instruction set, and `up` as long as `gate`.
        Activation::Silu => unsafe { each::<S, Silu>(Silu, gate, up) },
        // SAFETY: the caller promises the instruction set, and `up` as long as `gate`.
        Activation::GeluTanh => unsafe { each::<S, GeluTanh>(GeluTanh, gate, up) },
        // SAFETY: the caller promises the instruction set, and `up` as long as `gate`.
        Activation::ClampedSwiglu { limit } => unsafe { each::<S, ClampedSwiglu>(ClampedSwiglu { limit }, gate, up) },
        Activation::Gelu => {
            for (place, gate) in gate.iter_mut().enumerate() {
                let phi = 0.5 * (1.0 + libm::erff(*gate * std::f32::consts::FRAC_1_SQRT_2));
                *gate *= phi * up.map_or(1.0, |up| up[place]);
            }
        }
    }
}

/// A function of vectors. A type, since closures are not always compiled for the caller's instruction set.
trait Function: Copy {
    unsafe fn of<S: Simd>(self, x: S::V) -> S::V;

    /// Returns the activated gate times `up`.
    #[inline(always)]
    unsafe fn gated<S: Simd>(self, gate: S::V, up: S::V) -> S::V {
        // SAFETY: the caller's machine has this instruction set.
        unsafe { S::mul(self.of::<S>(gate), up) }
    }
}

/// SiLU: `x / (1 + e^-x)`.
#[derive(Clone, Copy)]
struct Silu;

impl Function for Silu {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, x: S::V) -> S::V {
        // SAFETY: the caller's machine has this instruction set.
        unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.0))))) }
    }
}

/// GELU's tanh form, solved for one exponential: `x / (1 + e^(-2u))` with u = √(2/π) (x + 0.044715 x³).
#[derive(Clone, Copy)]
struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, x: S::V) -> S::V {
        const MINUS_2_ROOT: f32 = -1.595_769; // -2 · √(2/π)
        // SAFETY: the caller's machine has this instruction set.
        unsafe {
            let cube = S::mul(S::mul(x, x), x);
            let inner = S::fma(cube, S::splat(0.044_715), x);
            S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(inner, S::splat(MINUS_2_ROOT)))))
        }
    }
}

/// SwiGLU with bounds.
#[derive(Clone, Copy)]
struct ClampedSwiglu {
    limit: f32,
}

impl Function for ClampedSwiglu {
    #[inline(always)]
    unsafe fn of<S: Simd>(self, x: S::V) -> S::V {
        const MINUS_GAIN: f32 = -1.702;
        // SAFETY: the caller's machine has this instruction set.
        unsafe {
            let x = S::min(x, S::splat(self.limit));
            S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(MINUS_GAIN)))))
        }
    }

    #[inline(always)]
    unsafe fn gated<S: Simd>(self, gate: S::V, up: S::V) -> S::V {
        // SAFETY: the caller's machine has this instruction set.
        unsafe {
            let up = S::max(S::min(up, S::splat(self.limit)), S::splat(-self.limit));
            S::mul(self.of::<S>(gate), S::add(up, S::splat(1.0)))
        }
    }
}

/// Applies a function to each number of `gate` and multiplies by `up`; the last few numbers use padded vectors.
#[inline(always)]
unsafe fn each<S: Simd, F: Function>(function: F, gate: &mut [f32], up: Option<&[f32]>) {
    let tail = gate.len() - gate.len() % S::LANES;
    let rest = gate.len() - tail;
    let (mut gates, mut ups) = ([0.0_f32; 16], [0.0_f32; 16]);
    gates[..rest].copy_from_slice(&gate[tail..]);
    // SAFETY: whole vectors before `tail` lie within both rows; the padding holds a vector of every set.
    unsafe {
        if let Some(up) = up {
            ups[..rest].copy_from_slice(&up[tail..]);
            for place in (0..tail).step_by(S::LANES) {
                let at = gate.as_mut_ptr().add(place);
                S::store(at, function.gated::<S>(S::load(at), S::load(up.as_ptr().add(place))));
            }
        } else {
            for place in (0..tail).step_by(S::LANES) {
                let at = gate.as_mut_ptr().add(place);
                S::store(at, function.of::<S>(S::load(at)));
            }
        }
        let (last, last_up) = (S::load(gates.as_ptr()), S::load(ups.as_ptr()));
        let last = if up.is_some() { function.gated::<S>(last, last_up) } else { function.of::<S>(last) };
        S::store(gates.as_mut_ptr(), last);
    }
    gate[tail..].copy_from_slice(&gates[..rest]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_equals_the_walsh_hadamard_matrix_with_the_same_bits_in_every_set() {
        for width in [1, 7, 12, 64, 70, 80, 128] {
            let head: Vec<f32> = (0..width).map(|idx| (idx * 37 % 101) as f32 / 7.0 - 6.0).collect();
            let size = mixed_channels(width);
            let mut wanted = head.clone();
            mix_channels(Isa::Portable, &mut wanted);
            for (row, found) in wanted.iter().enumerate() {
                let block = &head[row / size * size..][..size];
                let sign = |col: usize| if ((row % size) & col).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let product: f32 = block.iter().enumerate().map(|(col, value)| sign(col) * value).sum();
                assert!((found - product).abs() <= 1e-3, "{found} instead of {product} at {row} of {width}");
            }
            for isa in Isa::supported() {
                let mut found = head.clone();
                mix_channels(isa, &mut found);
                assert_eq!(found, wanted, "{}", isa.name());
            }
        }
    }
}
