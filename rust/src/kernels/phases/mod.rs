//! The phases of a step. All threads of a team run each phase together, with a barrier at its end.

mod attention;
mod embed;
mod experts;
mod feed_forward;
mod kv_arithmetic;
mod kv_split;
#[cfg(test)]
mod kv_split_tests;
#[cfg(target_arch = "x86_64")]
mod kv_vnni;
mod logits;
mod low_rank;
mod pass;

use super::cache::CacheLayer;
use super::product::linear::Linear;
use super::spec::Layer;
use super::threads::Worker;
pub(crate) use pass::{Pass, StepContext};

/// The rows of a group with requested logits, which alone pass through the end of the last layer.
pub(crate) struct LogitsRows<'a> {
    /// Places of these rows in the whole group, ascending.
    pub places: Vec<usize>,
    pub pass: Pass<'a>,
}

impl Pass<'_> {
    /// Runs one worker's part of the whole step. If only some rows need logits, the last layer writes keys and values of
    /// all rows, and `rest` then continues without the others.
    pub fn run(&self, worker: &Worker<'_>, rest: Option<&LogitsRows<'_>>) {
        self.fetch_ahead(worker, self.layer_input(0));
        self.embed(worker);
        let num_layers = self.spec.layers.len();
        for (idx, (layer, cache)) in self.spec.layers.iter().zip(self.caches).enumerate() {
            self.project(worker, layer, *cache);
            if let Some(rest) = rest.filter(|_| idx + 1 == num_layers) {
                self.gather(worker, &rest.places, layer.qkv.weight.rows);
                rest.pass.finish_layer(worker, layer, *cache, &self.spec.head);
                return rest.pass.logits(worker);
            }
            self.finish_layer(worker, layer, *cache, self.layer_input(idx + 1));
        }
        self.logits(worker);
    }

    /// Returns what a layer multiplies with first; after the last layer, the head.
    fn layer_input(&self, layer: usize) -> &Linear {
        self.spec.layers.get(layer).map_or(&self.spec.head, |layer| &layer.qkv)
    }

    /// Runs a layer from the point where all keys and values are in the cache, up to the product with `next`.
    fn finish_layer(&self, worker: &Worker<'_>, layer: &Layer, cache: CacheLayer, next: &Linear) {
        if self.rows.is_empty() {
            return;
        }
        self.attend(worker, layer, cache);
        let heads = self.merge_heads(worker, layer);
        self.lower(worker, &layer.out, &heads);
        self.fetch_up_ahead(worker, layer);
        if layer.is_parallel {
            self.mix_product(worker, &layer.out, &heads);
        } else {
            self.add_product(worker, &layer.out, &heads, layer.post_norm1.as_ref());
        }
        self.feed_forward(worker, layer, next);
    }

    /// Moves the residual stream and queries of some rows, in ascending order, to the first places.
    fn gather(&self, worker: &Worker<'_>, places: &[usize], width: usize) {
        for (to, &from) in places.iter().enumerate().filter(|_| worker.index == 0) {
            for (buffer, width) in [(self.buffers.hidden, self.sizes().hidden), (self.buffers.wide, width)] {
                // SAFETY: only worker 0 touches these buffers; all others wait at the barrier below.
                let span = unsafe { buffer.write(to * width, (from - to + 1) * width) };
                span.copy_within((from - to) * width.., 0);
            }
        }
        worker.barrier();
    }
}
