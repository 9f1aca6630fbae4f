//! The forward pass: scores of a block of queries with all keys before, weights, weighted values.

use super::problem::{AttentionRule, CausalAttention, Shared, Unit};
use super::rows::{self, BLOCK, Number};
use super::tile::{ROWS, Strip, multiply};
use crate::kernels::simd::{Simd, dispatch, exp};

/// A forward pass and where its results go.
pub(super) struct Forward<'a, N> {
    pub given: &'a CausalAttention<'a, N>,
    pub mixed: Shared<N>,
    pub sums: Shared<f32>,
}

/// Returns the numbers of scratch memory for sequences of up to `longest` tokens.
pub(super) fn scratch_len(rule: AttentionRule, longest: usize) -> usize {
    let padded = longest.next_multiple_of(BLOCK);
    2 * padded * rule.head_dim + BLOCK * (2 * rule.head_dim + padded)
}

/// A unit's parts of the scratch memory.
struct Scratch<'a> {
    /// Keys, `[blocks, D, BLOCK]`.
    keys: &'a mut [f32],
    /// Values, `[T, D]`.
    values: &'a mut [f32],
    /// A block of queries, `[BLOCK, D]`.
    queries: &'a mut [f32],
    /// The block's output, `[BLOCK, D]`.
    mixed: &'a mut [f32],
    /// The block's scores, then weights, `[BLOCK, T]`.
    scores: &'a mut [f32],
    /// Each row's highest score.
    highest: [f32; BLOCK],
    /// What each row's weights are divided by, then its inverse.
    sums: [f32; BLOCK],
}

impl<'a> Scratch<'a> {
    fn of(memory: &'a mut [f32], padded: usize, width: usize) -> Self {
        let (keys, memory) = memory.split_at_mut(padded * width);
        let (values, memory) = memory.split_at_mut(padded * width);
        let (queries, memory) = memory.split_at_mut(BLOCK * width);
        let (mixed, memory) = memory.split_at_mut(BLOCK * width);
        let (highest, sums) = ([0.0; BLOCK], [0.0; BLOCK]);
        Self { keys, values, queries, mixed, scores: &mut memory[..BLOCK * padded], highest, sums }
    }
}

dispatch! {
    /// Runs one unit.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, all sizes agree, and the unit's part of the results is the caller's alone.
    pub(super) unsafe fn run<N: Number> = run_unit(task: &Forward<'_, N>, unit: &Unit, memory: &mut [f32])
}

#[inline(always)]
unsafe fn run_unit<S: Simd, N: Number>(task: &Forward<'_, N>, unit: &Unit, memory: &mut [f32]) {
    let given = task.given;
    let AttentionRule { num_heads, num_kv_heads, head_dim: width, scale } = given.rule;
    let mut scratch = Scratch::of(memory, unit.padded(), width);
    let groups = num_heads / num_kv_heads;
    for (block, keys) in scratch.keys.chunks_exact_mut(BLOCK * width).enumerate() {
        given.load_heads(unit.block(block), num_heads + unit.kv_head, 1.0, scratch.queries);
        rows::transpose(scratch.queries, width, keys);
    }
    given.load_heads(unit.tokens.clone(), num_heads + num_kv_heads + unit.kv_head, 1.0, scratch.values);
    for head in unit.kv_head * groups..(unit.kv_head + 1) * groups {
        for block in 0..unit.padded() / BLOCK {
            let tokens = unit.block(block);
            given.load_heads(tokens.clone(), head, scale, scratch.queries);
            // SAFETY: the caller promises the instruction set and the unit's part of the results; the scratch memory holds
            // whole blocks.
            unsafe {
                score::<S>(&mut scratch, block, tokens.len(), width);
                weigh::<S>(&mut scratch, block, tokens.len());
                for (row, token) in tokens.clone().enumerate() {
                    let sum = scratch.sums[row];
                    scratch.sums[row] = 1.0 / sum;
                    task.sums.part(token * num_heads + head, 1)[0] = scratch.highest[row] + sum.ln();
                }
                mix::<S>(&mut scratch, block, tokens.len(), width);
                for (row, token) in tokens.enumerate() {
                    let to = task.mixed.part((token * num_heads + head) * width, width);
                    let from = &scratch.mixed[row * width..(row + 1) * width];
                    rows::store(from, None, scratch.sums[row], to);
                }
            }
        }
    }
}

/// Computes the scores of a block of queries with all keys up to the diagonal.
#[inline(always)]
unsafe fn score<S: Simd>(scratch: &mut Scratch<'_>, block: usize, num_rows: usize, width: usize) {
    let pitch = scratch.scores.len() / BLOCK;
    for panel in 0..=block {
        for row in (0..num_rows).step_by(ROWS) {
            let strip = Strip {
                left: scratch.queries[row * width..].as_ptr(),
                left_row: width,
                left_step: 1,
                right: scratch.keys[panel * BLOCK * width..].as_ptr(),
                right_step: BLOCK,
                num_steps: width,
                out: scratch.scores[row * pitch + panel * BLOCK..].as_mut_ptr(),
                out_row: pitch,
                adds: false,
            };
            // SAFETY: a panel holds `BLOCK` keys, and rows are filled up to whole strips.
            unsafe { multiply::<S>(&strip, if panel < block { BLOCK } else { row + ROWS }) }
        }
    }
}

/// Replaces each row's scores up to the diagonal by weights relative to its highest score, and those of the strip's keys
/// beyond by zero.
///
/// Each loop's rows don't wait for each other, and a vector is read long after its last numbers were written one by one.
#[inline(always)]
unsafe fn weigh<S: Simd>(scratch: &mut Scratch<'_>, block: usize, num_rows: usize) {
    let pitch = scratch.scores.len() / BLOCK;
    let seen = |row: usize| block * BLOCK + row + 1;
    for row in 0..num_rows {
        scratch.scores[row * pitch..][seen(row)..seen(row).next_multiple_of(S::LANES)].fill(f32::NEG_INFINITY);
    }
    // SAFETY: a row has whole vectors up to the diagonal.
    unsafe {
        for row in 0..num_rows {
            let from = scratch.scores[row * pitch..].as_ptr();
            let mut maxima = S::splat(f32::NEG_INFINITY);
            for place in (0..seen(row)).step_by(S::LANES) {
                maxima = S::max(S::load(from.add(place)), maxima);
            }
            scratch.highest[row] = S::highest(maxima);
        }
        for row in 0..num_rows {
            let scores = scratch.scores[row * pitch..].as_mut_ptr();
            let (mut sums, shift) = (S::splat(0.0), S::splat(-scratch.highest[row]));
            for place in (0..seen(row)).step_by(S::LANES) {
                let weights = exp::<S>(S::add(S::load(scores.add(place)), shift));
                S::store(scores.add(place), weights);
                sums = S::add(sums, weights);
            }
            scratch.sums[row] = S::sum(sums);
        }
    }
    for row in 0..num_rows {
        scratch.scores[row * pitch..][seen(row)..seen(row).next_multiple_of(ROWS)].fill(0.0);
    }
}

/// Computes the weighted sums of values for a block of queries.
#[inline(always)]
unsafe fn mix<S: Simd>(scratch: &mut Scratch<'_>, block: usize, num_rows: usize, width: usize) {
    let pitch = scratch.scores.len() / BLOCK;
    for panel in 0..=block {
        for row in (0..num_rows).step_by(ROWS) {
            let strip = Strip {
                left: scratch.scores[row * pitch + panel * BLOCK..].as_ptr(),
                left_row: pitch,
                left_step: 1,
                right: scratch.values[panel * BLOCK * width..].as_ptr(),
                right_step: width,
                num_steps: if panel < block { BLOCK } else { row + ROWS },
                out: scratch.mixed[row * width..].as_mut_ptr(),
                out_row: width,
                adds: panel > 0,
            };
            // SAFETY: a panel holds `BLOCK` values, and rows are filled up to whole strips.
            unsafe { multiply::<S>(&strip, width) }
        }
    }
}
