//! The feed-forward: up projection, activation and down projection.

use super::pass::{AHEAD_BYTES, Pass};
use crate::kernels::memory::{Dtype, SharedBuffer};
use crate::kernels::product::linear::Linear;
use crate::kernels::product::packed::scheme::GROUP;
use crate::kernels::product::prepared::{Layout, Prepared};
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::row_ops::Activation;
use crate::kernels::spec::{FeedForward, Layer};
use crate::kernels::step::MAX_ROWS;
use crate::kernels::threads::Worker;
use crate::prefetch::Ahead;

/// An up projection and the activation after it.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct UpProj<'a> {
    pub linear: &'a Linear,
    pub activation: Activation,
}

impl Pass<'_> {
    /// Runs a layer's feed-forward and adds its output to the residual stream.
    ///
    /// `next` is what the step multiplies with afterwards.
    pub fn feed_forward(&self, worker: &Worker<'_>, layer: &Layer, next: &Linear) {
        let post_norm = layer.post_norm2.as_ref();
        match &layer.feed_forward {
            FeedForward::Gated { gate_up: up, down } | FeedForward::Plain { up, down } => {
                let inputs = self.normalize_rows(worker, layer.norm2.as_ref(), up);
                if layer.is_parallel {
                    worker.barrier();
                    self.add_mixed(worker, layer.post_norm1.as_ref());
                }
                self.lower(worker, up, &inputs);
                self.fetch_ahead(worker, down);
                self.up_proj(worker, up, down, &inputs);
                self.lower(worker, down, &self.inner(down));
                self.fetch_ahead(worker, next);
                self.add_product(worker, down, &self.inner(down), post_norm);
            }
            FeedForward::Experts(experts) => {
                self.experts(worker, experts, layer.norm2.as_ref());
                self.add_mixed(worker, post_norm);
            }
        }
    }

    /// Has the worker prefetch its share of the up projection while it waits; see [`Self::fetch_ahead`].
    pub fn fetch_up_ahead(&self, worker: &Worker<'_>, layer: &Layer) {
        let (FeedForward::Gated { gate_up: up, down } | FeedForward::Plain { up, down }) = &layer.feed_forward else {
            return worker.set_ahead(Ahead::default());
        };
        let width = down.weight.cols;
        if !down.weight.is_packed() && up.weight.rows == width {
            return self.fetch_ahead(worker, up);
        }
        // Of gate and value, about the first rows of the share.
        let first = worker.share(width / GROUP, 1).start * GROUP;
        let starts = [first, width + first].map(|row| (row < up.weight.rows).then(|| up.weight.address(row)));
        worker.set_ahead(Ahead::of(starts, AHEAD_BYTES / 2));
    }

    /// Computes the inputs of `down`: up projection and activation. A gated `up` has twice as many outputs.
    pub fn up_proj(&self, worker: &Worker<'_>, up: &Linear, down: &Linear, x: &Prepared) {
        let to = self.inner(down);
        let up = UpProj { linear: up, activation: self.spec.activation };
        if to.order.is_some() {
            let plain = Prepared { layout: Layout::Plain(Dtype::F32), order: None, ..to };
            self.each_strip(worker, down.weight.cols, |strip| self.up_proj_strip(worker, up, strip, x, &plain));
            return self.order_inner(worker, &to);
        }
        if to.layout == Layout::Groups {
            return self.up_proj_groups(worker, up, x, &to);
        }
        self.each_strip(worker, down.weight.cols, |strip| self.up_proj_strip(worker, up, strip, x, &to));
    }

    /// Quantises the rows in the inner buffer in the order of the down projection's columns, in place. Ends at a barrier.
    fn order_inner(&self, worker: &Worker<'_>, to: &Prepared<'_>) {
        // Quantised rows take less room, so those before a row end before it does: one worker replaces them in turn.
        let scratch = self.row_scratch(worker);
        for row in (0..to.num_rows).filter(|_| worker.index == 0) {
            // SAFETY: the scratch is the worker's own, and no other touches the inner buffer before the barrier.
            unsafe {
                let values = scratch.write(0, to.cols);
                values.copy_from_slice(self.buffers.inner.read(row * to.stride, to.cols));
                to.write(row, values);
            }
        }
        worker.barrier();
    }

    /// Computes the activated up projection and quantises a group as soon as all of its strips are there.
    fn up_proj_groups(&self, worker: &Worker<'_>, up: UpProj<'_>, x: &Prepared, to: &Prepared) {
        let group = self.row_scratch(worker);
        while let Some(groups) = worker.claim(to.cols / GROUP, 1) {
            self.up_proj_group(worker, up, groups.start * GROUP, x, to, group);
        }
        worker.barrier();
    }

    /// Computes the group of the activated up projection that begins with column `start`, quantised for the down projection.
    ///
    /// `group` is scratch of the worker for 32 columns of all rows.
    pub fn up_proj_group(
        &self,
        worker: &Worker<'_>,
        up: UpProj<'_>,
        start: usize,
        x: &Prepared,
        to: &Prepared,
        group: SharedBuffer,
    ) {
        // SAFETY: only this worker uses its scratch.
        let group = unsafe { group.write(0, x.num_rows * GROUP) };
        for first in (start..start + GROUP).step_by(STRIP) {
            let strip = Strip { first, count: STRIP, next: first };
            let values = self.activated_strip(worker, up, strip, x, to.cols);
            let rows = group.as_chunks_mut::<GROUP>().0.iter_mut();
            for (row, values) in rows.zip(values.as_chunks::<STRIP>().0) {
                row[first % GROUP..][..STRIP].copy_from_slice(values);
            }
        }
        // SAFETY: one worker owns each group of columns until the barrier.
        unsafe { to.write_group(start, group) };
    }

    /// Computes one strip of the activated up projection, laid out for the down projection.
    pub fn up_proj_strip(&self, worker: &Worker<'_>, up: UpProj<'_>, strip: Strip, x: &Prepared, to: &Prepared) {
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
        up: UpProj<'_>,
        strip: Strip,
        x: &Prepared,
        width: usize,
    ) -> &mut [f32] {
        let Strip { first, count, next } = strip;
        let is_gated = up.linear.weight.rows > width;
        let scratch = &self.buffers.threads[worker.index];
        // SAFETY: only this worker uses its scratch, and the two strips are disjoint.
        let (gate, value) =
            unsafe { (scratch.write(0, x.num_rows * STRIP), scratch.write(MAX_ROWS * STRIP, x.num_rows * STRIP)) };
        let value_first = width + first;
        let gate_next = if is_gated { value_first } else { next };
        // SAFETY: `x` was written before the last barrier or by this worker, and nobody writes to it before the next.
        unsafe { up.linear.multiply_strip(Strip { first, count, next: gate_next }, x, gate) };
        self.add_low_rank(up.linear, first, gate);
        if is_gated {
            // SAFETY: `x` was written before the last barrier or by this worker, and nobody writes to it before the next.
            unsafe { up.linear.multiply_strip(Strip { first: value_first, count, next }, x, value) };
            self.add_low_rank(up.linear, value_first, value);
        }
        up.activation.apply(self.isa, gate, is_gated.then_some(&*value));
        gate
    }
}
