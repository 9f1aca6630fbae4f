//! Sampling one token a row: vocabulary sizes, batch sizes, and the worst cases of each filter.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_core::sampling::{History, RowSpec, SamplingParams, TokenCounts, VocabMask, sample_rows, uniform};

/// Roughly what a model gives: a few likely tokens over a broad floor.
fn peaked_logits(num_rows: usize, vocab: usize) -> Vec<f32> {
    let noise = |idx: usize| uniform(1, idx as u64, 0);
    (0..num_rows * vocab).map(|idx| (-2.0 * (1.0 - noise(idx)).ln()) as f32).collect()
}

fn history() -> TokenCounts {
    let mut counts = TokenCounts::from_prompt(&(0..256).collect::<Vec<u32>>());
    (128..384).for_each(|id| counts.push_output(id));
    counts
}

fn bench(criterion: &mut Criterion, group: &str, rows: usize, logits: &[f32], params: &SamplingParams) {
    let (counts, vocab) = (history(), logits.len() / rows);
    let spec =
        Some(RowSpec { params, history: History::Counted(&counts), banned_ids: &[], allowed: None, output_idx: 3 });
    let specs = vec![spec; rows];
    let mask = VocabMask { vocab_size: vocab, pad_id: None };
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(rows as u64)).sample_size(20);
    group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{vocab}")), |bencher| {
        let run = |mut logits: Vec<f32>| sample_rows(black_box(&mut logits), vocab, mask, &specs);
        bencher.iter_batched(|| logits.to_vec(), run, BatchSize::LargeInput);
    });
}

fn sizes(criterion: &mut Criterion) {
    let usual = SamplingParams {
        temperature: 0.8,
        top_k: 50,
        top_p: 0.9,
        repetition_penalty: 1.1,
        ..SamplingParams::default()
    };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    for (rows, vocab) in [(1, 2_048), (1, 32_768), (1, 131_072), (16, 32_768), (16, 131_072)] {
        let logits = peaked_logits(rows, vocab);
        bench(criterion, "greedy", rows, &logits, &greedy);
        bench(criterion, "temperature", rows, &logits, &SamplingParams::default());
        bench(criterion, "top_k_top_p_penalty", rows, &logits, &usual);
    }
}

/// All logits equal, and a mass that almost none may be dropped from: the ranking grows to the whole vocabulary.
fn worst_case(criterion: &mut Criterion) {
    let params = SamplingParams { top_p: 0.999, ..SamplingParams::default() };
    bench(criterion, "top_p_of_equals", 1, &vec![0.0; 131_072], &params);
}

criterion_group!(benches, sizes, worst_case);
criterion_main!(benches);
