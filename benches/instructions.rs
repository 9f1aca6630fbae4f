//! Work of known size for a counter of instructions: `instructions WORKLOAD TIMES`; without arguments, their names;
//! with `instruction-set`, the best set of the machine.
//!
//! `tools/bench_check.py` runs a workload some times and more times under valgrind; the difference leaves out what comes
//! before. Everything is seeded and on one thread, so two runs count the same.

use std::hint::black_box;

use llm_core::kernels::{AttentionRule, CausalAttention, Isa};
use llm_core::sampling::{History, RowSpec, SamplingParams, TokenCounts, VocabMask, sample_rows, uniform};
use llm_core::scheduler::{LogitsRow, RequestOptions, Scheduler, SchedulerConfig};
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;

const WORDS: [&str; 16] = [
    "the", "people", "of", "Rome", "would", "rather", "die", "than", "famish", "first", "you", "know", "Caius", "is",
    "chief", "enemy",
];

/// A name, and what does the work a number of times.
type Workload = (&'static str, fn(usize));

const WORKLOADS: [Workload; 5] = [
    ("tokenizer encode", encode),
    ("sampler top-k top-p", sample),
    ("scheduler step", schedule),
    ("attention portable", |times| attend(Isa::Portable, times)),
    ("attention AVX2", |times| attend(Isa::Avx2, times)),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments == ["instruction-set"] {
        println!("{}", Isa::detect().name());
        return;
    }
    let [name, times] = arguments.as_slice() else {
        let has_avx2 = Isa::supported().contains(&Isa::Avx2);
        WORKLOADS
            .iter()
            .filter(|(name, _)| has_avx2 || !name.ends_with("AVX2"))
            .for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, run) = WORKLOADS.iter().find(|(known, _)| known == name).expect("the workload is one of those listed");
    run(times.parse().expect("the second argument is a number"));
}

fn number(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

/// Encodes 10 kB of words; a new text each time, so that no cache knows all of it.
fn encode(times: usize) {
    let mut state = 1;
    let mut text = || (0..2_000).map(|_| format!("{} ", WORDS[number(&mut state) % WORDS.len()])).collect::<String>();
    let mut trainer = Trainer::new(400, Pattern::Gpt4, &[]).expect("the size is allowed");
    trainer.add(&[text().as_str()]).expect("the text is UTF-8");
    let tokenizer = trainer.train(&mut |_, _| true).expect("there is text");
    (0..times).for_each(|_| drop(black_box(tokenizer.encode(black_box(&text()), &Allowed::None))));
}

/// Samples a row of 32,768 logits as a chat does.
fn sample(times: usize) {
    let vocab = 32_768;
    let logits: Vec<f32> = (0..vocab).map(|idx| (-2.0 * (1.0 - uniform(1, idx as u64, 0)).ln()) as f32).collect();
    let params = SamplingParams {
        temperature: 0.8,
        top_k: 50,
        top_p: 0.9,
        repetition_penalty: 1.1,
        seed: 7,
        ..SamplingParams::default()
    };
    let counts = TokenCounts::from_prompt(&(0..256).collect::<Vec<u32>>());
    let mask = VocabMask { vocab_size: vocab, pad_id: None };
    for output_idx in 0..times {
        let history = History::Counted(&counts);
        let spec = RowSpec { params: &params, history, banned_ids: &[], allowed: None, output_idx };
        drop(black_box(sample_rows(black_box(&mut logits.clone()), vocab, mask, &[Some(spec)])));
    }
}

/// Plans and completes a step of 64 decoding requests, of which those with 200 tokens give way to new ones.
fn schedule(times: usize) {
    let config = SchedulerConfig {
        num_blocks: 64 * 30,
        max_batch_tokens: 8_192,
        max_running_requests: 64,
        max_model_len: 1_024,
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).expect("the limits are valid");
    let options = RequestOptions { max_tokens: 200, ..RequestOptions::default() };
    let prompt = |start: u32| (0..200).map(|position| start.wrapping_mul(0x9E37_79B9) ^ position).collect::<Vec<u32>>();
    (0..64).for_each(|id| scheduler.add(id, prompt(id as u32), options).expect("the request fits"));
    for step in 0..300 + times {
        black_box(scheduler.schedule().expect("no invariant is broken"));
        for LogitsRow { id, .. } in scheduler.complete_step().expect("a plan is in flight").into_iter().flatten() {
            scheduler.append_token(id, 1).expect("the request runs");
            if scheduler.request(id).is_some_and(|request| request.output_ids().len() == 200) {
                scheduler.remove(id).expect("the request runs");
                scheduler.add(id, prompt((step * 64) as u32 + id as u32), options).expect("the request fits");
            }
        }
    }
}

/// Attends over 128 tokens forward.
fn attend(isa: Isa, times: usize) {
    let rule = AttentionRule { num_heads: 4, num_kv_heads: 2, head_dim: 32, scale: 0.2 };
    let tokens = 128;
    let mut state = 1;
    let mut random = || (number(&mut state) % 2_000) as f32 / 1_000.0 - 1.0;
    let joined: Vec<f32> = (0..tokens * 8 * rule.head_dim).map(|_| random()).collect();
    let starts = [0, tokens];
    let attention = CausalAttention { rule, starts: &starts, rotation: None, joined: &joined[..], isa, num_threads: 1 };
    let (mut mixed, mut sums) = (vec![0.0; tokens * 4 * rule.head_dim], vec![0.0; tokens * 4]);
    for _ in 0..times {
        attention.forward(black_box(&mut mixed), &mut sums).expect("the sizes agree");
    }
}
