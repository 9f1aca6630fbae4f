//! The last norm and the projection to logits.

use super::pass::Pass;
use crate::kernels::threads::Worker;

impl Pass<'_> {
    /// Computes the logits of all rows that need them.
    pub fn logits(&self, worker: &Worker<'_>) {
        let head = &self.spec.head;
        let rows: Vec<usize> = (0..self.rows.len()).filter(|row| self.rows[*row].has_logits()).collect();
        if rows.is_empty() {
            return;
        }
        let inputs = self.inputs(worker, rows.len(), head);
        self.prepare_rows(worker, rows.len(), |place| {
            self.normalize(worker, rows[place], Some(&self.spec.norm), &inputs, place);
        });
        let vocab_size = head.weight.rows;
        self.multiply(worker, head, &inputs, |place, first, values| {
            let row = &self.rows[rows[place]];
            for output in row.first_output..row.end_output {
                // SAFETY: one worker owns each strip of columns, and each output belongs to one row.
                let to = unsafe { self.logits.write(output * vocab_size + first, values.len()) };
                to.copy_from_slice(values);
                if let Some(cap) = self.spec.logit_softcap {
                    to.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
                }
            }
        });
    }
}
