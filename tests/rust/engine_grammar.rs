//! Tests of answers that follow a grammar, through `llm_core::engine`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use llm_core::engine::{EngineConfig, EngineCore, FinishReason, RequestParams, Submission};
use llm_core::grammar::{Grammar, GrammarSource};
use llm_core::sampling::SamplingParams;
use llm_core::scheduler::SchedulerConfig;
use llm_core::speculation::NgramConfig;
use llm_core::tokenizer::tokens::TokenTable;
use proptest::prelude::*;

use crate::scheduler::fake_model::FakeModel;

/// Printable ASCII, some longer tokens, an end id and a padding id.
const WORDS: [&str; 10] = ["{\"", "\":", "\",\"", "\"}", "true", "false", "name", "long", "er", "},"];
const FIRST: u8 = b' ';
const END: u32 = 95 + WORDS.len() as u32;
const COLUMNS: usize = END as usize + 2;
const STOP: u8 = FinishReason::Stop as u8;
const LENGTH: u8 = FinishReason::Length as u8;

fn id_of(byte: u8) -> u32 {
    u32::from(byte - FIRST)
}

fn limits(num_blocks: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_batch_tokens: 64,
        max_running_requests: 8,
        max_waiting_requests: 64,
        max_model_len: 128,
        ..SchedulerConfig::default()
    }
}

fn engine(num_blocks: usize, speculative: Option<NgramConfig>) -> EngineCore {
    engine_with(limits(num_blocks), speculative)
}

fn engine_with(scheduler: SchedulerConfig, speculative: Option<NgramConfig>) -> EngineCore {
    let mut token_bytes: Vec<Option<Vec<u8>>> = (FIRST..=b'~').map(|byte| Some(vec![byte])).collect();
    token_bytes.extend(WORDS.iter().map(|word| Some(word.as_bytes().to_vec())));
    token_bytes.extend([Some(b"<|end|>".to_vec()), None]);
    let table = TokenTable::new(token_bytes, &[END]).unwrap();
    let (eos_ids, pad_id) = (vec![END], Some(END + 1));
    EngineCore::new(EngineConfig { table, tokenizer: None, eos_ids, pad_id, scheduler, speculative }).unwrap()
}

fn schema(text: &str) -> GrammarSource {
    GrammarSource::JsonSchema { schema: text.to_owned(), is_compact: true }
}

/// Objects whose keys are forced, with values short enough for a test.
fn two_keys() -> GrammarSource {
    schema(
        r#"{"type":"object","properties":{"name":{"type":"boolean"},"longer":{"enum":["true","er","x"]}},
        "required":["name","longer"],"additionalProperties":false}"#,
    )
}

fn compiled(engine: &EngineCore, source: &GrammarSource) -> Option<Grammar> {
    Some(engine.grammar_compiler().compile(source).unwrap())
}

fn params(seed: u64, max_tokens: usize) -> RequestParams {
    let sampling = SamplingParams { seed, ..SamplingParams::default() };
    RequestParams { sampling, max_tokens: Some(max_tokens), ..RequestParams::default() }
}

/// Random logits that are a pure function of the tokens before them.
fn logits_of(tokens: &[u32]) -> Vec<f32> {
    let seed = tokens.iter().fold(7_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x100_0000_01B3));
    (0..COLUMNS as u64).map(|id| 3.0 * llm_core::sampling::uniform(seed, id, 0) as f32).collect()
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    finish: u8,
}

/// Runs all requests of an engine to their end. Returns the answers and the number of steps.
fn run(engine: &mut EngineCore, num_blocks: usize) -> (BTreeMap<u64, Answer>, usize) {
    let mut model = FakeModel::new(num_blocks, 4);
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    let mut num_steps = 0;
    while let Some(plan) = engine.schedule().unwrap().cloned() {
        num_steps += 1;
        let mut logits: Vec<f32> = model.run(&plan).iter().flat_map(|tokens| logits_of(tokens)).collect();
        let outputs = engine.update(&mut logits, (plan.logits_indices.len(), COLUMNS)).unwrap();
        assert_eq!(outputs.errors, []);
        for (row, id) in outputs.request_ids.iter().enumerate() {
            let answer = answers.entry(*id).or_default();
            answer.ids.push(outputs.token_ids[row]);
            answer.text.push_str(&outputs.texts[row]);
            answer.finish = outputs.finish_reasons[row];
        }
    }
    (answers, num_steps)
}

/// One request alone, in an engine of its own. Returns its answer and the number of steps.
fn alone(source: Option<&GrammarSource>, params: RequestParams) -> (Answer, usize) {
    let mut engine = engine(64, None);
    let grammar = source.and_then(|source| compiled(&engine, source));
    engine.add_request(1, vec![3, 1, 4], RequestParams { grammar, ..params }).unwrap();
    let (mut answers, num_steps) = run(&mut engine, 64);
    (answers.remove(&1).unwrap(), num_steps)
}

#[test]
fn finished_answers_follow_the_schema() {
    for seed in 0..20 {
        let (answer, _) = alone(Some(&two_keys()), params(seed, 80));
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(answer.finish, STOP);
        assert!(value["name"].is_boolean() && ["true", "er", "x"].contains(&value["longer"].as_str().unwrap()));
        assert!(!answer.ids.contains(&END), "a complete object ends without an end token");
    }
}

#[test]
fn forced_text_takes_fewer_steps_than_tokens() {
    let answers = (0..20).map(|seed| alone(Some(&two_keys()), params(seed, 80)));
    let (num_tokens, num_steps) =
        answers.fold((0, 0), |(tokens, steps), (answer, more)| (tokens + answer.ids.len(), steps + more));
    assert!(num_steps < num_tokens * 6 / 10, "{num_steps} steps for {num_tokens} tokens");
}

#[test]
fn forced_text_is_cut_alike_however_much_of_it_a_step_computes() {
    for seed in 0..20 {
        let answer = |max_batch_tokens| {
            let mut engine = engine_with(SchedulerConfig { max_batch_tokens, ..limits(64) }, None);
            let params = RequestParams { grammar: compiled(&engine, &two_keys()), ..params(seed, 80) };
            engine.add_request(1, vec![0, 1, 2], params).unwrap();
            run(&mut engine, 64)
        };
        let (few, num_slow_steps) = answer(2);
        let (many, num_steps) = answer(64);
        assert_eq!(few, many);
        assert!(num_steps < num_slow_steps);
    }
}

#[test]
fn a_mask_that_allows_all_changes_no_draw() {
    let anything = GrammarSource::Regex(r"[ -~]*".to_owned());
    for seed in 0..20 {
        let plain = alone(None, params(seed, 40)).0;
        assert_eq!(alone(Some(&anything), params(seed, 40)).0, plain);
        let stopping = RequestParams { stop: vec!["e".to_owned()], ..params(seed, 40) };
        assert_eq!(alone(Some(&anything), stopping.clone()).0, alone(None, stopping).0);
    }
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let (answer, _) = alone(Some(&two_keys()), params(1, 3));
    assert_eq!((answer.ids.len(), answer.finish), (3, LENGTH));
    let begins = serde_json::from_str::<serde_json::Value>(&answer.text).unwrap_err();
    assert!(begins.is_eof());
}

#[test]
fn a_complete_answer_stops_whatever_else_is_asked() {
    let word = GrammarSource::Choice(vec!["name".to_owned()]);
    for asked in [
        RequestParams { ignore_eos: true, ..params(1, 80) },
        RequestParams { min_tokens: 60, ..params(1, 80) },
        RequestParams { min_tokens: 60, ignore_eos: true, ..params(1, 80) },
    ] {
        let (answer, _) = alone(Some(&word), asked);
        assert_eq!((answer.text.as_str(), answer.finish), ("name", STOP));
    }
}

#[test]
fn end_ids_are_allowed_only_where_the_grammar_may_end() {
    let letters = GrammarSource::Regex("x{3,}".to_owned());
    let (mut engine, mut ended) = (engine(64, None), 0);
    let mut sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    sampling.logit_bias = vec![(END, 100.0)];
    let grammar = compiled(&engine, &letters);
    let asked = RequestParams { sampling, grammar, ..params(0, 9) };
    engine.add_request(1, vec![1], asked.clone()).unwrap();
    engine.add_request(2, vec![1], RequestParams { min_tokens: 6, ..asked.clone() }).unwrap();
    engine.add_request(3, vec![1], RequestParams { ignore_eos: true, ..asked.clone() }).unwrap();
    engine.add_request(4, vec![1], RequestParams { ignore_eos: true, stop_token_ids: vec![END], ..asked }).unwrap();
    for (id, answer) in run(&mut engine, 64).0 {
        let (num_letters, finish) = [(3, STOP), (6, STOP), (9, LENGTH), (3, STOP)][id as usize - 1];
        assert_eq!((answer.text, answer.finish), ("x".repeat(num_letters), finish));
        ended += 1;
    }
    assert_eq!(ended, 4);
}

#[test]
fn allowed_ids_and_the_grammar_both_hold() {
    let letters = GrammarSource::Regex("[a-f]{4}".to_owned());
    let mut asked = params(3, 9);
    asked.sampling.allowed_token_ids = Some(Arc::new([id_of(b'b'), id_of(b'e'), id_of(b'z')].into_iter().collect()));
    let (answer, _) = alone(Some(&letters), asked.clone());
    assert!(answer.text.len() == 4 && answer.text.bytes().all(|byte| b"be".contains(&byte)));
    // Nothing is left where they contradict each other: the request fails alone.
    let mut engine = engine(64, None);
    let grammar = compiled(&engine, &GrammarSource::Choice(vec!["x".to_owned()]));
    engine.add_request(1, vec![1], RequestParams { grammar, ..asked }).unwrap();
    engine.add_request(2, vec![1], params(1, 1)).unwrap();
    engine.schedule().unwrap();
    let outputs = engine.update(&mut logits_of(&[1]).repeat(2), (2, COLUMNS)).unwrap();
    assert_eq!(outputs.finish_reasons, [FinishReason::Error as u8, LENGTH]);
    assert!(outputs.errors[0].1.contains("the grammar"), "{:?}", outputs.errors);
}

#[test]
fn choices_have_a_place_in_the_grammar_each() {
    let mut several = engine(64, None);
    let grammar = compiled(&several, &two_keys());
    let asked = RequestParams { grammar, ..params(5, 80) };
    several.add_choices(1, vec![3, 1, 4], asked, Submission { num_choices: 3, ..Submission::default() }).unwrap();
    let (answers, _) = run(&mut several, 64);
    for (choice_index, answer) in (0..3).zip(answers.into_values()) {
        let mut separate = params(5, 80);
        separate.sampling.choice_index = choice_index;
        assert_eq!(alone(Some(&two_keys()), separate).0, answer);
    }
}

#[test]
fn a_grammar_of_another_engine_is_refused() {
    let grammar = compiled(&engine(8, None), &two_keys());
    let refused = engine(8, None).add_request(1, vec![1], RequestParams { grammar, ..params(1, 9) });
    assert!(refused.unwrap_err().to_string().starts_with("`grammar` must be compiled by this engine's compiler"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn neighbours_preemption_and_speculation_change_no_answer(
        seeds in prop::collection::vec(any::<u64>(), 1..6),
        num_blocks in prop_oneof![Just(14_usize), Just(64)],
        speculates in any::<bool>(),
    ) {
        let speculative = speculates.then_some(NgramConfig { num_draft_tokens: 3, max_ngram: 3, min_ngram: 1 });
        let sources = [two_keys(), GrammarSource::Regex("(ab|a?c){1,20}".to_owned()), GrammarSource::json_object()];
        let mut engine = engine(num_blocks, speculative);
        for (index, &seed) in seeds.iter().enumerate() {
            let grammar = compiled(&engine, &sources[index % 3]);
            let asked = RequestParams { grammar, ..params(seed, 40) };
            engine.add_request(index as u64, vec![3, 1, 4], asked).unwrap();
        }
        let (answers, _) = run(&mut engine, num_blocks);
        for (index, &seed) in seeds.iter().enumerate() {
            prop_assert_eq!(&answers[&(index as u64)], &alone(Some(&sources[index % 3]), params(seed, 40)).0);
        }
    }
    #[test]
    fn a_mask_that_allows_all_changes_no_draw_whatever_else_runs(
        requests in prop::collection::vec((any::<u64>(), 1..4_u32, any::<bool>()), 1..5),
        num_blocks in prop_oneof![Just(14_usize), Just(64)],
        speculates in any::<bool>(),
    ) {
        let speculative = speculates.then_some(NgramConfig { num_draft_tokens: 3, max_ngram: 3, min_ngram: 1 });
        let anything = GrammarSource::Regex(r"[ -~]*".to_owned());
        let asked = |&(seed, _, stops): &(u64, u32, bool)| {
            let stop = if stops { vec!["er".to_owned(), "}e".to_owned()] } else { vec![] };
            RequestParams { stop, ..params(seed, 40) }
        };
        let mut engine = engine(num_blocks, speculative);
        for (index, request) in requests.iter().enumerate() {
            let grammar = compiled(&engine, &anything);
            let submission = Submission { num_choices: request.1, ..Submission::default() };
            let asked = RequestParams { grammar, ..asked(request) };
            engine.add_choices(10 * index as u64, vec![3, 1, 4], asked, submission).unwrap();
        }
        let (answers, _) = run(&mut engine, num_blocks);
        for (index, request) in requests.iter().enumerate() {
            for choice_index in 0..request.1 {
                let mut plain = asked(request);
                plain.sampling.choice_index = choice_index;
                prop_assert_eq!(&answers[&(10 * index as u64 + u64::from(choice_index))], &alone(None, plain).0);
            }
        }
    }
}
