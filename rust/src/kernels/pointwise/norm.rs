//! Normalization of rows, with the gradients of rows, weight and bias.

use super::{Parts, Team, expect};
use crate::kernels::attention::problem::HEAD_MULTIPLE;
use crate::kernels::attention::rows::Number;
use crate::kernels::simd::{Simd, dispatch};
use crate::{Error, Result};

/// Rows of a chunk, whose shares of the weight's gradient are summed by themselves.
const CHUNK: usize = 64;

/// How rows are normalized: centered or not, divided by their spread, scaled, shifted.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'a> {
    /// Factor of each column; their number is a multiple of 16.
    pub weight: &'a [f32],
    /// Shift of each column.
    pub bias: Option<&'a [f32]>,
    /// Added to the mean square.
    pub eps: f32,
    /// Whether the mean of a row is subtracted first.
    pub is_centered: bool,
    /// Who computes.
    pub team: Team,
}

/// What the gradient of normalized rows is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Normed<'a, N> {
    /// The rows, `[T, C]`.
    pub rows: &'a [f32],
    /// Each row's mean and inverse spread, `[T, 2]`.
    pub kept: &'a [f32],
    /// Gradient of the normalized rows, `[T, C]`.
    pub gradient: &'a [N],
    /// Gradient that reaches the rows past the normalization, `[T, C]`, if any does.
    pub residual: Option<&'a [f32]>,
}

impl RowNorm<'_> {
    /// Writes the normalized rows, `[T, C]`, and each row's mean and inverse spread, `[T, 2]`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other or the machine lacks the instruction set.
    pub fn forward<N: Number>(&self, rows: &[f32], normed: &mut [N], kept: &mut [f32]) -> Result<()> {
        let num_rows = self.checked(rows)?;
        expect("normed", normed.len(), rows.len())?;
        expect("kept", kept.len(), 2 * num_rows)?;
        let (normed, kept, width) = (Parts(normed.as_mut_ptr()), Parts(kept.as_mut_ptr()), self.weight.len());
        self.team.each(num_rows.div_ceil(CHUNK), |chunk| {
            let (start, end) = (chunk * CHUNK, num_rows.min((chunk + 1) * CHUNK));
            let rows = &rows[start * width..end * width];
            // SAFETY: `checked` found the instruction set, and each chunk has a part of its own.
            unsafe {
                let (normed, kept) = (normed.part(start * width, rows.len()), kept.part(2 * start, 2 * (end - start)));
                forward(self.team.isa, self, rows, normed, kept);
            }
        });
        Ok(())
    }

    /// Writes the gradient of the rows, `[T, C]`, and those of the weight and the bias, `[C]` each.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other or the machine lacks the instruction set.
    pub fn backward<N: Number>(
        &self,
        given: Normed<'_, N>,
        to_rows: &mut [f32],
        to_weights: (&mut [f32], Option<&mut [f32]>),
    ) -> Result<()> {
        let (num_rows, width) = (self.checked(given.rows)?, self.weight.len());
        expect("kept", given.kept.len(), 2 * num_rows)?;
        expect("gradient", given.gradient.len(), given.rows.len())?;
        expect("residual", given.residual.map_or(given.rows.len(), <[f32]>::len), given.rows.len())?;
        expect("to_rows", to_rows.len(), given.rows.len())?;
        let (to_weight, to_bias) = to_weights;
        expect("to_weight", to_weight.len(), width)?;
        expect("to_bias", to_bias.as_ref().map_or(width, |part| part.len()), width)?;
        let num_chunks = num_rows.div_ceil(CHUNK);
        let mut sums = vec![0.0_f32; num_chunks * 2 * width];
        let (to_rows, shares) = (Parts(to_rows.as_mut_ptr()), Parts(sums.as_mut_ptr()));
        self.team.each(num_chunks, |chunk| {
            let (start, end) = (chunk * CHUNK, num_rows.min((chunk + 1) * CHUNK));
            let numbers = start * width..end * width;
            let part = Normed {
                rows: &given.rows[numbers.clone()],
                kept: &given.kept[2 * start..2 * end],
                gradient: &given.gradient[numbers.clone()],
                residual: given.residual.map(|residual| &residual[numbers.clone()]),
            };
            // SAFETY: `checked` found the instruction set, and each chunk has a part of its own.
            unsafe {
                let (to_rows, shares) =
                    (to_rows.part(numbers.start, numbers.len()), shares.part(chunk * 2 * width, 2 * width));
                backward(self.team.isa, self, part, to_rows, shares);
            }
        });
        add_shares(&sums, to_weight, 0);
        if let Some(to_bias) = to_bias {
            add_shares(&sums, to_bias, width);
        }
        Ok(())
    }

    /// Returns the number of rows, provided that all sizes agree.
    fn checked(&self, rows: &[f32]) -> Result<usize> {
        self.team.checked()?;
        let width = self.weight.len();
        if width == 0 || !width.is_multiple_of(HEAD_MULTIPLE) || !rows.len().is_multiple_of(width) {
            return Err(Error::InvalidArgument(format!(
                "rows must have the weight's columns, a multiple of {HEAD_MULTIPLE}, got {width} columns and {} numbers",
                rows.len()
            )));
        }
        expect("bias", self.bias.map_or(width, <[f32]>::len), width)?;
        Ok(rows.len() / width)
    }
}

/// Writes the sum of all chunks' shares, each `[2, C]`, from column `start` on.
fn add_shares(shares: &[f32], sums: &mut [f32], start: usize) {
    sums.fill(0.0);
    for chunk in shares.chunks_exact(2 * sums.len()) {
        for (sum, share) in sums.iter_mut().zip(&chunk[start..]) {
            *sum += share;
        }
    }
}

dispatch! {
    /// Normalizes the rows of a chunk.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, and all sizes agree.
    unsafe fn forward<N: Number> = forward_rows(norm: &RowNorm<'_>, rows: &[f32], normed: &mut [N], kept: &mut [f32])
}

dispatch! {
    /// Computes the gradient of a chunk's rows, and their shares of the weights' gradients.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, and all sizes agree.
    unsafe fn backward<N: Number> = backward_rows(norm: &RowNorm<'_>, given: Normed<'_, N>, to_rows: &mut [f32], shares: &mut [f32])
}

#[inline(always)]
unsafe fn forward_rows<S: Simd, N: Number>(norm: &RowNorm<'_>, rows: &[f32], normed: &mut [N], kept: &mut [f32]) {
    let width = norm.weight.len();
    let share = 1.0 / width as f32;
    for ((row, normed), kept) in
        rows.chunks_exact(width).zip(normed.chunks_exact_mut(width)).zip(kept.chunks_exact_mut(2))
    {
        // SAFETY: the caller promises the instruction set; a row has whole vectors.
        unsafe {
            let mean = if norm.is_centered { share * sum_of::<S>(row, |value| value) } else { 0.0 };
            let shift = S::splat(-mean);
            let squares = sum_of::<S>(row, |value| {
                let centered = S::add(value, shift);
                S::mul(centered, centered)
            });
            let factor = 1.0 / (share * squares + norm.eps).sqrt();
            kept.copy_from_slice(&[mean, factor]);
            let (scale, mut wide) = (S::splat(factor), [0.0; HEAD_MULTIPLE]);
            for (at, to) in (0..width).step_by(S::LANES).zip(normed.chunks_exact_mut(S::LANES)) {
                let spread = S::mul(S::add(S::load(row.as_ptr().add(at)), shift), scale);
                let offset = norm.bias.map_or(S::splat(0.0), |bias| S::load(bias.as_ptr().add(at)));
                S::store(wide.as_mut_ptr(), S::fma(spread, S::load(norm.weight.as_ptr().add(at)), offset));
                for lane in 0..S::LANES {
                    to[lane] = N::of(wide[lane]);
                }
            }
        }
    }
}

/// Returns the sum over a row of what `of` makes of each vector.
#[inline(always)]
unsafe fn sum_of<S: Simd>(row: &[f32], of: impl Fn(S::V) -> S::V) -> f32 {
    // SAFETY: the caller promises the instruction set and whole vectors.
    unsafe {
        let mut sums = S::splat(0.0);
        for at in (0..row.len()).step_by(S::LANES) {
            sums = S::add(sums, of(S::load(row.as_ptr().add(at))));
        }
        S::sum(sums)
    }
}

#[inline(always)]
unsafe fn backward_rows<S: Simd, N: Number>(
    norm: &RowNorm<'_>,
    given: Normed<'_, N>,
    to_rows: &mut [f32],
    shares: &mut [f32],
) {
    let width = norm.weight.len();
    let share = 1.0 / width as f32;
    let (to_weight, to_bias) = shares.split_at_mut(width);
    for (idx, to_row) in to_rows.chunks_exact_mut(width).enumerate() {
        let numbers = idx * width..(idx + 1) * width;
        let (row, residual) = (&given.rows[numbers.clone()], given.residual.map(|all| &all[numbers.clone()]));
        let (mean, factor) = (given.kept[2 * idx], given.kept[2 * idx + 1]);
        for (wide, gradient) in to_row.iter_mut().zip(&given.gradient[numbers]) {
            *wide = gradient.wide();
        }
        // SAFETY: the caller promises the instruction set; a row has whole vectors.
        unsafe {
            let (shift, scale) = (S::splat(-mean), S::splat(factor));
            let spread = |at: usize| S::mul(S::add(S::load(row.as_ptr().add(at)), shift), scale);
            let (mut sums, mut products) = (S::splat(0.0), S::splat(0.0));
            for at in (0..width).step_by(S::LANES) {
                let (gradient, normed) = (S::load(to_row.as_ptr().add(at)), spread(at));
                let weighed = S::mul(gradient, S::load(norm.weight.as_ptr().add(at)));
                sums = S::add(sums, weighed);
                products = S::fma(weighed, normed, products);
                let (weight, bias) = (to_weight.as_mut_ptr().add(at), to_bias.as_mut_ptr().add(at));
                S::store(weight, S::fma(gradient, normed, S::load(weight)));
                S::store(bias, S::add(gradient, S::load(bias)));
                S::store(to_row.as_mut_ptr().add(at), weighed);
            }
            let mean = if norm.is_centered { S::splat(-share * S::sum(sums)) } else { S::splat(0.0) };
            let slope = S::splat(-share * S::sum(products));
            for at in (0..width).step_by(S::LANES) {
                let weighed = S::add(S::load(to_row.as_ptr().add(at)), mean);
                let past = residual.map_or(S::splat(0.0), |residual| S::load(residual.as_ptr().add(at)));
                S::store(to_row.as_mut_ptr().add(at), S::fma(S::fma(spread(at), slope, weighed), scale, past));
            }
        }
    }
}
