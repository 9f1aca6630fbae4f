//! Top-k, top-p, min-p and typical-p over candidates in ascending id order, without sorting the vocabulary.
//!
//! Each filter finds the last candidate it keeps and drops all that rank behind it, so the id order survives.

use std::cmp::Ordering;

use super::scan::Scale;

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    /// What it ranks by, highest first: its logit, for typical-p its nearness to the entropy.
    pub key: f32,
    /// Its probability relative to the likeliest, which is exactly 1.
    pub weight: f32,
}

/// Highest key first, lower id first among equals. Keys hold neither NaN nor -0.0.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.key.total_cmp(&a.key).then(a.id.cmp(&b.id))
}

/// The candidates of one row and room to rank them.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// In ascending id order.
    pub kept: Vec<Candidate>,
    ranked: Vec<Candidate>,
}

impl Candidates {
    /// Weighs all candidates.
    pub fn weigh(&mut self, scale: Scale) {
        for candidate in &mut self.kept {
            candidate.weight = scale.weight(candidate.key);
        }
    }

    /// Sum of all weights, in f64 and ascending id order.
    pub fn total_weight(&self) -> f64 {
        self.kept.iter().map(|candidate| f64::from(candidate.weight)).sum()
    }

    /// Keeps the `k` likeliest; 0 keeps all. Of equals at the border the lower ids stay.
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

    /// Keeps the smallest set of likeliest tokens whose mass is at least `p` of `total`, at least one.
    ///
    /// Source: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1.
    pub fn keep_top_p(&mut self, p: f64, total: f64) {
        if p < 1.0 {
            self.keep_mass(p * total);
        }
    }

    /// Keeps tokens at least `min_p` times as likely as the likeliest.
    ///
    /// Source: Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
    pub fn keep_min_p(&mut self, min_p: f64) {
        if min_p > 0.0 {
            // The likeliest weighs exactly 1 and every filter before keeps it.
            self.kept.retain(|candidate| f64::from(candidate.weight) >= min_p);
        }
    }

    /// Keeps the smallest set of mass `p` whose surprise `-ln(probability)` is nearest to its mean, the entropy.
    ///
    /// Source: Meister et al. 2022, "Locally typical sampling", section 3, equation 6.
    pub fn keep_typical(&mut self, p: f64) {
        if p >= 1.0 {
            return;
        }
        let total = self.total_weight();
        let ln = |weight: f32| f64::from(weight).ln();
        // Entropy less the logarithm of `total`, which every surprise lacks too.
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

    /// Inverse of the cumulative distribution in ascending id order.
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

/// The candidate at which the ranked mass reaches `target`, the last if rounding keeps the whole below it.
///
/// Ranks a short head first: a peaked row costs one selection. If the mass lies behind it, halves the rest by rank
/// until the border's half is short, which costs two selections more, however flat the row.
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
    // Another order of adding may round to just below the target: then the last one left is the border.
    rest.iter().copied().find(reaches).or_else(|| rest.last().copied())
}
