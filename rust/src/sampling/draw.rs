//! The draw: finds the logits that can matter, filters them, and draws one token.

use super::SamplingParams;
use super::filter::Candidates;
use super::row::LogitsRow;
use super::scale::Scale;
use super::scan::{CHUNK, collect_from, sum_weights};

/// Memory that each draw reuses.
#[derive(Debug, Default)]
pub(super) struct DrawScratch {
    candidates: Candidates,
    sums: Vec<f64>,
    highest: Vec<f32>,
}

/// Returns the token at quantile `uniform` of the filtered distribution. `max` is the row's finite maximum.
pub(super) fn draw(
    row: &LogitsRow<'_>,
    max: f32,
    params: &SamplingParams,
    uniform: f64,
    DrawScratch { candidates, sums, highest }: &mut DrawScratch,
) -> u32 {
    let scale = Scale::new(max, params.temperature as f32);
    let has_top_k = params.top_k > 0 && params.top_k < row.logits().len();
    if !has_top_k && !params.has_mass_filters() {
        return pick_from_all(row, scale, uniform, sums);
    }
    let mut total = None;
    let lowest = if has_top_k {
        kth_highest(row.maxima(), params.top_k, highest)
    } else {
        if params.top_p < 1.0 {
            sum_weights(row.logits(), row.maxima(), scale, sums);
            total = Some(sums.iter().sum());
        }
        scale.logit_below(least_weight(params, total, row.logits().len()))
    };
    collect_from(row.logits(), row.maxima(), lowest.max(f32::MIN), &mut candidates.kept);
    if has_top_k {
        candidates.keep_top_k(params.top_k);
    }
    candidates.weigh(scale);
    candidates.keep_top_p(params.top_p, total.unwrap_or_else(|| candidates.total_weight()));
    candidates.keep_min_p(params.min_p);
    candidates.keep_typical(params.typical_p);
    candidates.pick(uniform)
}

/// Returns a logit that at least `k` logits reach: the k-th highest chunk maximum, or -inf if there are fewer chunks.
fn kth_highest(maxima: &[f32], k: usize, highest: &mut Vec<f32>) -> f32 {
    if k > maxima.len() {
        return f32::NEG_INFINITY;
    }
    highest.clear();
    highest.extend_from_slice(maxima);
    *highest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// Returns a weight below which neither top-p nor min-p can keep a token.
///
/// All tokens lighter than `(1 - p) · total / V` together weigh less than `(1 - p) · total`, so top-p never needs them.
fn least_weight(params: &SamplingParams, total: Option<f64>, vocab_len: usize) -> f64 {
    // Half of the bound leaves room for the rounding of the total.
    let by_top_p = total.map_or(0.0, |total: f64| 0.5 * (1.0 - params.top_p) * total / vocab_len as f64);
    by_top_p.max(params.min_p * (1.0 - 1e-6))
}

/// Draws from all tokens: the chunk sums select the chunk, then a scan of that chunk selects the token.
fn pick_from_all(row: &LogitsRow<'_>, scale: Scale, uniform: f64, sums: &mut Vec<f64>) -> u32 {
    sum_weights(row.logits(), row.maxima(), scale, sums);
    let target = uniform * sums.iter().sum::<f64>();
    let mut mass = 0.0;
    let mut last_possible = 0;
    for (chunk_idx, (chunk, sum)) in row.logits().chunks(CHUNK).zip(sums.iter()).enumerate() {
        if mass + sum <= target {
            mass += sum;
            continue;
        }
        // Added one by one, the weights may round to less than the chunk's sum; the chunk's last token is then drawn.
        for (offset, &logit) in chunk.iter().enumerate() {
            let weight = f64::from(scale.weight(logit));
            if weight > 0.0 {
                last_possible = (chunk_idx * CHUNK + offset) as u32;
                mass += weight;
                if mass > target {
                    return last_possible;
                }
            }
        }
        return last_possible;
    }
    // Since `uniform` < 1, only rounding of the product can lead here.
    row.logits().iter().rposition(|&logit| scale.weight(logit) > 0.0).unwrap_or_default() as u32
}

#[cfg(test)]
mod tests {
    use super::super::row::Maxima;
    use super::*;

    /// What is drawn from a row by `pick_from_all`, and by the candidates that a filter would leave.
    fn picked(logits: &[f32], uniform: f64) -> [u32; 2] {
        let (mut logits, mut maxima) = (logits.to_vec(), Maxima::default());
        let row = LogitsRow::new(&mut logits, &mut maxima);
        let scale = Scale::new(0.0, 1.0);
        let mut candidates = Candidates::default();
        collect_from(row.logits(), row.maxima(), f32::NEG_INFINITY, &mut candidates.kept);
        candidates.weigh(scale);
        [pick_from_all(&row, scale, uniform, &mut Vec::new()), candidates.pick(uniform)]
    }

    #[test]
    fn a_quantile_on_a_border_belongs_to_the_next_token() {
        // 512 weights of 1, every other token without weight: all sums are exact.
        let row: Vec<f32> = (0..1024).map(|id| if id % 2 == 0 { -100.0 } else { 0.0 }).collect();
        for nth in 0..512u32 {
            assert_eq!(picked(&row, f64::from(nth) / 512.0), [2 * nth + 1; 2]);
        }
    }

    #[test]
    fn a_quantile_that_rounding_raised_to_the_whole_takes_the_last_possible_token() {
        assert_eq!(picked(&[-100.0, 0.0, 0.0, -100.0, f32::NEG_INFINITY], 1.0), [2; 2]);
    }
}
