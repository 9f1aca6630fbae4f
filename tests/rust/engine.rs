//! Tests of `llm_core::engine`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;

use llm_core::Error;
use llm_core::engine::{EngineConfig, EngineCore, FinishReason, RequestParams, StepOutputs, Submission};
use llm_core::sampling::{SamplingParams, VocabMask, token_logprobs};
use llm_core::scheduler::{SchedulerConfig, StepPlan};
use llm_core::speculation::NgramConfig;
use llm_core::tokenizer::tokens::TokenTable;
use proptest::prelude::*;

use crate::scheduler::fake_model::FakeModel;

/// Ids 0 to 25 are letters, 26 is "é"'s first byte, 27 its second, 28 ends, 29 pads; the model has 32 columns.
const VOCAB: usize = 30;
const COLUMNS: usize = 32;
const EOS: u32 = 28;
const PAD: u32 = 29;
const STOP: u8 = FinishReason::Stop as u8;
const LENGTH: u8 = FinishReason::Length as u8;
const FAILED: u8 = FinishReason::Error as u8;

fn limits(num_blocks: usize, max_batch_tokens: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_batch_tokens,
        max_running_requests: 8,
        max_waiting_requests: 64,
        max_model_len: 64,
        ..SchedulerConfig::default()
    }
}

fn engine(scheduler: SchedulerConfig) -> EngineCore {
    guessing_engine(scheduler, None)
}

fn guessing_engine(scheduler: SchedulerConfig, speculative: Option<NgramConfig>) -> EngineCore {
    let mut token_bytes: Vec<Option<Vec<u8>>> = (b'a'..=b'z').map(|byte| Some(vec![byte])).collect();
    token_bytes.extend([Some(vec![0xC3]), Some(vec![0xA9]), None, None]);
    let table = TokenTable::new(token_bytes, &[EOS, PAD]).unwrap();
    EngineCore::new(EngineConfig {
        table,
        tokenizer: None,
        eos_ids: vec![EOS],
        pad_id: Some(PAD),
        scheduler,
        speculative,
    })
    .unwrap()
}

fn greedy(max_tokens: usize) -> RequestParams {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    RequestParams { sampling, max_tokens: Some(max_tokens), ..RequestParams::default() }
}

/// One row of logits that makes greedy sampling take the ids in this order.
fn row_preferring(ids: &[u32]) -> Vec<f32> {
    let mut row = vec![0.0; COLUMNS];
    ids.iter().enumerate().for_each(|(rank, &id)| row[id as usize] = 10.0 - rank as f32);
    row
}

/// Runs one step in which each sampled row prefers these ids.
fn step_preferring(engine: &mut EngineCore, ids: &[u32]) -> StepOutputs {
    let plan = engine.schedule().unwrap().unwrap().clone();
    let num_rows = plan.logits_indices.len();
    engine.update(&mut row_preferring(ids).repeat(num_rows), (num_rows, COLUMNS)).unwrap()
}

/// Feeds tokens to a single request until it ends. Returns its text, token count and finish reason.
fn generate(params: RequestParams, ids: &[u32]) -> (String, usize, u8) {
    let mut engine = engine(limits(16, 64));
    engine.add_request(1, vec![0], params).unwrap();
    let mut text = String::new();
    for (count, &id) in ids.iter().enumerate() {
        let outputs = step_preferring(&mut engine, &[id, 25]);
        text.push_str(&outputs.texts[0]);
        if outputs.finish_reasons[0] != FinishReason::Running as u8 {
            assert!(!engine.has_unfinished());
            return (text, count + 1, outputs.finish_reasons[0]);
        }
    }
    panic!("the request goes on after {ids:?}");
}

#[test]
fn an_end_id_counts_but_has_no_text() {
    assert_eq!(generate(greedy(9), &[0, 1, EOS]), ("ab".to_owned(), 3, STOP));
    let own = RequestParams { stop_token_ids: vec![1], ..greedy(9) };
    assert_eq!(generate(own, &[0, 1]), ("a".to_owned(), 2, STOP));
    let ignoring = RequestParams { ignore_eos: true, ..greedy(3) };
    assert_eq!(generate(ignoring, &[0, EOS, 1]), ("ab".to_owned(), 3, LENGTH));
}

#[test]
fn max_tokens_flushes_what_was_held_back() {
    let stopping = RequestParams { stop: vec!["bcd".to_owned()], ..greedy(3) };
    assert_eq!(generate(stopping, &[0, 1, 2]), ("abc".to_owned(), 3, LENGTH));
    assert_eq!(generate(greedy(2), &[0, 26]), ("a\u{FFFD}".to_owned(), 2, LENGTH));
    assert_eq!(generate(greedy(2), &[26, 27]), ("é".to_owned(), 2, LENGTH));
}

#[test]
fn stop_strings_cross_tokens_and_are_dropped() {
    let params = RequestParams { stop: vec!["bc".to_owned()], ..greedy(9) };
    assert_eq!(generate(params, &[0, 1, 1, 2]), ("ab".to_owned(), 4, STOP));
}

#[test]
fn a_stop_string_that_ends_a_request_is_named() {
    let stop = vec!["zz".to_owned(), "bc".to_owned()];
    for (ids, met) in [([1, 2], vec![(1, 1)]), ([1, EOS], vec![])] {
        let mut engine = engine(limits(16, 64));
        engine.add_request(1, vec![0], RequestParams { stop: stop.clone(), ..greedy(9) }).unwrap();
        assert_eq!(step_preferring(&mut engine, &ids[..1]).stop_strings, vec![]);
        let last = step_preferring(&mut engine, &ids[1..]);
        assert_eq!((last.finish_reasons, last.stop_strings), (vec![STOP], met));
    }
}

#[test]
fn min_tokens_holds_off_every_kind_of_stop() {
    let params = RequestParams { stop: vec!["a".to_owned()], stop_token_ids: vec![1], min_tokens: 2, ..greedy(9) };
    // EOS and id 1 can't be drawn, so the second preference (z) comes; "a" is no stop yet.
    assert_eq!(generate(params.clone(), &[EOS, 1, EOS]), ("zz".to_owned(), 3, STOP));
    assert_eq!(generate(params, &[0, 0, 0]), ("aa".to_owned(), 3, STOP));
}

#[test]
fn draws_follow_the_requests_own_stream() {
    let sampling = SamplingParams { seed: 5, choice_index: 2, ..SamplingParams::default() };
    let mut engine = engine(limits(16, 64));
    let params = RequestParams { sampling, max_tokens: Some(20), ignore_eos: true, ..RequestParams::default() };
    engine.add_request(1, vec![0], params).unwrap();
    let key = llm_core::sampling::stream_key(5, 2);
    for output_idx in 0..20 {
        // All ids but the last, PAD, are equally likely.
        let expected = (llm_core::sampling::uniform(key, output_idx, 0) * (VOCAB - 1) as f64) as u32;
        assert_eq!(step_preferring(&mut engine, &[]).token_ids, [expected]);
    }
    assert!(!engine.has_unfinished());
}

#[test]
fn padding_is_masked_unless_it_ends_generation() {
    let mut engine = engine(limits(16, 64));
    engine.add_request(1, vec![0], greedy(1)).unwrap();
    assert_eq!(step_preferring(&mut engine, &[PAD, 30, 31, 4]).token_ids, [4]);
    let table = TokenTable::new(vec![Some(b"a".to_vec()), None], &[1]).unwrap();
    let scheduler = limits(16, 64);
    let shared =
        EngineConfig { table, tokenizer: None, eos_ids: vec![1], pad_id: Some(1), scheduler, speculative: None };
    let mut engine = EngineCore::new(shared).unwrap();
    engine.add_request(1, vec![0], greedy(5)).unwrap();
    engine.schedule().unwrap();
    assert_eq!(engine.update(&mut [0.0, 1.0], (1, 2)).unwrap().finish_reasons, [STOP]);
}

#[test]
fn a_row_that_is_not_finite_ends_its_request_alone() {
    let mut engine = engine(limits(16, 64));
    (1..=3).for_each(|id| engine.add_request(id, vec![0], greedy(2)).unwrap());
    engine.schedule().unwrap();
    let mut logits = row_preferring(&[3]).repeat(3);
    logits[COLUMNS + 5] = f32::NAN;
    let outputs = engine.update(&mut logits, (3, COLUMNS)).unwrap();
    assert_eq!(outputs.request_ids, [1, 2, 3]);
    assert_eq!(outputs.finish_reasons, [0, FAILED, 0]);
    assert_eq!(outputs.token_ids, [3, u32::MAX, 3]);
    assert_eq!(outputs.errors.len(), 1);
    assert!(outputs.errors[0].1.starts_with("request 2: the model's logits must hold no NaN"), "{:?}", outputs.errors);
    assert_eq!(step_preferring(&mut engine, &[4]).request_ids, [1, 3]);
    assert!(!engine.has_unfinished());
}

#[test]
fn update_wants_the_last_plans_rows() {
    let mut engine = engine(limits(16, 4));
    let no_plan = engine.update(&mut [], (0, COLUMNS)).unwrap_err();
    assert!(no_plan.to_string().contains("no plan is in flight"));
    engine.add_request(1, vec![0; 6], greedy(1)).unwrap();
    let plan = engine.schedule().unwrap().unwrap().clone();
    assert!(plan.logits_indices.is_empty());
    for shape in [(1, COLUMNS), (0, VOCAB - 1)] {
        let error = engine.update(&mut vec![0.0; shape.0 * shape.1], shape).unwrap_err();
        let expected = format!("must be (0, V) for the last plan, V at least the vocabulary's 30, got {shape:?}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    assert_eq!(engine.update(&mut [], (0, COLUMNS)).unwrap(), StepOutputs::default());
    assert_eq!(step_preferring(&mut engine, &[2]).texts, ["c"]);
}

#[test]
fn an_answer_that_repeats_itself_takes_fewer_steps() {
    let ngram = NgramConfig { num_draft_tokens: 4, max_ngram: 2, min_ngram: 1 };
    let mut engine = guessing_engine(limits(16, 64), Some(ngram));
    engine.add_request(1, vec![3, 3], RequestParams { stop: vec!["ddddddddddd".to_owned()], ..greedy(20) }).unwrap();
    let (mut text, mut num_steps) = (String::new(), 0);
    while engine.has_unfinished() {
        let outputs = step_preferring(&mut engine, &[3]);
        assert!(outputs.request_ids.iter().all(|&id| id == 1));
        text.extend(outputs.texts);
        num_steps += 1;
    }
    // Eleven tokens that are the stop string; nothing comes after it, though more was guessed and right. What follows
    // the last match is one token here, so each step gives two.
    assert_eq!((text, num_steps), (String::new(), 6));
    let stats = engine.stats();
    assert_eq!((stats.drafts_computed, stats.drafts_accepted), (5, 5));
    assert_eq!(stats.blocks_free, 16);
    let bad = NgramConfig { num_draft_tokens: 0, ..ngram };
    let table = TokenTable::new(vec![Some(b"a".to_vec())], &[]).unwrap();
    let config = EngineConfig {
        table,
        tokenizer: None,
        eos_ids: vec![],
        pad_id: None,
        scheduler: limits(1, 1),
        speculative: Some(bad),
    };
    assert!(EngineCore::new(config).unwrap_err().to_string().contains("`num_draft_tokens`"));
}

#[test]
fn prompt_logprobs_come_with_the_first_token_whatever_the_chunks() {
    let prompt = vec![3, 1, 4, 1, 5, 9, 2, 6, 5];
    let wanted: Vec<(u32, f32)> = (1..prompt.len())
        .map(|len| {
            let mut row = logits_of(&prompt[..len]);
            let mask = VocabMask { vocab_size: VOCAB, pad_id: Some(PAD) };
            let scored = token_logprobs(&mut row, COLUMNS, mask, &prompt[len..=len], 2).remove(0).unwrap();
            (prompt[len], scored.logprob)
        })
        .collect();
    for max_batch_tokens in [2, 64] {
        let mut engine = engine(limits(16, max_batch_tokens));
        let mut model = FakeModel::new(16, 4);
        for id in 1..=2 {
            let mut params = greedy(2);
            params.sampling.prompt_logprobs = Some(2);
            engine.add_request(id, prompt.clone(), params).unwrap();
            let mut found = Vec::new();
            while let Some(plan) = engine.schedule().unwrap().cloned() {
                let mut logits = run_model(&mut model, &plan);
                let outputs = engine.update(&mut logits, (plan.logits_indices.len(), COLUMNS)).unwrap();
                assert!(outputs.prompt_logprobs.is_empty() || outputs.request_ids == [id]);
                found.extend(outputs.prompt_logprobs);
            }
            assert_eq!(found.len(), 1);
            assert!(found[0].1.iter().all(|(_, logprob)| logprob.top.len() == 2));
            let tokens: Vec<(u32, f32)> = found[0].1.iter().map(|(token, of)| (*token, of.logprob)).collect();
            assert_eq!((found[0].0, tokens), (id, wanted.clone()));
        }
    }
}

#[test]
fn a_request_without_new_tokens_ends_with_its_prompts_logprobs() {
    let prompt = vec![3, 1, 4, 1, 5, 9, 2, 6, 5];
    let mut engine = engine(limits(16, 64));
    let mut model = FakeModel::new(16, 4);
    let mut params = greedy(0);
    params.sampling.prompt_logprobs = Some(1);
    let mut run = |start| {
        params.sampling.prompt_logprobs_start = start;
        engine
            .add_choices(1, prompt.clone(), params.clone(), Submission { num_choices: 2, ..Submission::default() })
            .unwrap();
        let plan = engine.schedule().unwrap().unwrap().clone();
        let outputs = engine.update(&mut run_model(&mut model, &plan), (plan.logits_indices.len(), COLUMNS)).unwrap();
        assert!(!engine.has_unfinished());
        assert_eq!(engine.stats().blocks_free, 16);
        assert_eq!((&outputs.request_ids[..], &outputs.finish_reasons[..]), (&[1, 2][..], &[LENGTH, LENGTH][..]));
        assert_eq!((&outputs.token_ids[..], outputs.texts.concat()), (&[StepOutputs::NO_TOKEN; 2][..], String::new()));
        assert_eq!(outputs.prompt_logprobs.len(), 1);
        (plan.token_ids.len(), outputs.cached_tokens, outputs.prompt_logprobs[0].1.clone())
    };
    let (computed, cached, whole) = run(0);
    assert_eq!((computed, cached, whole.len()), (9, vec![], 8));
    // The prefix cache holds 8 tokens; the row before token 7 is wanted, so only the first 4 are taken from it.
    assert_eq!(run(7), (5, vec![(1, 4), (2, 4)], whole[6..].to_vec()));
    let mut longest = params;
    longest.max_tokens = Some(0);
    engine.add_request(3, vec![0; 64], longest).unwrap(); // as long as the context
}

#[test]
fn first_tokens_come_with_the_number_of_cached_prompt_tokens() {
    let mut engine = engine(limits(16, 64));
    let prompt: Vec<u32> = (0..11).collect();
    let mut answer = |id: u64, prompt: &[u32], num_choices: u32| {
        engine
            .add_choices(id, prompt.to_vec(), greedy(2), Submission { num_choices, ..Submission::default() })
            .unwrap();
        let mut found = Vec::new();
        while let Some(plan) = engine.schedule().unwrap() {
            let num_rows = plan.logits_indices.len();
            let mut logits = row_preferring(&[7]).repeat(num_rows);
            found.push(engine.update(&mut logits, (num_rows, COLUMNS)).unwrap().cached_tokens);
        }
        found
    };
    assert_eq!(answer(1, &prompt, 1), [vec![], vec![]]);
    assert_eq!(answer(2, &prompt, 1), [vec![(2, 8)], vec![]]);
    assert_eq!(answer(3, &prompt, 2), [vec![(3, 8), (4, 8)], vec![]]);
    assert_eq!(answer(5, &prompt[1..], 1), [vec![], vec![]]);
}

#[test]
fn a_prompt_row_that_is_not_finite_ends_its_request() {
    let mut engine = engine(limits(16, 64));
    let mut params = greedy(2);
    params.sampling.prompt_logprobs = Some(0);
    engine.add_request(1, vec![3, 4, 5], params).unwrap();
    engine.add_request(2, vec![3, 4, 5], greedy(2)).unwrap();
    engine.schedule().unwrap();
    let mut logits = row_preferring(&[3]).repeat(4);
    logits[COLUMNS + 2] = f32::NAN;
    let outputs = engine.update(&mut logits, (4, COLUMNS)).unwrap();
    assert_eq!((outputs.request_ids, outputs.finish_reasons), (vec![1, 2], vec![FAILED, 0]));
    assert!(outputs.prompt_logprobs.is_empty());
}

#[test]
fn abort_works_in_every_state() {
    let mut engine = engine(limits(4, 4));
    for id in 1..=3 {
        engine.add_request(id, vec![0; 4], greedy(4)).unwrap();
    }
    assert!(engine.abort(3).unwrap()); // waiting
    let plan = engine.schedule().unwrap().unwrap().clone();
    assert_eq!(plan.request_ids, [1]);
    assert!(engine.abort(1).unwrap()); // in flight
    let outputs = engine.update(&mut row_preferring(&[1]), (1, COLUMNS)).unwrap();
    assert!(outputs.request_ids.is_empty());
    step_preferring(&mut engine, &[1]);
    assert!(engine.abort(2).unwrap()); // running
    assert!(!engine.abort(2).unwrap());
    assert!(!engine.has_unfinished());
    assert_eq!(engine.schedule().unwrap(), None);
    assert_eq!(engine.stats().blocks_free, 4);
}

#[test]
fn add_request_refuses_bad_input() {
    let mut engine = engine(limits(4, 4));
    let cases = [
        (vec![30], greedy(1), "prompt ids must be below the vocabulary's size 30, got 30"),
        (vec![0], RequestParams { stop_token_ids: vec![99], ..greedy(1) }, "`stop_token_ids` must be below"),
        (vec![0], RequestParams { min_tokens: 3, ..greedy(2) }, "`min_tokens` must be at most `max_tokens` (2), got 3"),
        (vec![0], RequestParams { stop: vec![String::new()], ..greedy(2) }, "`stop` strings must not be empty"),
        (vec![], greedy(1), "at least one token"),
    ];
    for (prompt, params, message) in cases {
        let error = engine.add_request(1, prompt, params).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)) && error.to_string().contains(message), "{error}");
    }
    assert!(matches!(engine.add_request(1, vec![0; 60], greedy(5)), Err(Error::ContextLength(_))));
    engine.check_integrity().unwrap();
    engine.add_request(1, vec![0], greedy(1)).unwrap();
}

/// Logits that are a pure function of the tokens in the cache.
fn logits_of(tokens: &[u32]) -> Vec<f32> {
    let seed = tokens.iter().fold(17u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01B3));
    (0..COLUMNS as u64).map(|id| 6.0 * llm_core::sampling::uniform(seed, id, 0) as f32).collect()
}

fn run_model(model: &mut FakeModel, plan: &StepPlan) -> Vec<f32> {
    model.run(plan).iter().flat_map(|tokens| logits_of(tokens)).collect()
}

type Answer = (Vec<u32>, String, u8);

/// Runs all requests to their end in an engine of these limits.
fn answers(scheduler: SchedulerConfig, requests: &BTreeMap<u64, (Vec<u32>, RequestParams)>) -> BTreeMap<u64, Answer> {
    answers_of(engine(scheduler), scheduler, requests)
}

fn answers_of(
    mut engine: EngineCore,
    scheduler: SchedulerConfig,
    requests: &BTreeMap<u64, (Vec<u32>, RequestParams)>,
) -> BTreeMap<u64, Answer> {
    let mut model = FakeModel::new(scheduler.num_blocks, scheduler.block_size);
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    for (&id, (prompt, params)) in requests {
        engine.add_request(id, prompt.clone(), params.clone()).unwrap();
    }
    while let Some(plan) = engine.schedule().unwrap().cloned() {
        let mut logits = run_model(&mut model, &plan);
        let outputs = engine.update(&mut logits, (plan.logits_indices.len(), COLUMNS)).unwrap();
        engine.check_integrity().unwrap();
        for (row, id) in outputs.request_ids.iter().enumerate() {
            let answer = answers.entry(*id).or_default();
            answer.0.push(outputs.token_ids[row]);
            answer.1.push_str(&outputs.texts[row]);
            answer.2 = outputs.finish_reasons[row];
        }
    }
    assert!(!engine.has_unfinished());
    answers
}

fn any_request() -> impl Strategy<Value = (Vec<u32>, RequestParams)> {
    let sampling = (0.0..1.5f64, 0..10usize, 0.3..1.0f64, 1.0..1.5f64, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, repetition_penalty, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            repetition_penalty,
            seed,
            ..SamplingParams::default()
        },
    );
    (prop::collection::vec(0..26u32, 1..12), sampling, 1..10usize, any::<bool>()).prop_map(
        |(prompt, sampling, max_tokens, stops)| {
            let stop = if stops { vec!["ab".to_owned(), "é".to_owned()] } else { vec![] };
            (prompt, RequestParams { sampling, max_tokens: Some(max_tokens), stop, ..RequestParams::default() })
        },
    )
}

proptest! {
    #[test]
    fn batched_equals_alone(
        num_blocks in 6..14usize,
        max_batch_tokens in 1..20usize,
        requests in prop::collection::vec(any_request(), 1..10),
    ) {
        let requests: BTreeMap<u64, _> = (100..).zip(requests).collect();
        let together = answers(limits(num_blocks, max_batch_tokens), &requests);
        for (id, request) in requests {
            let alone = answers(limits(16, 64), &BTreeMap::from([(7, request)]));
            prop_assert_eq!(&together[&id], &alone[&7]);
        }
    }

    #[test]
    fn guesses_change_no_answer(
        num_blocks in 6..14usize,
        max_batch_tokens in 1..20usize,
        num_draft_tokens in 1..6usize,
        requests in prop::collection::vec(any_request(), 1..10),
    ) {
        let requests: BTreeMap<u64, _> = (100..).zip(requests).collect();
        let scheduler = limits(num_blocks, max_batch_tokens);
        let ngram = NgramConfig { num_draft_tokens, max_ngram: 2, min_ngram: 1 };
        let guessed = answers_of(guessing_engine(scheduler, Some(ngram)), scheduler, &requests);
        prop_assert_eq!(guessed, answers(scheduler, &requests));
    }
}
