//! What happens to single logits before a draw, beside the slow way: id by id, straight from the documentation.

use llm_core::Result;
use llm_core::sampling::{
    History, RowSpec, Sampled, SamplingParams, TokenCounts, TokenLogprob, TokenMask, VocabMask, sample_rows,
    token_logprobs,
};
use proptest::prelude::*;

const INF: f32 = f32::INFINITY;

/// A row with all that may change its logits.
#[derive(Debug, Clone)]
struct Case {
    logits: Vec<f32>,
    mask: VocabMask,
    params: SamplingParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    banned: Vec<u32>,
    allowed: Option<TokenMask>,
}

impl Case {
    fn counts(&self) -> TokenCounts {
        let mut counts = TokenCounts::from_prompt(&self.prompt);
        self.output.iter().for_each(|&id| counts.push_output(id));
        counts
    }

    fn spec<'a>(&'a self, history: History<'a>) -> [Option<RowSpec<'a>>; 1] {
        let (params, allowed) = (&self.params, self.allowed.as_ref());
        [Some(RowSpec { params, history, banned_ids: &self.banned, allowed, output_idx: self.output.len() })]
    }

    /// The row that a model gives, without what is no token.
    fn slow_mask(&self) -> Vec<f32> {
        let is_token = |id: usize| id < self.mask.vocab_size && self.mask.pad_id != Some(id as u32);
        self.logits.iter().enumerate().map(|(id, &logit)| if is_token(id) { logit } else { -INF }).collect()
    }

    /// The row that is drawn from.
    fn slow_changes(&self) -> Vec<f32> {
        let changed = |(index, logit): (usize, f32)| {
            let (id, params) = (index as u32, &self.params);
            let mut logit = if self.allowed.as_ref().is_none_or(|allowed| allowed.contains(id)) { logit } else { -INF };
            for (_, bias) in params.logit_bias.iter().filter(|(biased, _)| *biased == id) {
                logit += bias;
            }
            let repetition = params.repetition_penalty as f32;
            let count = self.output.iter().filter(|&&seen| seen == id).count() as f32;
            if count > 0.0 || self.prompt.contains(&id) {
                logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
            }
            if count > 0.0 {
                logit -= params.frequency_penalty as f32 * count + params.presence_penalty as f32;
            }
            if self.banned.contains(&id) { -INF } else { logit }
        };
        self.slow_mask().into_iter().enumerate().map(changed).collect()
    }
}

/// Ids in the order of their logits, of equals the lower first.
fn ranked(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b)));
    ids
}

fn slow_logprobs(row: &[f32], id: u32, n: usize) -> TokenLogprob {
    let normalizer = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(row[id as usize]) - normalizer) as f32;
    let order = ranked(row);
    let possible = order.iter().filter(|&&id| row[id as usize] > -INF).take(n);
    TokenLogprob {
        logprob: logprob(id),
        rank: order.iter().position(|&other| other == id).unwrap() as u32 + 1,
        top: possible.map(|&id| (id, logprob(id))).collect(),
    }
}

/// A number, to rounding in f32; -inf is only near itself.
fn near(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() < 1e-5 + 2e-7 * b.abs()
}

fn same(found: &TokenLogprob, expected: &TokenLogprob) -> bool {
    let pairs = found.top.iter().zip(&expected.top);
    near(found.logprob, expected.logprob)
        && found.rank == expected.rank
        && found.top.len() == expected.top.len()
        && pairs.into_iter().all(|(a, b)| a.0 == b.0 && near(a.1, b.1))
}

fn any_params(vocab_len: u32) -> impl Strategy<Value = SamplingParams> {
    let penalty = || prop_oneof![Just(0.0), -2.0..2.0f64];
    let repetition = prop_oneof![Just(1.0), 0.5..2.0f64];
    let bias = prop::collection::vec((0..vocab_len + 9, prop_oneof![-100.0..100.0f32, Just(0.25)]), 0..4);
    let logprobs = prop::option::of(0..6usize);
    (prop_oneof![Just(0.0), 0.2..2.0f64], repetition, penalty(), penalty(), bias, logprobs).prop_map(
        |(temperature, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, logprobs)| SamplingParams {
            temperature,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            logprobs,
            ..SamplingParams::default()
        },
    )
}

/// Rows of up to three chunks, with equals and masked ids; each change may be absent, and ids may lie past the row.
fn any_case() -> impl Strategy<Value = Case> {
    // Quarters of which many are equal, or whole numbers of which few are; bfloat16 holds both.
    let quarter = |of: std::ops::Range<i32>| of.prop_map(|number| number as f32 / 4.0);
    let whole = |of: std::ops::Range<i32>| of.prop_map(|number| number as f32);
    let rows = prop_oneof![
        prop::collection::vec(prop_oneof![9 => quarter(-20..20), 1 => Just(-INF)], 2..400),
        prop::collection::vec(prop_oneof![9 => whole(-200..200), 1 => Just(-INF)], 2..400),
    ];
    rows.prop_flat_map(|logits| {
        let len = logits.len();
        let ids = |most| prop::collection::vec(0..len as u32 + 9, 0..most);
        // Few allowed ids are often no tokens, so that none is left.
        let allowed = prop_oneof![ids(len), ids(3)].prop_map(|ids| ids.into_iter().collect::<TokenMask>());
        let allowed = prop::option::of(allowed);
        let mask = (len / 2..len + 2, prop::option::of(0..len as u32 + 2));
        (Just(logits), mask, any_params(len as u32), ids(40), ids(20), ids(5), allowed).prop_map(
            |(logits, (vocab_size, pad_id), params, prompt, output, banned, allowed)| {
                let mask = VocabMask { vocab_size, pad_id };
                Case { logits, mask, params, prompt, output, banned, allowed }
            },
        )
    })
}

fn sample(logits: &mut [f32], case: &Case, history: History<'_>) -> Result<Sampled> {
    sample_rows(logits, case.logits.len(), case.mask, &case.spec(history)).remove(0).unwrap()
}

#[test]
fn an_id_just_past_the_row_is_ignored_by_memory_that_is_new() {
    // A new thread has no memory that a longer row left, and 64 ids fill a word of it.
    let row = std::thread::spawn(|| {
        let mut row = vec![1.0f32; 64];
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        let history = History::Ids { prompt: &[3, 64], output: &[u32::MAX] };
        let spec = RowSpec { params: &params, history, banned_ids: &[], allowed: None, output_idx: 1 };
        let mask = VocabMask { vocab_size: 64, pad_id: None };
        assert!(sample_rows(&mut row, 64, mask, &[Some(spec)]).remove(0).unwrap().is_ok());
        row
    });
    let expected: Vec<f32> = (0..64).map(|id| if id == 3 { 0.5 } else { 1.0 }).collect();
    assert_eq!(row.join().unwrap(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_change_of_a_logit_is_the_documented_one(case in any_case()) {
        let (counts, expected) = (case.counts(), case.slow_changes());
        let ids = History::Ids { prompt: &case.prompt, output: &case.output };
        let mut first = None;
        for history in [History::Counted(&counts), ids] {
            let mut row = case.logits.clone();
            let sampled = sample(&mut row, &case, history);
            if case.slow_mask().iter().all(|&logit| logit == -INF) {
                prop_assert!(sampled.unwrap_err().to_string().starts_with("the model's logits must hold"));
                continue;
            }
            // What was drawn from is left in place of the row.
            prop_assert_eq!(&row, &expected);
            if expected.iter().all(|&logit| logit == -INF) {
                let named = case.allowed.is_some() || !case.params.logit_bias.is_empty();
                let start = if named { "the logits after the grammar" } else { "the logits after penalties" };
                prop_assert!(sampled.unwrap_err().to_string().starts_with(start));
                continue;
            }
            let sampled = sampled.unwrap();
            prop_assert!(expected[sampled.id as usize] > -INF);
            if case.params.is_greedy() {
                prop_assert_eq!(sampled.id, ranked(&expected)[0]);
            }
            prop_assert_eq!(sampled.logprobs.is_some(), case.params.logprobs.is_some());
            if let (Some(found), Some(n)) = (&sampled.logprobs, case.params.logprobs) {
                let slow = slow_logprobs(&case.slow_mask(), sampled.id, n);
                prop_assert!(same(found, &slow), "{found:?} {slow:?}");
            }
            prop_assert_eq!(first.get_or_insert_with(|| sampled.clone()), &sampled);
        }
    }

    #[test]
    fn a_bfloat16_row_gives_what_the_same_numbers_give_in_float32(case in any_case()) {
        let counts = case.counts();
        let mut bits: Vec<u16> = case.logits.iter().map(|logit| (logit.to_bits() >> 16) as u16).collect();
        let narrow = sample_rows(&mut bits, case.logits.len(), case.mask, &case.spec(History::Counted(&counts)));
        let wide = sample(&mut case.logits.clone(), &case, History::Counted(&counts));
        match (narrow.into_iter().next().unwrap().unwrap(), wide) {
            (Ok(narrow), Ok(wide)) => prop_assert_eq!(narrow, wide),
            (narrow, wide) => prop_assert_eq!(narrow.unwrap_err().to_string(), wide.unwrap_err().to_string()),
        }
    }

    #[test]
    fn a_given_token_is_ranked_as_by_sorting(case in any_case(), n in 0..6usize, at in any::<prop::sample::Index>()) {
        let (row, id) = (case.slow_mask(), at.index(case.logits.len()) as u32);
        let found = token_logprobs(&mut case.logits.clone(), row.len(), case.mask, &[id], n).remove(0);
        if row.iter().all(|&logit| logit == -INF) {
            prop_assert!(found.is_err());
        } else {
            let (found, slow) = (found.unwrap(), slow_logprobs(&row, id, n));
            prop_assert!(same(&found, &slow), "{found:?} {slow:?}");
        }
    }
}
