//! The feed-forward: up projection, activation and down projection.

use super::pass::Pass;
use crate::kernels::product::linear::Linear;
use crate::kernels::product::packed::scheme::GROUP;
use crate::kernels::product::prepared::{Layout, Prepared};
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::spec::{FeedForward, Layer};
use crate::kernels::step::MAX_ROWS;
use crate::kernels::threads::Worker;

impl Pass<'_> {
    /// Runs a layer's feed-forward and adds its output to the residual stream.
    pub fn feed_forward(&self, worker: &Worker<'_>, layer: &Layer) {
        let post_norm = layer.post_norm2.as_ref();
        match &layer.feed_forward {
            FeedForward::Gated { gate_up: up, down } | FeedForward::Plain { up, down } => {
                self.normalize_rows(worker, &layer.norm2, up.weight.format);
                self.up_proj(worker, up, down);
                self.add_product(worker, down, &self.inner(down), post_norm);
            }
            FeedForward::Experts(experts) => {
                self.normalize_rows(worker, &layer.norm2, experts.router.weight.format);
                self.experts(worker, experts);
                self.add_mixed(worker, post_norm);
            }
        }
    }

    /// Computes the inputs of `down`: up projection and activation. A gated `up` has twice as many outputs.
    pub fn up_proj(&self, worker: &Worker<'_>, up: &Linear, down: &Linear) {
        let (x, to) = (self.hidden_inputs(up.weight.format), self.inner(down));
        if to.layout == Layout::Groups {
            return self.up_proj_groups(worker, up, &x, &to);
        }
        self.each_strip(worker, down.weight.cols, |strip| self.up_proj_strip(worker, up, strip, &x, &to));
    }

    /// Computes the activated up projection and quantises a group as soon as all of its strips are there.
    fn up_proj_groups(&self, worker: &Worker<'_>, up: &Linear, x: &Prepared, to: &Prepared) {
        let group = self.row_scratch(worker);
        while let Some(groups) = worker.claim(to.cols / GROUP, 1) {
            // SAFETY: only this worker uses its scratch.
            let group = unsafe { group.write(0, x.num_rows * GROUP) };
            for first in (groups.start * GROUP..groups.end * GROUP).step_by(STRIP) {
                let strip = Strip { first, count: STRIP, next: first };
                let values = self.activated_strip(worker, up, strip, x, to.cols);
                let rows = group.as_chunks_mut::<GROUP>().0.iter_mut();
                for (row, values) in rows.zip(values.as_chunks::<STRIP>().0) {
                    row[first % GROUP..][..STRIP].copy_from_slice(values);
                }
            }
            // SAFETY: one worker owns each group of columns until the barrier.
            unsafe { to.write_group(groups.start * GROUP, group) };
        }
        worker.barrier();
    }

    /// Computes one strip of the activated up projection, laid out for the down projection.
    pub fn up_proj_strip(&self, worker: &Worker<'_>, up: &Linear, strip: Strip, x: &Prepared, to: &Prepared) {
        let gate = self.activated_strip(worker, up, strip, x, to.cols);
        if strip.count < STRIP {
            gate.as_chunks_mut::<STRIP>().0.iter_mut().for_each(|values| values[strip.count..].fill(0.0));
        }
        // SAFETY: one worker owns each strip of columns until the barrier.
        unsafe { to.write_columns(strip.first, strip.count, gate) };
    }

    /// Returns one strip of the activated up projection of `width` outputs, in the worker's scratch.
    #[expect(clippy::mut_from_ref, reason = "the scratch is the worker's own")]
    fn activated_strip(
        &self,
        worker: &Worker<'_>,
        up: &Linear,
        strip: Strip,
        x: &Prepared,
        width: usize,
    ) -> &mut [f32] {
        let Strip { first, count, next } = strip;
        let is_gated = up.weight.rows > width;
        let scratch = &self.buffers.threads[worker.index];
        // SAFETY: only this worker uses its scratch, and the two strips are disjoint.
        let (gate, value) =
            unsafe { (scratch.write(0, x.num_rows * STRIP), scratch.write(MAX_ROWS * STRIP, x.num_rows * STRIP)) };
        let value_first = width + first;
        let gate_next = if is_gated { value_first } else { next };
        // SAFETY: `x` was written before the last barrier or by this worker, and nobody writes to it before the next.
        unsafe { up.multiply_strip(Strip { first, count, next: gate_next }, x, gate) };
        if is_gated {
            // SAFETY: `x` was written before the last barrier or by this worker, and nobody writes to it before the next.
            unsafe { up.multiply_strip(Strip { first: value_first, count, next }, x, value) };
        }
        self.spec.activation.apply(self.isa, gate, is_gated.then_some(&*value));
        gate
    }
}
