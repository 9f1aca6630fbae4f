//! A step's cost besides the model: plan, record, append, by number of running requests.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_core::scheduler::{LogitsRow, RequestOptions, Scheduler, SchedulerConfig};

const PROMPT_TOKENS: usize = 500;

fn scheduler(num_requests: usize, num_blocks: usize) -> Scheduler {
    let config = SchedulerConfig {
        num_blocks,
        block_size: 16,
        max_batch_tokens: 8_192,
        max_running_requests: num_requests,
        max_waiting_requests: num_requests,
        max_model_len: 8_192,
        ..SchedulerConfig::default()
    };
    Scheduler::new(config).expect("the limits are valid")
}

fn step(scheduler: &mut Scheduler) {
    std::hint::black_box(scheduler.schedule().expect("no invariant is broken"));
    for LogitsRow { id, .. } in scheduler.complete_step().expect("a plan is in flight").into_iter().flatten() {
        scheduler.append_token(id, 1).expect("the request runs");
        // A request that has its tokens makes room for the next, so the load stays the same for ever.
        if scheduler.request(id).is_some_and(|request| request.output_ids().len() == 200) {
            scheduler.remove(id).expect("the request runs");
            add(scheduler, id);
        }
    }
}

/// A prompt of its own each time, so that nothing is found in the prefix cache, but all is kept there.
fn add(scheduler: &mut Scheduler, id: u64) {
    let start = (scheduler.stats().tokens_scheduled as u32).wrapping_mul(0x9E37_79B9) ^ id as u32;
    let prompt_ids: Vec<u32> = (0..PROMPT_TOKENS as u32).map(|position| start.wrapping_add(position)).collect();
    scheduler
        .add(id, prompt_ids, RequestOptions { max_tokens: 200, ..RequestOptions::default() })
        .expect("the request fits");
}

fn bench_steps(criterion: &mut Criterion, name: &str, num_requests: usize, num_blocks: usize) {
    let mut scheduler = scheduler(num_requests, num_blocks);
    (0..num_requests as u64).for_each(|id| add(&mut scheduler, id));
    (0..300).for_each(|_| step(&mut scheduler));
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(num_requests as u64));
    group.bench_function(BenchmarkId::from_parameter(num_requests), |bencher| bencher.iter(|| step(&mut scheduler)));
}

fn sizes(criterion: &mut Criterion) {
    for num_requests in [1, 16, 256, 1_024] {
        bench_steps(criterion, "steady_step", num_requests, num_requests * 44);
    }
}

/// Blocks for half of the requests: preemption and recompute all the time.
fn worst_case(criterion: &mut Criterion) {
    bench_steps(criterion, "preempting_step", 256, 256 * 22);
}

criterion_group!(benches, sizes, worst_case);
criterion_main!(benches);
