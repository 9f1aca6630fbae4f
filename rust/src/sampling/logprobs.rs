//! Log-probabilities of the model's own distribution, before penalties and filters.

/// What a row was before sampling changed it.
pub(super) struct RawLogprobs {
    logits: Vec<f32>,
    log_normalizer: f64,
    top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    /// Copies the masked row and ranks its `n` likeliest tokens. `max` is the row's finite maximum.
    pub fn new(row: &[f32], max: f32, n: usize) -> Self {
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        Self { logits: row.to_vec(), log_normalizer: f64::from(max) + sum.ln(), top: top_logits(row, n) }
    }

    /// The token's log-probability.
    pub fn of(&self, id: u32) -> f32 {
        self.normalize(self.logits[id as usize])
    }

    /// The likeliest possible tokens with their log-probabilities, likeliest first, lower id first among equals.
    pub fn top(&self) -> Vec<(u32, f32)> {
        self.top.iter().map(|&(id, logit)| (id, self.normalize(logit))).collect()
    }

    fn normalize(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_normalizer) as f32
    }
}

/// The `n` highest logits above -inf by insertion: `n` is small and most logits fail the first comparison.
fn top_logits(row: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(row.len()) + 1);
    let mut worst = f32::NEG_INFINITY;
    for (id, &logit) in row.iter().enumerate() {
        if logit <= worst || n == 0 {
            continue;
        }
        let place = top.partition_point(|&(_, other)| other >= logit);
        top.insert(place, (id as u32, logit));
        top.truncate(n);
        if top.len() == n {
            worst = top[n - 1].1;
        }
    }
    top
}
