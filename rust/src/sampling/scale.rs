//! The scale that turns logits into relative probabilities.

use super::exp::exp;

/// Turns logits into weights: `exp((logit - max) * inverse_temperature)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub max: f32,
    pub inverse_temperature: f32,
}

impl Scale {
    /// Creates a scale. Weights subtract the maximum first, so that even the smallest temperature never overflows.
    pub fn new(max: f32, temperature: f32) -> Self {
        Self { max, inverse_temperature: (1.0 / temperature).min(f32::MAX) }
    }

    /// Returns the logit's difference from the maximum, divided by the temperature.
    #[inline(always)]
    pub fn scaled(self, logit: f32) -> f32 {
        (logit - self.max) * self.inverse_temperature
    }

    /// Returns the weight of a logit; the most likely token's is 1.
    #[inline(always)]
    pub fn weight(self, logit: f32) -> f32 {
        exp(self.scaled(logit))
    }

    /// Returns a logit below which every weight is under `weight`, rounding included; the lowest finite f32 for 0.
    pub fn logit_below(self, weight: f64) -> f32 {
        if weight <= 0.0 {
            return f32::MIN;
        }
        let distance = (weight.ln() - 1e-4) / f64::from(self.inverse_temperature);
        let logit = f64::from(self.max) + distance;
        let slack = 1e-6 * (f64::from(self.max).abs() + logit.abs());
        ((logit - slack) as f32).max(f32::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_below_is_on_the_safe_side() {
        for (max, temperature) in [(3.0f32, 0.7f32), (-1e4, 2.0), (1e-3, 1e-3), (80.0, 1e3)] {
            let scale = Scale::new(max, temperature);
            for weight in [0.9f64, 1e-3, 1e-9, 1e-30] {
                let logit = scale.logit_below(weight);
                assert!(f64::from(scale.weight(logit)) < weight, "{max} {temperature} {weight}");
            }
        }
        assert_eq!(Scale::new(0.0, 1.0).logit_below(0.0), f32::MIN);
    }
}
