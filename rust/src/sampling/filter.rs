//! Top-k, top-p, min-p and typical-p filters, without sorting the vocabulary.
//!
//! Each filter finds the lowest-ranked candidate to keep and drops every candidate below; the ascending id order survives.

use std::cmp::Ordering;

use super::scale::Scale;

/// A token that can still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    /// Sort key, highest first: the logit, or for typical-p the closeness to the entropy.
    pub key: f32,
    /// Probability relative to the most likely token's, which is exactly 1.
    pub weight: f32,
}

/// Orders candidates by descending key, then ascending id. Keys are never NaN or -0.0.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.key.total_cmp(&a.key).then(a.id.cmp(&b.id))
}

/// The candidates of one row, and scratch memory to rank them.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Remaining candidates in ascending id order.
    pub kept: Vec<Candidate>,
    ranked: Vec<Candidate>,
}

impl Candidates {
    /// Computes the weight of every candidate.
    pub fn weigh(&mut self, scale: Scale) {
        for candidate in &mut self.kept {
            candidate.weight = scale.weight(candidate.key);
        }
    }

    /// Returns the sum of all weights, added in f64 in ascending id order.
    pub fn total_weight(&self) -> f64 {
        self.kept.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }

    /// Keeps the `k` most likely tokens; 0 keeps all. Ties at the border keep the lower ids.
    ///
    /// Source: Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation", section 5.4.
    pub fn keep_top_k(&mut self, k: usize) {
        if k == 0 || k >= self.kept.len() {
            return;
        }
        self.ranked.clone_from(&self.kept);
        let (_, &mut border, _) = self.ranked.select_nth_unstable_by(k - 1, by_rank);
        self.keep_to(&border);
    }

    /// Keeps the smallest set of most likely tokens with at least `p` of the `total` mass, and at least one token.
    ///
    /// Source: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1.
    pub fn keep_top_p(&mut self, p: f64, total: f64) {
        if p < 1.0 {
            self.keep_mass(p * total);
        }
    }

    /// Keeps tokens at least `min_p` times as likely as the most likely token.
    ///
    /// Source: Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
    pub fn keep_min_p(&mut self, min_p: f64) {
        if min_p > 0.0 {
            // The most likely token weighs exactly 1, and every earlier filter keeps that token.
            self.kept.retain(|candidate| f64::from(candidate.weight) >= min_p);
        }
    }

    /// Keeps the smallest set of mass `p` with surprise `-ln(probability)` closest to its mean, the entropy.
    ///
    /// Source: Meister et al. 2022, "Locally typical sampling", section 3, equation 6.
    pub fn keep_typical(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let total = self.total_weight();
        let ln = |weight: f32| f64::from(weight).ln();
        // The entropy without the logarithm of `total`, which every surprise leaves out as well.
        let weighted = |candidate: &Candidate| f64::from(candidate.weight) * ln(candidate.weight);
        let is_possible = |candidate: &&Candidate| candidate.weight > 0.0;
        let entropy = -self.kept.iter().filter(is_possible).map(weighted).sum::<f64>() / total;
        self.kept.retain(|candidate| candidate.weight > 0.0);
        for candidate in &mut self.kept {
            candidate.key = -((-ln(candidate.weight) - entropy).abs() as f32) + 0.0;
        }
        self.keep_mass(p * total);
    }

    fn keep_mass(&mut self, target: f64) {
        self.ranked.clone_from(&self.kept);
        if let Some(border) = find_mass_border(&mut self.ranked, target) {
            self.keep_to(&border);
        }
    }

    fn keep_to(&mut self, border: &Candidate) {
        self.kept.retain(|candidate| by_rank(candidate, border) != Ordering::Greater);
    }

    /// Returns the token at quantile `uniform` of the cumulative distribution in ascending id order.
    pub fn pick(&self, uniform: f64) -> u32 {
        let target = uniform * self.total_weight();
        let mut mass = 0.0;
        for candidate in &self.kept {
            mass += f64::from(candidate.weight);
            // Strict, so that a weight of 0 is never drawn, not even by a uniform of 0.
            if mass > target {
                return candidate.id;
            }
        }
        // `total_weight` adds in this same order and uniform < 1, so only the product's rounding leads here.
        self.kept.iter().rfind(|candidate| candidate.weight > 0.0).map_or(0, |candidate| candidate.id)
    }
}

/// Returns the candidate at which the ranked mass reaches `target`, or the last one if rounding keeps the sum below.
///
/// Ranks a short head first, so a peaked row costs one selection. If the border lies further down, halves the rest by
/// rank until the half with the border is short, which costs two more selections, however flat the row.
fn find_mass_border(mut rest: &mut [Candidate], target: f64) -> Option<Candidate> {
    const SHORT: usize = 128;
    let mut mass = 0.0;
    let mut head_len = SHORT;
    while rest.len() > SHORT {
        rest.select_nth_unstable_by(head_len - 1, by_rank);
        let (head, tail) = rest.split_at_mut(head_len);
        let head_mass: f64 = head.iter().map(|candidate| f64::from(candidate.weight)).sum();
        if mass + head_mass >= target {
            rest = head;
        } else {
            mass += head_mass;
            rest = tail;
        }
        head_len = rest.len().div_ceil(2);
    }
    rest.sort_unstable_by(by_rank);
    let reaches = |candidate: &Candidate| {
        mass += f64::from(candidate.weight);
        mass >= target
    };
    // Another order of summation may round to just below the target; the last candidate is then the border.
    rest.iter().copied().find(reaches).or_else(|| rest.last().copied())
}

#[cfg(test)]
mod tests {
    use super::super::uniform;
    use super::*;

    #[test]
    fn the_border_of_a_mass_is_that_of_a_whole_sort() {
        for len in [1, 2, 127, 128, 129, 130, 255, 257, 700, 1500] {
            for draw in 0..40 {
                // Whole weights, whose sums are exact, and few keys, so that many are equal.
                let whole = |id: u32, most: f64| (uniform(u64::from(id), draw, 0) * most) as f32;
                let key = |id: u32| whole(id, [5.0, 300.0][draw as usize % 2]);
                let all: Vec<Candidate> =
                    (0..len).map(|id| Candidate { id, key: key(id), weight: whole(id + 9000, 4.0).floor() }).collect();
                let total: f64 = all.iter().map(|candidate| f64::from(candidate.weight)).sum();
                let mut sorted = all.clone();
                sorted.sort_by(by_rank);
                for target in [0.0, 1.0, 0.3 * total, (0.5 * total).floor(), total - 1.0, total, total + 1.0] {
                    let mut mass = 0.0;
                    let slow = sorted.iter().find(|candidate| {
                        mass += f64::from(candidate.weight);
                        mass >= target
                    });
                    let found = find_mass_border(&mut all.clone(), target);
                    assert_eq!(found, slow.or(sorted.last()).copied(), "{len} {draw} {target}");
                }
            }
        }
    }
}
