//! Attention over one split beside a naive twin in f64, for every instruction set and format of the cache.

use super::kv_arithmetic::Arithmetic;
use super::kv_split::{KvPrefetch, KvSplit, merge_partials};
use crate::kernels::cache::{CacheFormat, CacheLayer, CachePart, CacheShape, SPLIT_TOKENS};
use crate::kernels::memory::Dtype;
use crate::kernels::simd::{Isa, narrow, widen};

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
    /// The first token that queries see.
    first: usize,
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
        Self { shape, blocks, memory, keys, values, queries, softcap: None, first: 0 }
    }

    /// Every way to compute this case on this machine.
    fn ways(&self) -> Vec<Arithmetic> {
        let sets = Isa::supported();
        let floats = sets.iter().map(|isa| Arithmetic::Floats(*isa));
        let best = sets.iter().map(|isa| Arithmetic::best(*isa, &self.shape));
        floats.chain(best.filter(|way| !matches!(way, Arithmetic::Floats(_))).take(1)).collect()
    }

    /// Runs the kernel over all splits and merges them.
    fn run(&mut self, arithmetic: Arithmetic) -> Vec<f32> {
        let (width, num_tokens) = (self.shape.head_dim, self.keys.len());
        let groups = self.queries.len() / width;
        let [keys, values] = &mut self.memory;
        let part = |memory: &mut Vec<u8>| CachePart { data: memory.as_mut_ptr() };
        let cache = CacheLayer { keys: part(keys), values: part(values) };
        let mut scratch = vec![f32::NAN; groups * SPLIT_TOKENS];
        let partials: Vec<Vec<f32>> = (0..num_tokens)
            .step_by(SPLIT_TOKENS)
            .filter(|start| start + SPLIT_TOKENS > self.first)
            .map(|start| {
                let mut out = vec![f32::NAN; groups * (width + 2)];
                let (blocks, queries, softcap) = (&self.blocks[..], &self.queries[..], self.softcap);
                let end = num_tokens.min(start + SPLIT_TOKENS);
                let start = start.max(self.first);
                let split = KvSplit { shape: &self.shape, cache, head: 1, blocks, start, end, queries, softcap };
                split.attend_by(arithmetic, &mut out, &mut scratch, &mut KvPrefetch::of(&split));
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

    /// Replaces the scale of one token's key or value.
    fn set_scale(&mut self, part: usize, token: usize, scale: f32) {
        let slot = self.blocks[token / BLOCK_SIZE] as usize * BLOCK_SIZE + token % BLOCK_SIZE;
        let place = self.shape.offset(slot, 1) + self.shape.head_dim;
        self.memory[part][place..place + 2].copy_from_slice(&narrow(scale).to_le_bytes());
    }

    fn scores(&self, query: &[f32], keys: &[Vec<f32>]) -> Vec<f64> {
        let product =
            |key: &Vec<f32>| -> f64 { query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let capped = |score: f64| self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        keys.iter().map(|key| capped(product(key))).collect()
    }

    /// How far 16 bits of queries and weights may move a result: a score by half a query's step for each channel of the key,
    /// so a weight by the exponential of twice the largest such difference, and a value's weight by half of its own step, as
    /// wide as the split's heaviest value needs.
    fn rounding(&self) -> f64 {
        let [keys, values] = [0, 1].map(|part| self.restored(part).split_off(self.first));
        let query = largest(self.queries.iter().map(|value| f64::from(*value)));
        let key = keys.iter().map(|key| key.iter().map(|value| f64::from(value.abs())).sum());
        let score = 0.5 * query / 32_767.0 * largest(key);
        let value = largest(values.iter().flatten().map(|value| f64::from(*value)));
        let num_rounded = values.len().min(SPLIT_TOKENS) as f64;
        ((2.0 * score).exp() - 1.0 + 0.5 * num_rounded / 65_535.0) * value
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
        for (width, groups) in [(64, 3), (64, 1), (128, 4), (80, 2), (256, 2), (70, 5), (12, 3), (7, 1)] {
            for num_tokens in [1, 3, 37, 256, 530] {
                for (outliers, softcap) in [(1.0, None), (40.0, None), (8.0, Some(2.0))] {
                    let mut case = Case::new(format, width, num_tokens, groups, outliers);
                    case.softcap = softcap;
                    // Splits begin within a block, as a window makes them.
                    case.first = if num_tokens > 300 { 261 } else { num_tokens / 5 };
                    let seen = case.first..;
                    let wanted = case.twin(&case.restored(0)[seen.clone()], &case.restored(1)[seen]);
                    for way in case.ways() {
                        let found = case.run(way);
                        let errors = found.iter().zip(&wanted).map(|(found, wanted)| f64::from(*found) - wanted);
                        let (error, scale) = (largest(errors), largest(wanted.iter().copied()));
                        let rounded = if let Arithmetic::Floats(_) = way { 0.0 } else { case.rounding() };
                        assert!(
                            error <= 2e-5 * scale + rounded,
                            "{way:?}, {format:?}, {width}, {num_tokens}, {outliers}: {error}"
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
        for way in case.ways() {
            let found = case.run(way);
            for (group, query) in case.queries.chunks(width).enumerate() {
                let score = 0.5 * of_keys * query.iter().map(|value| f64::from(value.abs())).sum::<f64>();
                let bound = 0.5 * of_values + ((2.0 * score).exp() - 1.0) * value + 1e-5 * value;
                let pairs = found[group * width..][..width].iter().zip(&exact[group * width..]);
                let error = largest(pairs.map(|(found, exact)| f64::from(*found) - exact));
                assert!(error <= bound, "{way:?}, {width}, {outliers}: {error} > {bound}");
            }
        }
    }
}

/// Queries and scales of values that are not finite reach the result.
#[test]
fn numbers_that_are_not_finite_stay_so() {
    for bad in [f32::NAN, f32::INFINITY] {
        for part in 0..3 {
            let mut case = Case::new(CacheFormat::Int8, 64, 37, 3, 1.0);
            match part {
                0 => case.queries[70] = bad,
                1 => case.set_scale(1, 36, bad),
                _ => case.set_scale(1, 5, bad),
            }
            for way in case.ways() {
                let found = case.run(way);
                let head = if part == 0 { 64..128 } else { 0..192 };
                assert!(found[head].iter().all(|value| !value.is_finite()), "{way:?}, {part}, {bad}");
            }
        }
    }
}
