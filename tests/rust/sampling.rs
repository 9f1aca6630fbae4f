//! Tests of `llm_core::sampling`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod changes;

use llm_core::sampling::{
    History, RowSpec, Sampled, SamplingParams, TokenCounts, TokenMask, VocabMask, philox4x32_10, sample_rows,
    stream_key, uniform,
};
use proptest::prelude::*;

const INF: f32 = f32::INFINITY;

fn whole(vocab_size: usize) -> VocabMask {
    VocabMask { vocab_size, pad_id: None }
}

fn sample_one(row: &[f32], params: &SamplingParams, history: &TokenCounts, output_idx: usize) -> Sampled {
    let spec = RowSpec { params, history: History::Counted(history), banned_ids: &[], allowed: None, output_idx };
    let mut row = row.to_vec();
    let vocab_len = row.len();
    let mut sampled = sample_rows(&mut row, vocab_len, whole(vocab_len), &[Some(spec)]);
    sampled.remove(0).unwrap().unwrap()
}

/// Every id drawn in many draws.
fn support(row: &[f32], params: &SamplingParams) -> Vec<u32> {
    let counts = TokenCounts::default();
    let mut ids: Vec<u32> = (0..400).map(|idx| sample_one(row, params, &counts, idx).id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn philox_gives_random123_known_answers() {
    let answers = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in answers {
        assert_eq!(philox4x32_10(counter, key), expected);
    }
}

#[test]
fn uniform_takes_the_top_53_bits_of_the_first_two_words() {
    let expected = (0xe169_c58d_6627_e8d5_u64 >> 11) as f64 / (1u64 << 53) as f64;
    assert_eq!(uniform(0, 0, 0), expected);
    assert_ne!(uniform(0, 1, 0), expected);
    assert_ne!(uniform(0, 0, 1), expected);
    assert_ne!(uniform(1 << 32, 0, 0), expected);
    assert_ne!(uniform(0, 1 << 32, 0), expected);
}

#[test]
fn stream_key_is_the_seed_for_the_first_choice_and_differs_for_others() {
    assert_eq!(stream_key(42, 0), 42);
    // First output of SplitMix64 seeded with 0, from its authors' reference code.
    assert_eq!(stream_key(0, 1), 0xe220_a839_7b1d_cdaf);
    assert_ne!(stream_key(42, 1), stream_key(42, 2));
    assert_ne!(stream_key(42, 1), stream_key(43, 1));
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    assert_eq!(sample_one(&[0.5, 2.0, 2.0, -1.0], &params, &TokenCounts::default(), 0).id, 1);
    let underflowing = SamplingParams { temperature: 1e-50, ..SamplingParams::default() };
    assert_eq!(sample_one(&[0.5, 2.0, 2.0, -1.0], &underflowing, &TokenCounts::default(), 0).id, 1);
}

#[test]
fn tiny_temperature_does_not_overflow() {
    let params = SamplingParams { temperature: 1e-40, ..SamplingParams::default() };
    assert_eq!(sample_one(&[1e38, 3e38, -3e38], &params, &TokenCounts::default(), 0).id, 1);
}

#[test]
fn filters_keep_exactly_their_set() {
    let base = SamplingParams::default();
    let row = [1.0f32, 3.0, 2.0, 3.0, 2.0].map(f32::ln); // probabilities 1/11, 3/11, 2/11, 3/11, 2/11
    let cases = [
        (SamplingParams { top_k: 3, ..base.clone() }, vec![1, 2, 3]), // of the equals at the border the lower id
        (SamplingParams { top_k: 1, ..base.clone() }, vec![1]),
        (SamplingParams { top_k: 99, ..base.clone() }, vec![0, 1, 2, 3, 4]),
        (SamplingParams { top_p: 0.2, ..base.clone() }, vec![1]),
        (SamplingParams { top_p: 0.5, ..base.clone() }, vec![1, 3]),
        (SamplingParams { top_p: 0.6, ..base.clone() }, vec![1, 2, 3]),
        (SamplingParams { top_p: 1e-9, ..base.clone() }, vec![1]),
        (SamplingParams { min_p: 0.6, ..base.clone() }, vec![1, 2, 3, 4]),
        (SamplingParams { min_p: 1.0, ..base.clone() }, vec![1, 3]),
        (SamplingParams { top_k: 3, top_p: 0.7, ..base.clone() }, vec![1, 3]), // mass counts within top-k: 6/8
        (SamplingParams { temperature: 1e-3, ..base.clone() }, vec![1, 3]),
        (base, vec![0, 1, 2, 3, 4]),
    ];
    for (params, expected) in cases {
        assert_eq!(support(&row, &params), expected, "{params:?}");
    }
    // Fewer tokens are possible than top-k keeps.
    let three = SamplingParams { top_k: 3, ..SamplingParams::default() };
    assert_eq!(support(&[0.0, -INF, -INF, 0.0], &three), [0, 3]);
}

#[test]
fn top_p_reaches_past_its_first_head() {
    // 5,000 equals: the border lies beyond two heads.
    let params = SamplingParams { top_p: 0.5, ..SamplingParams::default() };
    let row = vec![0.0f32; 5000];
    let highest = (0..300).map(|idx| sample_one(&row, &params, &TokenCounts::default(), idx).id).max();
    assert!(highest.is_some_and(|id| (2400..2500).contains(&id)), "{highest:?}");
}

#[test]
fn penalties_follow_their_formulas() {
    let mut history = TokenCounts::from_prompt(&[0, 1]);
    [2, 2, 3].into_iter().for_each(|id| history.push_output(id));
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let pick = |row: &[f32], params: &SamplingParams| sample_one(row, params, &history, 5).id;
    // 4/2 = 2 < 2.5, and -1*2 = -2 < -1.5: the penalised lose to the unseen id 4.
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy.clone() };
    assert_eq!(pick(&[4.0, 4.0, 4.0, 4.0, 2.5], &repetition), 4);
    assert_eq!(pick(&[-1.0, -1.0, -1.0, -1.0, -1.5], &repetition), 4);
    assert_eq!(pick(&[5.5, 0.0, 0.0, 0.0, 2.5], &repetition), 0);
    // Twice 0.6 costs more than once; the prompt costs nothing.
    let frequency = SamplingParams { frequency_penalty: 0.6, ..greedy.clone() };
    assert_eq!(pick(&[0.0, 0.0, 2.0, 1.5, 0.0], &frequency), 3);
    assert_eq!(pick(&[1.0, 0.0, 2.0, 1.5, 0.0], &frequency), 0);
    // Presence costs the same however often.
    let presence = SamplingParams { presence_penalty: 0.6, ..greedy };
    assert_eq!(pick(&[1.3, 0.0, 2.0, 1.9, 0.0], &presence), 2);
}

#[test]
fn padding_and_ids_past_the_vocabulary_are_never_drawn() {
    let params = SamplingParams { logprobs: Some(5), ..SamplingParams::default() };
    let counts = TokenCounts::default();
    let mask = VocabMask { vocab_size: 3, pad_id: Some(1) };
    for output_idx in 0..200 {
        let spec = RowSpec {
            params: &params,
            history: History::Counted(&counts),
            banned_ids: &[2],
            allowed: None,
            output_idx,
        };
        // What no token can come of may be anything, even NaN.
        let mut row = [0.0, INF, 0.0, f32::NAN, 50.0];
        let sampled = sample_rows(&mut row, 5, mask, &[Some(spec)]).remove(0).unwrap().unwrap();
        assert_eq!(sampled.id, 0);
        // Banned ids are no part of the raw distribution's mask.
        assert_eq!(sampled.logprobs.as_ref().unwrap().logprob, -std::f32::consts::LN_2);
        assert_eq!(
            sampled.logprobs.as_ref().unwrap().top,
            [(0, -std::f32::consts::LN_2), (2, -std::f32::consts::LN_2)]
        );
    }
}

#[test]
fn a_mask_allows_its_ids_alone() {
    let ids = [0, 63, 64, 130];
    let mask: TokenMask = ids.into_iter().collect();
    assert_eq!(mask, TokenMask::from_words(vec![1 | 1 << 63, 1, 4]));
    assert_eq!((mask.highest(), mask.is_empty()), (Some(130), false));
    assert!(TokenMask::from_words(vec![0; 3]).is_empty());
    for (others, both) in [(vec![0, 5, 64, 200], vec![0, 64]), (vec![63], vec![63]), (vec![], vec![])] {
        let mut common = mask.clone();
        common.intersect(&others.into_iter().collect());
        assert_eq!((0..300).filter(|&id| common.contains(id)).collect::<Vec<u32>>(), both);
    }
    for vocab_len in [131, 200, 700] {
        let mut row = vec![1.0f32; vocab_len];
        mask.apply(&mut row);
        let left: Vec<usize> = (0..vocab_len).filter(|&id| row[id] == 1.0).collect();
        assert_eq!(left, ids.map(|id| id as usize));
    }
}

#[test]
fn a_batch_on_several_threads_is_sampled_as_row_by_row() {
    // Enough logits for the pool to be used.
    let (num_rows, vocab_len) = (24, 5000);
    let logits: Vec<f32> = (0..num_rows * vocab_len).map(|idx| (uniform(5, idx as u64, 0) * 9.0) as f32).collect();
    let params = |row: usize| SamplingParams {
        seed: row as u64,
        top_k: [0, 40, 5000][row % 3],
        top_p: [1.0, 0.7][row % 2],
        typical_p: [1.0, 1.0, 1.0, 0.8][row % 4],
        repetition_penalty: 1.2,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let all: Vec<SamplingParams> = (0..num_rows).map(params).collect();
    let (prompt, output) = ((0..300).collect::<Vec<u32>>(), vec![7, 7, 4000]);
    let spec = |params| {
        let history = History::Ids { prompt: &prompt, output: &output };
        Some(RowSpec { params, history, banned_ids: &[9], allowed: None, output_idx: 3 })
    };
    let specs: Vec<_> = all.iter().map(spec).collect();
    let together = sample_rows(&mut logits.clone(), vocab_len, whole(vocab_len), &specs);
    let mut counts = TokenCounts::from_prompt(&prompt);
    output.iter().for_each(|&id| counts.push_output(id));
    for (row, sampled) in together.into_iter().enumerate() {
        let counted = RowSpec { history: History::Counted(&counts), ..specs[row].unwrap() };
        let mut alone = logits[row * vocab_len..(row + 1) * vocab_len].to_vec();
        let expected = sample_rows(&mut alone, vocab_len, whole(vocab_len), &[Some(counted)]).remove(0);
        assert_eq!(sampled.unwrap().unwrap(), expected.unwrap().unwrap());
    }
}

#[test]
fn typical_sampling_drops_the_likeliest_where_it_is_no_surprise_enough() {
    // Probabilities 0.4 and six of 0.1: the entropy, 1.75, is nearer to -ln 0.1 = 2.30 than to -ln 0.4 = 0.92.
    let row = [4.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0].map(f32::ln);
    let of = |typical_p| support(&row, &SamplingParams { typical_p, ..SamplingParams::default() });
    assert_eq!(of(0.25), [1, 2, 3]);
    assert_eq!(of(0.59), [1, 2, 3, 4, 5, 6]);
    assert_eq!(of(0.7), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let params = SamplingParams { temperature: 0.0, repetition_penalty: 50.0, logprobs: Some(2), ..Default::default() };
    let row = [1.0f32, 5.0, 4.0].map(f32::ln);
    let sampled = sample_one(&row, &params, &TokenCounts::from_prompt(&[1]), 0);
    assert_eq!(sampled.id, 2);
    assert!((sampled.logprobs.as_ref().unwrap().logprob - 0.4f32.ln()).abs() < 1e-6);
    assert_eq!(sampled.logprobs.as_ref().unwrap().top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
    assert!((sampled.logprobs.as_ref().unwrap().top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn a_row_that_is_not_finite_fails_alone() {
    let params = SamplingParams::default();
    let counts = TokenCounts::default();
    let spec = Some(RowSpec {
        params: &params,
        history: History::Counted(&counts),
        banned_ids: &[],
        allowed: None,
        output_idx: 0,
    });
    let mut logits = vec![0.0, 0.0, 0.0, f32::NAN, -INF, -INF, INF, 0.0, 0.0, -INF];
    let sampled = sample_rows(&mut logits, 2, whole(2), &[spec, spec, spec, spec, spec]);
    let errors: Vec<String> =
        sampled.iter().flatten().filter_map(|row| Some(row.as_ref().err()?.to_string())).collect();
    assert!(sampled[0].as_ref().unwrap().is_ok() && sampled[4].as_ref().unwrap().is_ok());
    assert!(errors[0].contains("got NaN at token id 1"), "{}", errors[0]);
    assert!(errors[1].contains("got -inf everywhere"), "{}", errors[1]);
    assert!(errors[2].contains("got inf at token id 0"), "{}", errors[2]);
}

#[test]
fn validate_names_the_field_and_its_range() {
    type Set = fn(&mut SamplingParams, f64);
    /// Name, allowed range, setter, values inside the range and outside of it.
    type Field = (&'static str, &'static str, Set, &'static [f64], &'static [f64]);
    let fields: [Field; 8] = [
        ("temperature", "finite and at least 0", |p, v| p.temperature = v, &[0.0, 1e9], &[-1e-9, f64::INFINITY]),
        ("top_p", "in (0, 1]", |p, v| p.top_p = v, &[1e-9, 1.0], &[0.0, -0.5, 1.001, f64::INFINITY]),
        ("min_p", "in [0, 1]", |p, v| p.min_p = v, &[0.0, 1.0], &[-0.001, 1.001]),
        ("typical_p", "in (0, 1]", |p, v| p.typical_p = v, &[1e-9, 1.0], &[0.0, -0.5, 1.001]),
        (
            "repetition_penalty",
            "finite and above 0",
            |p, v| p.repetition_penalty = v,
            &[1e-9, 9.0],
            &[0.0, -2.0, f64::INFINITY],
        ),
        ("presence_penalty", "finite", |p, v| p.presence_penalty = v, &[-5.0, 0.0, 5.0], &[f64::INFINITY]),
        ("frequency_penalty", "finite", |p, v| p.frequency_penalty = v, &[-5.0, 0.0, 5.0], &[f64::NEG_INFINITY]),
        (
            "logit_bias[7]",
            "in [-100, 100]",
            |p, v| p.logit_bias = vec![(7, v as f32)],
            &[-100.0, 100.0],
            &[-100.5, 100.5],
        ),
    ];
    for (name, allowed, set, good, bad) in fields {
        let checked = |value: f64| {
            let mut params = SamplingParams::default();
            set(&mut params, value);
            params.validate().map_err(|error| error.to_string())
        };
        for &value in good {
            assert_eq!(checked(value), Ok(()), "{name} {value}");
        }
        for &value in bad.iter().chain(&[f64::NAN]) {
            assert_eq!(checked(value), Err(format!("`{name}` must be {allowed}, got {value}")));
        }
    }
    let none = SamplingParams { allowed_token_ids: Some(TokenMask::default().into()), ..SamplingParams::default() };
    assert!(none.validate().unwrap_err().to_string().starts_with("`allowed_token_ids` must name at least one id"));
}

/// The probabilities a row ends with, by sorting everything in f64: the slow, obvious way.
fn slow_probabilities(row: &[f32], params: &SamplingParams) -> Vec<f64> {
    let max = row.iter().copied().fold(-INF, f32::max);
    let scaled: Vec<f64> = row.iter().map(|logit| f64::from((logit - max) / params.temperature as f32)).collect();
    let weight = |id: usize| scaled[id].exp();
    let mass = |ids: &[usize]| ids.iter().map(|&id| weight(id)).sum::<f64>();
    let mut order: Vec<usize> = (0..row.len()).filter(|&id| row[id] > -INF).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    keep_first(&mut order, params.top_p, &weight);
    order.retain(|&id| weight(id) >= params.min_p);
    if params.typical_p < 1.0 {
        let total = mass(&order);
        let surprise = |id: usize| -(weight(id) / total).ln();
        let entropy: f64 = order.iter().map(|&id| weight(id) / total * surprise(id)).sum();
        let distance = |id: usize| (surprise(id) - entropy).abs();
        order.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
        keep_first(&mut order, params.typical_p, &weight);
    }
    let kept = mass(&order);
    let mut probabilities = vec![0.0; row.len()];
    order.iter().for_each(|&id| probabilities[id] = weight(id) / kept);
    probabilities
}

/// Keeps the first ids whose share of the mass is at least `share`.
fn keep_first(order: &mut Vec<usize>, share: f64, weight: &impl Fn(usize) -> f64) {
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut mass = 0.0;
    order.retain(|&id| {
        let keep = share >= 1.0 || mass < share * total;
        mass += weight(id);
        keep
    });
}

/// Rows of one chunk or of many, high or low, with ids that can't be drawn.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![19 => -6.0f32..6.0, 1 => Just(-INF)];
    let len = prop_oneof![1 => 1..25usize, 4 => 1..300usize, 1 => 300..2000usize];
    (len.prop_flat_map(move |len| prop::collection::vec(logit.clone(), len)), -6.0f32..6.0, -40.0f32..40.0).prop_map(
        |(mut row, finite, shift)| {
            row[0] = finite;
            row.into_iter().map(|logit| logit + shift).collect()
        },
    )
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let share = || prop_oneof![Just(1.0), 0.05..1.0f64];
    let min_p = prop_oneof![Just(0.0), 0.0..0.5f64];
    (0.2..2.0f64, 0..20usize, share(), min_p, share(), any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, typical_p, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            seed,
            ..SamplingParams::default()
        },
    )
}

proptest! {
    #[test]
    fn sampling_equals_the_slow_way(row in any_row(), params in any_params()) {
        let probabilities = slow_probabilities(&row, &params);
        for output_idx in 0..20 {
            let id = sample_one(&row, &params, &TokenCounts::default(), output_idx).id as usize;
            let below: f64 = probabilities[..id].iter().sum();
            let uniform = uniform(params.seed, output_idx as u64, 0);
            // fp32 weights: the draw may miss a border by rounding, never more.
            prop_assert!(below - 1e-5 <= uniform && uniform <= below + probabilities[id] + 1e-5);
        }
    }

    #[test]
    fn a_draw_does_not_depend_on_the_batch(
        rows in prop::collection::vec((prop::collection::vec(-6.0f32..6.0, 40), any_params(), 0..9usize), 1..12),
    ) {
        let counts = TokenCounts::from_prompt(&[1, 2, 3]);
        let mut logits: Vec<f32> = rows.iter().flat_map(|(row, ..)| row.clone()).collect();
        let specs: Vec<_> = (rows.iter())
            .map(|(_, params, idx)| Some(RowSpec { params, history: History::Counted(&counts), banned_ids: &[], allowed: None, output_idx: *idx }))
            .collect();
        let together = sample_rows(&mut logits, 40, whole(40), &specs);
        for ((row, params, idx), sampled) in rows.iter().zip(together) {
            prop_assert_eq!(sample_one(row, params, &counts, *idx), sampled.unwrap().unwrap());
        }
    }
}
