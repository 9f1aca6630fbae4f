//! A group of rows on its way through the model, and the operations that all phases share.

use crate::kernels::buffers::{ROW_SCRATCH, SharedBuffers, Sizes};
use crate::kernels::cache::{CacheLayer, CacheShape};
use crate::kernels::memory::{Format, SharedBuffer};
use crate::kernels::product::linear::Linear;
use crate::kernels::product::prepared::{Layout, Prepared};
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::row_ops::Norm;
use crate::kernels::simd::Isa;
use crate::kernels::spec::ModelSpec;
use crate::kernels::step::{StepInput, TokenRow};
use crate::kernels::threads::Worker;

/// Everything that the passes of a step share.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a> {
    pub spec: &'a ModelSpec,
    pub isa: Isa,
    pub shape: &'a CacheShape,
    pub caches: &'a [CacheLayer],
    pub step: &'a StepInput<'a>,
    pub buffers: &'a SharedBuffers,
    pub logits: SharedBuffer,
}

/// One row's KV split, seen through the query heads of one key head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionTask {
    pub row: usize,
    pub split: usize,
    pub head: usize,
}

/// A group of rows on its way through the model.
pub(crate) struct Pass<'a> {
    pub spec: &'a ModelSpec,
    pub isa: Isa,
    pub shape: &'a CacheShape,
    pub caches: &'a [CacheLayer],
    pub step: &'a StepInput<'a>,
    pub buffers: &'a SharedBuffers,
    pub logits: SharedBuffer,
    pub rows: &'a [TokenRow],
    pub attention_tasks: Vec<AttentionTask>,
}

impl<'a> Pass<'a> {
    pub fn new(context: &StepContext<'a>, rows: &'a [TokenRow]) -> Self {
        let StepContext { spec, isa, shape, caches, step, buffers, logits } = *context;
        let attention_tasks = attention_tasks(rows, shape.num_kv_heads);
        Self { spec, isa, shape, caches, step, buffers, logits, rows, attention_tasks }
    }

    pub fn sizes(&self) -> &Sizes {
        &self.buffers.sizes
    }

    /// Runs `work` for each row, split among the workers, then waits at a barrier.
    pub fn each_row(&self, worker: &Worker<'_>, work: impl Fn(usize)) {
        (worker.index..self.rows.len()).step_by(worker.num_threads()).for_each(work);
        worker.barrier();
    }

    /// Runs `work` for each strip of `num_outputs`, claimed by the workers, then waits at a barrier.
    pub fn each_strip(&self, worker: &Worker<'_>, num_outputs: usize, work: impl Fn(Strip)) {
        let num_strips = num_outputs.div_ceil(STRIP);
        // Claims are few enough to cost nothing, and small enough that a worker delayed by the system delays no other.
        let size = (num_strips / (worker.num_threads() * 8)).max(1);
        let claims = std::iter::from_fn(|| worker.claim(num_strips, size));
        let mut strips = claims.flatten().map(|strip| strip * STRIP).peekable();
        while let Some(first) = strips.next() {
            let next = strips.peek().copied().unwrap_or(first);
            work(Strip { first, count: STRIP.min(num_outputs - first), next });
        }
        worker.barrier();
    }

    /// Multiplies `x` with a linear layer; `put(row, first output, values)` receives the results. Ends at a barrier.
    pub fn multiply(&self, worker: &Worker<'_>, linear: &Linear, x: &Prepared, put: impl Fn(usize, usize, &[f32])) {
        self.each_strip(worker, linear.weight.rows, |strip| {
            self.multiply_strip(worker, linear, strip, x, |row, values| put(row, strip.first, values));
        });
    }

    /// Multiplies `x` with one strip of a linear layer; `put(row, values)` receives the results.
    pub fn multiply_strip(
        &self,
        worker: &Worker<'_>,
        linear: &Linear,
        strip: Strip,
        x: &Prepared,
        put: impl Fn(usize, &[f32]),
    ) {
        let scratch = self.thread_scratch(worker);
        // SAFETY: only this worker uses its scratch.
        let out = unsafe { scratch.write(0, x.num_rows * STRIP) };
        // SAFETY: `x` was written before the last barrier, and nobody writes to it before the next.
        unsafe { linear.multiply_strip(strip, x, out) };
        for (row, values) in out.as_chunks::<STRIP>().0.iter().enumerate() {
            // Values of a constant length are copied without a call.
            if strip.count == STRIP { put(row, values) } else { put(row, &values[..strip.count]) }
        }
    }

    /// Adds a product to the residual stream, through a norm if given.
    pub fn add_product(&self, worker: &Worker<'_>, linear: &Linear, x: &Prepared, norm: Option<&Norm>) {
        let hidden = self.sizes().hidden;
        let target = if norm.is_some() { self.buffers.mixed } else { self.buffers.hidden };
        self.multiply(worker, linear, x, |row, first, values| {
            // SAFETY: one worker owns each strip of columns until the barrier.
            let to = unsafe { target.write(row * hidden + first, values.len()) };
            match norm {
                Some(_) => to.copy_from_slice(values),
                None => to.iter_mut().zip(values).for_each(|(to, value)| *to += value),
            }
        });
        if norm.is_some() {
            self.add_mixed(worker, norm);
        }
    }

    /// Adds the rows of `mixed` to the residual stream, through a norm if given.
    pub fn add_mixed(&self, worker: &Worker<'_>, norm: Option<&Norm>) {
        let width = self.sizes().hidden;
        self.each_row(worker, |row| {
            // SAFETY: one worker owns each row of both buffers until the barrier.
            let (mixed, hidden) = unsafe {
                (self.buffers.mixed.write(row * width, width), self.buffers.hidden.write(row * width, width))
            };
            if let Some(norm) = norm {
                norm.apply(self.isa, mixed);
            }
            hidden.iter_mut().zip(mixed).for_each(|(hidden, value)| *hidden += *value);
        });
    }

    /// Normalizes all rows of the residual stream into the inputs of the next product. Ends at a barrier.
    pub fn normalize_rows(&self, worker: &Worker<'_>, norm: &Norm, format: Format) {
        let inputs = self.hidden_inputs(format);
        self.each_row(worker, |row| self.normalize(worker, row, norm, &inputs, row));
    }

    /// Normalizes row `row` of the residual stream into row `to_row` of `to`.
    pub fn normalize(&self, worker: &Worker<'_>, row: usize, norm: &Norm, to: &Prepared, to_row: usize) {
        let width = self.sizes().hidden;
        let scratch = self.row_scratch(worker);
        // SAFETY: only this worker uses its scratch, and nobody writes to the residual stream during this phase.
        let (normed, hidden) = unsafe { (scratch.write(0, width), self.buffers.hidden.read(row * width, width)) };
        normed.copy_from_slice(hidden);
        norm.apply(self.isa, normed);
        // SAFETY: one worker owns each row of the inputs until the barrier.
        unsafe { to.write(to_row, normed) };
    }

    /// Returns all rows' inputs of a product with weights of the hidden width.
    pub fn hidden_inputs(&self, format: Format) -> Prepared {
        self.inputs(self.sizes().hidden, format)
    }

    /// Returns all rows' inputs of a product with weights of `cols` columns.
    pub fn inputs(&self, cols: usize, format: Format) -> Prepared {
        let (data, stride, layout) = (self.buffers.input, self.sizes().input, Layout::of(format));
        Prepared { isa: self.isa, layout, data, stride, num_rows: self.rows.len(), cols }
    }

    /// Returns all rows' inputs of a feed-forward's down projection.
    pub fn inner(&self, down: &Linear) -> Prepared {
        let (data, stride) = (self.buffers.inner, self.sizes().inner);
        let (layout, cols) = (Layout::of(down.weight.format), down.weight.cols);
        Prepared { isa: self.isa, layout, data, stride, num_rows: self.rows.len(), cols }
    }

    /// Returns the worker's own scratch: two strips, then [`Self::row_scratch`]; or attention scores.
    pub fn thread_scratch(&self, worker: &Worker<'_>) -> SharedBuffer {
        self.buffers.threads[worker.index]
    }

    /// Returns the part of the worker's scratch that strips leave free: room for one row, or for gathered rows.
    pub fn row_scratch(&self, worker: &Worker<'_>) -> SharedBuffer {
        self.thread_scratch(worker).from(ROW_SCRATCH)
    }
}

/// Returns all attention tasks of a group. Rows of a prompt that look at the same keys follow each other, so that the keys
/// stay in the second-level cache; otherwise each row would load all keys of a long prompt anew.
fn attention_tasks(rows: &[TokenRow], num_kv_heads: usize) -> Vec<AttentionTask> {
    let mut tasks = Vec::new();
    let mut first = 0;
    for prompt in rows.chunk_by(|a, b| a.request == b.request) {
        for split in 0..prompt.iter().map(TokenRow::num_splits).max().unwrap_or(0) {
            for head in 0..num_kv_heads {
                let seeing = prompt.iter().enumerate().filter(|(_, row)| split < row.num_splits());
                tasks.extend(seeing.map(|(idx, _)| AttentionTask { row: first + idx, split, head }));
            }
        }
        first += prompt.len();
    }
    tasks
}
