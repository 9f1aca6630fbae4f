//! Speed of the tokenizer: encoding by length, on all cores, at its worst, and training.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_core::tokenizer::Tokenizer;
use llm_core::tokenizer::options::Allowed;
use llm_core::tokenizer::split::pretokenize::Pattern;
use llm_core::tokenizer::trainer::Trainer;

const WORDS: &str = "the of and to in a is that for it was on are as with they at be this from have or by one had not \
    but what all were when we there can an your which their said if do will each about how up out them then she many \
    some so these would other into has more her two like him see time could no make than first been its who now people";

/// Sentences of common words: the same text for the same length.
fn generated_text(num_bytes: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut state = 1u64;
    let mut text = String::with_capacity(num_bytes + 16);
    while text.len() < num_bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (state >> 33) as usize;
        text.push_str(words[number % words.len()]);
        text.push_str(if number.is_multiple_of(11) { ".\n" } else { " " });
    }
    text.truncate(num_bytes);
    text
}

fn train(text: &str, vocab_size: usize) -> Option<Tokenizer> {
    let mut trainer = Trainer::new(vocab_size, Pattern::Gpt4, &[]).ok()?;
    trainer.add(&[text]).ok()?;
    trainer.train(&mut |_, _| true).ok()
}

fn encode(criterion: &mut Criterion) {
    let Some(tokenizer) = train(&generated_text(100_000), 512) else { return };
    let mut group = criterion.benchmark_group("tokenizer/encode");
    for num_bytes in [10, 100, 1_000, 10_000] {
        let text = generated_text(num_bytes);
        group.throughput(Throughput::Bytes(num_bytes as u64));
        group.bench_function(BenchmarkId::new("text", num_bytes), |bencher| {
            bencher.iter(|| tokenizer.encode(black_box(&text), &Allowed::None));
        });
    }
    let unsplittable = "them".repeat(25_000);
    group.throughput(Throughput::Bytes(unsplittable.len() as u64));
    group.bench_function(BenchmarkId::new("one_piece", unsplittable.len()), |bencher| {
        bencher.iter(|| tokenizer.encode(black_box(&unsplittable), &Allowed::None));
    });
    let text = generated_text(10_000);
    let batch = vec![text.as_str(); 64];
    group.throughput(Throughput::Bytes(640_000));
    group.bench_function(BenchmarkId::new("batch", "64x10000"), |bencher| {
        bencher.iter(|| tokenizer.encode_batch(black_box(&batch), &Allowed::None));
    });
    group.finish();
}

/// Cutting alone: what the masks of whole blocks pay for.
fn pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tokenizer/pieces");
    for (name, text) in [("ascii", generated_text(100_000)), ("cyrillic", "слово и дело ".repeat(4_000))] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        for pattern in [Pattern::Gpt4, Pattern::O200k] {
            group.bench_function(BenchmarkId::new(name, pattern.name()), |bencher| {
                bencher.iter(|| {
                    let mut num_pieces = 0usize;
                    let cut = pattern.for_each_span(black_box(&text), |_, _| num_pieces += 1);
                    (cut, num_pieces)
                });
            });
        }
    }
    group.finish();
}

fn training(criterion: &mut Criterion) {
    let text = generated_text(1_000_000);
    let mut group = criterion.benchmark_group("tokenizer/train");
    group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(10);
    group.bench_function(BenchmarkId::new("vocab_512", text.len()), |bencher| {
        bencher.iter(|| train(black_box(&text), 512))
    });
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default(); targets = encode, pieces, training }
criterion_main!(benches);
