//! AdamW for all parameters in one call, and the norm of their gradients.

use super::{Parts, Team, expect};
use crate::Result;
use crate::kernels::attention::rows::{Bf16, Number};
use crate::kernels::simd::{Simd, dispatch};

/// Numbers of a chunk: with gradient and moments, they fit in the second-level cache.
const CHUNK: usize = 1 << 13;
/// Numbers of the widest vector.
const WIDEST: usize = 16;

/// The settings of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Weight decay, as a share of the learning rate.
    pub decay: f64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// A gradient's numbers.
#[derive(Debug, Clone, Copy)]
pub enum Gradient<'a> {
    /// Of fp32.
    Wide(&'a [f32]),
    /// Of bf16, which products of bf16 leave.
    Narrow(&'a [Bf16]),
}

impl<'a> From<&'a [f32]> for Gradient<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::Wide(numbers)
    }
}

impl Gradient<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Wide(numbers) => numbers.len(),
            Self::Narrow(numbers) => numbers.len(),
        }
    }

    /// Runs `work` on a chunk's numbers in fp32.
    fn with_wide<R>(&self, chunk: &Chunk, work: impl FnOnce(&[f32]) -> R) -> R {
        let range = chunk.start..chunk.start + chunk.len;
        match self {
            Self::Wide(numbers) => work(&numbers[range]),
            Self::Narrow(numbers) => {
                let mut wide = [0.0; CHUNK];
                for (to, from) in wide.iter_mut().zip(&numbers[range]) {
                    *to = from.wide();
                }
                work(&wide[..chunk.len])
            }
        }
    }
}

/// A parameter, its state and its gradient, all of one length.
#[derive(Debug)]
pub struct Trained<'a> {
    /// The parameter.
    pub parameter: &'a mut [f32],
    /// Mean of past gradients.
    pub first: &'a mut [f32],
    /// Mean of past squared gradients.
    pub second: &'a mut [f32],
    /// The gradient.
    pub gradient: Gradient<'a>,
    /// Number of the step, from 1.
    pub step: f64,
    /// How the parameter is updated.
    pub rule: AdamW,
}

/// Returns the norm of all gradients together, the same for every number of threads.
///
/// # Errors
///
/// [`crate::Error::InvalidArgument`] if the machine lacks the instruction set.
pub fn gradient_norm(gradients: &[Gradient<'_>], team: Team) -> Result<f64> {
    let (team, chunks) = (team.checked()?, chunks(gradients.iter().map(Gradient::len)));
    let mut sums = vec![0.0_f64; chunks.len()];
    let shares = Parts(sums.as_mut_ptr());
    team.each(chunks.len(), |at| {
        gradients[chunks[at].owner].with_wide(&chunks[at], |numbers| {
            // SAFETY: `checked` found the instruction set, and each chunk has a number of its own.
            unsafe { shares.part(at, 1)[0] = f64::from(squares(team.isa, numbers)) };
        });
    });
    Ok(sums.iter().sum::<f64>().sqrt())
}

/// Updates all parameters and their moments; gradients count `scale` times and stay as they are.
///
/// # Errors
///
/// [`crate::Error::InvalidArgument`] if lengths differ or the machine lacks the instruction set.
///
/// Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
pub fn adamw(trained: &mut [Trained<'_>], scale: f32, team: Team) -> Result<()> {
    let team = team.checked()?;
    for each in trained.iter() {
        expect("first", each.first.len(), each.parameter.len())?;
        expect("second", each.second.len(), each.parameter.len())?;
        expect("gradient", each.gradient.len(), each.parameter.len())?;
    }
    let chunks = chunks(trained.iter().map(|each| each.parameter.len()));
    let owners: Vec<_> = trained
        .iter_mut()
        .map(|each| {
            let parts =
                [&mut *each.parameter, &mut *each.first, &mut *each.second].map(|part| Parts(part.as_mut_ptr()));
            (parts, each.gradient, Factors::of(each.rule, each.step, scale))
        })
        .collect();
    team.each(chunks.len(), |at| {
        let Chunk { owner, start, len } = chunks[at];
        let ([parameter, first, second], gradient, factors) = &owners[owner];
        gradient.with_wide(&chunks[at], |gradient| {
            // SAFETY: `checked` found the instruction set, and each chunk has a part of its own.
            unsafe {
                let state = [parameter, first, second].map(|part| part.part(start, len));
                update(team.isa, state, gradient, *factors);
            }
        });
    });
    Ok(())
}

/// A part of one of several arrays.
struct Chunk {
    owner: usize,
    start: usize,
    len: usize,
}

fn chunks(lengths: impl Iterator<Item = usize>) -> Vec<Chunk> {
    let parts = |(owner, length): (usize, usize)| {
        (0..length).step_by(CHUNK).map(move |start| Chunk { owner, start, len: CHUNK.min(length - start) })
    };
    lengths.enumerate().flat_map(parts).collect()
}

/// What a step multiplies by.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    kept: f32,
    to_first: f32,
    beta2: f32,
    to_second: f32,
    root: f32,
    eps: f32,
    rate: f32,
}

impl Factors {
    fn of(rule: AdamW, step: f64, scale: f32) -> Self {
        Self {
            scale,
            kept: (1.0 - rule.rate * rule.decay) as f32,
            to_first: (1.0 - rule.beta1) as f32,
            beta2: rule.beta2 as f32,
            to_second: (1.0 - rule.beta2) as f32,
            root: (1.0 / (1.0 - rule.beta2.powf(step)).sqrt()) as f32,
            eps: rule.eps as f32,
            rate: (-rule.rate / (1.0 - rule.beta1.powf(step))) as f32,
        }
    }
}

dispatch! {
    /// Updates a chunk of a parameter and its moments.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, and all slices are as long.
    unsafe fn update = update_chunk(state: [&mut [f32]; 3], gradient: &[f32], factors: Factors)
}

#[inline(always)]
unsafe fn update_chunk<S: Simd>(state: [&mut [f32]; 3], gradient: &[f32], factors: Factors) {
    let whole = gradient.len() / S::LANES * S::LANES;
    let rest = gradient.len() - whole;
    // SAFETY: the caller promises the instruction set; vectors lie within the slices and the arrays.
    unsafe {
        let starts = state.each_ref().map(|part| part.as_ptr().cast_mut());
        for at in (0..whole).step_by(S::LANES) {
            update_vector::<S>(starts.map(|start| start.add(at)), gradient.as_ptr().add(at), factors);
        }
        let mut last = [[0.0; WIDEST]; 4];
        for (to, from) in last.iter_mut().zip([&*state[0], &*state[1], &*state[2], gradient]) {
            to[..rest].copy_from_slice(&from[whole..]);
        }
        let [parameter, first, second, last_gradient] = &mut last;
        let starts = [parameter.as_mut_ptr(), first.as_mut_ptr(), second.as_mut_ptr()];
        update_vector::<S>(starts, last_gradient.as_ptr(), factors);
        for (to, from) in state.into_iter().zip(&last) {
            to[whole..].copy_from_slice(&from[..rest]);
        }
    }
}

/// Updates a vector of a parameter and its moments.
#[inline(always)]
unsafe fn update_vector<S: Simd>([parameter, first, second]: [*mut f32; 3], gradient: *const f32, factors: Factors) {
    // SAFETY: the caller promises the instruction set and whole vectors.
    unsafe {
        let gradient = S::mul(S::load(gradient), S::splat(factors.scale));
        let mean = S::load(first);
        let mean = S::fma(S::add(gradient, S::mul(mean, S::splat(-1.0))), S::splat(factors.to_first), mean);
        let square = S::mul(S::mul(gradient, gradient), S::splat(factors.to_second));
        let square = S::fma(S::load(second), S::splat(factors.beta2), square);
        let spread = S::fma(S::sqrt(square), S::splat(factors.root), S::splat(factors.eps));
        let moved = S::div(S::mul(mean, S::splat(factors.rate)), spread);
        S::store(first, mean);
        S::store(second, square);
        S::store(parameter, S::fma(S::load(parameter), S::splat(factors.kept), moved));
    }
}

/// Returns the sum of a chunk's squares.
#[inline]
unsafe fn squares(isa: crate::kernels::simd::Isa, numbers: &[f32]) -> f32 {
    let mut sum = 0.0;
    // SAFETY: the caller promises the instruction set.
    unsafe { add_squares(isa, numbers, &mut sum) };
    sum
}

dispatch! {
    /// Adds a chunk's squares.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set.
    unsafe fn add_squares = add_squares_of(numbers: &[f32], sum: &mut f32)
}

#[inline(always)]
unsafe fn add_squares_of<S: Simd>(numbers: &[f32], sum: &mut f32) {
    let mut groups = numbers.chunks_exact(4 * S::LANES);
    // SAFETY: the caller promises the instruction set; vectors lie within the groups and the array.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for group in &mut groups {
            for (at, sum) in sums.iter_mut().enumerate() {
                let vector = S::load(group.as_ptr().add(at * S::LANES));
                *sum = S::fma(vector, vector, *sum);
            }
        }
        let mut rest = [0.0; 4 * WIDEST];
        rest[..groups.remainder().len()].copy_from_slice(groups.remainder());
        for (at, sum) in sums.iter_mut().enumerate() {
            let vector = S::load(rest.as_ptr().add(at * S::LANES));
            *sum = S::fma(vector, vector, *sum);
        }
        *sum = S::sums(sums).iter().sum();
    }
}
