//! Training's operations between products, for every instruction set.

use llm_core::kernels::{
    AdamW, Bf16, Gelu, Gradient, Isa, Labels, Normed, Number, RowNorm, Team, Trained, Upstream, adamw, gelu,
    gradient_norm,
};

const WIDTH: usize = 48;

fn rows(num: usize) -> Vec<f32> {
    (0..num * WIDTH).map(|at| ((at * 37 % 101) as f32 - 50.0) / 25.0).collect()
}

#[test]
fn gelu_is_the_share_below_a_normal_number_and_its_slope() {
    let points = [-14.0, -5.0, -3.0, -1.0, 0.0, 1.0, 2.0, 14.0_f32];
    let shares = [0.0, 2.866_515_6e-7, 1.349_898e-3, 0.158_655_26, 0.5, 0.841_344_8, 0.977_249_86, 1.0_f32];
    for isa in Isa::supported() {
        for length in [1, 8, 21] {
            let given: Vec<f32> = points.iter().copied().cycle().take(length).collect();
            let (mut active, mut slope) = (vec![f32::NAN; length], vec![2.0; length]);
            gelu(Gelu::Exact, &given, &mut active, None, Team { isa, threads: 1 }).unwrap();
            let alone = active.clone();
            gelu(Gelu::Exact, &given, &mut active, Some(&mut slope), Team { isa, threads: 2 }).unwrap();
            assert_eq!(active, alone);
            for (at, x) in given.iter().enumerate() {
                let (share, density) = (shares[at % 8], (-x * x / 2.0).exp() * 0.398_942_3);
                assert!(
                    (active[at] - x * share).abs() <= 5e-7 * (x * share).abs() + 1e-30,
                    "{isa:?}, {x}: {}",
                    active[at]
                );
                assert!((slope[at] / 2.0 - (share + x * density)).abs() < 3e-7, "{isa:?}, {x}: {}", slope[at]);
            }
            slope.fill(1.0);
            gelu(Gelu::Tanh, &given, &mut active, Some(&mut slope), Team { isa, threads: 1 }).unwrap();
            for (at, x) in given.iter().map(|&x| f64::from(x)).enumerate() {
                let formula = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh());
                let rise = (formula(x + 1e-5) - formula(x - 1e-5)) / 2e-5;
                assert!((f64::from(active[at]) - formula(x)).abs() < 2e-6, "{isa:?}, {x}: {}", active[at]);
                assert!((f64::from(slope[at]) - rise).abs() < 3e-6, "{isa:?}, {x}: {}", slope[at]);
            }
        }
    }
}

/// Returns the product of normalized rows and `gradient`.
fn objective(rows: &[f64], weight: &[f32], bias: Option<&[f32]>, gradient: &[f32]) -> f64 {
    let width = WIDTH as f64;
    let mut total = 0.0;
    for (row, gradient) in rows.chunks(WIDTH).zip(gradient.chunks(WIDTH)) {
        let mean = if bias.is_some() { row.iter().sum::<f64>() / width } else { 0.0 };
        let spread = (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width + 1e-5).sqrt();
        for column in 0..WIDTH {
            let shift = bias.map_or(0.0, |bias| f64::from(bias[column]));
            let normed = (row[column] - mean) / spread * f64::from(weight[column]) + shift;
            total += normed * f64::from(gradient[column]);
        }
    }
    total
}

#[test]
fn gradients_of_norms_are_slopes_and_the_same_for_every_number_of_threads() {
    let (given, gradient, residual) = (rows(131), rows(132)[WIDTH..].to_vec(), rows(133)[2 * WIDTH..].to_vec());
    let (weight, bias) = (&rows(3)[WIDTH..2 * WIDTH], &rows(3)[2 * WIDTH..]);
    let wide: Vec<f64> = given.iter().map(|&x| f64::from(x)).collect();
    for (isa, bias) in Isa::supported().into_iter().flat_map(|isa| [(isa, Some(bias)), (isa, None)]) {
        let results = [1, 3].map(|threads| {
            let norm = RowNorm { weight, bias, eps: 1e-5, is_centered: bias.is_some(), team: Team { isa, threads } };
            let (mut normed, mut kept) = (vec![f32::NAN; given.len()], vec![f32::NAN; 2 * 131]);
            norm.forward(&given, &mut normed, &mut kept).unwrap();
            let found: f64 = normed.iter().zip(&gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((found - objective(&wide, weight, bias, &gradient)).abs() < 1e-2, "{isa:?}: {found}");
            let (mut to_rows, mut to_weight, mut to_bias) =
                (vec![f32::NAN; given.len()], [f32::NAN; WIDTH], [0.0; WIDTH]);
            let mut parts = Normed { rows: &given, kept: &kept, gradient: &gradient[..], residual: None };
            norm.backward(parts, &mut to_rows, (&mut to_weight, None)).unwrap();
            let alone: Vec<f32> = to_rows.iter().zip(&residual).map(|(own, past)| own + past).collect();
            parts.residual = Some(&residual);
            norm.backward(parts, &mut to_rows, (&mut to_weight, Some(&mut to_bias))).unwrap();
            assert!(alone.iter().zip(&to_rows).all(|(sum, found)| (sum - found).abs() < 1e-5), "{isa:?}");
            (normed, to_rows, [to_weight, to_bias].concat())
        });
        assert!(results[0] == results[1], "{isa:?}");
        let (_, to_rows, to_weights) = &results[0];
        for at in (0..given.len()).step_by(611) {
            let moved = |step: f64| {
                let mut moved = wide.clone();
                moved[at] += step;
                objective(&moved, weight, bias, &gradient)
            };
            let wanted = (moved(1e-4) - moved(-1e-4)) / 2e-4 + f64::from(residual[at]);
            assert!((f64::from(to_rows[at]) - wanted).abs() < 1e-4, "{isa:?}, {at}: {} {wanted}", to_rows[at]);
        }
        for column in [0, 17, 47] {
            let moved = |step: f32| {
                let mut moved = weight.to_vec();
                moved[column] += step;
                objective(&wide, &moved, bias, &gradient)
            };
            let wanted = moved(0.5) - moved(-0.5);
            assert!((f64::from(to_weights[column]) - wanted).abs() < 1e-3, "{isa:?}, {column}: {wanted}");
            let sum: f32 = gradient.chunks(WIDTH).map(|row| row[column]).sum();
            assert!((to_weights[WIDTH + column] - sum).abs() < 1e-3, "{isa:?}, {column}: {sum}");
        }
    }
}

#[test]
fn wrong_sizes_are_refused_by_name() {
    let team = Team { isa: Isa::Portable, threads: 1 };
    let found = gelu(Gelu::Exact, &[0.0; 3], &mut [0.0; 3], Some(&mut [0.0; 2]), team).unwrap_err().to_string();
    assert_eq!(found, "`gradient` must hold 3 numbers, got 2");
    let norm = RowNorm { weight: &[1.0; 24], bias: None, eps: 0.0, is_centered: true, team };
    let found = norm.forward(&[0.0; 48], &mut [0.0_f32; 48], &mut [0.0; 4]).unwrap_err().to_string();
    assert_eq!(found, "rows must have the weight's columns, a multiple of 16, got 24 columns and 48 numbers");
    let norm = RowNorm { weight: &[1.0; 32], ..norm };
    let found = norm.forward(&[0.0; 64], &mut [0.0_f32; 64], &mut [0.0; 3]).unwrap_err().to_string();
    assert_eq!(found, "`kept` must hold 4 numbers, got 3");
}

const RULE: AdamW = AdamW { rate: 0.01, decay: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8 };

/// Numbers between -2 and 2 in parts whose lengths fill vectors and chunks, and leave rests of both.
fn parts(seed: usize) -> Vec<Vec<f32>> {
    let number = |at: usize| ((at * 37 + seed * 11) % 101) as f32 / 25.0 - 2.0;
    [1, 15, 16, 8192, 20_001].iter().map(|&length| (0..length).map(number).collect()).collect()
}

#[test]
fn adamw_follows_its_algorithm_with_the_same_bits_for_every_number_of_threads() {
    for isa in Isa::supported() {
        let results = [1, 3].map(|threads| {
            let (mut parameters, gradients) = (parts(1), parts(2));
            let zeros: Vec<Vec<f32>> = parameters.iter().map(|part| vec![0.0; part.len()]).collect();
            let (mut first, mut second) = (zeros.clone(), zeros);
            for step in 1..=3 {
                let mut trained: Vec<Trained<'_>> = parameters
                    .iter_mut()
                    .zip(&mut first)
                    .zip(&mut second)
                    .zip(&gradients)
                    .map(|(((parameter, first), second), gradient)| Trained {
                        parameter,
                        first,
                        second,
                        gradient: gradient.as_slice().into(),
                        step: f64::from(step),
                        rule: RULE,
                    })
                    .collect();
                adamw(&mut trained, 0.5, Team { isa, threads }).unwrap();
            }
            (parameters, first, second)
        });
        assert!(results[0] == results[1], "{isa:?}");
        let numbers = parts(1).concat().into_iter().zip(parts(2).concat()).zip(results[0].0.concat());
        for ((parameter, gradient), found) in numbers {
            let (mut wanted, gradient) = (f64::from(parameter), 0.5 * f64::from(gradient));
            let (mut first, mut second) = (0.0, 0.0);
            for step in 1..=3 {
                wanted *= 1.0 - RULE.rate * RULE.decay;
                first = RULE.beta1 * first + (1.0 - RULE.beta1) * gradient;
                second = RULE.beta2 * second + (1.0 - RULE.beta2) * gradient * gradient;
                let (mean, square) = (first / (1.0 - RULE.beta1.powi(step)), second / (1.0 - RULE.beta2.powi(step)));
                wanted -= RULE.rate * mean / (square.sqrt() + RULE.eps);
            }
            assert!((f64::from(found) - wanted).abs() < 1e-6, "{isa:?}: {found} {wanted}");
        }
    }
}

#[test]
fn the_norm_of_gradients_is_that_of_all_their_numbers() {
    let gradients = parts(3);
    let slices: Vec<Gradient<'_>> = gradients.iter().map(|part| part.as_slice().into()).collect();
    let wanted = gradients.concat().iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
    for isa in Isa::supported() {
        let [alone, shared] = [1, 3].map(|threads| gradient_norm(&slices, Team { isa, threads }).unwrap());
        assert!(
            alone.to_bits() == shared.to_bits() && (alone / wanted - 1.0).abs() < 1e-6,
            "{isa:?}: {alone} {wanted}"
        );
    }
    let bad = gradient_norm(&[Gradient::Wide(&[1.0, f32::NAN])], Team { isa: Isa::Portable, threads: 1 }).unwrap();
    assert!(bad.is_nan());
    assert_eq!(gradient_norm(&[], Team { isa: Isa::Portable, threads: 2 }).unwrap(), 0.0);
}

#[test]
fn gradients_in_bf16_count_as_their_values() {
    let narrow: Vec<Vec<Bf16>> =
        parts(2).iter().map(|part| part.iter().map(|&number| Bf16::of(number)).collect()).collect();
    let wide: Vec<Vec<f32>> = narrow.iter().map(|part| part.iter().map(|number| number.wide()).collect()).collect();
    assert_ne!(wide, parts(2));
    let kinds: [Vec<Gradient<'_>>; 2] = [
        narrow.iter().map(|part| Gradient::Narrow(part)).collect(),
        wide.iter().map(|part| Gradient::Wide(part)).collect(),
    ];
    for isa in Isa::supported() {
        let team = Team { isa, threads: 2 };
        let results = kinds.each_ref().map(|gradients| {
            let (mut parameters, mut first, mut second) = (parts(1), parts(3), parts(4));
            second.iter_mut().flatten().for_each(|number| *number = number.abs());
            let state = parameters.iter_mut().zip(&mut first).zip(&mut second).zip(gradients);
            let mut trained: Vec<Trained<'_>> = state
                .map(|(((parameter, first), second), &gradient)| Trained {
                    parameter,
                    first,
                    second,
                    gradient,
                    step: 2.0,
                    rule: RULE,
                })
                .collect();
            adamw(&mut trained, 0.5, team).unwrap();
            (gradient_norm(gradients, team).unwrap(), parameters, first, second)
        });
        assert!(results[0] == results[1], "{isa:?}");
    }
}

/// Returns the log-probability of a label and the gradient of its logits, in f64.
fn softmax_in_f64(logits: &[f32], label: usize, temperature: f64) -> (f64, Vec<f64>) {
    let scaled: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) / temperature).collect();
    let highest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scaled.iter().map(|logit| (logit - highest).exp()).sum();
    let share = |column: usize| f64::from(u8::from(column == label)) - (scaled[column] - highest).exp() / total;
    (scaled[label] - highest - total.ln(), (0..logits.len()).map(|column| share(column) / temperature).collect())
}

#[test]
fn log_probabilities_and_their_gradients_are_those_of_softmax() {
    for (isa, width, temperature) in Isa::supported().into_iter().flat_map(|isa| {
        [(1, 1.0_f32), (16, 0.7), (65, 1.0), (515, 1.5), (5003, 1.0)].map(|(width, degrees)| (isa, width, degrees))
    }) {
        let num_rows = 7;
        let given: Vec<f32> = (0..num_rows * width).map(|at| ((at * 7919 % 1009) as f32 - 500.0) / 40.0).collect();
        let columns: Vec<i64> = (0..num_rows).map(|row| (row * 31 % width) as i64).collect();
        let factors: Vec<f32> = (0..num_rows).map(|row| row as f32 - 2.5).collect();
        let rule = Labels { labels: &columns, scale: 1.0 / temperature };
        let (mut logits, mut found) = (given.clone(), vec![f32::NAN; num_rows]);
        rule.softmax(&mut logits, &mut found, Upstream::None, Team { isa, threads: 2 }).unwrap();
        assert_eq!(logits, given);
        let mut narrow: Vec<Bf16> = given.iter().map(|&logit| Bf16::of(logit)).collect();
        let (rounded, mut again) = (narrow.iter().map(|logit| logit.wide()).collect::<Vec<f32>>(), found.clone());
        rule.softmax(&mut logits, &mut found, Upstream::Each(&factors), Team { isa, threads: 3 }).unwrap();
        rule.softmax(&mut narrow, &mut again, Upstream::Ones, Team { isa, threads: 1 }).unwrap();
        for row in 0..num_rows {
            let (range, label) = (row * width..(row + 1) * width, row * 31 % width);
            let (wanted, slopes) = softmax_in_f64(&given[range.clone()], label, f64::from(temperature));
            assert!((f64::from(found[row]) - wanted).abs() < 1e-5, "{isa:?}, {width}: {} for {wanted}", found[row]);
            for (logit, slope) in logits[range.clone()].iter().zip(slopes) {
                assert!(
                    (f64::from(*logit) - slope * f64::from(factors[row])).abs() < 2e-6,
                    "{isa:?}, {width}: {logit}"
                );
            }
            let (wanted, slopes) = softmax_in_f64(&rounded[range.clone()], label, f64::from(temperature));
            assert!((f64::from(again[row]) - wanted).abs() < 1e-5, "{isa:?}, {width}: {} for {wanted}", again[row]);
            for (logit, slope) in narrow[range].iter().zip(slopes) {
                let allowed = slope.abs() / 200.0 + 1e-6;
                assert!((f64::from(logit.wide()) - slope).abs() < allowed, "{isa:?}, {width}: {logit:?} for {slope}");
            }
        }
    }
}

#[test]
fn log_probabilities_of_infinite_logits_are_nan_and_bad_labels_are_errors() {
    for (isa, bad) in Isa::supported().into_iter().flat_map(|isa| [(isa, f32::NAN), (isa, f32::INFINITY)]) {
        let (team, mut found) = (Team { isa, threads: 1 }, [0.0; 2]);
        let mut logits: Vec<f32> = (0..42).map(|at| if at == 20 { bad } else { 1.0 }).collect();
        let rule = Labels { labels: &[0, 20], scale: 1.0 };
        rule.softmax(&mut logits, &mut found, Upstream::Ones, team).unwrap();
        assert!(found[0].is_nan() && logits[..21].iter().all(|logit| logit.is_nan()), "{isa:?}, {bad}: {found:?}");
        assert!((found[1] + 21.0_f32.ln()).abs() < 1e-6, "{isa:?}: {found:?}");
        for label in [-100, 21] {
            let rule = Labels { labels: &[0, label], scale: 1.0 };
            let error = rule.softmax(&mut logits, &mut found, Upstream::None, team).unwrap_err().to_string();
            assert!(error.contains(&format!("labels must be columns below 21, got {label}")), "{error}");
        }
    }
}
