//! Attention in training against its formula in f64.

use llm_core::kernels::{AttentionRule, CausalAttention, Isa, Kept, Rotation};

const RULE: AttentionRule = AttentionRule { num_heads: 4, num_kv_heads: 2, head_dim: 32, scale: 0.2 };
const WIDTH: usize = RULE.head_dim;
/// Query, key and value heads of a token.
const ALL_HEADS: usize = RULE.num_heads + 2 * RULE.num_kv_heads;

fn random(len: usize, mut state: u64) -> Vec<f32> {
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    })
    .take(len)
    .collect()
}

/// Returns the product of the output and `gradient`, a number whose gradient the backward pass computes.
fn objective(joined: &[f64], starts: &[usize], cosine: &[f32], sine: &[f32], gradient: &[f32]) -> f64 {
    let head = |token: usize, head: usize| -> Vec<f64> {
        let from = &joined[(token * ALL_HEADS + head) * WIDTH..][..WIDTH];
        if head >= RULE.num_heads + RULE.num_kv_heads {
            return from.to_vec();
        }
        let half = WIDTH / 2;
        let turn = |pair: usize| (f64::from(cosine[token * half + pair]), f64::from(sine[token * half + pair]));
        let first = (0..half).map(|pair| from[pair] * turn(pair).0 - from[half + pair] * turn(pair).1);
        first.chain((0..half).map(|pair| from[half + pair] * turn(pair).0 + from[pair] * turn(pair).1)).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut total = 0.0;
    for sequence in starts.windows(2) {
        for token in sequence[0]..sequence[1] {
            for query in 0..RULE.num_heads {
                let kv_head = query / (RULE.num_heads / RULE.num_kv_heads);
                let values = RULE.num_heads + RULE.num_kv_heads + kv_head;
                let weight = |key: usize| {
                    let score = dot(&head(token, query), &head(key, RULE.num_heads + kv_head));
                    (score * f64::from(RULE.scale)).exp()
                };
                let weights: Vec<f64> = (sequence[0]..=token).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                let wanted: Vec<f64> = gradient[(token * RULE.num_heads + query) * WIDTH..][..WIDTH]
                    .iter()
                    .map(|&g| f64::from(g))
                    .collect();
                for (key, weight) in (sequence[0]..=token).zip(weights) {
                    total += weight / sum * dot(&head(key, values), &wanted);
                }
            }
        }
    }
    total
}

#[test]
fn gradients_are_the_slopes_of_the_output_for_every_instruction_set() {
    let starts = [0, 5, 6, 75];
    let tokens = starts[3];
    let joined = random(tokens * ALL_HEADS * WIDTH, 1);
    let gradient = random(tokens * RULE.num_heads * WIDTH, 2);
    let angles = random(tokens * WIDTH / 2, 3);
    let (cosine, sine): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    let wide: Vec<f64> = joined.iter().map(|&value| f64::from(value)).collect();
    let formula = |joined: &[f64]| objective(joined, &starts, &cosine, &sine, &gradient);
    for isa in Isa::supported() {
        let attention = CausalAttention {
            rule: RULE,
            starts: &starts,
            rotation: Some(Rotation { cosine: &cosine, sine: &sine }),
            joined: &joined[..],
            isa,
            num_threads: 2,
        };
        let (mut mixed, mut logsumexp) = (vec![f32::NAN; gradient.len()], vec![f32::NAN; tokens * RULE.num_heads]);
        attention.forward(&mut mixed, &mut logsumexp).unwrap();
        let found: f64 = mixed.iter().zip(&gradient).map(|(a, b)| f64::from(a * b)).sum();
        assert!((found - formula(&wide)).abs() < 1e-3, "{isa:?}: {found}");
        let mut to_joined = vec![f32::NAN; joined.len()];
        let kept = Kept { mixed: &mixed[..], logsumexp: &logsumexp };
        attention.backward(kept, &gradient, &mut to_joined).unwrap();
        for at in (0..joined.len()).step_by(2_311) {
            let slope = |step: f64| {
                let mut moved = wide.clone();
                moved[at] += step;
                formula(&moved)
            };
            let wanted = (slope(1e-4) - slope(-1e-4)) / 2e-4;
            assert!((f64::from(to_joined[at]) - wanted).abs() < 1e-4, "{isa:?}, {at}: {} {wanted}", to_joined[at]);
        }
    }
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let joined = vec![0.0_f32; 2 * ALL_HEADS * WIDTH];
    let attention = CausalAttention {
        rule: RULE,
        starts: &[0, 2],
        rotation: None,
        joined: &joined[..],
        isa: Isa::detect(),
        num_threads: 1,
    };
    let mut mixed = vec![0.0; 2 * RULE.num_heads * WIDTH];
    let found = attention.forward(&mut mixed, &mut [0.0; 3]).unwrap_err().to_string();
    assert!(found.contains("`logsumexp` must hold 8 numbers, got 3"), "{found}");
    let falling = CausalAttention { starts: &[0, 3, 2], ..attention };
    assert!(falling.forward(&mut mixed, &mut [0.0; 8]).is_err());
}
