//! Embedding: token ids and positions into the residual stream, and each row's part of the rotary table.

use super::pass::Pass;
use crate::kernels::threads::Worker;

impl Pass<'_> {
    /// Embeds all rows. Ends at a barrier.
    pub fn embed(&self, worker: &Worker<'_>) {
        self.each_row(worker, |row| self.embed_row(row));
    }

    fn embed_row(&self, row: usize) {
        let task = &self.rows[row];
        let (width, angles_width) = (self.sizes().hidden, self.sizes().angles);
        // SAFETY: one worker owns each row of both buffers until the barrier.
        let (hidden, angles) = unsafe {
            (
                self.buffers.hidden.write(row * width, width),
                self.buffers.rope_table.write(row * angles_width, angles_width),
            )
        };
        self.spec.embedding.read_row(task.token, hidden);
        hidden.iter_mut().for_each(|value| *value *= self.spec.embedding_scale);
        if let Some(positions) = &self.spec.positions {
            let mut vector = vec![0.0; hidden.len()];
            positions.read_row(task.position, &mut vector);
            hidden.iter_mut().zip(vector).for_each(|(value, place)| *value += place);
        }
        for (rope, angles) in self.spec.ropes.iter().zip(angles.chunks_exact_mut(self.shape.head_dim)) {
            rope.fill(task.position as i64, angles);
        }
    }
}
