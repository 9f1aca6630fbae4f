//! Buffers of a step, as wide as the widest layer.

use super::cache::{CacheShape, SPLIT_TOKENS};
use super::memory::{AlignedBuffer, SharedBuffer};
use super::product::packed::scheme::GROUP;
use super::product::prepared::ALIGN;
use super::product::strip::STRIP;
use super::spec::ModelSpec;
use super::step::{FEW_ROWS, MAX_ROWS};

/// Where the row scratch begins in a thread's scratch: after two strips.
pub(crate) const ROW_SCRATCH: usize = 2 * MAX_ROWS * STRIP;

/// Widths of buffers, in numbers per row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    pub hidden: usize,
    pub input: usize,
    pub inner: usize,
    pub wide: usize,
    /// A head's width for each rotary position encoding.
    pub angles: usize,
    /// Experts chosen for a row, and their weights.
    pub routes: usize,
    /// Inner width of an expert.
    pub expert_inner: usize,
    /// Experts chosen per row.
    pub num_chosen: usize,
}

impl Sizes {
    pub fn of(spec: &ModelSpec, shape: &CacheShape) -> Self {
        let hidden = spec.embedding.cols;
        let heads = spec.num_heads * shape.head_dim;
        let qkv = heads + 2 * shape.num_kv_heads * shape.head_dim;
        let angles = spec.ropes.len() * shape.head_dim;
        let mut sizes = Self { hidden, input: hidden.max(heads), wide: qkv, angles, ..Self::default() };
        for layer in &spec.layers {
            sizes.inner = sizes.inner.max(layer.feed_forward.inner_width());
            if layer.feed_forward.is_down_ordered() {
                // The row scratch holds a row of the inner buffer.
                sizes.input = sizes.input.max(sizes.inner);
            }
            if let Some(experts) = layer.feed_forward.experts() {
                sizes.num_chosen = sizes.num_chosen.max(experts.num_chosen);
                sizes.wide = sizes.wide.max(experts.gate_up.len());
                sizes.expert_inner = sizes.expert_inner.max(experts.down[0].weight.cols);
            }
        }
        sizes.routes = 2 * sizes.num_chosen;
        for size in [&mut sizes.input, &mut sizes.inner, &mut sizes.expert_inner] {
            *size = size.next_multiple_of(ALIGN);
        }
        sizes
    }
}

/// The buffers of a step. `T` is [`AlignedBuffer`] for the owner and [`SharedBuffer`] for threads.
#[derive(Debug)]
pub(crate) struct BufferSet<T> {
    /// Residual stream.
    pub hidden: T,
    /// Inputs of the next product.
    pub input: T,
    /// The same for each thread, where every thread prepares them itself.
    pub own_inputs: Vec<T>,
    /// Inputs of a feed-forward's down projection.
    pub inner: T,
    /// Queries, keys and values; scores of experts.
    pub wide: T,
    /// The output of attention or feed-forward, unless it is added to the residual stream at once.
    pub mixed: T,
    /// Cosines and sines of each row's position.
    pub rope_table: T,
    /// Partial results of attention's KV splits.
    pub partials: T,
    /// Chosen experts and weights of each row.
    pub routes: T,
    /// Inputs of the experts' down projections.
    pub expert_inner: T,
    /// Scratch of each thread: two strips, then row scratch; or attention scores.
    pub threads: Vec<T>,
    pub sizes: Sizes,
}

/// The owner's buffers.
pub(crate) type Buffers = BufferSet<AlignedBuffer>;
/// The buffers as threads share them.
pub(crate) type SharedBuffers = BufferSet<SharedBuffer>;

impl Buffers {
    pub fn new(sizes: Sizes, shape: &CacheShape, num_threads: usize) -> Self {
        let choices = MAX_ROWS * sizes.num_chosen;
        // Row scratch holds one row, a group of columns of all rows, or the rows gathered for an expert, then such a group.
        let group = MAX_ROWS * GROUP;
        let row_scratch = if choices > 0 { MAX_ROWS * sizes.input + group } else { sizes.input.max(group) };
        // Attention scores of all heads that share a key head.
        let scores = sizes.wide / shape.head_dim.max(1) * SPLIT_TOKENS;
        let thread_scratch = (ROW_SCRATCH + row_scratch).max(scores);
        let rows_of = |width: usize| AlignedBuffer::new(MAX_ROWS * width);
        Self {
            hidden: rows_of(sizes.hidden),
            input: rows_of(sizes.input),
            own_inputs: (0..num_threads).map(|_| AlignedBuffer::new(FEW_ROWS * sizes.input)).collect(),
            inner: rows_of(sizes.inner),
            wide: rows_of(sizes.wide),
            mixed: rows_of(sizes.hidden),
            rope_table: rows_of(sizes.angles),
            partials: AlignedBuffer::new(0),
            routes: rows_of(sizes.routes),
            expert_inner: rows_of(sizes.num_chosen * sizes.expert_inner),
            threads: (0..num_threads).map(|_| AlignedBuffer::new(thread_scratch)).collect(),
            sizes,
        }
    }

    /// Returns handles for threads; valid until a buffer grows or is dropped.
    pub fn shared(&mut self) -> SharedBuffers {
        BufferSet {
            hidden: self.hidden.shared(),
            input: self.input.shared(),
            own_inputs: self.own_inputs.iter_mut().map(AlignedBuffer::shared).collect(),
            inner: self.inner.shared(),
            wide: self.wide.shared(),
            mixed: self.mixed.shared(),
            rope_table: self.rope_table.shared(),
            partials: self.partials.shared(),
            routes: self.routes.shared(),
            expert_inner: self.expert_inner.shared(),
            threads: self.threads.iter_mut().map(AlignedBuffer::shared).collect(),
            sizes: self.sizes,
        }
    }
}
