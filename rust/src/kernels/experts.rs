//! A mixture of experts, a product for each expert over the rows that chose it.

use super::decoder::{Experts, Linear};
use super::linear::STRIP;
use super::pass::Pass;
use super::prepared::Prepared;
use super::team::Member;

/// Which rows chose which expert: pairs of row and weight, expert after expert.
struct Choices {
    pairs: Vec<(usize, f32)>,
    /// Where each expert's pairs begin, and the end.
    starts: Vec<usize>,
}

impl Choices {
    /// An expert's pairs.
    fn of(&self, expert: usize) -> &[(usize, f32)] {
        &self.pairs[self.starts[expert]..self.starts[expert + 1]]
    }
}

impl Pass<'_> {
    /// From the prepared input through the chosen experts, and the shared one, into `mixed`.
    pub(super) fn experts(&self, member: &Member<'_>, experts: &Experts) {
        self.route(member, experts);
        let choices = self.choices(experts);
        self.open_experts(member, experts, &choices);
        self.close_experts(member, experts, &choices);
        if let Some((gate_up, down)) = &experts.shared {
            self.shared_expert(member, experts, gate_up, down);
        }
    }

    /// Scores all experts for each row and keeps the best: ids, then weights.
    fn route(&self, member: &Member<'_>, experts: &Experts) {
        let num_experts = experts.gate_up.len();
        self.multiply(member, &experts.router, &self.inputs(), |row, first, values| {
            // SAFETY: each column is one member's until the barrier.
            unsafe { self.wide.write(row * num_experts + first, values.len()) }.copy_from_slice(values);
        });
        self.each_row(member, |row| {
            // SAFETY: each row is one member's until the barrier.
            let (scores, routes, mixed) = unsafe {
                (
                    self.wide.write(row * num_experts, num_experts),
                    self.routes.write(row * self.sizes.routes, 2 * experts.num_chosen),
                    self.mixed.write(row * self.sizes.hidden, self.sizes.hidden),
                )
            };
            choose(experts, scores, routes);
            mixed.fill(0.0);
        });
    }

    fn choices(&self, experts: &Experts) -> Choices {
        let mut found = Choices { pairs: Vec::new(), starts: vec![0] };
        for expert in 0..experts.gate_up.len() {
            for row in 0..self.rows.len() {
                // SAFETY: written before the last barrier, only read here.
                let routes = unsafe { self.routes.read(row * self.sizes.routes, 2 * experts.num_chosen) };
                let (ids, weights) = routes.split_at(experts.num_chosen);
                let chosen = ids.iter().position(|id| *id as usize == expert);
                found.pairs.extend(chosen.map(|place| (row, weights[place])));
            }
            found.starts.push(found.pairs.len());
        }
        found
    }

    fn open_experts(&self, member: &Member<'_>, experts: &Experts, choices: &Choices) {
        let strips = experts.down[0].weight.cols.div_ceil(STRIP);
        let dtype = experts.gate_up[0].weight.dtype;
        let mut gathered = None;
        while let Some(units) = member.claim(strips * experts.gate_up.len(), 4) {
            for unit in units {
                let (expert, first) = (unit / strips, unit % strips * STRIP);
                let to = self.expert_inner(experts, choices, expert);
                if to.num_rows == 0 {
                    continue;
                }
                let x = Prepared { data: self.aside(member), num_rows: to.num_rows, ..self.inputs() };
                if gathered.replace(expert) != Some(expert) {
                    for (place, (row, _)) in choices.of(expert).iter().enumerate() {
                        // SAFETY: the member's own scratch; the input was written before the last barrier.
                        unsafe { x.copy(self.isa, dtype, place, &self.inputs(), *row) };
                    }
                }
                let next = if first + STRIP < to.cols { first + STRIP } else { first };
                let down_dtype = experts.down[expert].weight.dtype;
                self.open_strip(member, &experts.gate_up[expert], (first, next), &x, (&to, down_dtype));
            }
        }
        member.barrier();
    }

    /// A column belongs to one member, who adds up its experts in their order: the sum doesn't depend on the batch.
    fn close_experts(&self, member: &Member<'_>, experts: &Experts, choices: &Choices) {
        while let Some(units) = member.claim(self.sizes.hidden.div_ceil(STRIP), 1) {
            for unit in units {
                let first = unit * STRIP;
                for (expert, down) in experts.down.iter().enumerate() {
                    let x = self.expert_inner(experts, choices, expert);
                    if x.num_rows == 0 {
                        continue;
                    }
                    self.multiply_strip(member, down, (first, first), &x, |row, values| {
                        let (row, weight) = choices.of(expert)[row];
                        // SAFETY: each column is one member's until the barrier.
                        let to = unsafe { self.mixed.write(row * self.sizes.hidden + first, values.len()) };
                        to.iter_mut().zip(values).for_each(|(to, value)| *to += weight * *value);
                    });
                }
            }
        }
        member.barrier();
    }

    /// What the rows that chose an expert bring to its way back.
    fn expert_inner(&self, experts: &Experts, choices: &Choices, expert: usize) -> Prepared {
        let stride = self.sizes.expert_inner;
        let data = self.expert_inner.from(choices.starts[expert] * stride);
        Prepared { data, stride, num_rows: choices.of(expert).len(), cols: experts.down[expert].weight.cols }
    }

    fn shared_expert(&self, member: &Member<'_>, experts: &Experts, gate_up: &Linear, down: &Linear) {
        if let Some(gate) = &experts.shared_gate {
            self.multiply(member, gate, &self.inputs(), |row, _, values| {
                // SAFETY: the routes of a row are no longer needed; each row has one gate.
                let gate = unsafe { self.routes.write(row * self.sizes.routes, 1) };
                gate[0] = 1.0 / (1.0 + (-values[0]).exp());
            });
        }
        self.open(member, gate_up, down);
        self.multiply(member, down, &self.inner(down), |row, first, values| {
            // SAFETY: each column is one member's until the barrier; gates are only read.
            let (to, gate) = unsafe {
                let gate = experts.shared_gate.is_some().then(|| self.routes.read(row * self.sizes.routes, 1)[0]);
                (self.mixed.write(row * self.sizes.hidden + first, values.len()), gate.unwrap_or(1.0))
            };
            to.iter_mut().zip(values).for_each(|(to, value)| *to += gate * value);
        });
    }
}

/// The best experts' ids, then their weights, into `routes`; of equals the first wins.
///
/// Source: Jiang et al. 2024, «Mixtral of Experts», section 2.1; Dai et al. 2024, «DeepSeekMoE», section 3.1.
fn choose(experts: &Experts, scores: &mut [f32], routes: &mut [f32]) {
    if experts.softmax_first {
        softmax(scores);
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let (ids, weights) = routes.split_at_mut(experts.num_chosen);
    for ((id, weight), expert) in ids.iter_mut().zip(weights.iter_mut()).zip(order) {
        // Exact: no model has 2^24 experts.
        (*id, *weight) = (expert as f32, scores[expert]);
    }
    if !experts.softmax_first {
        softmax(weights);
    } else if experts.normalized {
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    weights.iter_mut().for_each(|weight| *weight *= experts.scale);
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|value| *value = (*value - max).exp());
    let total: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= total);
}
