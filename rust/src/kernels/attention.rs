//! One query token over the paged cache of its request, a fixed stretch of tokens at a time.
//!
//! Each stretch gives the sum of its weights, their maximum and the weighted values; the stretches are joined at the end.
//! Where stretches begin depends on the token alone, so its result is the same in every batch, and a long context is
//! shared out among threads.
//!
//! Source: Milakov and Gimelshein 2018, «Online normalizer calculation for softmax»; Dao et al. 2023,
//! «Flash-Decoding for long-context inference».

use super::memory::Dtype;
use super::simd::{Isa, Simd, dispatch, exp, narrow, widen};
use crate::prefetch;

/// How many tokens ahead keys and values are asked for.
const AHEAD: usize = 12;

/// Tokens of a stretch.
pub(super) const STRETCH: usize = 256;

/// One layer's keys or values: `[blocks, block_size, kv_heads, head_dim]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct CachePart {
    data: *mut u8,
}

// SAFETY: members of a team write to different tokens, and read only what was written before the last barrier.
unsafe impl Send for CachePart {}
// SAFETY: as above.
unsafe impl Sync for CachePart {}

impl CachePart {
    /// A view of a layer's keys or values.
    ///
    /// # Safety
    ///
    /// The memory must hold a whole cache of the shape and format that the decoder was told, stay where it is, and be
    /// used by nobody else while a step runs.
    pub unsafe fn from_raw(data: *mut u8) -> Self {
        Self { data }
    }
}

/// Shape of every layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Blocks.
    pub num_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Heads of keys and values.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Format of its numbers.
    pub dtype: Dtype,
}

impl CacheShape {
    /// Byte offset of a token's key or value of one head.
    fn offset(&self, slot: usize, head: usize) -> usize {
        (slot * self.num_kv_heads + head) * self.head_dim * self.dtype.size()
    }

    /// Writes one head's key or value into a slot.
    ///
    /// # Safety
    ///
    /// `slot` and `head` are within the shape, and nobody else uses that place until the next barrier.
    pub(super) unsafe fn store(&self, isa: Isa, part: CachePart, (slot, head): (usize, usize), values: &[f32]) {
        debug_assert!(slot < self.num_blocks * self.block_size && head < self.num_kv_heads);
        // SAFETY: within the cache by the caller's promise.
        unsafe {
            let to = part.data.add(self.offset(slot, head));
            match self.dtype {
                Dtype::F32 => to.cast::<f32>().copy_from_nonoverlapping(values.as_ptr(), values.len()),
                Dtype::Bf16 => narrow_all(isa, values, std::slice::from_raw_parts_mut(to.cast(), values.len())),
            }
        }
    }
}

dispatch! { unsafe fn narrow_all = run_narrow(from: &[f32], to: &mut [u16]) }

#[inline(always)]
unsafe fn run_narrow<S: Simd>(from: &[f32], to: &mut [u16]) {
    for (from, to) in from.iter().zip(to) {
        *to = narrow(*from);
    }
}

/// The query heads of one key head, and the stretch of tokens they look at.
pub(super) struct Stretch<'a> {
    pub shape: &'a CacheShape,
    pub keys: CachePart,
    pub values: CachePart,
    pub head: usize,
    /// The request's blocks, checked to exist.
    pub blocks: &'a [i32],
    /// First token and one past the last, at most [`STRETCH`] apart.
    pub tokens: (usize, usize),
    /// Query heads `[groups, head_dim]`, scaled.
    pub queries: &'a [f32],
    /// Bound of the scores, by tanh.
    pub softcap: Option<f32>,
}

impl<'a> Stretch<'a> {
    /// Attends; `out` gets `[groups, head_dim + 2]`: weighted values, then sum and maximum of the weights.
    ///
    /// `scratch` holds `groups * STRETCH` numbers; `coming` is asked for meanwhile.
    pub(super) fn attend(&self, isa: Isa, out: &mut [f32], scratch: &mut [f32], coming: &mut Coming<'_>) {
        let groups = self.queries.len() / self.shape.head_dim;
        assert!(out.len() == groups * (self.shape.head_dim + 2) && scratch.len() >= groups * STRETCH);
        assert!(self.tokens.1 - self.tokens.0 <= STRETCH && self.tokens.1 <= self.blocks.len() * self.shape.block_size);
        // SAFETY: sizes are checked above, blocks by the step.
        unsafe {
            match self.shape.dtype {
                Dtype::F32 => attend_f32(isa, self, out, scratch, coming),
                Dtype::Bf16 => attend_bf16(isa, self, out, scratch, coming),
            }
        }
    }

    /// Runs of tokens that lie side by side in the cache.
    #[inline(always)]
    fn runs(&self) -> Runs<'a> {
        Runs { blocks: self.blocks, block_size: self.shape.block_size, next: self.tokens.0, of: self.tokens }
    }
}

/// Walks a stretch block by block: a run's first token counted from the stretch's, how many, and the first's slot.
struct Runs<'a> {
    blocks: &'a [i32],
    block_size: usize,
    next: usize,
    of: (usize, usize),
}

impl Iterator for Runs<'_> {
    type Item = (usize, usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let token = self.next;
        let within = token % self.block_size;
        let count = (self.block_size - within).min(self.of.1 - token);
        self.next += count;
        // Past the end the count is 0, and there may be no block.
        (count > 0).then(|| {
            let slot = self.blocks[token / self.block_size] as usize * self.block_size + within;
            (token - self.of.0, count, slot)
        })
    }
}

/// Keys and values of all heads that a member looks at next. With each token that it looks at now it asks for a few lines,
/// so that they come from memory while it computes.
pub(super) struct Coming<'a> {
    keys: *const u8,
    values: *const u8,
    /// Bytes of a token, all heads.
    pitch: usize,
    runs: Runs<'a>,
    /// Byte offsets of the run that is asked for.
    next: usize,
    end: usize,
    /// Lines of each part for one token of one head.
    lines_per_token: usize,
}

impl<'a> Coming<'a> {
    pub(super) fn nothing() -> Self {
        let runs = Runs { blocks: &[], block_size: 1, next: 0, of: (0, 0) };
        Self { keys: std::ptr::null(), values: std::ptr::null(), pitch: 0, runs, next: 0, end: 0, lines_per_token: 0 }
    }

    /// What `stretch` will look at.
    pub(super) fn of(stretch: &Stretch<'a>) -> Self {
        let shape = stretch.shape;
        let head = shape.head_dim * shape.dtype.size();
        // Each token of a head is looked at once for every three queries' scores, and once for their values.
        let num_looks = 2 * (stretch.queries.len() / shape.head_dim).div_ceil(3);
        Self {
            keys: stretch.keys.data,
            values: stretch.values.data,
            pitch: shape.num_kv_heads * head,
            runs: stretch.runs(),
            next: 0,
            end: 0,
            lines_per_token: head.div_ceil(64).div_ceil(num_looks),
        }
    }

    /// Asks for its share at `num_tokens` tokens.
    #[inline(always)]
    fn ask(&mut self, num_tokens: usize) {
        for _ in 0..num_tokens * self.lines_per_token {
            if self.next >= self.end {
                let Some((_, count, slot)) = self.runs.next() else { return self.lines_per_token = 0 };
                (self.next, self.end) = (slot * self.pitch, (slot + count) * self.pitch);
            }
            prefetch::far(self.keys.wrapping_add(self.next));
            prefetch::far(self.values.wrapping_add(self.next));
            self.next += 64;
        }
    }

    /// Asks for all that is left.
    pub(super) fn ask_for_rest(&mut self) {
        while self.lines_per_token > 0 {
            self.ask(1);
        }
    }
}

dispatch! { unsafe fn attend_f32 = run_f32(stretch: &Stretch<'_>, out: &mut [f32], scratch: &mut [f32], coming: &mut Coming<'_>) }
dispatch! { unsafe fn attend_bf16 = run_bf16(stretch: &Stretch<'_>, out: &mut [f32], scratch: &mut [f32], coming: &mut Coming<'_>) }

#[inline(always)]
unsafe fn run_f32<S: Simd>(stretch: &Stretch<'_>, out: &mut [f32], scratch: &mut [f32], coming: &mut Coming<'_>) {
    // SAFETY: passed on.
    unsafe { run::<S, false>(stretch, out, scratch, coming) }
}

#[inline(always)]
unsafe fn run_bf16<S: Simd>(stretch: &Stretch<'_>, out: &mut [f32], scratch: &mut [f32], coming: &mut Coming<'_>) {
    // SAFETY: passed on.
    unsafe { run::<S, true>(stretch, out, scratch, coming) }
}

#[inline(always)]
unsafe fn load<S: Simd, const BF16: bool>(base: *const u8, place: usize) -> S::V {
    // SAFETY: passed on.
    unsafe { if BF16 { S::load_bf16(base.cast::<u16>().add(place)) } else { S::load(base.cast::<f32>().add(place)) } }
}

#[inline(always)]
unsafe fn one<const BF16: bool>(base: *const u8, place: usize) -> f32 {
    // SAFETY: passed on.
    unsafe { if BF16 { widen(*base.cast::<u16>().add(place)) } else { *base.cast::<f32>().add(place) } }
}

#[inline(always)]
unsafe fn run<S: Simd, const BF16: bool>(
    stretch: &Stretch<'_>,
    out: &mut [f32],
    scratch: &mut [f32],
    coming: &mut Coming<'_>,
) {
    let width = stretch.shape.head_dim;
    let groups = stretch.queries.len() / width;
    let num_tokens = stretch.tokens.1 - stretch.tokens.0;
    // SAFETY: heads are taken three at a time, all within the stretch.
    unsafe {
        for first in (0..groups).step_by(3) {
            match groups - first {
                1 => score::<S, BF16, 1>(stretch, first, scratch, coming),
                2 => score::<S, BF16, 2>(stretch, first, scratch, coming),
                _ => score::<S, BF16, 3>(stretch, first, scratch, coming),
            }
        }
        for group in 0..groups {
            let scores = &mut scratch[group * STRETCH..group * STRETCH + num_tokens];
            if let Some(cap) = stretch.softcap {
                scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            let (sum, max) = weigh::<S>(scores);
            let place = group * (width + 2) + width;
            (out[place], out[place + 1]) = (sum, max);
        }
        for first in (0..groups).step_by(3) {
            match groups - first {
                1 => mix::<S, BF16, 1>(stretch, (first, scratch), out, coming),
                2 => mix::<S, BF16, 2>(stretch, (first, scratch), out, coming),
                _ => mix::<S, BF16, 3>(stretch, (first, scratch), out, coming),
            }
        }
    }
}

/// Asks for the numbers of a later token of the same head; past a block's end that is wrong now and then, and harmless.
#[inline(always)]
fn ask_ahead<S: Simd>(token: *const u8, pitch: usize, num_bytes: usize) {
    for line in (0..num_bytes).step_by(64) {
        prefetch::near(token.wrapping_add(AHEAD * pitch + line));
    }
}

/// Products of `G` query heads with every key, four keys at a time: their sums share the adding up.
#[inline(always)]
unsafe fn score<S: Simd, const BF16: bool, const G: usize>(
    stretch: &Stretch<'_>,
    first: usize,
    scratch: &mut [f32],
    coming: &mut Coming<'_>,
) {
    let shape = stretch.shape;
    let pitch = shape.num_kv_heads * shape.head_dim * shape.dtype.size();
    for (place, count, slot) in stretch.runs() {
        // SAFETY: `count` tokens from `slot` on lie side by side in a block that exists.
        unsafe {
            let mut key = stretch.keys.data.add(shape.offset(slot, stretch.head)).cast_const();
            let (mut token, end) = (place, place + count);
            while token + 4 <= end {
                coming.ask(4);
                let scores = products::<S, BF16, G, 4>(stretch, first, (key, pitch));
                for g in 0..G {
                    let to = scratch.as_mut_ptr().add((first + g) * STRETCH + token);
                    to.cast::<[f32; 4]>().write_unaligned(scores[g]);
                }
                (token, key) = (token + 4, key.wrapping_add(4 * pitch));
            }
            while token < end {
                coming.ask(1);
                let scores = products::<S, BF16, G, 1>(stretch, first, (key, pitch));
                for g in 0..G {
                    *scratch.get_unchecked_mut((first + g) * STRETCH + token) = scores[g][0];
                }
                (token, key) = (token + 1, key.wrapping_add(pitch));
            }
        }
    }
}

/// Products of `G` query heads from `first` on with `T` keys, at most four, that lie `pitch` bytes apart.
#[inline(always)]
unsafe fn products<S: Simd, const BF16: bool, const G: usize, const T: usize>(
    stretch: &Stretch<'_>,
    first: usize,
    (keys, pitch): (*const u8, usize),
) -> [[f32; 4]; G] {
    let width = stretch.shape.head_dim;
    let tail = width - width % S::LANES;
    let queries = stretch.queries[first * width..(first + G) * width].as_ptr();
    // SAFETY: passed on.
    unsafe {
        let mut sums = [[S::splat(0.0); 4]; G];
        for t in 0..T {
            ask_ahead::<S>(keys.add(t * pitch), pitch, width * stretch.shape.dtype.size());
        }
        for start in (0..tail).step_by(S::LANES) {
            let parts: [S::V; G] = std::array::from_fn(|g| S::load(queries.add(g * width + start)));
            for t in 0..T {
                let channels = load::<S, BF16>(keys.add(t * pitch), start);
                for g in 0..G {
                    sums[g][t] = S::fma(channels, parts[g], sums[g][t]);
                }
            }
        }
        let mut products: [[f32; 4]; G] = std::array::from_fn(|g| S::sums(sums[g]));
        for channel in tail..width {
            for g in 0..G {
                for t in 0..T {
                    products[g][t] += one::<BF16>(keys.add(t * pitch), channel) * *queries.add(g * width + channel);
                }
            }
        }
        products
    }
}

/// Turns scores into weights relative to the highest; returns their sum, and the highest score.
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    let tail = scores.len() - scores.len() % S::LANES;
    let mut padded = [f32::NEG_INFINITY; 16];
    let rest = scores.len() - tail;
    // SAFETY: whole vectors within the scores, or the padding.
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

/// Values weighted by `G` heads' weights.
#[inline(always)]
unsafe fn mix<S: Simd, const BF16: bool, const G: usize>(
    stretch: &Stretch<'_>,
    (first, weights): (usize, &[f32]),
    out: &mut [f32],
    coming: &mut Coming<'_>,
) {
    let width = stretch.shape.head_dim;
    let mut channel = 0;
    // SAFETY: channels within a head.
    unsafe {
        while channel + 4 * S::LANES <= width {
            mix_channels::<S, BF16, G, 4>(stretch, (first, channel), weights, out, coming);
            channel += 4 * S::LANES;
        }
        while channel + S::LANES <= width {
            mix_channels::<S, BF16, G, 1>(stretch, (first, channel), weights, out, coming);
            channel += S::LANES;
        }
    }
    let pitch = stretch.shape.num_kv_heads * width;
    for channel in channel..width {
        let mut sums = [0.0_f32; G];
        for (place, count, slot) in stretch.runs() {
            for token in 0..count {
                // SAFETY: a token of the run, a channel of its head.
                unsafe {
                    let base = stretch.values.data.add(stretch.shape.offset(slot, stretch.head));
                    let value = one::<BF16>(base, token * pitch + channel);
                    for g in 0..G {
                        sums[g] += weights[(first + g) * STRETCH + place + token] * value;
                    }
                }
            }
        }
        for g in 0..G {
            out[(first + g) * (width + 2) + channel] = sums[g];
        }
    }
}

/// `C` vectors of channels from `channel` on, for `G` heads: all sums in registers.
#[inline(always)]
unsafe fn mix_channels<S: Simd, const BF16: bool, const G: usize, const C: usize>(
    stretch: &Stretch<'_>,
    (first, channel): (usize, usize),
    weights: &[f32],
    out: &mut [f32],
    coming: &mut Coming<'_>,
) {
    let shape = stretch.shape;
    let pitch = shape.num_kv_heads * shape.head_dim * shape.dtype.size();
    // SAFETY: as in `score`; `weights` and `out` are as long as `run` made sure.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; G];
        for (place, count, slot) in stretch.runs() {
            let mut value = stretch.values.data.add(shape.offset(slot, stretch.head)).cast_const();
            for token in place..place + count {
                if channel == 0 {
                    ask_ahead::<S>(value, pitch, shape.head_dim * shape.dtype.size());
                    coming.ask(1);
                }
                let channels: [S::V; C] = std::array::from_fn(|c| load::<S, BF16>(value, channel + c * S::LANES));
                for g in 0..G {
                    let weight = S::splat(*weights.get_unchecked((first + g) * STRETCH + token));
                    for c in 0..C {
                        sums[g][c] = S::fma(weight, channels[c], sums[g][c]);
                    }
                }
                value = value.wrapping_add(pitch);
            }
        }
        for g in 0..G {
            for c in 0..C {
                let place = (first + g) * (shape.head_dim + 2) + channel + c * S::LANES;
                S::store(out[place..place + S::LANES].as_mut_ptr(), sums[g][c]);
            }
        }
    }
}

/// Joins a head's stretches, `[stretches, pitch]` with `head_dim + 2` numbers used of each, in their order.
pub(super) fn join<'a>(stretches: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let width = out.len();
    let max = stretches.clone().map(|part| part[width + 1]).fold(f32::NEG_INFINITY, f32::max);
    out.fill(0.0);
    let mut total = 0.0;
    for part in stretches {
        let weight = (part[width + 1] - max).exp();
        total += weight * part[width];
        out.iter_mut().zip(part).for_each(|(out, value)| *out += weight * value);
    }
    let scale = 1.0 / total;
    out.iter_mut().for_each(|value| *value *= scale);
}
