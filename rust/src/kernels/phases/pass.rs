//! A group of rows on its way through the model, and the operations that all phases share.

use crate::kernels::buffers::{ROW_SCRATCH, SharedBuffers, Sizes};
use crate::kernels::cache::{CacheLayer, CacheShape};
use crate::kernels::memory::SharedBuffer;
use crate::kernels::product::linear::Linear;
use crate::kernels::product::prepared::{Layout, Prepared};
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::row_ops::Norm;
use crate::kernels::simd::Isa;
use crate::kernels::spec::ModelSpec;
use crate::kernels::step::{FEW_ROWS, StepInput, TokenRow};
use crate::kernels::threads::Worker;
use crate::prefetch::Ahead;

/// Bytes of weights that a waiting worker prefetches: a small part of the second-level cache.
pub(super) const AHEAD_BYTES: usize = 64 << 10;
/// Cache lines of weights that are prefetched before a worker prepares the inputs of a product.
const FIRST_LINES: usize = 32;

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
    /// Channels of the rows' adapters, and their distance.
    pub low: (SharedBuffer, usize),
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
    /// Numbers of the rows' adapters, and the rows of each.
    pub adapters: Vec<(u16, Vec<usize>)>,
    /// Channels of the rows' adapters, of one layer at a time.
    pub low: SharedBuffer,
    /// Distance between rows of `low`.
    pub low_stride: usize,
}

impl<'a> Pass<'a> {
    pub fn new(context: &StepContext<'a>, rows: &'a [TokenRow]) -> Self {
        let StepContext { spec, isa, shape, caches, step, buffers, logits, low: (low, low_stride) } = *context;
        let attention_tasks = attention_tasks(rows, shape.num_kv_heads);
        let mut adapters: Vec<(u16, Vec<usize>)> = Vec::new();
        for (idx, row) in rows.iter().enumerate().filter(|(_, row)| row.adapter > 0) {
            match adapters.iter_mut().find(|(number, _)| *number == row.adapter) {
                Some((_, own)) => own.push(idx),
                None => adapters.push((row.adapter, vec![idx])),
            }
        }
        Self { spec, isa, shape, caches, step, buffers, logits, rows, attention_tasks, adapters, low, low_stride }
    }

    pub fn sizes(&self) -> &Sizes {
        &self.buffers.sizes
    }

    /// Runs `work` for each row, split among the workers, then waits at a barrier. A worker takes neighbours, which lie in
    /// the same cache lines where rows of activations are interleaved.
    pub fn each_row(&self, worker: &Worker<'_>, work: impl Fn(usize)) {
        let num_rows = self.rows.len();
        worker.share(num_rows, num_rows.div_ceil(worker.num_threads()).max(1)).for_each(work);
        worker.barrier();
    }

    /// Runs `work`, which prepares a row of [`Self::inputs`], for each row. All rows are there for this worker afterwards.
    pub fn prepare_rows(&self, worker: &Worker<'_>, num_rows: usize, work: impl Fn(usize)) {
        if num_rows <= FEW_ROWS {
            // The product that follows finds its first weights at hand.
            worker.prefetch(FIRST_LINES);
            return (0..num_rows).for_each(work);
        }
        worker.share(num_rows, num_rows.div_ceil(worker.num_threads()).max(1)).for_each(work);
        worker.barrier();
    }

    /// Runs `work` for each strip of `num_outputs`, claimed by the workers, then waits at a barrier.
    pub fn each_strip(&self, worker: &Worker<'_>, num_outputs: usize, work: impl Fn(Strip)) {
        let num_strips = num_outputs.div_ceil(STRIP);
        let size = claim_size(worker, num_strips);
        let claims = std::iter::from_fn(|| worker.claim(num_strips, size));
        let mut strips = claims.flatten().map(|strip| strip * STRIP).peekable();
        while let Some(first) = strips.next() {
            let next = strips.peek().copied().unwrap_or(first);
            work(Strip { first, count: STRIP.min(num_outputs - first), next });
        }
        worker.barrier();
    }

    /// Has the worker prefetch its share of a linear layer's weights while it waits: the layer that is multiplied next.
    pub fn fetch_ahead(&self, worker: &Worker<'_>, linear: &Linear) {
        let num_strips = linear.weight.rows.div_ceil(STRIP);
        let share = worker.share(num_strips, claim_size(worker, num_strips));
        let first = (!share.is_empty()).then(|| linear.weight.address(share.start * STRIP));
        worker.set_ahead(Ahead::of([first, None], AHEAD_BYTES));
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
        // SAFETY: `x` was written before the last barrier or by this worker, and nobody writes to it before the next.
        unsafe { linear.multiply_strip(strip, x, out) };
        self.add_low_rank(linear, strip.first, out);
        for (row, values) in out.as_chunks::<STRIP>().0.iter().enumerate() {
            // Values of a constant length are copied without a call.
            if strip.count == STRIP { put(row, values) } else { put(row, &values[..strip.count]) }
        }
    }

    /// Adds a product to the residual stream, through a norm if given.
    pub fn add_product(&self, worker: &Worker<'_>, linear: &Linear, x: &Prepared, norm: Option<&Norm>) {
        if norm.is_some() {
            self.mix_product(worker, linear, x);
            return self.add_mixed(worker, norm);
        }
        let (hidden, scale) = (self.sizes().hidden, self.spec.residual_scale);
        self.multiply(worker, linear, x, |row, first, values| {
            // SAFETY: one worker owns each strip of columns until the barrier.
            let to = unsafe { self.buffers.hidden.write(row * hidden + first, values.len()) };
            to.iter_mut().zip(values).for_each(|(to, value)| *to += scale * value);
        });
    }

    /// Writes a product to `mixed`. Ends at a barrier.
    pub fn mix_product(&self, worker: &Worker<'_>, linear: &Linear, x: &Prepared) {
        let hidden = self.sizes().hidden;
        self.multiply(worker, linear, x, |row, first, values| {
            // SAFETY: one worker owns each strip of columns until the barrier.
            unsafe { self.buffers.mixed.write(row * hidden + first, values.len()) }.copy_from_slice(values);
        });
    }

    /// Adds the rows of `mixed` to the residual stream, through a norm if given.
    pub fn add_mixed(&self, worker: &Worker<'_>, norm: Option<&Norm>) {
        let (width, scale) = (self.sizes().hidden, self.spec.residual_scale);
        self.each_row(worker, |row| {
            // SAFETY: one worker owns each row of both buffers until the barrier.
            let (mixed, hidden) = unsafe {
                (self.buffers.mixed.write(row * width, width), self.buffers.hidden.write(row * width, width))
            };
            if let Some(norm) = norm {
                norm.apply(self.isa, mixed);
            }
            hidden.iter_mut().zip(mixed).for_each(|(hidden, value)| *hidden += scale * *value);
        });
    }

    /// Writes all rows of the residual stream, normalized if asked, to the inputs of the next product, and returns these.
    ///
    /// Other workers may still read the residual stream afterwards.
    pub fn normalize_rows<'b>(&'b self, worker: &Worker<'_>, norm: Option<&Norm>, linear: &'b Linear) -> Prepared<'b> {
        let inputs = self.inputs(worker, self.rows.len(), linear);
        self.prepare_rows(worker, inputs.num_rows, |row| self.normalize(worker, row, norm, &inputs, row));
        inputs
    }

    /// Writes row `row` of the residual stream, normalized if asked, to row `to_row` of `to`.
    pub fn normalize(&self, worker: &Worker<'_>, row: usize, norm: Option<&Norm>, to: &Prepared, to_row: usize) {
        let width = self.sizes().hidden;
        let scratch = self.row_scratch(worker);
        // SAFETY: only this worker uses its scratch, and nobody writes to the residual stream during this phase.
        let (normed, hidden) = unsafe { (scratch.write(0, width), self.buffers.hidden.read(row * width, width)) };
        normed.copy_from_slice(hidden);
        if let Some(norm) = norm {
            norm.apply(self.isa, normed);
        }
        // SAFETY: one worker owns each row of the inputs until the barrier.
        unsafe { to.write(to_row, normed) };
    }

    /// Returns the inputs of a product with `linear`: the worker's own for few rows.
    pub fn inputs<'b>(&'b self, worker: &Worker<'_>, num_rows: usize, linear: &'b Linear) -> Prepared<'b> {
        let data = if num_rows <= FEW_ROWS { self.buffers.own_inputs[worker.index] } else { self.buffers.input };
        let (layout, cols, order) = (Layout::of(linear.weight.format), linear.weight.cols, linear.order());
        Prepared { isa: self.isa, layout, data, stride: self.sizes().input, num_rows, cols, order }
    }

    /// Returns all rows' inputs of a feed-forward's down projection.
    pub fn inner<'b>(&'b self, down: &'b Linear) -> Prepared<'b> {
        let (data, stride) = (self.buffers.inner, self.sizes().inner);
        let (layout, cols, order) = (Layout::of(down.weight.format), down.weight.cols, down.order());
        Prepared { isa: self.isa, layout, data, stride, num_rows: self.rows.len(), cols, order }
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

/// Returns the strips that a worker claims at once: many enough that claims cost nothing, and few enough that a worker
/// delayed by the system delays no other.
fn claim_size(worker: &Worker<'_>, num_strips: usize) -> usize {
    (num_strips / (worker.num_threads() * 8)).max(1)
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
