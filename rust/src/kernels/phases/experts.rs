//! A mixture of experts: for each expert, one product over the rows that chose it.

use super::feed_forward::UpProj;
use super::pass::Pass;
use crate::kernels::product::linear::Linear;
use crate::kernels::product::packed::scheme::GROUP;
use crate::kernels::product::prepared::{Layout, Prepared};
use crate::kernels::product::strip::{STRIP, Strip};
use crate::kernels::row_ops::Norm;
use crate::kernels::spec::{Experts, Scoring, SharedExpert};
use crate::kernels::step::MAX_ROWS;
use crate::kernels::threads::Worker;

/// The rows that chose each expert.
struct Routing {
    /// Rows with their weights, expert after expert.
    choices: Vec<(usize, f32)>,
    /// Where each expert's choices begin, then the number of all choices.
    starts: Vec<usize>,
}

impl Routing {
    /// Returns the rows that chose an expert, with their weights.
    fn of(&self, expert: usize) -> &[(usize, f32)] {
        &self.choices[self.starts[expert]..self.starts[expert + 1]]
    }
}

impl Pass<'_> {
    /// Runs the chosen experts and the shared one on the rows after `norm`; the weighted sum goes to `mixed`.
    pub fn experts<'a>(&'a self, worker: &Worker<'_>, experts: &'a Experts, norm: Option<&Norm>) {
        let inputs = self.normalize_rows(worker, norm, &experts.router);
        self.route(worker, experts, &inputs);
        let routing = self.routing(experts);
        let inputs = self.inputs_as(worker, inputs, norm, &experts.gate_up[0]);
        self.experts_up_proj(worker, experts, &routing, &inputs);
        self.experts_down_proj(worker, experts, &routing);
        if let Some(shared) = &experts.shared {
            self.shared_expert(worker, shared, inputs, norm);
        }
    }

    /// Returns the inputs laid out for another layer; they are prepared anew only if its format or order differs.
    fn inputs_as<'a>(
        &'a self,
        worker: &Worker<'_>,
        inputs: Prepared<'a>,
        norm: Option<&Norm>,
        linear: &'a Linear,
    ) -> Prepared<'a> {
        let is_alike = (inputs.layout, inputs.order) == (Layout::of(linear.weight.format), linear.order());
        if is_alike { inputs } else { self.normalize_rows(worker, norm, linear) }
    }

    /// Scores all experts for each row and stores the best ones: ids, then weights. Clears `mixed`.
    fn route(&self, worker: &Worker<'_>, experts: &Experts, inputs: &Prepared) {
        let num_experts = experts.gate_up.len();
        self.multiply(worker, &experts.router, inputs, |row, first, values| {
            // SAFETY: one worker owns each strip of columns until the barrier.
            unsafe { self.buffers.wide.write(row * num_experts + first, values.len()) }.copy_from_slice(values);
        });
        let sizes = self.sizes();
        self.each_row(worker, |row| {
            // SAFETY: one worker owns each row of the three buffers until the barrier.
            let (scores, routes, mixed) = unsafe {
                (
                    self.buffers.wide.write(row * num_experts, num_experts),
                    self.buffers.routes.write(row * sizes.routes, 2 * experts.num_chosen),
                    self.buffers.mixed.write(row * sizes.hidden, sizes.hidden),
                )
            };
            choose(experts, scores, routes);
            mixed.fill(0.0);
        });
    }

    fn routing(&self, experts: &Experts) -> Routing {
        let mut found = Routing { choices: Vec::new(), starts: vec![0] };
        for expert in 0..experts.gate_up.len() {
            for row in 0..self.rows.len() {
                // SAFETY: the routes were written before the last barrier, and all workers only read them now.
                let routes = unsafe { self.buffers.routes.read(row * self.sizes().routes, 2 * experts.num_chosen) };
                let (ids, weights) = routes.split_at(experts.num_chosen);
                let chosen = ids.iter().position(|id| *id as usize == expert);
                found.choices.extend(chosen.map(|place| (row, weights[place])));
            }
            found.starts.push(found.choices.len());
        }
        found
    }

    fn experts_up_proj(&self, worker: &Worker<'_>, experts: &Experts, routing: &Routing, inputs: &Prepared) {
        // Inputs of packed weights are quantised by groups, each as soon as all of its strips are there.
        let (unit_cols, at_once) = if experts.down[0].weight.is_packed() { (GROUP, 1) } else { (STRIP, 4) };
        let num_units = experts.down[0].weight.cols.div_ceil(unit_cols);
        let group = self.row_scratch(worker).from(MAX_ROWS * self.sizes().input);
        let mut gathered = None;
        while let Some(units) = worker.claim(num_units * experts.gate_up.len(), at_once) {
            for unit in units {
                let (expert, first) = (unit / num_units, unit % num_units * unit_cols);
                let to = self.expert_inner(experts, routing, expert);
                if to.num_rows == 0 {
                    continue;
                }
                let x = Prepared { data: self.row_scratch(worker), num_rows: to.num_rows, ..*inputs };
                if gathered.replace(expert) != Some(expert) {
                    for (place, (row, _)) in routing.of(expert).iter().enumerate() {
                        // SAFETY: only this worker uses its scratch; the inputs were written before the last barrier or by it.
                        unsafe { x.copy(place, inputs, *row) };
                    }
                }
                let up = UpProj { linear: &experts.gate_up[expert], activation: experts.activation };
                if to.layout == Layout::Groups {
                    self.up_proj_group(worker, up, first, &x, &to, group);
                    continue;
                }
                let next = if first + STRIP < to.cols { first + STRIP } else { first };
                let strip = Strip { first, count: STRIP.min(to.cols - first), next };
                self.up_proj_strip(worker, up, strip, &x, &to);
            }
        }
        worker.barrier();
    }

    /// One worker owns each strip of columns and adds its experts in order, so the sum never depends on the batch.
    fn experts_down_proj(&self, worker: &Worker<'_>, experts: &Experts, routing: &Routing) {
        let hidden = self.sizes().hidden;
        while let Some(units) = worker.claim(hidden.div_ceil(STRIP), 1) {
            for unit in units {
                let first = unit * STRIP;
                let strip = Strip { first, count: STRIP.min(hidden - first), next: first };
                for (expert, down) in experts.down.iter().enumerate() {
                    let x = self.expert_inner(experts, routing, expert);
                    if x.num_rows == 0 {
                        continue;
                    }
                    self.multiply_strip(worker, down, strip, &x, |place, values| {
                        let (row, weight) = routing.of(expert)[place];
                        // SAFETY: one worker owns each strip of columns until the barrier.
                        let to = unsafe { self.buffers.mixed.write(row * hidden + first, values.len()) };
                        to.iter_mut().zip(values).for_each(|(to, value)| *to += weight * *value);
                    });
                }
            }
        }
        worker.barrier();
    }

    /// Returns the inputs of an expert's down projection, for the rows that chose the expert.
    fn expert_inner(&self, experts: &Experts, routing: &Routing, expert: usize) -> Prepared<'_> {
        let stride = self.sizes().expert_inner;
        let data = self.buffers.expert_inner.from(routing.starts[expert] * stride);
        let weight = &experts.down[expert].weight;
        let (layout, cols) = (Layout::of(weight.format), weight.cols);
        Prepared { isa: self.isa, layout, data, stride, num_rows: routing.of(expert).len(), cols, order: None }
    }

    fn shared_expert<'a>(
        &'a self,
        worker: &Worker<'_>,
        shared: &'a SharedExpert,
        inputs: Prepared<'a>,
        norm: Option<&Norm>,
    ) {
        let (hidden, routes) = (self.sizes().hidden, self.sizes().routes);
        let mut inputs = inputs;
        if let Some(gate) = &shared.gate {
            inputs = self.inputs_as(worker, inputs, norm, gate);
            self.multiply(worker, gate, &inputs, |row, _, values| {
                // SAFETY: the gate has one output, so one worker writes all gates; nobody reads the routes any more.
                let gate = unsafe { self.buffers.routes.write(row * routes, 1) };
                gate[0] = 1.0 / (1.0 + (-values[0]).exp());
            });
        }
        inputs = self.inputs_as(worker, inputs, norm, &shared.gate_up);
        self.up_proj(worker, &shared.gate_up, &shared.down, &inputs);
        self.multiply(worker, &shared.down, &self.inner(&shared.down), |row, first, values| {
            let gate = match shared.gate {
                // SAFETY: the gates were written before the last barrier, and all workers only read them now.
                Some(_) => unsafe { self.buffers.routes.read(row * routes, 1)[0] },
                None => 1.0,
            };
            // SAFETY: one worker owns each strip of columns until the barrier.
            let to = unsafe { self.buffers.mixed.write(row * hidden + first, values.len()) };
            to.iter_mut().zip(values).for_each(|(to, value)| *to += gate * value);
        });
    }
}

/// Stores the best experts' ids, then their weights, in `routes`; ties choose the lower id.
///
/// Source: Jiang et al. 2024, «Mixtral of Experts», section 2.1; Dai et al. 2024, «DeepSeekMoE», section 3.1; DeepSeek-AI
/// 2024, «DeepSeek-V3», section 2.1.2 (sigmoids, corrections and groups).
fn choose(experts: &Experts, scores: &mut [f32], routes: &mut [f32]) {
    match experts.scoring {
        Scoring::SoftmaxOfAll => softmax(scores),
        Scoring::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
        Scoring::SoftmaxOfChosen => {}
    }
    let compared = compared_scores(experts, scores);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| compared[*b].total_cmp(&compared[*a]));
    let (ids, weights) = routes.split_at_mut(experts.num_chosen);
    for ((id, weight), expert) in ids.iter_mut().zip(weights.iter_mut()).zip(order) {
        // An id as f32 is exact: no model has 2^24 experts.
        (*id, *weight) = (expert as f32, scores[expert]);
    }
    if experts.scoring == Scoring::SoftmaxOfChosen {
        softmax(weights);
    } else if experts.normalized {
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    weights.iter_mut().for_each(|weight| *weight *= experts.scale);
}

/// Returns the scores that decide the choice: corrected ones of the best groups, and the lowest for all other experts.
fn compared_scores(experts: &Experts, scores: &[f32]) -> Vec<f32> {
    let mut compared = scores.to_vec();
    if let Some(correction) = &experts.correction {
        compared.iter_mut().zip(correction).for_each(|(score, correction)| *score += correction);
    }
    if experts.num_groups == 1 {
        return compared;
    }
    let size = scores.len() / experts.num_groups;
    let of_groups: Vec<f32> = compared.chunks(size).map(|group| group_score(experts.scoring, group)).collect();
    let mut order: Vec<usize> = (0..experts.num_groups).collect();
    order.sort_by(|a, b| of_groups[*b].total_cmp(&of_groups[*a]));
    for group in &order[experts.num_chosen_groups..] {
        compared[group * size..(group + 1) * size].fill(f32::NEG_INFINITY);
    }
    compared
}

/// Returns the score of a group of experts: its best, or with sigmoids the sum of its two best.
fn group_score(scoring: Scoring, group: &[f32]) -> f32 {
    let mut group = group.to_vec();
    group.sort_by(|a, b| b.total_cmp(a));
    let num_counted = if scoring == Scoring::Sigmoid { 2 } else { 1 };
    group.iter().take(num_counted).sum()
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|value| *value = (*value - max).exp());
    let total: f32 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= total);
}
