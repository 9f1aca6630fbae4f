//! Attention of one query token over one KV split: a fixed range of tokens in the paged cache of its request.
//!
//! Each split yields the weighted sum of its values, with the sum and the maximum of the weights; the splits are merged at
//! the end. Splits begin at fixed tokens, so a token's result is the same in every batch, and threads share a long context.
//!
//! Source: Milakov and Gimelshein 2018, «Online normalizer calculation for softmax»; Dao et al. 2023,
//! «Flash-Decoding for long-context inference».

use crate::kernels::cache::{CacheLayer, CacheShape, Cached, SPLIT_TOKENS};
use crate::kernels::simd::{Simd, dispatch, exp};
use crate::prefetch::{far, near};

/// Prefetch distance of keys and values, in tokens.
const PREFETCH_TOKENS: usize = 12;

/// The query heads that share one key head, and the range of tokens they attend to.
pub(super) struct KvSplit<'a> {
    pub shape: &'a CacheShape,
    pub cache: CacheLayer,
    /// The key head.
    pub head: usize,
    /// The request's blocks; the step has checked that they exist.
    pub blocks: &'a [i32],
    /// First token.
    pub start: usize,
    /// One past the last token, at most [`SPLIT_TOKENS`] after the first.
    pub end: usize,
    /// Scaled query heads, `[groups, head_dim]`.
    pub queries: &'a [f32],
    /// Bound of the scores, by tanh.
    pub softcap: Option<f32>,
}

impl<'a> KvSplit<'a> {
    /// Returns the runs of tokens that lie side by side in the cache.
    #[inline(always)]
    pub(super) fn runs(&self) -> Runs<'a> {
        let Self { blocks, start, end, .. } = *self;
        Runs { blocks, block_size: self.shape.block_size, next: start, start, end }
    }
}

/// Walks the tokens of a split block by block.
pub(super) struct Runs<'a> {
    blocks: &'a [i32],
    block_size: usize,
    next: usize,
    start: usize,
    end: usize,
}

/// Tokens that lie side by side in the cache.
pub(super) struct Run {
    /// The first token, counted from the split's first.
    pub place: usize,
    /// Number of tokens.
    pub count: usize,
    /// Slot of the first token.
    pub slot: usize,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let token = self.next;
        let within = token % self.block_size;
        let count = (self.block_size - within).min(self.end - token);
        self.next += count;
        // After the last token the count is 0, and there may be no further block.
        (count > 0).then(|| {
            let slot = self.blocks[token / self.block_size] as usize * self.block_size + within;
            Run { place: token - self.start, count, slot }
        })
    }
}

/// Prefetches the keys and values of all heads in the split that the worker takes next: a few cache lines with each token
/// of the current split, so that memory and arithmetic overlap.
pub(super) struct KvPrefetch<'a> {
    keys: *const u8,
    values: *const u8,
    /// Bytes of a token with all heads.
    token_bytes: usize,
    runs: Runs<'a>,
    /// Byte offset of the next line in the current run.
    next: usize,
    /// Byte offset of the current run's end.
    end: usize,
    /// Lines of keys, and as many of values, to prefetch per token of one head.
    lines_per_token: usize,
}

impl<'a> KvPrefetch<'a> {
    /// Prefetches nothing.
    pub(super) fn none() -> Self {
        let (keys, values) = (std::ptr::null(), std::ptr::null());
        let runs = Runs { blocks: &[], block_size: 1, next: 0, start: 0, end: 0 };
        Self { keys, values, token_bytes: 0, runs, next: 0, end: 0, lines_per_token: 0 }
    }

    /// Prefetches the keys and values of `split`.
    pub(super) fn of(split: &KvSplit<'a>) -> Self {
        let shape = split.shape;
        let head_bytes = shape.format.head_bytes(shape.head_dim);
        // Each token of a head is visited once for the scores of every three queries, and once for their values.
        let num_visits = 2 * (split.queries.len() / shape.head_dim).div_ceil(3);
        Self {
            keys: split.cache.keys.data,
            values: split.cache.values.data,
            token_bytes: shape.token_bytes(),
            runs: split.runs(),
            next: 0,
            end: 0,
            lines_per_token: head_bytes.div_ceil(64).div_ceil(num_visits),
        }
    }

    /// Prefetches the share of `num_tokens` tokens.
    #[inline(always)]
    pub(super) fn proceed(&mut self, num_tokens: usize) {
        for _ in 0..num_tokens * self.lines_per_token {
            if self.next >= self.end {
                let Some(run) = self.runs.next() else { return self.lines_per_token = 0 };
                (self.next, self.end) = (run.slot * self.token_bytes, (run.slot + run.count) * self.token_bytes);
            }
            far(self.keys.wrapping_add(self.next));
            far(self.values.wrapping_add(self.next));
            self.next += 64;
        }
    }

    /// Prefetches everything that is left.
    pub(super) fn finish(&mut self) {
        while self.lines_per_token > 0 {
            self.proceed(1);
        }
    }
}

dispatch! { pub(super) unsafe fn attend_in<C: Cached> = run(split: &KvSplit<'_>, out: &mut [f32], scratch: &mut [f32], prefetch: &mut KvPrefetch<'_>) }

/// Computes the partial results of all query heads: scores, weights, weighted values.
#[inline(always)]
unsafe fn run<S: Simd, C: Cached>(
    split: &KvSplit<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let groups = split.queries.len() / split.shape.head_dim;
    // SAFETY: query heads are taken up to three at a time, all within the split; `attend` has checked the buffers.
    unsafe {
        for first in (0..groups).step_by(3) {
            match groups - first {
                1 => score::<S, C, 1>(split, first, scratch, prefetch),
                2 => score::<S, C, 2>(split, first, scratch, prefetch),
                _ => score::<S, C, 3>(split, first, scratch, prefetch),
            }
        }
        weigh::<S>(split, out, scratch);
        for first in (0..groups).step_by(3) {
            match groups - first {
                1 => mix_values::<S, C, 1>(split, first, scratch, out, prefetch),
                2 => mix_values::<S, C, 2>(split, first, scratch, out, prefetch),
                _ => mix_values::<S, C, 3>(split, first, scratch, out, prefetch),
            }
        }
    }
}

/// Replaces all scores by weights relative to the highest of their query head; their sum and the highest score go to `out`.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(split: &KvSplit<'_>, out: &mut [f32], scratch: &mut [f32]) {
    let (width, num_tokens) = (split.shape.head_dim, split.end - split.start);
    for (group, scores) in scratch.chunks_mut(SPLIT_TOKENS).take(split.queries.len() / width).enumerate() {
        let scores = &mut scores[..num_tokens];
        if let Some(cap) = split.softcap {
            scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
        }
        // SAFETY: the caller's machine has this instruction set.
        let (sum, max) = unsafe { softmax_weights::<S>(scores) };
        let place = group * (width + 2) + width;
        (out[place], out[place + 1]) = (sum, max);
    }
}

/// Prefetches a later token of the same head. Past the end of a block the address may be another token's: harmless.
#[inline(always)]
fn prefetch_ahead(token: *const u8, pitch: usize, num_bytes: usize) {
    for line in (0..num_bytes).step_by(64) {
        near(token.wrapping_add(PREFETCH_TOKENS * pitch + line));
    }
}

/// Computes the scores of `G` query heads for every key, four keys at a time, so that four sums share the final additions.
#[inline(always)]
unsafe fn score<S: Simd, C: Cached, const G: usize>(
    split: &KvSplit<'_>,
    first: usize,
    scratch: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let shape = split.shape;
    let pitch = shape.token_bytes();
    for Run { place, count, slot } in split.runs() {
        // SAFETY: `count` tokens from `slot` on lie side by side in a block that exists; `scratch` has room for all scores.
        unsafe {
            let mut key = split.cache.keys.data.add(shape.offset(slot, split.head)).cast_const();
            let (mut token, end) = (place, place + count);
            while token + 4 <= end {
                prefetch.proceed(4);
                let scores = products::<S, C, G, 4>(split, first, key, pitch);
                for g in 0..G {
                    let to = scratch.as_mut_ptr().add((first + g) * SPLIT_TOKENS + token);
                    to.cast::<[f32; 4]>().write_unaligned(scores[g]);
                }
                (token, key) = (token + 4, key.wrapping_add(4 * pitch));
            }
            while token < end {
                prefetch.proceed(1);
                let scores = products::<S, C, G, 1>(split, first, key, pitch);
                for g in 0..G {
                    *scratch.get_unchecked_mut((first + g) * SPLIT_TOKENS + token) = scores[g][0];
                }
                (token, key) = (token + 1, key.wrapping_add(pitch));
            }
        }
    }
}

/// Returns the products of `G` query heads from `first` on with `T` keys, at most four, that lie `pitch` bytes apart.
#[inline(always)]
unsafe fn products<S: Simd, C: Cached, const G: usize, const T: usize>(
    split: &KvSplit<'_>,
    first: usize,
    keys: *const u8,
    pitch: usize,
) -> [[f32; 4]; G] {
    let width = split.shape.head_dim;
    let tail = width - width % S::LANES;
    let queries = split.queries[first * width..(first + G) * width].as_ptr();
    // SAFETY: the caller promises `T` keys of `width` numbers; the slice above holds `G` query heads.
    unsafe {
        let mut sums = [[S::splat(0.0); 4]; G];
        for t in 0..T {
            prefetch_ahead(keys.add(t * pitch), pitch, split.shape.format.head_bytes(width));
        }
        for start in (0..tail).step_by(S::LANES) {
            let mut parts = [S::splat(0.0); G];
            for g in 0..G {
                parts[g] = S::load(queries.add(g * width + start));
            }
            for t in 0..T {
                let channels = C::load::<S>(keys.add(t * pitch), start);
                for g in 0..G {
                    sums[g][t] = S::fma(channels, parts[g], sums[g][t]);
                }
            }
        }
        let mut products = [[0.0; 4]; G];
        for g in 0..G {
            products[g] = S::sums(sums[g]);
        }
        for channel in tail..width {
            for g in 0..G {
                for t in 0..T {
                    products[g][t] += C::one(keys.add(t * pitch), channel) * *queries.add(g * width + channel);
                }
            }
        }
        for t in 0..T {
            let scale = C::scale(keys.add(t * pitch), width);
            for g in 0..G {
                products[g][t] *= scale;
            }
        }
        products
    }
}

/// Replaces scores by weights relative to the highest score; returns the sum of the weights and the highest score.
#[inline(always)]
unsafe fn softmax_weights<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    let tail = scores.len() - scores.len() % S::LANES;
    let mut padded = [f32::NEG_INFINITY; 16];
    let rest = scores.len() - tail;
    // SAFETY: whole vectors before `tail` lie within the scores; the padding holds a vector of every set.
    unsafe {
        let mut maxima = S::splat(f32::NEG_INFINITY);
        for place in (0..tail).step_by(S::LANES) {
            maxima = S::max(maxima, S::load(scores.as_ptr().add(place)));
        }
        S::store(padded.as_mut_ptr(), maxima);
        let max = padded.iter().chain(&scores[tail..]).copied().fold(f32::NEG_INFINITY, f32::max);
        padded = [f32::NEG_INFINITY; 16];
        let mut sums = S::splat(0.0);
        let shift = S::splat(-max);
        for place in (0..tail).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(place);
            let weights = exp::<S>(S::add(S::load(at), shift));
            S::store(at, weights);
            sums = S::add(sums, weights);
        }
        padded[..rest].copy_from_slice(&scores[tail..]);
        let weights = exp::<S>(S::add(S::load(padded.as_ptr()), shift));
        S::store(padded.as_mut_ptr(), weights);
        scores[tail..].copy_from_slice(&padded[..rest]);
        let sum = S::sum(sums) + padded[..rest].iter().sum::<f32>();
        (sum, max)
    }
}

/// Computes the weighted sums of values for `G` query heads from `first` on.
#[inline(always)]
unsafe fn mix_values<S: Simd, C: Cached, const G: usize>(
    split: &KvSplit<'_>,
    first: usize,
    weights: &[f32],
    out: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let width = split.shape.head_dim;
    let mut channel = 0;
    // SAFETY: all channels lie within a head; `run` has filled the weights.
    unsafe {
        while channel + 4 * S::LANES <= width {
            mix_channels::<S, C, G, 4>(split, first, channel, weights, out, prefetch);
            channel += 4 * S::LANES;
        }
        while channel + S::LANES <= width {
            mix_channels::<S, C, G, 1>(split, first, channel, weights, out, prefetch);
            channel += S::LANES;
        }
    }
    let pitch = split.shape.token_bytes();
    for channel in channel..width {
        let mut sums = [0.0_f32; G];
        for Run { place, count, slot } in split.runs() {
            for token in 0..count {
                // SAFETY: the token lies within the run, and the channel within its head.
                unsafe {
                    let base = split.cache.values.data.add(split.shape.offset(slot, split.head));
                    let head = base.add(token * pitch);
                    let value = C::one(head, channel) * C::scale(head, width);
                    for g in 0..G {
                        sums[g] += weights[(first + g) * SPLIT_TOKENS + place + token] * value;
                    }
                }
            }
        }
        for g in 0..G {
            out[(first + g) * (width + 2) + channel] = sums[g];
        }
    }
}

/// Computes `N` vectors of channels from `channel` on for `G` query heads, with all sums in registers.
#[inline(always)]
unsafe fn mix_channels<S: Simd, C: Cached, const G: usize, const N: usize>(
    split: &KvSplit<'_>,
    first: usize,
    channel: usize,
    weights: &[f32],
    out: &mut [f32],
    prefetch: &mut KvPrefetch<'_>,
) {
    let shape = split.shape;
    let pitch = shape.token_bytes();
    // SAFETY: `count` tokens from `slot` on lie side by side in a block that exists; `weights` and `out` hold `G` heads from
    // `first` on.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; G];
        for Run { place, count, slot } in split.runs() {
            let mut value = split.cache.values.data.add(shape.offset(slot, split.head)).cast_const();
            for token in place..place + count {
                if channel == 0 {
                    prefetch_ahead(value, pitch, shape.format.head_bytes(shape.head_dim));
                    prefetch.proceed(1);
                }
                let mut channels = [S::splat(0.0); N];
                for c in 0..N {
                    channels[c] = C::load::<S>(value, channel + c * S::LANES);
                }
                let scale = C::scale(value, shape.head_dim);
                for g in 0..G {
                    let weight = S::splat(*weights.get_unchecked((first + g) * SPLIT_TOKENS + token) * scale);
                    for c in 0..N {
                        sums[g][c] = S::fma(weight, channels[c], sums[g][c]);
                    }
                }
                value = value.wrapping_add(pitch);
            }
        }
        for g in 0..G {
            for c in 0..N {
                let place = (first + g) * (shape.head_dim + 2) + channel + c * S::LANES;
                S::store(out[place..place + S::LANES].as_mut_ptr(), sums[g][c]);
            }
        }
    }
}

/// Merges the partial results of a head's splits in order, each `head_dim + 2` numbers, into the head's output. The score
/// `sink` takes weight away from all tokens.
pub(super) fn merge_partials<'a>(
    partials: impl Iterator<Item = &'a [f32]> + Clone,
    sink: Option<f32>,
    out: &mut [f32],
) {
    let width = out.len();
    let least = sink.unwrap_or(f32::NEG_INFINITY);
    let max = partials.clone().map(|part| part[width + 1]).fold(least, f32::max);
    out.fill(0.0);
    let mut total = sink.map_or(0.0, |sink| (sink - max).exp());
    for part in partials {
        let weight = (part[width + 1] - max).exp();
        total += weight * part[width];
        out.iter_mut().zip(part).for_each(|(out, value)| *out += weight * value);
    }
    let scale = 1.0 / total;
    out.iter_mut().for_each(|value| *value *= scale);
}

/// Writes the partial result of a split without visible tokens.
pub(super) fn empty_partial(out: &mut [f32], width: usize) {
    for head in out.chunks_exact_mut(width + 2) {
        head.fill(0.0);
        head[width + 1] = f32::NEG_INFINITY;
    }
}
