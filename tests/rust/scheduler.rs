//! Tests of `llm_core::scheduler`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod events;
pub mod fake_model;
mod prefix_cache;
mod random;
mod rows;
mod sharing;
mod simulate;
mod simulation;
mod twin;

use llm_core::Error;
use llm_core::scheduler::{BlockPool, RequestOptions, Scheduler, SchedulerConfig};
use simulation::{Simulation, alone, prompt};

fn config(num_blocks: usize, max_batch_tokens: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_batch_tokens,
        max_running_requests: 4,
        max_waiting_requests: 6,
        max_model_len: 64,
        ..SchedulerConfig::default()
    }
}

fn options(max_tokens: usize) -> RequestOptions {
    RequestOptions { max_tokens, ..RequestOptions::default() }
}

#[test]
fn schedule_fills_the_arrays_of_prefill_and_decode() {
    let mut simulation = Simulation::new(config(8, 8));
    simulation.add(10, vec![5, 6, 7], 2).unwrap();
    let plan = simulation.step().unwrap();
    assert_eq!(plan.token_ids, [5, 6, 7]);
    assert_eq!(plan.slot_mapping, [0, 1, 2]);
    assert_eq!((plan.query_start, plan.seq_lens, plan.logits_indices), (vec![0, 3], vec![3], vec![2]));
    simulation.add(11, vec![1, 2, 3, 4, 5, 6, 7, 8, 9], 1).unwrap();
    let plan = simulation.step().unwrap();
    // The decoder's one token first, then as much of the new prompt as the budget of 8 allows.
    assert_eq!(plan.request_ids, [10, 11]);
    assert_eq!(plan.positions, [3, 0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(plan.slot_mapping, [3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!((plan.query_start, plan.seq_lens), (vec![0, 1, 8], vec![4, 7]));
    // Rows are as long as the longest needs, and somewhat longer.
    assert_eq!(plan.max_blocks, 8);
    assert_eq!(plan.block_tables, [[0; 8], [1, 2, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(plan.logits_indices, [0]);
    let plan = simulation.step().unwrap();
    assert_eq!((plan.request_ids, plan.positions, plan.logits_indices), (vec![11], vec![7, 8], vec![1]));
    assert_eq!(simulation.step(), None);
}

#[test]
fn the_newest_gives_way_and_resumes_with_the_same_tokens() {
    let mut simulation = Simulation::new(config(4, 64));
    simulation.add(1, prompt(1, 7), 8).unwrap();
    simulation.add(2, prompt(2, 7), 8).unwrap();
    let mut plans = std::iter::from_fn(|| simulation.step());
    // Each fills two blocks with its eighth token; the ninth needs a third, and the older request gets it.
    assert_eq!(plans.nth(2).unwrap().request_ids, [1]);
    simulation.run_out();
    assert_eq!(simulation.scheduler.stats().num_preemptions, 1);
    assert_eq!(simulation.finished[&1], alone(&prompt(1, 7), 8, 0));
    assert_eq!(simulation.finished[&2], alone(&prompt(2, 7), 8, 0));
}

#[test]
fn planning_again_plans_the_same_work() {
    let mut simulation = Simulation::new(config(8, 5));
    simulation.add(1, prompt(1, 9), 3).unwrap();
    let first = simulation.schedule();
    assert_eq!(simulation.schedule(), first);
    simulation.run_out();
    assert_eq!(simulation.finished[&1], alone(&prompt(1, 9), 3, 0));
}

#[test]
fn a_reused_id_does_not_take_the_removed_requests_row() {
    let mut simulation = Simulation::new(config(8, 16));
    simulation.add(1, prompt(1, 5), 3).unwrap();
    let plan = simulation.schedule().unwrap();
    assert!(simulation.remove(1));
    simulation.add(1, prompt(2, 6), 3).unwrap();
    simulation.finish_step(&plan);
    simulation.run_out();
    assert_eq!(simulation.finished[&1], alone(&prompt(2, 6), 3, 0));
}

#[test]
fn add_refuses_what_can_never_run() {
    let mut scheduler = Scheduler::new(config(8, 8)).unwrap();
    let message = |result: llm_core::Result<()>| result.unwrap_err().to_string();
    assert!(message(scheduler.add(1, vec![], options(1))).contains("at least one token"));
    let too_long = scheduler.add(1, vec![1; 60], options(5));
    assert!(matches!(too_long, Err(Error::ContextLength(_))));
    assert!(message(too_long).contains("the context is 64 tokens, got 60 in the prompt and 5 to generate"));
    let too_large = scheduler.add(1, vec![1; 30], options(3));
    assert!(matches!(too_large, Err(Error::Capacity(_))));
    assert!(message(too_large).contains("the cache holds 32 (8 blocks of 4)"));
    scheduler.add(1, vec![1; 30], options(2)).unwrap();
    assert!(message(scheduler.add(1, vec![1], options(1))).contains("request id 1 is in use"));
    (2..=6).for_each(|id| scheduler.add(id, vec![1], options(1)).unwrap());
    assert!(message(scheduler.add(7, vec![1], options(1))).contains("the queue is full: 6 requests wait"));
    assert!(matches!(Scheduler::new(config(0, 8)), Err(Error::InvalidArgument(_))));
}

#[test]
fn removing_all_in_flight_drops_the_plan() {
    let mut simulation = Simulation::new(config(8, 8));
    simulation.add(1, prompt(1, 3), 2).unwrap();
    assert!(simulation.schedule().is_some());
    assert!(simulation.remove(1));
    assert_eq!(simulation.schedule(), None);
    assert_eq!(simulation.scheduler.num_sampled_rows(), None);
    assert!(matches!(simulation.scheduler.complete_step(), Err(Error::InvalidArgument(_))));
}

#[test]
fn remove_of_an_unknown_request_is_false() {
    let mut scheduler = Scheduler::new(config(8, 8)).unwrap();
    assert!(!scheduler.remove(3).unwrap());
    assert!(matches!(scheduler.append_token(3, 0), Err(Error::UnknownRequest(3))));
    assert!(matches!(scheduler.complete_step(), Err(Error::InvalidArgument(_))));
}

#[test]
fn block_pool_reports_misuse() {
    let mut pool = BlockPool::new(2).unwrap();
    let block = pool.allocate().unwrap();
    assert!(pool.can_allocate(1) && !pool.can_allocate(2));
    pool.release(block).unwrap();
    assert!(pool.release(block).is_err());
    assert!(pool.acquire(block).is_err() && pool.acquire(9).is_err());
    assert!(pool.check_integrity([0]).is_err());
    assert!(pool.check_integrity([7]).is_err());
    assert!(BlockPool::new(0).is_err());
}
