//! The exponential function for weights; every machine computes the same bits.

/// Scaled logits below this have weight 0, since their exponential is no longer a normal number.
pub(super) const SMALLEST: f32 = -87.0;

/// Returns `e^x` for `x` ≤ 0 with a relative error below 1e-7; exactly 1 at 0, and 0 below [`SMALLEST`].
///
/// The standard library's version differs between platforms and cannot be vectorized. Products and sums are rounded
/// separately (no fused multiply-add), so that scalar code and vectors of any width agree.
///
/// Source: Cody and Waite 1980, "Software manual for the elementary functions", chapter 6 (range reduction in two
/// parts); the polynomial is Moshier's, "Cephes mathematical library", `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding 1.5 · 2^23 leaves the rounded integer in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let clamped = if x < SMALLEST { SMALLEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let rest = (clamped - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    for coefficient in COEFFICIENTS {
        polynomial = polynomial * rest + coefficient;
    }
    let mantissa = (polynomial * (rest * rest) + rest) + 1.0;
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < SMALLEST { 0.0 } else { mantissa * power_of_two }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_ten_millionth_of_the_exact_one() {
        let worst = (0..870_000).map(|step| -(step as f32) * 1e-4).map(|x| {
            let exact = f64::from(x).exp();
            (f64::from(exp(x)) / exact - 1.0).abs()
        });
        assert!(worst.fold(0.0, f64::max) < 1e-7);
    }

    #[test]
    fn exp_is_exact_at_zero_and_nothing_far_below() {
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-87.1), exp(f32::MIN), exp(f32::NEG_INFINITY)), (0.0, 0.0, 0.0));
        assert!(exp(SMALLEST) > f32::MIN_POSITIVE);
    }
}
