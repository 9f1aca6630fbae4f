//! A decoder-only transformer's step on the CPU: token ids and a paged cache in, logits out, in one call.

use super::attention::{CachePart, CacheShape, STRETCH};
use super::linear::STRIP;
use super::memory::{Matrix, Scratch};
use super::pass::{Pass, RowTask, Wanted};
use super::prepared::ALIGN;
use super::rows::{Activation, Norm, Rope};
use super::simd::Isa;
use super::team::Team;
use crate::{Error, Result};

/// Rows that run through all layers together; more are split, so that scratch stays in the second cache. A multiple of
/// every set's tile.
pub(super) const MAX_ROWS: usize = 66;
/// Rows of the largest tile.
const TILE_ROWS: usize = 6;

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Matrix,
    /// One a row.
    pub bias: Option<Vec<f32>>,
}

/// What follows attention in a block.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// `down(act(gate) * up)`, gate and up in one matrix.
    Gated {
        /// Gate's rows, then up's.
        gate_up: Linear,
        /// Back into the residual stream.
        down: Linear,
    },
    /// `down(act(up))`.
    Plain {
        /// Into the wide space.
        up: Linear,
        /// Back into the residual stream.
        down: Linear,
    },
    /// A mixture of gated experts.
    Experts(Box<Experts>),
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts, hidden]`.
    pub router: Linear,
    /// Each expert's gate and up.
    pub gate_up: Vec<Linear>,
    /// Each expert's way back.
    pub down: Vec<Linear>,
    /// Experts a token goes through.
    pub num_chosen: usize,
    /// Softmax over all experts before the choice, else over the chosen.
    pub softmax_first: bool,
    /// Whether the chosen weights are scaled to a sum of 1 (with `softmax_first`).
    pub normalized: bool,
    /// On the chosen weights.
    pub scale: f32,
    /// The expert that all go through: gate and up, and down.
    pub shared: Option<(Linear, Linear)>,
    /// Weighs the shared expert by a sigmoid, `[1, hidden]`.
    pub shared_gate: Option<Linear>,
}

/// A transformer block.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Before attention.
    pub norm1: Norm,
    /// Queries', keys' and values' rows.
    pub qkv: Linear,
    /// Of each query head, and of each key head.
    pub qk_norms: Option<(Norm, Norm)>,
    /// After attention.
    pub out: Linear,
    /// After attention and after the feed-forward, before they are added.
    pub post_norms: Option<(Norm, Norm)>,
    /// Before the feed-forward.
    pub norm2: Norm,
    /// The feed-forward.
    pub feed_forward: FeedForward,
    /// Tokens that a token sees, itself included.
    pub window: Option<usize>,
}

/// A model's weights and rules.
#[derive(Debug, Clone)]
pub struct DecoderSpec {
    /// `[vocabulary, hidden]`.
    pub embedding: Matrix,
    /// On embeddings.
    pub embedding_scale: f32,
    /// A vector for each position, added to embeddings.
    pub positions: Option<Matrix>,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// The blocks.
    pub layers: Vec<Layer>,
    /// The last norm.
    pub norm: Norm,
    /// `[vocabulary, hidden]`.
    pub head: Linear,
    /// Query heads.
    pub num_heads: usize,
    /// On products of queries and keys.
    pub attention_scale: f32,
    /// Bound of attention's scores.
    pub attention_softcap: Option<f32>,
    /// Bound of the logits.
    pub logit_softcap: Option<f32>,
    /// Of the feed-forward.
    pub activation: Activation,
}

/// The arrays of a step: T tokens, R requests, S rows of logits, as the scheduler plans them.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The tokens (T).
    pub token_ids: &'a [i64],
    /// Each token's place in its request (T).
    pub positions: &'a [i64],
    /// Where each token's key and value go (T).
    pub slot_mapping: &'a [i64],
    /// Where each request's tokens begin, and the end (R + 1).
    pub query_start: &'a [i32],
    /// Each request's blocks (R, `max_blocks`).
    pub block_tables: &'a [i32],
    /// Row length of `block_tables`.
    pub max_blocks: usize,
    /// Tokens whose logits are wanted, ascending (S).
    pub logits_indices: &'a [i64],
}

/// A model ready to run steps.
#[derive(Debug)]
pub struct Decoder {
    spec: DecoderSpec,
    isa: Isa,
    team: Team,
    shape: CacheShape,
    caches: Vec<(CachePart, CachePart)>,
    buffers: Buffers,
}

/// Scratch of a step, as wide as the widest layer needs.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Residual stream.
    pub hidden: Scratch,
    /// Inputs of the next product, prepared, and of a feed-forward's way back.
    pub input: Scratch,
    pub inner: Scratch,
    /// Queries, keys and values; scores of experts.
    pub wide: Scratch,
    /// What a part adds to the residual stream, where that isn't added at once.
    pub mixed: Scratch,
    /// Cosines and sines of each row.
    pub turns: Scratch,
    /// Attention's stretches.
    pub stretches: Scratch,
    /// Experts: choices and weights of each row; inputs of each choice's way back.
    pub routes: Scratch,
    pub expert_inner: Scratch,
    /// Of each member.
    pub own: Vec<Scratch>,
    pub sizes: Sizes,
}

/// Widths that buffers and phases share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub input: usize,
    pub inner: usize,
    pub wide: usize,
    /// Numbers of the routes of a row, and of a choice's way back.
    pub routes: usize,
    pub expert_inner: usize,
    pub num_chosen: usize,
}

impl Decoder {
    /// A model on `num_threads` threads with caches of one shape, one pair of keys and values a layer.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where sizes of weights, norms and caches contradict each other.
    pub fn new(
        spec: DecoderSpec,
        shape: CacheShape,
        caches: Vec<(CachePart, CachePart)>,
        num_threads: usize,
        isa: Isa,
    ) -> Result<Self> {
        spec.check(&shape, caches.len())?;
        if !Isa::supported().contains(&isa) {
            return Err(Error::InvalidArgument(format!("this machine has no {}", isa.name())));
        }
        let sizes = Sizes::of(&spec, &shape);
        let buffers = Buffers::new(sizes, &shape, num_threads);
        Ok(Self { spec, isa, team: Team::new(num_threads)?, shape, caches, buffers })
    }

    /// Ids that rows of logits cover.
    pub fn vocab_size(&self) -> usize {
        self.spec.head.weight.rows
    }

    /// Runs a step: writes its keys and values into the cache, and the logits it asks for into `logits` (S, V).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] where the arrays contradict each other or point outside vocabulary or cache.
    pub fn run(&mut self, step: &Step<'_>, logits: &mut [f32]) -> Result<()> {
        self.check(step, logits.len())?;
        let mut rows: Vec<RowTask> = Vec::with_capacity(step.token_ids.len());
        for (request, bounds) in step.query_start.windows(2).enumerate() {
            rows.extend((bounds[0] as usize..bounds[1] as usize).map(|row| RowTask::new(step, row, request)));
        }
        let mut wanted = step.logits_indices.iter().enumerate().peekable();
        let size = group_size(rows.len());
        for (group, rows) in rows.chunks_mut(size).enumerate() {
            let start = group * size;
            while let Some((output, row)) = wanted.next_if(|(_, row)| (**row as usize) < start + rows.len()) {
                let (first, end) = &mut rows[*row as usize - start].outputs;
                (*first, *end) = (if first == end { output } else { *first }, output + 1);
            }
            self.run_group(step, rows, logits);
        }
        Ok(())
    }

    fn run_group(&mut self, step: &Step<'_>, rows: &mut [RowTask], logits: &mut [f32]) {
        let mut num_stretches = 0;
        for row in rows.iter_mut() {
            row.first_stretch = num_stretches;
            num_stretches += row.num_tokens().div_ceil(STRETCH);
        }
        let per_stretch = self.spec.num_heads * (self.shape.head_dim + 2);
        self.buffers.stretches.grow(num_stretches * per_stretch);
        let Self { spec, isa, team, shape, caches, buffers } = self;
        let (places, wanted): (Vec<usize>, Vec<RowTask>) =
            rows.iter().enumerate().filter(|(_, row)| row.is_wanted()).map(|(idx, row)| (idx, *row)).unzip();
        let mut pass = |rows| Pass::new(spec, *isa, (shape, caches), (step, rows), buffers, logits);
        let whole = pass(&*rows);
        let rest = (wanted.len() < rows.len()).then(|| Wanted { rows: places, pass: pass(&wanted) });
        team.run(&|member| whole.run(member, rest.as_ref()));
    }

    fn check(&self, step: &Step<'_>, num_logits: usize) -> Result<()> {
        let (num_tokens, num_requests) = (step.token_ids.len(), step.query_start.len().saturating_sub(1));
        let lengths_agree = step.positions.len() == num_tokens
            && step.slot_mapping.len() == num_tokens
            && step.block_tables.len() == num_requests * step.max_blocks
            && num_logits == step.logits_indices.len() * self.vocab_size();
        let starts = step.query_start;
        let starts_agree = starts.first() == Some(&0)
            && starts.last().is_some_and(|end| *end as usize == num_tokens)
            && starts.is_sorted();
        if !lengths_agree || !starts_agree {
            return Err(Error::InvalidArgument(format!(
                "the arrays of a step of {num_tokens} tokens and {num_requests} requests differ in length"
            )));
        }
        let limits = [
            ("token_ids", step.token_ids, self.spec.embedding.rows),
            ("positions", step.positions, self.max_position(step)),
            ("slot_mapping", step.slot_mapping, self.shape.num_blocks * self.shape.block_size),
            ("logits_indices", step.logits_indices, num_tokens),
        ];
        for (name, values, end) in limits {
            if let Some(value) = values.iter().find(|value| **value < 0 || **value as usize >= end) {
                return Err(Error::InvalidArgument(format!("`{name}` must be in [0, {end}), got {value}")));
            }
        }
        if let Some(block) = step.block_tables.iter().find(|b| **b < 0 || **b as usize >= self.shape.num_blocks) {
            return Err(Error::InvalidArgument(format!(
                "`block_tables` must be in [0, {}), got {block}",
                self.shape.num_blocks
            )));
        }
        if !step.logits_indices.is_sorted() {
            return Err(Error::InvalidArgument("`logits_indices` must ascend".to_owned()));
        }
        Ok(())
    }

    /// One past the last position that tables and position vectors have room for.
    fn max_position(&self, step: &Step<'_>) -> usize {
        let in_tables = step.max_blocks * self.shape.block_size;
        self.spec.positions.map_or(in_tables, |positions| in_tables.min(positions.rows))
    }
}

impl DecoderSpec {
    /// Checks every size against the others.
    fn check(&self, shape: &CacheShape, num_caches: usize) -> Result<()> {
        let hidden = self.embedding.cols;
        let heads = self.num_heads * shape.head_dim;
        let sound = num_caches == self.layers.len()
            && shape.num_blocks > 0
            && shape.block_size > 0
            && shape.num_kv_heads > 0
            && self.num_heads > 0
            && self.num_heads.is_multiple_of(shape.num_kv_heads)
            && self.positions.is_none_or(|positions| positions.cols == hidden)
            && self.rope.as_ref().is_none_or(|rope| 2 * rope.frequencies.len() == shape.head_dim)
            && self.norm.is_for(hidden)
            && self.head.is_for(self.head.weight.rows, hidden);
        if !sound {
            return Err(Error::InvalidArgument("the model's sizes contradict each other or its cache".to_owned()));
        }
        let qkv = heads + 2 * shape.num_kv_heads * shape.head_dim;
        for (idx, layer) in self.layers.iter().enumerate() {
            let norms = [Some(&layer.norm1), Some(&layer.norm2)];
            let post = layer.post_norms.iter().flat_map(|(a, b)| [Some(a), Some(b)]);
            let on_heads = layer.qk_norms.iter().flat_map(|(a, b)| [a, b]);
            let sound = norms.into_iter().chain(post).flatten().all(|norm| norm.is_for(hidden))
                && on_heads.into_iter().all(|norm| norm.is_for(shape.head_dim))
                && layer.qkv.is_for(qkv, hidden)
                && layer.out.is_for(hidden, heads)
                && layer.window != Some(0)
                && layer.feed_forward.is_for(hidden);
            if !sound {
                return Err(Error::InvalidArgument(format!("the sizes of layer {idx} contradict each other")));
            }
        }
        Ok(())
    }
}

impl Norm {
    fn is_for(&self, width: usize) -> bool {
        self.weight.len() == width && self.bias.as_ref().is_none_or(|bias| bias.len() == width)
    }
}

impl Linear {
    fn is_for(&self, outputs: usize, inputs: usize) -> bool {
        self.weight.rows == outputs
            && self.weight.cols == inputs
            && self.bias.as_ref().is_none_or(|bias| bias.len() == outputs)
    }
}

impl FeedForward {
    fn is_for(&self, hidden: usize) -> bool {
        let is_gated = |gate_up: &Linear, down: &Linear| {
            let width = down.weight.cols;
            gate_up.is_for(2 * width, hidden) && down.is_for(hidden, width)
        };
        match self {
            Self::Gated { gate_up, down } => is_gated(gate_up, down),
            Self::Plain { up, down } => up.is_for(down.weight.cols, hidden) && down.is_for(hidden, up.weight.rows),
            Self::Experts(experts) => {
                let num_experts = experts.gate_up.len();
                experts.router.is_for(num_experts, hidden)
                    && experts.down.len() == num_experts
                    && (1..=num_experts).contains(&experts.num_chosen)
                    && experts.gate_up.iter().zip(&experts.down).all(|(gate_up, down)| {
                        is_gated(gate_up, down)
                            && down.weight.cols == experts.down[0].weight.cols
                            && gate_up.weight.dtype == experts.gate_up[0].weight.dtype
                    })
                    && experts.shared.as_ref().is_none_or(|(gate_up, down)| is_gated(gate_up, down))
                    && experts.shared_gate.as_ref().is_none_or(|gate| gate.is_for(1, hidden))
            }
        }
    }

    /// Width of what its activation gives, a shared expert's of a mixture.
    fn inner(&self) -> usize {
        match self {
            Self::Gated { down, .. } | Self::Plain { down, .. } => down.weight.cols,
            Self::Experts(experts) => experts.shared.as_ref().map_or(0, |(_, down)| down.weight.cols),
        }
    }

    fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Experts(experts) => Some(experts),
            _ => None,
        }
    }
}

impl Sizes {
    fn of(spec: &DecoderSpec, shape: &CacheShape) -> Self {
        let hidden = spec.embedding.cols;
        let heads = spec.num_heads * shape.head_dim;
        let qkv = heads + 2 * shape.num_kv_heads * shape.head_dim;
        let mut sizes =
            Self { hidden, input: hidden.max(heads), inner: 0, wide: qkv, routes: 0, expert_inner: 0, num_chosen: 0 };
        for layer in &spec.layers {
            sizes.inner = sizes.inner.max(layer.feed_forward.inner());
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

impl Buffers {
    fn new(sizes: Sizes, shape: &CacheShape, num_threads: usize) -> Self {
        let choices = MAX_ROWS * sizes.num_chosen;
        let aside = if choices > 0 { MAX_ROWS * sizes.input } else { sizes.input };
        // Two strips, then a row or gathered rows; or attention's scores of all heads that share a key head.
        let own = 2 * MAX_ROWS * STRIP + aside;
        let heads = sizes.wide / shape.head_dim.max(1) * STRETCH;
        Self {
            hidden: Scratch::new(MAX_ROWS * sizes.hidden),
            input: Scratch::new(MAX_ROWS * sizes.input),
            inner: Scratch::new(MAX_ROWS * sizes.inner),
            wide: Scratch::new(MAX_ROWS * sizes.wide),
            mixed: Scratch::new(MAX_ROWS * sizes.hidden),
            turns: Scratch::new(MAX_ROWS * shape.head_dim),
            stretches: Scratch::new(0),
            routes: Scratch::new(MAX_ROWS * sizes.routes),
            expert_inner: Scratch::new(choices * sizes.expert_inner),
            own: (0..num_threads).map(|_| Scratch::new(own.max(heads))).collect(),
            sizes,
        }
    }
}

/// Rows of each group but the last: about the same in all, since a small group reads the weights for a few rows, and a
/// whole number of tiles.
fn group_size(num_rows: usize) -> usize {
    let num_groups = num_rows.div_ceil(MAX_ROWS).max(1);
    num_rows.div_ceil(num_groups).next_multiple_of(TILE_ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_even_and_hold_all_rows() {
        for num_rows in 1..1_000 {
            let size = group_size(num_rows);
            let (num_groups, last) = (num_rows.div_ceil(size), (num_rows - 1) % size + 1);
            assert!(size <= MAX_ROWS && size.is_multiple_of(TILE_ROWS), "{num_rows}: {size}");
            assert_eq!(num_groups, num_rows.div_ceil(MAX_ROWS), "{num_rows}");
            assert!(num_rows <= MAX_ROWS || last + TILE_ROWS * num_groups > size, "{num_rows}: {last} of {size}");
        }
    }
}
