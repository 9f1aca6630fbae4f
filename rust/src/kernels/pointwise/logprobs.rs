//! Log-probabilities of labels, and the gradient of their logits: the softmax of cross-entropy, without a copy of it.

use super::{Parts, Team, expect};
use crate::kernels::attention::rows::Number;
use crate::kernels::simd::{Simd, dispatch, exp};
use crate::{Error, Result};

/// Chunks of rows per thread, each of which asks for scratch memory once; a row's bits don't depend on its chunk.
const CHUNKS: usize = 8;
/// Numbers of the widest vector.
const WIDEST: usize = 16;
/// Exponentials that are summed in f32; the sums of all blocks are summed in f64.
const BLOCK: usize = 512;

/// Labels, and how their logits become log-probabilities.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Column of each row.
    pub labels: &'a [i64],
    /// Factor on the logits: the inverse of the temperature.
    pub scale: f32,
}

/// What the gradient of the log-probabilities of all rows is.
#[derive(Debug, Clone, Copy)]
pub enum Upstream<'a> {
    /// No gradient is wanted: logits stay as they are.
    None,
    /// 1 for each row.
    Ones,
    /// A number for each row.
    Each(&'a [f32]),
}

impl Labels<'_> {
    /// Writes each row's log-probability of its label, and replaces logits `[R, V]` by their gradient if one is wanted.
    ///
    /// A row's bits depend on the row alone. NaN and infinite logits make the row's results NaN.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if sizes contradict each other, a label is no column, or the machine lacks the
    /// instruction set.
    pub fn softmax<N: Number>(
        &self,
        logits: &mut [N],
        found: &mut [f32],
        upstream: Upstream<'_>,
        team: Team,
    ) -> Result<()> {
        let rows = self.labels.len();
        let width = logits.len().checked_div(rows).unwrap_or(0);
        expect("logits", logits.len(), rows * width)?;
        expect("found", found.len(), rows)?;
        if let Upstream::Each(factors) = upstream {
            expect("gradient", factors.len(), rows)?;
        }
        if let Some(label) = self.labels.iter().find(|&&label| usize::try_from(label).map_or(true, |at| at >= width)) {
            return Err(Error::InvalidArgument(format!("labels must be columns below {width}, got {label}")));
        }
        let team = team.checked()?;
        let (logits, found) = (Parts(logits.as_mut_ptr()), Parts(found.as_mut_ptr()));
        let per_chunk = rows.div_ceil(CHUNKS * team.threads.max(1)).max(1);
        team.each(rows.div_ceil(per_chunk), |chunk| {
            let mut scratch = vec![0.0; width.next_multiple_of(WIDEST)];
            for row in chunk * per_chunk..rows.min((chunk + 1) * per_chunk) {
                let label = usize::try_from(self.labels[row]).unwrap_or(0); // never negative: checked above
                let factor = match upstream {
                    Upstream::None => None,
                    Upstream::Ones => Some(1.0),
                    Upstream::Each(factors) => Some(factors[row]),
                };
                // SAFETY: `checked` found the instruction set, and each row has parts of its own.
                unsafe {
                    let rule = Row { label, scale: self.scale, factor };
                    run(team.isa, rule, logits.part(row * width, width), &mut scratch, &mut found.part(row, 1)[0]);
                }
            }
        });
        Ok(())
    }
}

/// What happens to a row.
#[derive(Clone, Copy)]
struct Row {
    label: usize,
    scale: f32,
    /// Gradient of the row's log-probability, if one is wanted.
    factor: Option<f32>,
}

dispatch! {
    /// Computes a row.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set; the scratch memory holds whole vectors.
    unsafe fn run<N: Number> = run_row(rule: Row, logits: &mut [N], scratch: &mut [f32], found: &mut f32)
}

#[inline(always)]
unsafe fn run_row<S: Simd, N: Number>(rule: Row, logits: &mut [N], scratch: &mut [f32], found: &mut f32) {
    let (scaled, rest) = scratch.split_at_mut(logits.len());
    rest.fill(f32::NEG_INFINITY);
    for (to, logit) in scaled.iter_mut().zip(&*logits) {
        *to = logit.wide() * rule.scale;
    }
    let chosen = scaled[rule.label];
    // SAFETY: the caller promises the instruction set and whole vectors.
    let (highest, total) = unsafe {
        let highest = highest::<S>(scratch);
        (highest, exponentials::<S>(scratch, highest))
    };
    *found = (f64::from(chosen - highest) - total.ln()) as f32;
    let Some(factor) = rule.factor else { return };
    let factor = if highest.is_nan() { f32::NAN } else { factor * rule.scale };
    let share = (-f64::from(factor) / total) as f32;
    for (to, weight) in logits.iter_mut().zip(&*scratch) {
        *to = N::of(weight * share);
    }
    logits[rule.label] = N::of(scratch[rule.label] * share + factor);
}

/// Returns the highest number; NaN if one is NaN, or positive infinity.
#[inline(always)]
unsafe fn highest<S: Simd>(scratch: &[f32]) -> f32 {
    // SAFETY: the caller promises the instruction set and whole vectors.
    unsafe {
        let (lowest, zero) = (S::splat(f32::MIN), S::splat(0.0));
        let (mut maxima, mut marks) = (lowest, zero);
        for at in (0..scratch.len()).step_by(S::LANES) {
            // Minus infinity, past the row, becomes finite.
            let numbers = S::max(lowest, S::load(scratch.as_ptr().add(at)));
            maxima = S::max(numbers, maxima);
            marks = S::fma(numbers, zero, marks);
        }
        S::highest(maxima) + S::sum(marks)
    }
}

/// Replaces numbers by `e^(number - highest)` and returns their sum.
#[inline(always)]
unsafe fn exponentials<S: Simd>(scratch: &mut [f32], highest: f32) -> f64 {
    let mut total = 0.0;
    for block in scratch.chunks_mut(BLOCK) {
        // SAFETY: the caller promises the instruction set, and vectors divide blocks.
        unsafe {
            let (shift, mut sums) = (S::splat(-highest), S::splat(0.0));
            for at in (0..block.len()).step_by(S::LANES) {
                let place = block.as_mut_ptr().add(at);
                let weights = exp::<S>(S::add(S::load(place), shift));
                S::store(place, weights);
                sums = S::add(sums, weights);
            }
            total += f64::from(S::sum(sums));
        }
    }
    total
}
