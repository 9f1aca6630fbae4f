//! Attention: projection to queries, keys and values, the KV splits of each row, and the merge of their partial results.

use super::kv_split::{KvPrefetch, KvSplit, empty_partial, merge_partials};
use super::pass::{AttentionTask, Pass};
use crate::kernels::cache::{CacheFormat, CacheLayer, SPLIT_TOKENS};
use crate::kernels::product::prepared::Prepared;
use crate::kernels::row_ops::{Norm, mix_channels, mixed_channels, rotate};
use crate::kernels::spec::Layer;
use crate::kernels::threads::Worker;

impl Pass<'_> {
    /// Computes the queries of all rows and writes their keys and values into the cache. Ends at a barrier.
    pub fn project(&self, worker: &Worker<'_>, layer: &Layer, cache: CacheLayer) {
        let inputs = self.normalize_rows(worker, layer.norm1.as_ref(), &layer.qkv);
        let width = layer.qkv.weight.rows;
        self.lower(worker, &layer.qkv, &inputs);
        self.fetch_ahead(worker, &layer.out);
        self.multiply(worker, &layer.qkv, &inputs, |row, first, values| {
            // SAFETY: one worker owns each strip of columns until the barrier.
            unsafe { self.buffers.wide.write(row * width + first, values.len()) }.copy_from_slice(values);
        });
        self.each_row(worker, |row| self.rotate_and_store(row, layer, cache));
    }

    /// Normalizes and rotates a row's heads, scales its queries, and stores its keys and values. Channels of keys in 8 bits are
    /// mixed, and the queries' with them, which leaves their products as they were.
    fn rotate_and_store(&self, row: usize, layer: &Layer, cache: CacheLayer) {
        let (width, num_kv, num_heads) = (self.shape.head_dim, self.shape.num_kv_heads, self.spec.num_heads);
        let length = layer.qkv.weight.rows;
        // SAFETY: one worker owns each row of queries, keys and values.
        let heads = unsafe { self.buffers.wide.write(row * length, length) };
        let (queries, rest) = heads.split_at_mut(num_heads * width);
        self.normalize_heads(layer.query_norm.as_ref(), queries);
        self.normalize_heads(layer.key_norm.as_ref(), &mut rest[..num_kv * width]);
        let growth = self.spec.query_growth.map_or(1.0, |growth| growth.at(self.rows[row].position));
        let is_mixed = self.shape.format == CacheFormat::Int8;
        let share = if is_mixed { 1.0 / mixed_channels(width) as f32 } else { 1.0 };
        let scale = self.spec.attention_scale * growth * share;
        for (idx, head) in heads.chunks_exact_mut(width).enumerate() {
            if let Some(rope) = layer.rope.filter(|_| idx < num_heads + num_kv) {
                let rotated = self.spec.ropes[rope].width();
                // SAFETY: nobody writes to the rotary table any more.
                let angles = unsafe { self.buffers.rope_table.read(row * self.sizes().angles + rope * width, rotated) };
                rotate(self.isa, &mut head[..rotated], angles);
            }
            if is_mixed && idx < num_heads + num_kv {
                mix_channels(self.isa, head);
            }
            if idx < num_heads {
                head.iter_mut().for_each(|value| *value *= scale);
                continue;
            }
            let kv_head = idx - num_heads;
            let part = if kv_head < num_kv { cache.keys } else { cache.values };
            // SAFETY: the step's slots are checked and different for each row, and one worker owns each row.
            unsafe { self.shape.store(self.isa, part, self.rows[row].slot, kv_head % num_kv, head) };
        }
    }

    /// Normalizes each head, or all of them at once if the norm is as wide.
    fn normalize_heads(&self, norm: Option<&Norm>, heads: &mut [f32]) {
        if let Some(norm) = norm {
            heads.chunks_exact_mut(norm.weight.len()).for_each(|part| norm.apply(self.isa, part));
        }
    }

    /// Runs all attention tasks. Ends at a barrier.
    pub fn attend(&self, worker: &Worker<'_>, layer: &Layer, cache: CacheLayer) {
        let (width, num_kv) = (self.shape.head_dim, self.shape.num_kv_heads);
        let groups = self.spec.num_heads / num_kv;
        let scratch = self.thread_scratch(worker);
        // SAFETY: only this worker uses its scratch.
        let scores = unsafe { scratch.write(0, groups * SPLIT_TOKENS) };
        let tasks = &self.attention_tasks;
        // One worker takes all heads of a split, since their keys lie side by side, unless there are too few splits.
        let size = if tasks.len() >= 2 * num_kv * worker.num_threads() { num_kv } else { 1 };
        let mut claims = std::iter::from_fn(|| worker.claim(tasks.len(), size)).map(|range| &tasks[range]).peekable();
        let mut prefetch =
            claims.peek().map_or_else(KvPrefetch::none, |claim| self.kv_prefetch(&claim[0], layer, cache));
        while let Some(claim) = claims.next() {
            prefetch.finish();
            prefetch = match claims.peek() {
                Some(next) if !self.has_same_tokens(&claim[0], &next[0]) => self.kv_prefetch(&next[0], layer, cache),
                _ => KvPrefetch::none(),
            };
            for task in claim {
                let place = (self.rows[task.row].first_split + task.split) * num_kv + task.head;
                let len = groups * (width + 2);
                // SAFETY: each task has a place of its own, and one worker owns each task.
                let out = unsafe { self.buffers.partials.write(place * len, len) };
                match self.kv_split(task, layer, cache) {
                    Some(split) => split.attend(self.isa, out, scores, &mut prefetch),
                    None => empty_partial(out, width),
                }
            }
        }
        worker.barrier();
    }

    /// Returns whether two tasks look at the same tokens.
    fn has_same_tokens(&self, a: &AttentionTask, b: &AttentionTask) -> bool {
        (self.rows[a.row].request, a.split) == (self.rows[b.row].request, b.split)
    }

    fn kv_prefetch(&self, task: &AttentionTask, layer: &Layer, cache: CacheLayer) -> KvPrefetch<'_> {
        self.kv_split(task, layer, cache).map_or_else(KvPrefetch::none, |split| KvPrefetch::of(&split))
    }

    /// Returns the queries and tokens of a task, or `None` if the layer's window hides all tokens of the split.
    fn kv_split(&self, task: &AttentionTask, layer: &Layer, cache: CacheLayer) -> Option<KvSplit<'_>> {
        let row = &self.rows[task.row];
        let (start, end) = visible_tokens(row.num_tokens(), task.split, layer.window)?;
        let width = self.spec.num_heads / self.shape.num_kv_heads * self.shape.head_dim;
        // SAFETY: the queries were written before the last barrier, and nobody writes to them before the next.
        let queries = unsafe { self.buffers.wide.read(task.row * layer.qkv.weight.rows + task.head * width, width) };
        let blocks = &self.step.block_tables[row.request * self.step.max_blocks..][..self.step.max_blocks];
        let softcap = self.spec.attention_softcap;
        Some(KvSplit { shape: self.shape, cache, head: task.head, blocks, start, end, queries, softcap })
    }

    /// Merges the partial results of each row's heads into the inputs of the output projection, and returns these.
    pub fn merge_heads<'a>(&'a self, worker: &Worker<'_>, layer: &'a Layer) -> Prepared<'a> {
        let inputs = self.inputs(worker, self.rows.len(), &layer.out);
        self.prepare_rows(worker, inputs.num_rows, |row| {
            let scratch = self.row_scratch(worker);
            // SAFETY: only this worker uses its scratch.
            let heads = unsafe { scratch.write(0, inputs.cols) };
            self.merge_row(row, layer, heads);
            // SAFETY: one worker owns each row of the inputs until the barrier.
            unsafe { inputs.write(row, heads) };
        });
        inputs
    }

    fn merge_row(&self, row: usize, layer: &Layer, heads: &mut [f32]) {
        let (width, num_kv) = (self.shape.head_dim, self.shape.num_kv_heads);
        let groups = self.spec.num_heads / num_kv;
        let row = &self.rows[row];
        for (head, out) in heads.chunks_exact_mut(width).enumerate() {
            let partials = (0..row.num_splits()).map(|split| {
                let task = (row.first_split + split) * num_kv + head / groups;
                let place = (task * groups + head % groups) * (width + 2);
                // SAFETY: the partial results were written before the last barrier, and all workers only read them now.
                unsafe { self.buffers.partials.read(place, width + 2) }
            });
            merge_partials(partials, layer.sinks.as_ref().map(|sinks| sinks[head]), out);
        }
    }
}

/// Returns the first token and one past the last that a token sees of a split, or `None` if its window begins later.
fn visible_tokens(num_tokens: usize, split: usize, window: Option<usize>) -> Option<(usize, usize)> {
    let first = window.map_or(0, |window| num_tokens.saturating_sub(window));
    let start = (split * SPLIT_TOKENS).max(first);
    let end = ((split + 1) * SPLIT_TOKENS).min(num_tokens);
    (start < end).then_some((start, end))
}
