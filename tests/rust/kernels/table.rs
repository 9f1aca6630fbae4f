//! One table: every instruction set against the naive decoder, over shapes of models, formats, batches and threads.

#![expect(unsafe_code, reason = "matrices and caches are views of memory that the test owns")]

use super::reference::{Reference, bf16};
use llm_core::kernels::{
    Activation, CacheFormat, CacheLayer, CachePart, CacheShape, CpuModel, Dtype, Experts, FeedForward, GROUP, Isa,
    Layer, Linear, Matrix, ModelSpec, Norm, Part, QueryGrowth, Rope, Scheme, Scoring, SharedExpert, StepInput,
};

const ISAS: [Isa; 5] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];
const BLOCK_SIZE: usize = 4;
const VOCAB: usize = 21;

#[derive(Clone, Copy)]
enum Mlp {
    Gated,
    Plain,
    Experts { scoring: Scoring, normalized: bool, is_shared: bool, is_gated: bool, has_limits: bool },
}

/// What a family of models can differ in.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    hidden: usize,
    inner: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// Of the first layer; the others see all tokens.
    window: Option<usize>,
    has_rope: bool,
    has_positions: bool,
    has_biases: bool,
    has_head_norms: bool,
    /// Norms of queries and keys over all heads, and of each part's output in place of its input.
    has_inner_norms: bool,
    has_post_norms: bool,
    is_parallel: bool,
    has_sinks: bool,
    /// Two rotary encodings, the second for a part of each head; the last layer has none.
    has_two_ropes: bool,
    growth: Option<QueryGrowth>,
    residual_scale: f32,
    is_layer_norm: bool,
    is_tied: bool,
    caps: Option<(f32, f32)>,
    embedding_scale: f32,
    activation: Activation,
    mlp: Mlp,
    /// Tokens of each request before the decode step; 0 for a few tokens, different for each.
    context: usize,
}

const LLAMA: Family = Family {
    name: "llama",
    hidden: 40,
    inner: 36,
    num_layers: 2,
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 12,
    window: None,
    has_rope: true,
    has_positions: false,
    has_biases: false,
    has_head_norms: false,
    has_inner_norms: false,
    has_post_norms: false,
    is_parallel: false,
    has_sinks: false,
    has_two_ropes: false,
    growth: None,
    residual_scale: 1.0,
    is_layer_norm: false,
    is_tied: false,
    caps: None,
    embedding_scale: 1.0,
    activation: Activation::Silu,
    mlp: Mlp::Gated,
    context: 0,
};

const MIXTRAL: Mlp = Mlp::Experts {
    scoring: Scoring::SoftmaxOfChosen,
    normalized: false,
    is_shared: false,
    is_gated: false,
    has_limits: false,
};
const QWEN_MOE: Mlp = Mlp::Experts {
    scoring: Scoring::SoftmaxOfAll,
    normalized: true,
    is_shared: true,
    is_gated: true,
    has_limits: false,
};
const DEEPSEEK: Mlp = Mlp::Experts {
    scoring: Scoring::SoftmaxOfAll,
    normalized: false,
    is_shared: true,
    is_gated: false,
    has_limits: false,
};
const SIGMOIDS: Mlp =
    Mlp::Experts { scoring: Scoring::Sigmoid, normalized: true, is_shared: true, is_gated: false, has_limits: false };
const LIMITS: Mlp = Mlp::Experts {
    scoring: Scoring::SoftmaxOfChosen,
    normalized: false,
    is_shared: false,
    is_gated: false,
    has_limits: true,
};

const FAMILIES: [Family; 17] = [
    LLAMA,
    Family { name: "one key head, tied", num_heads: 5, num_kv_heads: 1, is_tied: true, ..LLAMA },
    Family { name: "every head its keys, wide heads", num_heads: 3, num_kv_heads: 3, head_dim: 70, ..LLAMA },
    Family { name: "biases", has_biases: true, ..LLAMA },
    Family { name: "window, head norms", window: Some(3), has_head_norms: true, ..LLAMA },
    Family {
        name: "gemma",
        caps: Some((2.0, 3.0)),
        has_post_norms: true,
        embedding_scale: 6.25,
        activation: Activation::GeluTanh,
        window: Some(4),
        ..LLAMA
    },
    Family {
        name: "gpt-2",
        has_rope: false,
        has_positions: true,
        has_biases: true,
        is_layer_norm: true,
        activation: Activation::Gelu,
        mlp: Mlp::Plain,
        ..LLAMA
    },
    Family { name: "mixtral", mlp: MIXTRAL, ..LLAMA },
    Family { name: "qwen moe", mlp: QWEN_MOE, has_post_norms: true, ..LLAMA },
    Family { name: "deepseek moe", mlp: DEEPSEEK, ..LLAMA },
    Family { name: "sigmoids in groups", mlp: SIGMOIDS, ..LLAMA },
    Family { name: "bounded experts, sinks", mlp: LIMITS, has_sinks: true, window: Some(3), ..LLAMA },
    Family { name: "side by side", is_parallel: true, is_layer_norm: true, residual_scale: 0.4, ..LLAMA },
    Family { name: "norms inside the sum", has_inner_norms: true, residual_scale: 0.7, ..LLAMA },
    Family {
        name: "two rotary encodings, growing queries",
        has_two_ropes: true,
        growth: Some(QueryGrowth { rate: 0.3, context: 2 }),
        num_layers: 3,
        ..LLAMA
    },
    Family { name: "several chunks of columns", hidden: 651, inner: 1290, num_layers: 1, ..LLAMA },
    Family {
        name: "several splits of a long context, sinks",
        context: 530,
        num_layers: 1,
        window: Some(270),
        has_sinks: true,
        ..LLAMA
    },
];

/// Families whose matrices consist of whole groups, in fewer and more strips than threads.
const PACKED_FAMILIES: [Family; 9] = [
    Family { name: "packed llama", hidden: 64, inner: 96, head_dim: 16, ..LLAMA },
    Family { name: "packed and tied", hidden: 64, inner: 160, head_dim: 16, is_tied: true, ..LLAMA },
    Family { name: "packed, biases", hidden: 32, inner: 32, head_dim: 8, has_biases: true, ..LLAMA },
    Family { name: "packed, no gate", hidden: 64, inner: 96, head_dim: 16, mlp: Mlp::Plain, ..LLAMA },
    Family { name: "packed, post norms", hidden: 96, inner: 64, head_dim: 32, has_post_norms: true, ..LLAMA },
    Family { name: "packed mixtral", hidden: 32, inner: 96, head_dim: 16, mlp: MIXTRAL, ..LLAMA },
    Family { name: "packed qwen moe", hidden: 64, inner: 64, head_dim: 16, mlp: QWEN_MOE, ..LLAMA },
    Family { name: "packed sigmoids in groups", hidden: 64, inner: 32, head_dim: 16, mlp: SIGMOIDS, ..LLAMA },
    Family { name: "packed, bounded experts", hidden: 64, inner: 96, head_dim: 16, mlp: LIMITS, ..LLAMA },
];

/// Families whose matrices consist of whole blocks of 256 columns.
const WIDE_FAMILIES: [Family; 1] =
    [Family { name: "packed in blocks", hidden: 256, inner: 512, num_layers: 1, head_dim: 64, ..LLAMA }];

/// How a model's matrices are stored.
#[derive(Clone, Copy)]
enum Stored {
    Plain(Dtype),
    Packed(Scheme),
    /// Fused matrices in parts of several schemes, all others in the last of them.
    Mixed,
}

/// The schemes that queries, keys and values differ in, then gate and up.
const MIXED: [Scheme; 3] = [Scheme::Q5_0, Scheme::Q8_0, Scheme::Q4_1];

/// Random weights in one format; matrices point into the vectors kept here.
struct Weights {
    stored: Stored,
    state: u64,
    full: Vec<Vec<f32>>,
    half: Vec<Vec<u16>>,
    packed: Vec<Vec<u8>>,
}

impl Weights {
    fn number(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn vector(&mut self, len: usize, around: f32, spread: f32) -> Vec<f32> {
        (0..len).map(|_| around + spread * self.number()).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let numbers = self.vector(rows * cols, 0.0, (3.0 / cols as f32).sqrt());
        let (data, dtype) = match self.stored {
            Stored::Plain(Dtype::F32) => {
                self.full.push(numbers);
                (self.full.last().expect("at least one token").as_ptr().cast::<u8>(), Dtype::F32)
            }
            Stored::Plain(Dtype::Bf16) => {
                self.half.push(numbers.into_iter().map(bf16).collect());
                (self.half.last().expect("at least one token").as_ptr().cast::<u8>(), Dtype::Bf16)
            }
            Stored::Packed(scheme) => return self.packed_matrix(&[Part { scheme, rows }], cols),
            Stored::Mixed => return self.packed_matrix(&[Part { scheme: MIXED[2], rows }], cols),
        };
        // SAFETY: the vector stays in place, unwritten, for as long as these weights live.
        unsafe { Matrix::from_raw(data, rows, cols, dtype) }.expect("sizes that agree")
    }

    /// A matrix in parts of one scheme each.
    fn packed_matrix(&mut self, parts: &[Part], cols: usize) -> Matrix {
        let mut packed = Vec::new();
        for Part { scheme, rows } in parts {
            let blocks = self.blocks(*scheme, rows * cols / scheme.block_cols());
            let start = packed.len();
            packed.resize(start + scheme.packed_bytes(*rows, cols), 0);
            scheme.pack(&blocks, cols, &mut packed[start..], 0).expect("sizes that agree");
        }
        self.packed.push(packed);
        let packed = self.packed.last().expect("just pushed");
        // SAFETY: the vector stays in place, unwritten, for as long as these weights live.
        unsafe { Matrix::from_packed(packed.as_ptr(), packed.len(), cols, parts) }.expect("sizes that agree")
    }

    /// Random codes with scales of the size that other matrices have.
    fn blocks(&mut self, scheme: Scheme, num: usize) -> Vec<u8> {
        // Places of the scale and of the minimum in a block; their sizes as exponents of half-precision numbers.
        let (scale_at, scale, min) = match scheme {
            Scheme::Q8_0 => (0, 4, None),
            Scheme::Q4_0 => (0, 8, None),
            Scheme::Q4_1 => (0, 8, Some(11 | 32)),
            Scheme::Q5_0 => (0, 7, None),
            Scheme::Q5_1 => (0, 7, Some(11 | 32)),
            // Multiples of up to 63 follow; the minimum is subtracted.
            Scheme::Q4_K => (0, 3, Some(6)),
            Scheme::Q5_K => (0, 2, Some(6)),
            // Multiples of up to 128.
            Scheme::Q6_K => (208, 1, None),
            Scheme::MXFP4 => (0, 0, None),
            // Zero points from 8 to 16.
            Scheme::Z4 => (0, 8, Some(18)),
            Scheme::Z8 => (0, 4, Some(18)),
        };
        let mut blocks = Vec::new();
        for _ in 0..num {
            let fraction = (self.number().abs() * 1023.0) as u16;
            let mut block: Vec<u8> = (0..scheme.block_bytes()).map(|_| (self.number() * 127.0) as i8 as u8).collect();
            if scheme == Scheme::MXFP4 {
                block[0] = 123 + (fraction % 3) as u8;
            } else {
                block[scale_at..scale_at + 2].copy_from_slice(&(scale << 10 | fraction).to_le_bytes());
            }
            if let Some(min) = min {
                block[2..4].copy_from_slice(&(min << 10 | fraction).to_le_bytes());
            }
            blocks.extend(block);
        }
        blocks
    }

    /// A linear layer whose rows are those of several matrices.
    fn fused(&mut self, rows: &[usize], cols: usize, has_bias: bool) -> Linear {
        if !matches!(self.stored, Stored::Mixed) {
            return self.linear(rows.iter().sum(), cols, has_bias);
        }
        let parts: Vec<Part> = rows.iter().zip(MIXED).map(|(rows, scheme)| Part { scheme, rows: *rows }).collect();
        let weight = self.packed_matrix(&parts, cols);
        Linear::new(weight, has_bias.then(|| self.vector(rows.iter().sum(), 0.0, 0.3)))
    }

    fn linear(&mut self, rows: usize, cols: usize, has_bias: bool) -> Linear {
        let weight = self.matrix(rows, cols);
        Linear::new(weight, has_bias.then(|| self.vector(rows, 0.0, 0.3)))
    }

    /// A linear layer that chooses or weighs experts, which no file quantises.
    fn plain_linear(&mut self, rows: usize, cols: usize, has_bias: bool) -> Linear {
        let stored = self.stored;
        if !matches!(stored, Stored::Plain(_)) {
            self.stored = Stored::Plain(Dtype::F32);
        }
        let linear = self.linear(rows, cols, has_bias);
        self.stored = stored;
        linear
    }

    fn norm(&mut self, width: usize, has_bias: bool) -> Norm {
        let weight = self.vector(width, 1.0, 0.3);
        Norm { weight, bias: has_bias.then(|| self.vector(width, 0.0, 0.3)), eps: 1e-5 }
    }

    fn experts(&mut self, family: &Family, mlp: Mlp) -> Experts {
        let Mlp::Experts { scoring, normalized, is_shared, is_gated, has_limits } = mlp else { unreachable!() };
        let (hidden, inner) = (family.hidden, family.inner);
        let has_groups = scoring == Scoring::Sigmoid;
        let num = if has_groups { 6 } else { 5 };
        let shared = if matches!(self.stored, Stored::Plain(_)) { 28 } else { 32 };
        Experts {
            router: self.plain_linear(num, hidden, has_limits),
            gate_up: (0..num).map(|_| self.linear(2 * inner, hidden, has_limits)).collect(),
            down: (0..num).map(|_| self.linear(hidden, inner, has_limits)).collect(),
            activation: if has_limits { Activation::ClampedSwiglu { limit: 0.6 } } else { family.activation },
            num_chosen: 2,
            scoring,
            correction: has_groups.then(|| self.vector(num, 0.0, 0.5)),
            num_groups: if has_groups { 3 } else { 1 },
            num_chosen_groups: if has_groups { 2 } else { 1 },
            normalized,
            scale: 1.5,
            shared: is_shared.then(|| SharedExpert {
                gate_up: self.linear(2 * shared, hidden, false),
                down: self.linear(hidden, shared, false),
                gate: is_gated.then(|| self.plain_linear(1, hidden, false)),
            }),
        }
    }

    fn layer(&mut self, family: &Family, idx: usize) -> Layer {
        let Family { hidden, inner, head_dim, has_biases: bias, is_layer_norm: shift, .. } = *family;
        let (heads, keys) = (family.num_heads * head_dim, family.num_kv_heads * head_dim);
        let (is_inner, has_head_norms) = (family.has_inner_norms, family.has_head_norms);
        let norm1 = (!is_inner).then(|| self.norm(hidden, shift));
        let (of_queries, of_keys) = if is_inner { (heads, keys) } else { (head_dim, head_dim) };
        let num_ropes = if family.has_two_ropes { 2 } else { usize::from(family.has_rope) };
        Layer {
            norm2: if family.is_parallel { norm1.clone() } else { (!is_inner).then(|| self.norm(hidden, shift)) },
            norm1,
            qkv: self.fused(&[heads, keys, keys], hidden, bias),
            query_norm: (is_inner || has_head_norms).then(|| self.norm(of_queries, false)),
            key_norm: (is_inner || has_head_norms).then(|| self.norm(of_keys, false)),
            rope: (idx < num_ropes || !family.has_two_ropes && family.has_rope).then(|| idx.min(num_ropes - 1)),
            sinks: family.has_sinks.then(|| self.vector(family.num_heads, 0.5, 1.0)),
            out: self.linear(hidden, heads, bias),
            post_norm1: (is_inner || family.has_post_norms).then(|| self.norm(hidden, shift)),
            is_parallel: family.is_parallel,
            feed_forward: match family.mlp {
                Mlp::Gated => FeedForward::Gated {
                    gate_up: self.fused(&[inner, inner], hidden, bias),
                    down: self.linear(hidden, inner, bias),
                },
                Mlp::Plain => {
                    FeedForward::Plain { up: self.linear(inner, hidden, bias), down: self.linear(hidden, inner, bias) }
                }
                experts => FeedForward::Experts(Box::new(self.experts(family, experts))),
            },
            post_norm2: (is_inner || family.has_post_norms).then(|| self.norm(hidden, shift)),
            window: family.window.filter(|_| idx == 0),
        }
    }

    fn model(&mut self, family: &Family) -> ModelSpec {
        let embedding = self.matrix(VOCAB, family.hidden);
        let rope = |half: usize, base: f64| {
            let frequencies = (0..half).map(|pair| base.powf(-(pair as f64) / half as f64)).collect();
            Rope { frequencies, factor: 1.1 }
        };
        let whole = rope(family.head_dim / 2, 100.0);
        let ropes = if family.has_two_ropes { vec![whole, rope(family.head_dim / 4, 20.0)] } else { vec![whole] };
        ModelSpec {
            embedding,
            embedding_scale: family.embedding_scale,
            positions: family.has_positions.then(|| self.matrix(64, family.hidden)),
            ropes: if family.has_rope { ropes } else { Vec::new() },
            layers: (0..family.num_layers).map(|idx| self.layer(family, idx)).collect(),
            norm: self.norm(family.hidden, family.is_layer_norm),
            head: match family.is_tied {
                true => Linear::new(embedding, None),
                false => self.linear(VOCAB, family.hidden, false),
            },
            num_heads: family.num_heads,
            attention_scale: (family.head_dim as f32).powf(-0.5),
            query_growth: family.growth,
            residual_scale: family.residual_scale,
            attention_softcap: family.caps.map(|caps| caps.0),
            logit_softcap: family.caps.map(|caps| caps.1),
            activation: family.activation,
        }
    }
}

/// A cache with memory of its own; each request has blocks far apart.
struct Cache {
    shape: CacheShape,
    max_blocks: usize,
    _memory: Vec<Vec<f32>>,
    layers: Vec<CacheLayer>,
}

impl Cache {
    fn new(family: &Family, format: CacheFormat, num_requests: usize, max_tokens: usize) -> Self {
        let max_blocks = max_tokens.div_ceil(BLOCK_SIZE);
        let (num_kv_heads, head_dim) = (family.num_kv_heads, family.head_dim);
        let num_blocks = max_blocks * num_requests;
        let shape = CacheShape { num_blocks, block_size: BLOCK_SIZE, num_kv_heads, head_dim, format };
        // Enough for every format, a head in int8 with its scale included.
        let len = num_blocks * BLOCK_SIZE * num_kv_heads * head_dim;
        let mut memory = vec![vec![f32::NAN; len]; 2 * family.num_layers];
        // SAFETY: the vectors hold a cache of this shape even in f32, stay in place, and serve one model.
        let parts = memory.iter_mut().map(|part| unsafe { CachePart::from_raw(part.as_mut_ptr().cast()) });
        let parts: Vec<_> = parts.collect();
        let layers = parts.chunks(2).map(|pair| CacheLayer { keys: pair[0], values: pair[1] }).collect();
        Self { shape, max_blocks, _memory: memory, layers }
    }

    /// The `idx`-th block of a request: requests take turns, the last block first.
    fn block(&self, request: usize, idx: usize) -> usize {
        let num_requests = self.shape.num_blocks / self.max_blocks;
        (self.max_blocks - 1 - idx) * num_requests + request
    }
}

/// A token id for each place of each request.
fn token(request: usize, position: usize) -> usize {
    (request * 7 + position * 5 + request * position) % VOCAB
}

/// Runs the tokens of all spans of positions through the kernels; returns the logits of each span's last token.
fn run(model: &mut CpuModel, cache: &Cache, spans: &[(usize, usize)]) -> Vec<Vec<f32>> {
    let (mut token_ids, mut positions, mut slots, mut starts) = (vec![], vec![], vec![], vec![0]);
    for (request, &(start, end)) in spans.iter().enumerate() {
        for position in start..end {
            token_ids.push(token(request, position) as i64);
            positions.push(position as i64);
            let block = cache.block(request, position / BLOCK_SIZE);
            slots.push((block * BLOCK_SIZE + position % BLOCK_SIZE) as i64);
        }
        starts.push(token_ids.len() as i32);
    }
    let tables = (0..spans.len()).flat_map(|request| (0..cache.max_blocks).map(move |idx| (request, idx)));
    let tables: Vec<i32> = tables.map(|(request, idx)| cache.block(request, idx) as i32).collect();
    let last: Vec<i64> = starts[1..].iter().map(|end| i64::from(*end) - 1).collect();
    let adapters = vec![0; spans.len()];
    let step = StepInput {
        token_ids: &token_ids,
        positions: &positions,
        slot_mapping: &slots,
        query_start: &starts,
        block_tables: &tables,
        max_blocks: cache.max_blocks,
        logits_indices: &last,
        adapters: &adapters,
    };
    let mut logits = vec![f32::NAN; last.len() * VOCAB];
    model.run(&step, &mut logits).expect("sizes that agree");
    logits.chunks(VOCAB).map(<[f32]>::to_vec).collect()
}

/// Largest difference, relative to the largest logit.
fn error(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    let pairs = || found.iter().flatten().zip(wanted.iter().flatten());
    let scale = pairs().map(|(_, wanted)| wanted.abs()).fold(0.0, f32::max);
    // `max` would drop a NaN.
    pairs()
        .map(|(found, wanted)| (found - wanted).abs() / scale)
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

/// Prefills and decodes `num_rows` requests; returns the largest error of both steps.
fn compare(family: &Family, stored: Stored, format: CacheFormat, isa: Isa, num_rows: usize) -> f32 {
    let mut weights = Weights { stored, state: 17, full: vec![], half: vec![], packed: vec![] };
    let spec = weights.model(family);
    let prompt_len = |request: usize| if family.context > 0 { family.context } else { 1 + request % 7 };
    let cache = Cache::new(family, format, num_rows, family.context.max(7) + 1);
    let num_threads = 1 + num_rows % 3;
    let mut reference = Reference::new(&spec, cache.shape, isa, num_rows);
    let prompts: Vec<_> = (0..num_rows).map(|request| (0, prompt_len(request))).collect();
    let decoding: Vec<_> = prompts.iter().map(|(_, end)| (*end, end + 1)).collect();
    let mut model =
        CpuModel::new(spec.clone(), cache.shape, cache.layers.clone(), num_threads, isa).expect("sizes that agree");
    let errors = [prompts, decoding].map(|spans| {
        let wanted: Vec<Vec<f32>> = spans
            .iter()
            .enumerate()
            .map(|(request, &(start, end))| {
                (start..end)
                    .map(|position| reference.push(request, token(request, position)))
                    .last()
                    .expect("at least one token")
            })
            .collect();
        error(&run(&mut model, &cache, &spans), &wanted)
    });
    if errors[1] > errors[0] || errors[1].is_nan() { errors[1] } else { errors[0] }
}

#[test]
fn every_instruction_set_equals_the_naive_decoder() {
    let supported = Isa::supported();
    let mut failures = Vec::new();
    for isa in ISAS {
        if !supported.contains(&isa) {
            eprintln!("skipped: this machine has no {}", isa.name());
            continue;
        }
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut worst = 0.0_f32;
            for family in &FAMILIES {
                let batches: &[usize] = match family {
                    Family { context: 1.., .. } => &[1],
                    Family { hidden: 100.., .. } => &[1, 3],
                    _ => &[1, 3, 8, 33],
                };
                for &num_rows in batches {
                    let error = compare(family, Stored::Plain(dtype), CacheFormat::Plain(dtype), isa, num_rows);
                    worst = worst.max(error);
                    // In bf16, a number of the cache or of an input that lies between two bf16 may round either way.
                    let limit = if dtype == Dtype::F32 { 2e-5 } else { 8e-3 };
                    if error > limit || error.is_nan() {
                        failures.push(format!(
                            "{}, {dtype:?}, {}, {num_rows} rows: {error:e}",
                            isa.name(),
                            family.name
                        ));
                    }
                }
            }
            eprintln!("{} {dtype:?}: largest error {worst:e}", isa.name());
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_instruction_set_equals_the_naive_decoder_with_packed_weights() {
    let mut failures = Vec::new();
    // Products of packed weights are the same with and without those of bf16.
    for isa in Isa::supported().into_iter().filter(|isa| *isa < Isa::Avx512Bf16) {
        let schemes = Scheme::ALL.into_iter().map(|scheme| (format!("{scheme:?}"), Stored::Packed(scheme)));
        for (name, stored) in schemes.chain([("mixed".to_owned(), Stored::Mixed)]) {
            let mut worst = 0.0_f32;
            // Schemes differ in their products, which have tests of their own, so that only one and a mixture run all
            // families.
            let (families, batches) = match stored {
                Stored::Packed(Scheme::Q8_0) | Stored::Mixed => (&PACKED_FAMILIES[..], &[1, 33][..]),
                Stored::Packed(scheme) if scheme.block_cols() > GROUP => (&WIDE_FAMILIES[..], &[1, 5][..]),
                _ => (&PACKED_FAMILIES[..1], &[1, 33][..]),
            };
            for family in families {
                for &num_rows in batches {
                    let error = compare(family, stored, CacheFormat::Plain(Dtype::F32), isa, num_rows);
                    worst = worst.max(error);
                    // An activation that lies between two steps may be rounded either way.
                    if error > 2e-2 || error.is_nan() {
                        failures.push(format!("{}, {name}, {}, {num_rows}: {error:e}", isa.name(), family.name));
                    }
                }
            }
            eprintln!("{} {name}: largest error {worst:e}", isa.name());
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_instruction_set_equals_the_naive_decoder_with_a_cache_in_int8() {
    let mut failures = Vec::new();
    for isa in Isa::supported() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for family in &FAMILIES {
                let num_rows = if family.context > 0 { 1 } else { 3 };
                let error = compare(family, Stored::Plain(dtype), CacheFormat::Int8, isa, num_rows);
                // A number that lies between two steps may be rounded either way.
                if error > 2e-2 || error.is_nan() {
                    failures.push(format!("{}, {dtype:?}, {}: {error:e}", isa.name(), family.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
