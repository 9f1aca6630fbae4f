//! The description of a model: weights, sizes and rules of every layer.

use super::cache::CacheShape;
use super::memory::Matrix;
use super::product::linear::Linear;
use super::product::strip::STRIP;
use super::row_ops::{Activation, Norm, QueryGrowth, Rope};
use crate::{Error, Result};

/// The feed-forward of a block.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// A gated feed-forward, `down(act(gate) * up)`.
    Gated {
        /// The gate's rows, then the up projection's.
        gate_up: Linear,
        /// Projection back to the hidden width.
        down: Linear,
    },
    /// A plain feed-forward, `down(act(up))`.
    Plain {
        /// Projection to the inner width.
        up: Linear,
        /// Projection back to the hidden width.
        down: Linear,
    },
    /// A mixture of gated experts.
    Experts(Box<Experts>),
}

/// A mixture of gated experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// Scores of the experts, `[experts, hidden]`.
    pub router: Linear,
    /// Gate and up projection of each expert.
    pub gate_up: Vec<Linear>,
    /// Down projection of each expert.
    pub down: Vec<Linear>,
    /// Activation function of the experts, the shared one excepted.
    pub activation: Activation,
    /// Number of experts that process each token.
    pub num_chosen: usize,
    /// How scores become weights.
    pub scoring: Scoring,
    /// Added to the experts' scores for the choice alone.
    pub correction: Option<Vec<f32>>,
    /// Number of equal groups that experts form, 1 for none.
    pub num_groups: usize,
    /// Number of groups that a token's experts may come from.
    pub num_chosen_groups: usize,
    /// Whether the chosen weights are scaled to a sum of 1 (unless softmax does so).
    pub normalized: bool,
    /// Multiplier of the chosen weights.
    pub scale: f32,
    /// The expert that processes every token.
    pub shared: Option<SharedExpert>,
}

/// How a router's scores become weights of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    SoftmaxOfAll,
    /// Softmax over the chosen experts.
    SoftmaxOfChosen,
    /// A sigmoid of each score.
    Sigmoid,
}

/// The expert of a mixture that processes every token.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// Gate and up projection.
    pub gate_up: Linear,
    /// Down projection.
    pub down: Linear,
    /// Weighs the expert by a sigmoid, `[1, hidden]`.
    pub gate: Option<Linear>,
}

/// A transformer block.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Norm before attention.
    pub norm1: Option<Norm>,
    /// Projection to queries, keys and values, in this order of rows.
    pub qkv: Linear,
    /// Norm of each query head, or of all query heads at once if it is as wide as they are.
    pub query_norm: Option<Norm>,
    /// Norm of each key head, or of all key heads at once.
    pub key_norm: Option<Norm>,
    /// Index of the layer's rotary position encoding in [`ModelSpec::ropes`]; `None` for no rotation.
    pub rope: Option<usize>,
    /// A score per query head that takes weight away from all tokens.
    pub sinks: Option<Vec<f32>>,
    /// Projection of the attention heads back to the hidden width.
    pub out: Linear,
    /// Norm of attention's output before the residual sum.
    pub post_norm1: Option<Norm>,
    /// Norm before the feed-forward.
    pub norm2: Option<Norm>,
    /// Whether the feed-forward reads the residual stream without attention's output.
    pub is_parallel: bool,
    /// The feed-forward.
    pub feed_forward: FeedForward,
    /// Norm of the feed-forward's output before the residual sum.
    pub post_norm2: Option<Norm>,
    /// Number of tokens that a token attends to, itself included; `None` for all.
    pub window: Option<usize>,
}

/// A model's weights and rules.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Embeddings of tokens, `[vocabulary, hidden]`.
    pub embedding: Matrix,
    /// Multiplier of embeddings.
    pub embedding_scale: f32,
    /// Embeddings of positions, added to those of tokens.
    pub positions: Option<Matrix>,
    /// Rotary position encodings that layers choose from.
    pub ropes: Vec<Rope>,
    /// The blocks.
    pub layers: Vec<Layer>,
    /// Norm after the last block.
    pub norm: Norm,
    /// Projection to logits, `[vocabulary, hidden]`.
    pub head: Linear,
    /// Number of query heads.
    pub num_heads: usize,
    /// Multiplier of attention scores.
    pub attention_scale: f32,
    /// Growth of queries with the position.
    pub query_growth: Option<QueryGrowth>,
    /// Multiplier of what attention and feed-forward add to the residual stream.
    pub residual_scale: f32,
    /// Bound of attention scores, by tanh.
    pub attention_softcap: Option<f32>,
    /// Bound of logits, by tanh.
    pub logit_softcap: Option<f32>,
    /// Activation function of the feed-forward.
    pub activation: Activation,
}

impl ModelSpec {
    /// Checks all sizes against each other and against the cache.
    pub(crate) fn check(&self, shape: &CacheShape, num_caches: usize) -> Result<()> {
        let hidden = self.embedding.cols;
        let sound = num_caches == self.layers.len()
            && shape.num_blocks > 0
            && shape.block_size > 0
            && shape.num_kv_heads > 0
            && self.num_heads > 0
            && self.num_heads.is_multiple_of(shape.num_kv_heads)
            && self.positions.is_none_or(|positions| positions.cols == hidden)
            && self.ropes.iter().all(|rope| 2 * rope.frequencies.len() <= shape.head_dim)
            && self.query_growth.is_none_or(|growth| growth.context > 0)
            && self.norm.has_width(hidden)
            && self.head.has_shape(self.head.weight.rows, hidden);
        if !sound {
            return Err(Error::InvalidArgument("the model's sizes contradict each other or its cache".to_owned()));
        }
        match self.layers.iter().position(|layer| !layer.is_sound(self, shape)) {
            Some(idx) => Err(Error::InvalidArgument(format!("the sizes of layer {idx} contradict each other"))),
            None => Ok(()),
        }
    }
}

impl Layer {
    fn is_sound(&self, spec: &ModelSpec, shape: &CacheShape) -> bool {
        let (hidden, heads) = (spec.embedding.cols, spec.num_heads * shape.head_dim);
        let qkv = heads + 2 * shape.num_kv_heads * shape.head_dim;
        let post_norms = [&self.post_norm1, &self.post_norm2];
        let head_norms = [(&self.query_norm, heads), (&self.key_norm, shape.num_kv_heads * shape.head_dim)];
        let is_of_heads = |norm: &Norm, all: usize| norm.has_width(shape.head_dim) || norm.has_width(all);
        [&self.norm1, &self.norm2].into_iter().chain(post_norms).flatten().all(|norm| norm.has_width(hidden))
            && head_norms.into_iter().all(|(norm, all)| norm.as_ref().is_none_or(|norm| is_of_heads(norm, all)))
            && self.rope.is_none_or(|rope| rope < spec.ropes.len())
            && self.sinks.as_ref().is_none_or(|sinks| sinks.len() == spec.num_heads)
            && !(self.is_parallel && self.feed_forward.experts().is_some())
            && self.qkv.has_shape(qkv, hidden)
            && self.out.has_shape(hidden, heads)
            && self.window != Some(0)
            && self.feed_forward.is_sound(hidden)
    }
}

impl Layer {
    /// Returns the layer's adaptable matrix of a name, and the first output of its second half, which has strips of its own.
    pub(crate) fn linear(&self, name: &str) -> Option<(&Linear, usize)> {
        let (up, down) = match &self.feed_forward {
            FeedForward::Gated { gate_up, down } => (Some((gate_up, down.weight.cols)), Some(down)),
            FeedForward::Plain { up, down } => (Some((up, up.weight.rows)), Some(down)),
            FeedForward::Experts(_) => (None, None),
        };
        match name {
            "qkv" => Some((&self.qkv, self.qkv.weight.rows)),
            "out" => Some((&self.out, self.out.weight.rows)),
            "up" => up,
            "down" => down.map(|down| (down, down.weight.rows)),
            _ => None,
        }
    }

    /// Returns the layer's adaptable matrices by their names.
    pub(crate) fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let mut found = vec![("qkv", &mut self.qkv), ("out", &mut self.out)];
        if let FeedForward::Gated { gate_up: up, down } | FeedForward::Plain { up, down } = &mut self.feed_forward {
            found.extend([("up", up), ("down", down)]);
        }
        found
    }
}

impl FeedForward {
    fn is_sound(&self, hidden: usize) -> bool {
        match self {
            Self::Gated { gate_up, down } => is_gated(gate_up, down, hidden),
            Self::Plain { up, down } => {
                up.has_shape(down.weight.cols, hidden) && down.has_shape(hidden, up.weight.rows)
            }
            Self::Experts(experts) => experts.is_sound(hidden),
        }
    }

    /// Returns the width after the activation; for a mixture, that of the shared expert.
    pub(crate) fn inner_width(&self) -> usize {
        match self {
            Self::Gated { down, .. } | Self::Plain { down, .. } => down.weight.cols,
            Self::Experts(experts) => experts.shared.as_ref().map_or(0, |shared| shared.down.weight.cols),
        }
    }

    /// Returns whether the down projection, or the shared expert's, has its columns in another order than its inputs.
    pub(crate) fn is_down_ordered(&self) -> bool {
        let down = match self {
            Self::Gated { down, .. } | Self::Plain { down, .. } => Some(down),
            Self::Experts(experts) => experts.shared.as_ref().map(|shared| &shared.down),
        };
        down.is_some_and(|down| down.order().is_some())
    }

    pub(crate) fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Experts(experts) => Some(experts),
            _ => None,
        }
    }
}

impl Experts {
    fn is_sound(&self, hidden: usize) -> bool {
        let num_experts = self.gate_up.len();
        self.router.has_shape(num_experts, hidden)
            && !self.router.weight.is_packed()
            && self.down.len() == num_experts
            && (1..=num_experts).contains(&self.num_chosen)
            && (1..=self.num_groups).contains(&self.num_chosen_groups)
            && num_experts.is_multiple_of(self.num_groups)
            && self.correction.as_ref().is_none_or(|correction| correction.len() == num_experts)
            && self.gate_up.iter().zip(&self.down).all(|(gate_up, down)| {
                is_gated(gate_up, down, hidden)
                    && down.weight.cols == self.down[0].weight.cols
                    && down.weight.format == self.down[0].weight.format
                    && gate_up.weight.format == self.gate_up[0].weight.format
            })
            && self.shared.as_ref().is_none_or(|shared| shared.is_sound(hidden))
    }
}

impl SharedExpert {
    fn is_sound(&self, hidden: usize) -> bool {
        is_gated(&self.gate_up, &self.down, hidden)
            && self.gate.as_ref().is_none_or(|gate| gate.has_shape(1, hidden) && !gate.weight.is_packed())
    }
}

/// Returns whether the layers form a gated feed-forward.
fn is_gated(gate_up: &Linear, down: &Linear, hidden: usize) -> bool {
    let width = down.weight.cols;
    // A packed strip can't hold both gate and up.
    let is_cut_at_strip = !gate_up.weight.is_packed() || width.is_multiple_of(STRIP);
    gate_up.has_shape(2 * width, hidden) && down.has_shape(hidden, width) && is_cut_at_strip
}
