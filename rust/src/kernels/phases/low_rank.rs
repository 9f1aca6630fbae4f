//! Adapters of rows: a narrow product before a layer's own, and a sum after each of its strips.

use super::pass::Pass;
use crate::kernels::memory::Format;
use crate::kernels::product::linear::Linear;
use crate::kernels::product::low_rank::{LowRank, LowRows};
use crate::kernels::product::prepared::Prepared;
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::threads::Worker;
use crate::prefetch::far;

impl Pass<'_> {
    /// Multiplies `x` with the first matrix of each adapter of `linear`, for the rows that ask for it. Ends at a barrier if
    /// there is one.
    ///
    /// A row's result depends on that row alone, since each product computes all rows in the order of the layer's own.
    pub fn lower(&self, worker: &Worker<'_>, linear: &Linear, x: &Prepared) {
        let adapters = self.adapters.iter().filter_map(|(number, _)| Some((*number, linear.adapter(*number)?)));
        let strips: Vec<LowStrip> = adapters
            .flat_map(|(number, adapter)| {
                (0..adapter.channels()).step_by(STRIP).map(move |first| LowStrip { number, adapter, first })
            })
            .collect();
        if strips.is_empty() {
            return;
        }
        if let Some(strip) = strips.get(worker.share(strips.len(), 1).start) {
            strip.prefetch();
        }
        while let Some(claimed) = worker.claim(strips.len(), 1) {
            for idx in claimed {
                // A strip's product prefetches the next one, but not another adapter's.
                if let Some(next) = strips.get(idx + 1).filter(|next| next.first == 0) {
                    next.prefetch();
                }
                self.lower_strip(worker, strips[idx], x);
            }
        }
        worker.barrier();
    }

    fn lower_strip(&self, worker: &Worker<'_>, LowStrip { number, adapter, first }: LowStrip<'_>, x: &Prepared) {
        let next = if first + STRIP < adapter.channels() { first + STRIP } else { first };
        let strip = Strip { first, count: STRIP.min(adapter.channels() - first), next };
        let layer = Linear::new(adapter.first, None);
        self.multiply_strip(worker, &layer, strip, x, |row, values| {
            if self.rows[row].adapter == number {
                // SAFETY: one worker owns each strip of a row's channels until the barrier.
                unsafe { self.low.write(row * self.low_stride + first, values.len()) }.copy_from_slice(values);
            }
        });
    }

    /// Adds the rows' adapters to a strip of `linear`, `[rows, STRIP]`; `lower` must have run.
    pub fn add_low_rank(&self, linear: &Linear, first: usize, out: &mut [f32]) {
        if self.adapters.is_empty() || linear.adapters.is_empty() {
            return;
        }
        for (number, rows) in &self.adapters {
            let Some(adapter) = linear.adapter(*number) else { continue };
            // SAFETY: the channels were written before the last barrier, and nobody writes to them before the next.
            let channels = unsafe { self.low.read(0, self.rows.len() * self.low_stride) };
            adapter.add(self.isa, first, &LowRows { rows, channels, stride: self.low_stride }, out);
        }
    }
}

/// Neighbouring channels of an adapter.
#[derive(Clone, Copy)]
struct LowStrip<'a> {
    number: u16,
    adapter: &'a LowRank,
    first: usize,
}

impl LowStrip<'_> {
    /// Prefetches the strip's weights.
    fn prefetch(&self) {
        let weights = &self.adapter.first;
        let size = match weights.format {
            Format::Plain(dtype) => dtype.size(),
            Format::Packed => 1,
        };
        let num_bytes = STRIP.min(weights.rows - self.first) * weights.cols * size;
        let start = weights.address(self.first);
        (0..num_bytes).step_by(64).for_each(|offset| far(start.wrapping_add(offset)));
    }
}
