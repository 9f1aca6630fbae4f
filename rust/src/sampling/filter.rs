//! Top-k, top-p and min-p over candidates in ascending id order, without sorting the vocabulary.
//!
//! Each filter finds the last candidate it keeps and drops all that rank behind it, so the id order survives.

use std::cmp::Ordering;

/// A token that may still be drawn. `value` is its scaled logit, and after [`to_weights`] its unnormalised probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    pub value: f32,
}

/// Likeliest first, lower id first among equals. Values hold neither NaN nor -0.0.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

/// `(logit - max) / temperature` of every possible token, in ascending id order.
///
/// The maximum goes first, so that no temperature, however small, overflows to +inf.
pub(super) fn collect_scaled(row: &[f32], max: f32, temperature: f32, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    candidates.extend(row.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY).map(|(id, logit)| {
        // Adding 0.0 turns an underflowed -0.0 into 0.0, which `total_cmp` would rank apart.
        Candidate { id: id as u32, value: (logit - max) / temperature + 0.0 }
    }));
}

/// Turns scaled logits into probabilities relative to the likeliest, which is exactly 1.
pub(super) fn to_weights(candidates: &mut [Candidate]) {
    for candidate in candidates {
        candidate.value = candidate.value.exp();
    }
}

/// Keeps the `k` likeliest; 0 keeps all. Of equals at the border the lower ids stay.
///
/// Source: Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation", section 5.4.
pub(super) fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize, scratch: &mut Vec<Candidate>) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    scratch.clone_from(candidates);
    let (_, &mut border, _) = scratch.select_nth_unstable_by(k - 1, by_rank);
    keep_to(candidates, &border);
}

/// Keeps the smallest set of likeliest tokens whose mass is at least `p` of all, at least one.
///
/// Source: Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, p: f64, scratch: &mut Vec<Candidate>) {
    if p >= 1.0 {
        return;
    }
    let target = p * total_weight(candidates);
    scratch.clone_from(candidates);
    if let Some(border) = find_mass_border(scratch, target) {
        keep_to(candidates, &border);
    }
}

/// The candidate at which the ranked mass reaches `target`; `None` if rounding keeps the whole below it.
///
/// Ranks a short head first and a longer one only if the mass isn't reached: a peaked row costs one selection.
fn find_mass_border(candidates: &mut [Candidate], target: f64) -> Option<Candidate> {
    const FIRST_HEAD: usize = 128;
    const GROWTH: usize = 8;
    let (mut ranked, mut mass, mut head) = (0, 0.0, FIRST_HEAD);
    while ranked < candidates.len() {
        let rest = &mut candidates[ranked..];
        let head_len = head.min(rest.len());
        if head_len < rest.len() {
            rest.select_nth_unstable_by(head_len - 1, by_rank);
        }
        rest[..head_len].sort_unstable_by(by_rank);
        for candidate in &rest[..head_len] {
            mass += f64::from(candidate.value);
            if mass >= target {
                return Some(*candidate);
            }
        }
        ranked += head_len;
        head *= GROWTH;
    }
    None
}

/// Keeps tokens at least `min_p` times as likely as the likeliest.
///
/// Source: Nguyen et al. 2024, "Turning up the heat: min-p sampling", section 3.
pub(super) fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    if min_p > 0.0 {
        // The likeliest weighs exactly 1 and every filter before keeps it.
        candidates.retain(|candidate| f64::from(candidate.value) >= min_p);
    }
}

fn keep_to(candidates: &mut Vec<Candidate>, border: &Candidate) {
    candidates.retain(|candidate| by_rank(candidate, border) != Ordering::Greater);
}

/// Sum of all weights, in f64 and ascending id order.
pub(super) fn total_weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.value)).sum()
}
