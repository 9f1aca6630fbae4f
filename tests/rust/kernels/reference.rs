//! A naive decoder: plain loops over f32, one token at a time, without vectors, threads or blocks. Slow and obvious.

use llm_core::kernels::{
    Activation, CacheFormat, CacheShape, Dtype, Experts, FeedForward, Format, GROUP, Isa, Layer, Linear, ModelSpec,
    Norm, Scoring, SharedExpert,
};

/// Keys and values of one request and layer, `[tokens][kv_heads * head_dim]`.
#[derive(Clone, Default)]
struct History {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

pub struct Reference<'a> {
    spec: &'a ModelSpec,
    shape: CacheShape,
    /// Whether products with bf16 weights round their activations.
    rounds_activations: bool,
    /// One history per request and layer.
    histories: Vec<Vec<History>>,
}

impl<'a> Reference<'a> {
    pub fn new(spec: &'a ModelSpec, shape: CacheShape, isa: Isa, num_requests: usize) -> Self {
        let histories = vec![vec![History::default(); spec.layers.len()]; num_requests];
        Self { spec, shape, rounds_activations: isa >= Isa::Avx512Bf16, histories }
    }

    /// Appends a token to a request and returns its logits.
    pub fn push(&mut self, request: usize, token: usize) -> Vec<f32> {
        let spec = self.spec;
        let position = self.histories[request][0].keys.len();
        let mut hidden: Vec<f32> = vec![0.0; spec.embedding.cols];
        spec.embedding.read_row(token, &mut hidden);
        hidden.iter_mut().for_each(|value| *value *= spec.embedding_scale);
        if let Some(positions) = &spec.positions {
            let mut vector = vec![0.0; hidden.len()];
            positions.read_row(position, &mut vector);
            add(&mut hidden, &vector);
        }
        for (idx, layer) in spec.layers.iter().enumerate() {
            let before = hidden.clone();
            let heads = self.attention(request, idx, layer, &maybe_normalized(layer.norm1.as_ref(), before.clone()));
            let mixed = self.product(&layer.out, &heads);
            add(&mut hidden, &self.part(layer.post_norm1.as_ref(), mixed));
            let read = if layer.is_parallel { before } else { hidden.clone() };
            let mixed = self.feed_forward(&layer.feed_forward, &maybe_normalized(layer.norm2.as_ref(), read));
            add(&mut hidden, &self.part(layer.post_norm2.as_ref(), mixed));
        }
        let logits = self.product(&spec.head, &normalized(&spec.norm, &hidden));
        logits.into_iter().map(|logit| capped(logit, spec.logit_softcap)).collect()
    }

    /// What a part of a block adds to the residual stream.
    fn part(&self, norm: Option<&Norm>, mixed: Vec<f32>) -> Vec<f32> {
        maybe_normalized(norm, mixed).into_iter().map(|value| self.spec.residual_scale * value).collect()
    }

    fn attention(&mut self, request: usize, idx: usize, layer: &Layer, x: &[f32]) -> Vec<f32> {
        let (width, num_heads, num_kv) = (self.shape.head_dim, self.spec.num_heads, self.shape.num_kv_heads);
        let position = self.histories[request][idx].keys.len();
        let qkv = self.product(&layer.qkv, x);
        let (queries, rest) = qkv.split_at(num_heads * width);
        let (keys, values) = rest.split_at(num_kv * width);
        let prepare = |heads: &[f32], norm: Option<&Norm>| -> Vec<f32> {
            let normed = norm.map_or(heads.len(), |norm| norm.weight.len());
            let heads: Vec<f32> = heads.chunks(normed).flat_map(|part| maybe_normalized(norm, part.to_vec())).collect();
            heads.chunks(width).flat_map(|head| self.rotated(layer, head, position)).collect()
        };
        let growth = self.spec.query_growth.map_or(1.0, |growth| {
            let steps = (position as f64 / growth.context as f64).floor();
            1.0 + growth.rate * (1.0 + steps).ln()
        });
        let queries: Vec<f32> =
            prepare(queries, layer.query_norm.as_ref()).iter().map(|value| value * growth as f32).collect();
        let keys = prepare(keys, layer.key_norm.as_ref());
        let history = &mut self.histories[request][idx];
        history.keys.push(cached_keys(self.shape, &keys));
        history.values.push(cached(self.shape, values));
        let first = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for (head, query) in queries.chunks(width).enumerate() {
            let start = head / (num_heads / num_kv) * width;
            let mut weights: Vec<f32> = history.keys[first..]
                .iter()
                .map(|key| {
                    capped(
                        self.spec.attention_scale * dot(query, &key[start..start + width]),
                        self.spec.attention_softcap,
                    )
                })
                .collect();
            weights.extend(layer.sinks.as_ref().map(|sinks| sinks[head]));
            softmax(&mut weights);
            for channel in start..start + width {
                out.push(
                    weights.iter().zip(&history.values[first..]).map(|(weight, value)| weight * value[channel]).sum(),
                );
            }
        }
        out
    }

    fn rotated(&self, layer: &Layer, head: &[f32], position: usize) -> Vec<f32> {
        let Some(rope) = layer.rope.map(|rope| &self.spec.ropes[rope]) else { return head.to_vec() };
        let half = rope.frequencies.len();
        let mut out = head.to_vec();
        for (pair, frequency) in rope.frequencies.iter().enumerate() {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            let (sine, cosine) = ((sine * rope.factor) as f32, (cosine * rope.factor) as f32);
            out[pair] = head[pair] * cosine - head[pair + half] * sine;
            out[pair + half] = head[pair + half] * cosine + head[pair] * sine;
        }
        out
    }

    fn feed_forward(&self, feed_forward: &FeedForward, x: &[f32]) -> Vec<f32> {
        match feed_forward {
            FeedForward::Gated { gate_up, down } => self.gated(gate_up, down, self.spec.activation, x),
            FeedForward::Plain { up, down } => {
                let inner = self.product(up, x).into_iter().map(|value| activated(self.spec.activation, value));
                let inner: Vec<f32> = inner.collect();
                self.product(down, &inner)
            }
            FeedForward::Experts(experts) => self.experts(experts, x),
        }
    }

    fn gated(&self, gate_up: &Linear, down: &Linear, activation: Activation, x: &[f32]) -> Vec<f32> {
        let both = self.product(gate_up, x);
        let (gate, up) = both.split_at(both.len() / 2);
        let factor = |up: f32| match activation {
            Activation::ClampedSwiglu { limit } => up.clamp(-limit, limit) + 1.0,
            _ => up,
        };
        let inner: Vec<f32> =
            gate.iter().zip(up).map(|(gate, up)| activated(activation, *gate) * factor(*up)).collect();
        self.product(down, &inner)
    }

    fn experts(&self, experts: &Experts, x: &[f32]) -> Vec<f32> {
        let mut scores = self.product(&experts.router, x);
        match experts.scoring {
            Scoring::SoftmaxOfAll => softmax(&mut scores),
            Scoring::Sigmoid => scores = scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            Scoring::SoftmaxOfChosen => {}
        }
        let order = chosen(experts, &scores);
        let mut weights: Vec<f32> = order.iter().map(|expert| scores[*expert]).collect();
        if experts.scoring == Scoring::SoftmaxOfChosen {
            softmax(&mut weights);
        } else if experts.normalized {
            let total: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
        let mut out = vec![0.0; x.len()];
        for (expert, weight) in order.into_iter().zip(weights) {
            let mixed = self.gated(&experts.gate_up[expert], &experts.down[expert], experts.activation, x);
            add(&mut out, &mixed.iter().map(|value| experts.scale * weight * value).collect::<Vec<_>>());
        }
        if let Some(SharedExpert { gate_up, down, gate }) = &experts.shared {
            let weight = gate.as_ref().map_or(1.0, |gate| 1.0 / (1.0 + (-self.product(gate, x)[0]).exp()));
            let mixed = self.gated(gate_up, down, self.spec.activation, x);
            add(&mut out, &mixed.iter().map(|value| weight * value).collect::<Vec<_>>());
        }
        out
    }

    fn product(&self, linear: &Linear, x: &[f32]) -> Vec<f32> {
        let x: Vec<f32> = match linear.weight.format {
            Format::Packed => x.chunks(GROUP).flat_map(eight_bits).collect(),
            Format::Plain(Dtype::Bf16) if self.rounds_activations => stored(Dtype::Bf16, x),
            Format::Plain(_) => x.to_vec(),
        };
        let mut row = vec![0.0; linear.weight.cols];
        let outputs = (0..linear.weight.rows).map(|output| {
            linear.weight.read_row(output, &mut row);
            dot(&row, &x) + linear.bias.as_ref().map_or(0.0, |bias| bias[output])
        });
        outputs.collect()
    }
}

fn activated(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::ClampedSwiglu { limit } => x.min(limit) / (1.0 + (-1.702 * x.min(limit)).exp()),
    }
}

/// The experts with the highest corrected scores, among the best groups.
fn chosen(experts: &Experts, scores: &[f32]) -> Vec<usize> {
    let compared: Vec<f32> = scores
        .iter()
        .enumerate()
        .map(|(expert, score)| score + experts.correction.as_ref().map_or(0.0, |correction| correction[expert]))
        .collect();
    let size = scores.len() / experts.num_groups;
    let group_score = |group: usize| -> f32 {
        let members = best(&compared[group * size..][..size]);
        let num_counted = if experts.scoring == Scoring::Sigmoid { 2 } else { 1 };
        members.iter().take(num_counted).map(|member| compared[group * size + member]).sum()
    };
    let of_groups: Vec<f32> = (0..experts.num_groups).map(group_score).collect();
    let groups = &best(&of_groups)[..experts.num_chosen_groups];
    best(&compared).into_iter().filter(|expert| groups.contains(&(expert / size))).take(experts.num_chosen).collect()
}

/// Indices by falling score.
fn best(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

/// Heads as a cache keeps them.
fn cached(shape: CacheShape, heads: &[f32]) -> Vec<f32> {
    match shape.format {
        CacheFormat::Plain(dtype) => stored(dtype, heads),
        CacheFormat::Int8 => heads.chunks(shape.head_dim).flat_map(in_steps).collect(),
    }
}

/// What the cache keeps of a position's keys: in int8, each head is rounded in the basis of the Walsh-Hadamard matrix.
fn cached_keys(shape: CacheShape, heads: &[f32]) -> Vec<f32> {
    if shape.format != CacheFormat::Int8 {
        return cached(shape, heads);
    }
    let mixed: Vec<f32> = heads.chunks(shape.head_dim).flat_map(in_mixed_channels).collect();
    let size = (1 << shape.head_dim.trailing_zeros()) as f32;
    cached(shape, &mixed).chunks(shape.head_dim).flat_map(in_mixed_channels).map(|value| value / size).collect()
}

/// Products of the blocks of a head, as wide as the largest power of two that divides it, with the Walsh-Hadamard matrix.
fn in_mixed_channels(head: &[f32]) -> Vec<f32> {
    let size = 1 << head.len().trailing_zeros();
    let sign = |row: usize, col: usize| if (row & col).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let product = |block: &[f32], row| {
        block.iter().enumerate().map(|(col, value)| sign(row, col) * f64::from(*value)).sum::<f64>()
    };
    head.chunks(size).flat_map(|block| (0..size).map(move |row| product(block, row) as f32)).collect()
}

/// The nearest multiples of the largest magnitude over 127, which is rounded up to bf16.
fn in_steps(head: &[f32]) -> Vec<f32> {
    let exact = head.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / 127.0;
    let lower = f32::from_bits(exact.to_bits() & 0xFFFF_0000);
    let step = if lower < exact { f32::from_bits(lower.to_bits() + 0x1_0000) } else { lower };
    head.iter().map(|value| (value / step).round_ties_even() * step).collect()
}

/// The numbers as a format stores them.
pub fn stored(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => values.to_vec(),
        Dtype::Bf16 => values.iter().map(|value| f32::from_bits(u32::from(bf16(*value)) << 16)).collect(),
    }
}

/// The nearest of 255 steps up to the largest magnitude.
fn eight_bits(group: &[f32]) -> Vec<f32> {
    let scale = group.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / 127.0;
    group.iter().map(|value| (value / scale).round() * scale).collect()
}

/// The nearest bf16, ties to even.
pub fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

fn normalized(norm: &Norm, row: &[f32]) -> Vec<f32> {
    let count = row.len() as f32;
    let mean = if norm.bias.is_some() { row.iter().sum::<f32>() / count } else { 0.0 };
    let centred: Vec<f32> = row.iter().map(|value| value - mean).collect();
    let scale = 1.0 / (dot(&centred, &centred) / count + norm.eps).sqrt();
    let bias = |channel: usize| norm.bias.as_ref().map_or(0.0, |bias| bias[channel]);
    centred.iter().enumerate().map(|(idx, value)| value * scale * norm.weight[idx] + bias(idx)).collect()
}

fn maybe_normalized(norm: Option<&Norm>, row: Vec<f32>) -> Vec<f32> {
    norm.map_or_else(|| row.clone(), |norm| normalized(norm, &row))
}

fn capped(value: f32, cap: Option<f32>) -> f32 {
    cap.map_or(value, |cap| cap * (value / cap).tanh())
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|value| *value = (*value - max).exp());
    let total: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= total);
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
