//! Attention over one split beside a naive twin in f64, for every instruction set and format of the cache.

use super::kv_split::{KvPrefetch, KvSplit, merge_partials};
use crate::kernels::cache::{CacheFormat, CacheLayer, CachePart, CacheShape, SPLIT_TOKENS};
use crate::kernels::memory::Dtype;
use crate::kernels::simd::{Isa, widen};

const BLOCK_SIZE: usize = 16;
const NUM_KV_HEADS: usize = 2;
const FORMATS: [CacheFormat; 3] = [CacheFormat::Plain(Dtype::F32), CacheFormat::Plain(Dtype::Bf16), CacheFormat::Int8];

struct Numbers(u64);

impl Numbers {
    /// The next number in [-1, 1).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn heads(&mut self, num: usize, width: usize, outliers: f32) -> Vec<Vec<f32>> {
        let mut head = || -> Vec<f32> { (0..width).map(|_| self.next()).collect() };
        let mut heads: Vec<Vec<f32>> = (0..num).map(|_| head()).collect();
        // Every third token has one channel far above the others, always the same, as keys of trained models do.
        heads.iter_mut().step_by(3).for_each(|head| head[width / 3] *= outliers);
        heads
    }
}

/// A cache of one head's keys and values in blocks that are out of order; the other heads hold NaN.
struct Case {
    shape: CacheShape,
    blocks: Vec<i32>,
    memory: [Vec<u8>; 2],
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    queries: Vec<f32>,
    softcap: Option<f32>,
}

impl Case {
    fn new(format: CacheFormat, width: usize, num_tokens: usize, groups: usize, outliers: f32) -> Self {
        let mut numbers = Numbers(7);
        let num_blocks = num_tokens.div_ceil(BLOCK_SIZE);
        let shape =
            CacheShape { num_blocks, block_size: BLOCK_SIZE, num_kv_heads: NUM_KV_HEADS, head_dim: width, format };
        let blocks: Vec<i32> = (0..num_blocks as i32).rev().collect();
        let (keys, values) = (numbers.heads(num_tokens, width, outliers), numbers.heads(num_tokens, width, outliers));
        let memory = [&keys, &values].map(|heads| {
            let mut memory = vec![0xFF_u8; num_blocks * BLOCK_SIZE * shape.token_bytes()];
            let part = CachePart { data: memory.as_mut_ptr() };
            for (token, head) in heads.iter().enumerate() {
                let slot = blocks[token / BLOCK_SIZE] as usize * BLOCK_SIZE + token % BLOCK_SIZE;
                // SAFETY: the slot is within the memory, which nobody else uses.
                unsafe { shape.store(Isa::Portable, part, slot, 1, head) };
            }
            memory
        });
        let queries = (0..groups * width).map(|_| numbers.next()).collect();
        Self { shape, blocks, memory, keys, values, queries, softcap: None }
    }

    /// Runs the kernel over all splits and merges them.
    fn run(&mut self, isa: Isa) -> Vec<f32> {
        let (width, num_tokens) = (self.shape.head_dim, self.keys.len());
        let groups = self.queries.len() / width;
        let [keys, values] = &mut self.memory;
        let part = |memory: &mut Vec<u8>| CachePart { data: memory.as_mut_ptr() };
        let cache = CacheLayer { keys: part(keys), values: part(values) };
        let mut scratch = vec![f32::NAN; groups * SPLIT_TOKENS];
        let partials: Vec<Vec<f32>> = (0..num_tokens)
            .step_by(SPLIT_TOKENS)
            .map(|start| {
                let mut out = vec![f32::NAN; groups * (width + 2)];
                let (blocks, queries, softcap) = (&self.blocks[..], &self.queries[..], self.softcap);
                let end = num_tokens.min(start + SPLIT_TOKENS);
                let split = KvSplit { shape: &self.shape, cache, head: 1, blocks, start, end, queries, softcap };
                split.attend(isa, &mut out, &mut scratch, &mut KvPrefetch::of(&split));
                out
            })
            .collect();
        let mut heads = vec![0.0; groups * width];
        for (group, head) in heads.chunks_mut(width).enumerate() {
            merge_partials(partials.iter().map(|part| &part[group * (width + 2)..][..width + 2]), None, head);
        }
        heads
    }

    /// The keys or values as the cache holds them.
    fn restored(&self, part: usize) -> Vec<Vec<f32>> {
        let (shape, width) = (&self.shape, self.shape.head_dim);
        let tokens = 0..self.keys.len();
        let restore = tokens.map(|token| {
            let slot = self.blocks[token / BLOCK_SIZE] as usize * BLOCK_SIZE + token % BLOCK_SIZE;
            let bytes = &self.memory[part][shape.offset(slot, 1)..][..shape.format.head_bytes(width)];
            let pair = |idx: usize| widen(u16::from_le_bytes([bytes[2 * idx], bytes[2 * idx + 1]]));
            match shape.format {
                CacheFormat::Plain(Dtype::F32) => {
                    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
                }
                CacheFormat::Plain(Dtype::Bf16) => (0..width).map(pair).collect(),
                CacheFormat::Int8 => {
                    let scale = widen(u16::from_le_bytes([bytes[width], bytes[width + 1]]));
                    bytes[..width].iter().map(|code| f32::from(*code as i8) * scale).collect()
                }
            }
        });
        restore.collect()
    }

    fn scores(&self, query: &[f32], keys: &[Vec<f32>]) -> Vec<f64> {
        let product =
            |key: &Vec<f32>| -> f64 { query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let capped = |score: f64| self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        keys.iter().map(|key| capped(product(key))).collect()
    }

    /// Softmax attention, written down.
    fn twin(&self, keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let width = self.shape.head_dim;
        let mut out = Vec::new();
        for query in self.queries.chunks(width) {
            let scores = self.scores(query, keys);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..width).map(|channel| {
                let mixed = weights.iter().zip(values).map(|(weight, value)| weight * f64::from(value[channel]));
                mixed.sum::<f64>() / total
            }));
        }
        out
    }
}

fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    // `max` would drop a NaN.
    numbers.into_iter().map(f64::abs).fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
}

#[test]
fn every_format_and_set_equals_the_twin_on_what_the_cache_holds() {
    for format in FORMATS {
        for (width, groups) in [(64, 3), (64, 1), (128, 4), (80, 2), (70, 5), (12, 3), (7, 1)] {
            for num_tokens in [1, 3, 37, 256, 530] {
                for (outliers, softcap) in [(1.0, None), (40.0, None), (8.0, Some(2.0))] {
                    let mut case = Case::new(format, width, num_tokens, groups, outliers);
                    case.softcap = softcap;
                    let wanted = case.twin(&case.restored(0), &case.restored(1));
                    for isa in Isa::supported() {
                        let found = case.run(isa);
                        let errors = found.iter().zip(&wanted).map(|(found, wanted)| f64::from(*found) - wanted);
                        let (error, scale) = (largest(errors), largest(wanted.iter().copied()));
                        let name = isa.name();
                        assert!(
                            error <= 2e-5 * scale,
                            "{name}, {format:?}, {width}, {num_tokens}, {outliers}: {error}"
                        );
                    }
                }
            }
        }
    }
}

/// A code is off by at most half a step, so a score by half the key's step times the query's magnitudes, and a weight by the
/// exponential of twice the largest such difference.
#[test]
fn eight_bits_stay_within_the_bound_of_their_steps() {
    for (width, outliers) in [(64, 1.0), (64, 100.0), (128, 30.0), (16, 1000.0)] {
        let mut case = Case::new(CacheFormat::Int8, width, 300, 3, outliers);
        case.queries.iter_mut().for_each(|value| *value /= width as f32);
        let step = |heads: &[Vec<f32>]| 1.008 * largest(heads.iter().flatten().map(|value| f64::from(*value))) / 127.0;
        let exact = case.twin(&case.keys, &case.values);
        let (of_keys, of_values) = (step(&case.keys), step(&case.values));
        let value = largest(case.values.iter().flatten().map(|value| f64::from(*value)));
        for isa in Isa::supported() {
            let found = case.run(isa);
            for (group, query) in case.queries.chunks(width).enumerate() {
                let score = 0.5 * of_keys * query.iter().map(|value| f64::from(value.abs())).sum::<f64>();
                let bound = 0.5 * of_values + ((2.0 * score).exp() - 1.0) * value + 1e-5 * value;
                let pairs = found[group * width..][..width].iter().zip(&exact[group * width..]);
                let error = largest(pairs.map(|(found, exact)| f64::from(*found) - exact));
                assert!(error <= bound, "{}, {width}, {outliers}: {error} > {bound}", isa.name());
            }
        }
    }
}
