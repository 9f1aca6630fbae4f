//! The backward pass: for each block of keys, the weights of all queries from there on are computed again.

use super::problem::{AttentionRule, CausalAttention, Kept, Shared, Unit};
use super::rows::{self, BLOCK, Number};
use super::tile::{ROWS, Strip, multiply};
use crate::kernels::simd::{Simd, dispatch, exp};

/// A backward pass and where its result goes.
pub(super) struct Backward<'a, N> {
    pub given: &'a CausalAttention<'a, N>,
    pub kept: Kept<'a, N>,
    pub gradient: &'a [N],
    pub to_joined: Shared<N>,
}

/// Returns the numbers of scratch memory for sequences of up to `longest` tokens.
pub(super) fn scratch_len(rule: AttentionRule, longest: usize) -> usize {
    let padded = longest.next_multiple_of(BLOCK);
    padded * (8 * rule.head_dim + 2) + 2 * BLOCK * BLOCK
}

/// A unit's parts of the scratch memory.
struct Scratch<'a> {
    /// Keys, `[T, D]`, and in blocks `[D, BLOCK]`.
    keys: &'a mut [f32],
    key_panels: &'a mut [f32],
    /// Values in blocks `[D, BLOCK]`.
    value_panels: &'a mut [f32],
    to_keys: &'a mut [f32],
    to_values: &'a mut [f32],
    /// Scaled queries of a head, `[T, D]`.
    queries: &'a mut [f32],
    to_queries: &'a mut [f32],
    /// Gradient of the head's output, `[T, D]`.
    gradient: &'a mut [f32],
    /// Logarithm of the sum of each row's exponentials.
    logsumexp: &'a mut [f32],
    /// Products of each row's output and its gradient.
    delta: &'a mut [f32],
    /// Weights of a block of queries for a block of keys, `[BLOCK, BLOCK]`.
    weights: &'a mut [f32],
    /// Gradient of the scores, `[BLOCK, BLOCK]`.
    slopes: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn of(memory: &'a mut [f32], padded: usize, width: usize) -> Self {
        let mut rest = memory;
        let mut take = |len: usize| -> &'a mut [f32] {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        let size = padded * width;
        Self {
            keys: take(size),
            key_panels: take(size),
            value_panels: take(size),
            to_keys: take(size),
            to_values: take(size),
            queries: take(size),
            to_queries: take(size),
            gradient: take(size),
            logsumexp: take(padded),
            delta: take(padded),
            weights: take(BLOCK * BLOCK),
            slopes: take(BLOCK * BLOCK),
        }
    }
}

dispatch! {
    /// Runs one unit.
    ///
    /// # Safety
    ///
    /// The machine has the instruction set, all sizes agree, and the unit's part of the result is the caller's alone.
    pub(super) unsafe fn run<N: Number> = run_unit(task: &Backward<'_, N>, unit: &Unit, memory: &mut [f32])
}

#[inline(always)]
unsafe fn run_unit<S: Simd, N: Number>(task: &Backward<'_, N>, unit: &Unit, memory: &mut [f32]) {
    let AttentionRule { num_heads, num_kv_heads, head_dim: width, scale } = task.given.rule;
    let mut scratch = Scratch::of(memory, unit.padded(), width);
    let groups = num_heads / num_kv_heads;
    load_keys(task, unit, &mut scratch);
    for head in unit.kv_head * groups..(unit.kv_head + 1) * groups {
        // SAFETY: the caller promises the instruction set.
        unsafe { load_queries::<S, N>(task, unit, head, &mut scratch) };
        for panel in 0..unit.padded() / BLOCK {
            for block in panel..unit.padded() / BLOCK {
                let pair = Pair { block, panel, len: unit.len(), width };
                // SAFETY: the caller promises the instruction set; the scratch memory holds whole blocks.
                unsafe {
                    pair.compare::<S>(&mut scratch);
                    pair.add_gradients::<S>(&mut scratch);
                }
            }
        }
        // SAFETY: the unit's heads are the caller's alone.
        unsafe { store(task, unit, head, scratch.to_queries, scale) };
    }
    let (key, value) = (num_heads + unit.kv_head, num_heads + num_kv_heads + unit.kv_head);
    // SAFETY: the unit's heads are the caller's alone.
    unsafe {
        store(task, unit, key, scratch.to_keys, 1.0);
        store(task, unit, value, scratch.to_values, 1.0);
    }
}

/// Loads keys and values, and clears their gradients.
#[inline(always)]
fn load_keys<N: Number>(task: &Backward<'_, N>, unit: &Unit, scratch: &mut Scratch<'_>) {
    let AttentionRule { num_heads, num_kv_heads, head_dim: width, .. } = task.given.rule;
    task.given.load_heads(unit.tokens.clone(), num_heads + unit.kv_head, 1.0, scratch.keys);
    // The queries' place is free until a head is loaded.
    let values = &mut *scratch.queries;
    task.given.load_heads(unit.tokens.clone(), num_heads + num_kv_heads + unit.kv_head, 1.0, values);
    let size = BLOCK * width;
    for start in (0..values.len()).step_by(size) {
        let range = start..start + size;
        rows::transpose(&scratch.keys[range.clone()], width, &mut scratch.key_panels[range.clone()]);
        rows::transpose(&values[range.clone()], width, &mut scratch.value_panels[range]);
    }
    scratch.to_keys.fill(0.0);
    scratch.to_values.fill(0.0);
}

/// Loads a head's queries and the gradient of its output, and clears the gradient of its queries.
#[inline(always)]
unsafe fn load_queries<S: Simd, N: Number>(
    task: &Backward<'_, N>,
    unit: &Unit,
    head: usize,
    scratch: &mut Scratch<'_>,
) {
    let AttentionRule { num_heads, head_dim: width, scale, .. } = task.given.rule;
    task.given.load_heads(unit.tokens.clone(), head, scale, scratch.queries);
    scratch.gradient[unit.len() * width..].fill(0.0);
    scratch.logsumexp[unit.len()..].fill(0.0);
    scratch.delta[unit.len()..].fill(0.0);
    for (row, token) in unit.tokens.clone().enumerate() {
        let at = token * num_heads + head;
        let gradient = &mut scratch.gradient[row * width..(row + 1) * width];
        rows::load(&task.gradient[at * width..(at + 1) * width], None, 1.0, gradient);
        let mixed = &mut scratch.to_queries[..width];
        rows::load(&task.kept.mixed[at * width..(at + 1) * width], None, 1.0, mixed);
        // SAFETY: the caller promises the instruction set.
        scratch.delta[row] = unsafe { rows::product::<S>(mixed, gradient) };
        scratch.logsumexp[row] = task.kept.logsumexp[at];
    }
    scratch.to_queries.fill(0.0);
}

/// Writes the gradient of a head.
#[inline(always)]
unsafe fn store<N: Number>(task: &Backward<'_, N>, unit: &Unit, head: usize, from: &[f32], factor: f32) {
    let AttentionRule { num_heads, num_kv_heads, head_dim: width, .. } = task.given.rule;
    let is_value = head >= num_heads + num_kv_heads;
    for (token, from) in unit.tokens.clone().zip(from.chunks_exact(width)) {
        // SAFETY: the caller promises that nobody else uses the head of these tokens.
        let to = unsafe { task.to_joined.part((token * (num_heads + 2 * num_kv_heads) + head) * width, width) };
        rows::store(from, if is_value { None } else { task.given.turn(token) }, factor, to);
    }
}

/// A block of queries and a block of keys.
struct Pair {
    block: usize,
    panel: usize,
    /// Number of tokens of the sequence.
    len: usize,
    width: usize,
}

impl Pair {
    fn is_diagonal(&self) -> bool {
        self.block == self.panel
    }

    /// Returns the number of queries, filled up to whole strips.
    fn num_rows(&self) -> usize {
        BLOCK.min((self.len - self.block * BLOCK).next_multiple_of(ROWS))
    }

    /// Returns the number of keys that the strip of queries from `row` on sees.
    fn num_seen(&self, row: usize) -> usize {
        if self.is_diagonal() { row + ROWS } else { BLOCK }
    }

    /// Computes weights and the gradient of scores.
    #[inline(always)]
    unsafe fn compare<S: Simd>(&self, scratch: &mut Scratch<'_>) {
        let width = self.width;
        for row in (0..self.num_rows()).step_by(ROWS) {
            let left = (self.block * BLOCK + row) * width;
            let panel = self.panel * BLOCK * width;
            let scores = Strip {
                left: scratch.queries[left..].as_ptr(),
                left_row: width,
                left_step: 1,
                right: scratch.key_panels[panel..].as_ptr(),
                right_step: BLOCK,
                num_steps: width,
                out: scratch.weights[row * BLOCK..].as_mut_ptr(),
                out_row: BLOCK,
                adds: false,
            };
            let products = Strip {
                left: scratch.gradient[left..].as_ptr(),
                right: scratch.value_panels[panel..].as_ptr(),
                out: scratch.slopes[row * BLOCK..].as_mut_ptr(),
                ..scores
            };
            // SAFETY: a panel holds `BLOCK` keys, and rows are filled up to whole strips.
            unsafe {
                multiply::<S>(&scores, self.num_seen(row));
                multiply::<S>(&products, self.num_seen(row));
            }
        }
        // SAFETY: the caller promises the instruction set.
        unsafe { self.weigh::<S>(scratch) }
    }

    /// Replaces scores by weights, and the gradient of the weights by that of the scores.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, scratch: &mut Scratch<'_>) {
        let last = |row: usize| if self.is_diagonal() { row + 1 } else { BLOCK };
        for row in 0..self.num_rows() {
            let (at, num_seen) = (self.block * BLOCK + row, last(row));
            let weights = scratch.weights[row * BLOCK..(row + 1) * BLOCK].as_mut_ptr();
            let slopes = scratch.slopes[row * BLOCK..(row + 1) * BLOCK].as_mut_ptr();
            // SAFETY: both rows hold `BLOCK` numbers, which are whole vectors.
            unsafe {
                let (shift, delta) = (S::splat(-scratch.logsumexp[at]), S::splat(-scratch.delta[at]));
                for place in (0..num_seen).step_by(S::LANES) {
                    let weight = exp::<S>(S::add(S::load(weights.add(place)), shift));
                    S::store(weights.add(place), weight);
                    S::store(slopes.add(place), S::mul(weight, S::add(S::load(slopes.add(place)), delta)));
                }
            }
        }
        for row in 0..self.num_rows() {
            let beyond = row * BLOCK + last(row)..row * BLOCK + last(row).next_multiple_of(ROWS);
            scratch.weights[beyond.clone()].fill(0.0);
            scratch.slopes[beyond].fill(0.0);
        }
    }

    /// Adds this pair's share to the gradients of queries, keys and values.
    #[inline(always)]
    unsafe fn add_gradients<S: Simd>(&self, scratch: &mut Scratch<'_>) {
        let width = self.width;
        let (queries, keys) = (self.block * BLOCK, self.panel * BLOCK);
        for key in (0..BLOCK.min((self.len - keys).next_multiple_of(ROWS))).step_by(ROWS) {
            // Queries before the strip's first key don't see it.
            let first = if self.is_diagonal() { key } else { 0 };
            let to_values = Strip {
                left: scratch.weights[first * BLOCK + key..].as_ptr(),
                left_row: 1,
                left_step: BLOCK,
                right: scratch.gradient[(queries + first) * width..].as_ptr(),
                right_step: width,
                num_steps: self.num_rows() - first,
                out: scratch.to_values[(keys + key) * width..].as_mut_ptr(),
                out_row: width,
                adds: true,
            };
            let to_keys = Strip {
                left: scratch.slopes[first * BLOCK + key..].as_ptr(),
                right: scratch.queries[(queries + first) * width..].as_ptr(),
                out: scratch.to_keys[(keys + key) * width..].as_mut_ptr(),
                ..to_values
            };
            // SAFETY: rows of keys, queries and gradients are filled up to whole strips.
            unsafe {
                multiply::<S>(&to_values, width);
                multiply::<S>(&to_keys, width);
            }
        }
        for row in (0..self.num_rows()).step_by(ROWS) {
            let to_queries = Strip {
                left: scratch.slopes[row * BLOCK..].as_ptr(),
                left_row: BLOCK,
                left_step: 1,
                right: scratch.keys[keys * width..].as_ptr(),
                right_step: width,
                num_steps: self.num_seen(row),
                out: scratch.to_queries[(queries + row) * width..].as_mut_ptr(),
                out_row: width,
                adds: true,
            };
            // SAFETY: rows of queries are filled up to whole strips, and keys up to whole blocks.
            unsafe { multiply::<S>(&to_queries, width) }
        }
    }
}
