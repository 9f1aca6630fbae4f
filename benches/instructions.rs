//! Work of known size for a counter of instructions: `instructions WORKLOAD TIMES`; without arguments, their names;
//! with `instruction-set`, the best set of the machine.
//!
//! `tools/bench_check.py` runs a workload some times and more times under valgrind; the difference leaves out what comes
//! before. Everything is seeded and on one thread, so two runs count the same.
#![expect(unsafe_code, reason = "matrices and caches are views of memory, which is leaked here")]

use std::hint::black_box;

use llm_core::kernels::{
    Activation, AttentionRule, CacheFormat, CacheLayer, CachePart, CacheShape, CausalAttention, CpuModel, Dtype,
    FeedForward, Isa, Layer, Linear, Matrix, ModelSpec, Norm, Part, Rope, Scheme, StepInput,
};
use llm_core::sampling::{History, RowSpec, SamplingParams, TokenCounts, VocabMask, sample_rows, uniform};
use llm_core::scheduler::{LogitsRow, RequestOptions, Scheduler, SchedulerConfig};
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::{Trainer, TrainerOptions};

const WORDS: [&str; 16] = [
    "the", "people", "of", "Rome", "would", "rather", "die", "than", "famish", "first", "you", "know", "Caius", "is",
    "chief", "enemy",
];

/// A name, and what does the work a number of times.
type Workload = (&'static str, fn(usize));

const WORKLOADS: [Workload; 11] = [
    ("tokenizer encode", encode),
    ("tokenizer decode", decode),
    ("tokenizer train", train),
    ("sampler top-k top-p", sample),
    ("scheduler 100 steps", schedule),
    ("attention portable", |times| attend(Isa::Portable, times)),
    ("attention AVX2", |times| attend(Isa::Avx2, times)),
    ("token bf16 AVX2", |times| generate(Stored::Bf16, IN_BF16, times)),
    ("token Q4_1 AVX2", |times| generate(Stored::Packed(Scheme::Q4_1), IN_BF16, times)),
    ("token Q4_K AVX2", |times| generate(Stored::Packed(Scheme::Q4_K), IN_BF16, times)),
    ("token Q8_0, int8 AVX2", |times| generate(Stored::Packed(Scheme::Q8_0), CacheFormat::Int8, times)),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments == ["instruction-set"] {
        println!("{}", Isa::detect().name());
        return;
    }
    let [name, times] = arguments.as_slice() else {
        let has_avx2 = Isa::supported().contains(&Isa::Avx2);
        WORKLOADS
            .iter()
            .filter(|(name, _)| has_avx2 || !name.ends_with("AVX2"))
            .for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, run) = WORKLOADS.iter().find(|(known, _)| known == name).expect("the workload is one of those listed");
    run(times.parse().expect("the second argument is a number"));
}

fn number(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

/// 2,000 words, 10 kB.
fn text(state: &mut u64) -> String {
    (0..2_000).map(|_| format!("{} ", WORDS[number(state) % WORDS.len()])).collect()
}

/// Trains a tokenizer on one thread.
fn trained(text: &str) -> Tokenizer {
    let options = TrainerOptions { num_threads: Some(1), ..TrainerOptions::new(400, Pattern::Gpt4, &[]) };
    let mut trainer = Trainer::with_options(options).expect("the size is allowed");
    trainer.add(&[text]).expect("the text is UTF-8");
    trainer.train(&mut |_, _| true).expect("there is text")
}

/// Encodes 10 kB of words; a new text each time, so that no cache knows all of it.
fn encode(times: usize) {
    let mut state = 1;
    let tokenizer = trained(&text(&mut state));
    (0..times).for_each(|_| drop(black_box(tokenizer.encode(black_box(&text(&mut state)), &Allowed::None))));
}

/// Decodes the ids of 100 kB of words: beside fewer, the start of the trainer's thread would show.
fn decode(times: usize) {
    let mut state = 1;
    let tokenizer = trained(&text(&mut state));
    let texts: String = (0..10).map(|_| text(&mut state)).collect();
    let ids = tokenizer.encode(&texts, &Allowed::None).expect("there are no special tokens");
    (0..times).for_each(|_| drop(black_box(tokenizer.decode(black_box(&ids), true))));
}

/// Learns up to 144 merges from 10 kB.
fn train(times: usize) {
    let text = text(&mut 1);
    (0..times).for_each(|_| drop(black_box(trained(black_box(&text)))));
}

/// Samples a row of 32,768 logits as a chat does.
fn sample(times: usize) {
    let vocab = 32_768;
    let logits: Vec<f32> = (0..vocab).map(|idx| (-2.0 * (1.0 - uniform(1, idx as u64, 0)).ln()) as f32).collect();
    let params = SamplingParams {
        temperature: 0.8,
        top_k: 50,
        top_p: 0.9,
        repetition_penalty: 1.1,
        seed: 7,
        ..SamplingParams::default()
    };
    let counts = TokenCounts::from_prompt(&(0..256).collect::<Vec<u32>>());
    let mask = VocabMask { vocab_size: vocab, pad_id: None };
    for output_idx in 0..times {
        let history = History::Counted(&counts);
        let spec = RowSpec { params: &params, history, banned_ids: &[], allowed: None, output_idx };
        drop(black_box(sample_rows(black_box(&mut logits.clone()), vocab, mask, &[Some(spec)])));
    }
}

/// Plans and completes 100 steps of 64 decoding requests, of which those with 200 tokens give way to new ones. Blocks are
/// hashed with a random key, which changes a single step's count by 3 %.
fn schedule(times: usize) {
    let config = SchedulerConfig {
        num_blocks: 64 * 30,
        max_batch_tokens: 8_192,
        max_running_requests: 64,
        max_model_len: 1_024,
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    let options = RequestOptions { max_tokens: 200, ..RequestOptions::default() };
    let prompt = |start: u32| (0..200).map(|position| start.wrapping_mul(0x9E37_79B9) ^ position).collect::<Vec<u32>>();
    (0..64).for_each(|id| scheduler.add(id, prompt(id as u32), options).expect("the request fits"));
    for step in 0..300 + 100 * times {
        black_box(scheduler.schedule().expect("no invariant is broken"));
        for LogitsRow { id, .. } in scheduler.complete_step().expect("a plan is in flight").into_iter().flatten() {
            scheduler.append_token(id, 1).expect("the request runs");
            if scheduler.request(id).is_some_and(|request| request.output_ids().len() == 200) {
                scheduler.remove(id).expect("the request runs");
                scheduler.add(id, prompt((step * 64) as u32 + id as u32), options).expect("the request fits");
            }
        }
    }
}

/// Attends over 128 tokens forward.
fn attend(isa: Isa, times: usize) {
    let rule = AttentionRule { num_heads: 4, num_kv_heads: 2, head_dim: 32, scale: 0.2 };
    let tokens = 128;
    let mut state = 1;
    let mut random = || (number(&mut state) % 2_000) as f32 / 1_000.0 - 1.0;
    let joined: Vec<f32> = (0..tokens * 8 * rule.head_dim).map(|_| random()).collect();
    let starts = [0, tokens];
    let attention = CausalAttention { rule, starts: &starts, rotation: None, joined: &joined[..], isa, num_threads: 1 };
    let (mut mixed, mut sums) = (vec![0.0; tokens * 4 * rule.head_dim], vec![0.0; tokens * 4]);
    for _ in 0..times {
        attention.forward(black_box(&mut mixed), &mut sums).expect("the sizes agree");
    }
}

const HIDDEN: usize = 256;
const INNER: usize = 256;
const VOCAB: usize = 256;
const CONTEXT: usize = 128;
const BLOCK: usize = 16;
const HEAD_DIM: usize = 64;
const NUM_HEADS: usize = 4;
const NUM_KV_HEADS: usize = 2;
const IN_BF16: CacheFormat = CacheFormat::Plain(Dtype::Bf16);

/// How a model's matrices are stored.
#[derive(Clone, Copy)]
enum Stored {
    Bf16,
    Packed(Scheme),
}

impl Stored {
    /// Returns a matrix of small seeded numbers.
    fn matrix(self, rows: usize, cols: usize) -> Matrix {
        let mut state = (rows * cols) as u64;
        let Self::Packed(scheme) = self else {
            let random = (0..rows * cols).map(|_| (number(&mut state) % 2_000) as f32 / 16_000.0 - 0.0625);
            let numbers: &[u16] = random.map(|value| (value.to_bits() >> 16) as u16).collect::<Vec<_>>().leak();
            // SAFETY: the numbers are as many, and leaked, so that they stay in place and unwritten.
            return unsafe { Matrix::from_raw(numbers.as_ptr().cast(), rows, cols, Dtype::Bf16) }
                .expect("it has numbers");
        };
        let blocks: Vec<u8> = (0..rows * cols / scheme.block_cols()).flat_map(|_| block(scheme, &mut state)).collect();
        let mut packed = vec![0; scheme.packed_bytes(rows, cols)];
        scheme.pack(&blocks, cols, &mut packed, 0).expect("rows are whole blocks");
        let packed: &[u8] = packed.leak();
        // SAFETY: the bytes were packed by the scheme, and leaked, so that they stay in place and unwritten.
        unsafe { Matrix::from_packed(packed.as_ptr(), packed.len(), cols, &[Part { scheme, rows }]) }
            .expect("it has rows")
    }

    fn linear(self, rows: usize, cols: usize) -> Linear {
        Linear::new(self.matrix(rows, cols), None)
    }

    fn layer(self) -> Layer {
        Layer {
            norm1: Some(norm()),
            qkv: self.linear((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, HIDDEN),
            query_norm: None,
            key_norm: None,
            rope: Some(0),
            sinks: None,
            out: self.linear(HIDDEN, NUM_HEADS * HEAD_DIM),
            post_norm1: None,
            norm2: Some(norm()),
            is_parallel: false,
            feed_forward: FeedForward::Gated {
                gate_up: self.linear(2 * INNER, HIDDEN),
                down: self.linear(HIDDEN, INNER),
            },
            post_norm2: None,
            window: None,
        }
    }

    fn model(self) -> ModelSpec {
        let half = HEAD_DIM / 2;
        let frequencies = (0..half).map(|pair| 10_000_f64.powf(-(pair as f64) / half as f64)).collect();
        ModelSpec {
            embedding: self.matrix(VOCAB, HIDDEN),
            embedding_scale: 1.0,
            positions: None,
            ropes: vec![Rope { frequencies, factor: 1.0 }],
            layers: vec![self.layer(), self.layer()],
            norm: norm(),
            head: self.linear(VOCAB, HIDDEN),
            num_heads: NUM_HEADS,
            attention_scale: (HEAD_DIM as f32).powf(-0.5),
            query_growth: None,
            residual_scale: 1.0,
            attention_softcap: None,
            logit_softcap: None,
            activation: Activation::Silu,
        }
    }
}

/// A block of random codes with scales of the size that weights have.
fn block(scheme: Scheme, state: &mut u64) -> Vec<u8> {
    let mut block: Vec<u8> = (0..scheme.block_bytes()).map(|_| number(state) as u8).collect();
    // Bits of half-precision numbers: scale, then minimum.
    let (scale, min) = match scheme {
        Scheme::Q8_0 => (0x1000, None),
        Scheme::Q4_K => (0x0C00, Some(0x1800_u16)),
        _ => (0x2000_u16, Some(0xAC00)),
    };
    block[..2].copy_from_slice(&scale.to_le_bytes());
    if let Some(min) = min {
        block[2..4].copy_from_slice(&min.to_le_bytes());
    }
    block
}

fn norm() -> Norm {
    Norm { weight: vec![1.0; HIDDEN], bias: None, eps: 1e-5 }
}

/// Computes the logits of one token, the last of 128, in a model of two layers.
fn generate(stored: Stored, format: CacheFormat, times: usize) {
    let (num_kv_heads, head_dim) = (NUM_KV_HEADS, HEAD_DIM);
    let shape = CacheShape { num_blocks: CONTEXT / BLOCK, block_size: BLOCK, num_kv_heads, head_dim, format };
    let cache = || {
        // SAFETY: this is room enough for f32, the widest format, and leaked for this one part of a cache.
        unsafe { CachePart::from_raw(vec![0_f32; CONTEXT * num_kv_heads * head_dim].leak().as_mut_ptr().cast()) }
    };
    let caches = (0..2).map(|_| CacheLayer { keys: cache(), values: cache() }).collect();
    let mut model = CpuModel::new(stored.model(), shape, caches, 1, Isa::Avx2).expect("the machine has AVX2");
    let mut logits = vec![0.0; VOCAB];
    let last = CONTEXT - 1;
    step(&mut model, 0..last, &mut logits);
    (0..times).for_each(|_| step(&mut model, last..CONTEXT, black_box(&mut logits)));
    assert!(logits.iter().all(|logit| logit.is_finite()), "random weights of a sound size");
}

/// Runs the tokens of these positions; `logits` are the last one's.
fn step(model: &mut CpuModel, positions: std::ops::Range<usize>, logits: &mut [f32]) {
    let num_tokens = positions.len();
    let positions: Vec<i64> = positions.map(|position| position as i64).collect();
    let token_ids: Vec<i64> = positions.iter().map(|position| position * 7 % VOCAB as i64).collect();
    let block_tables: Vec<i32> = (0..(CONTEXT / BLOCK) as i32).collect();
    let input = StepInput {
        token_ids: &token_ids,
        positions: &positions,
        slot_mapping: &positions,
        query_start: &[0, num_tokens as i32],
        block_tables: &block_tables,
        max_blocks: block_tables.len(),
        logits_indices: &[num_tokens as i64 - 1],
        adapters: &[0],
    };
    model.run(black_box(&input), logits).expect("the sizes agree");
}
