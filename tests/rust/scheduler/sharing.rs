//! Priorities, several choices of one prompt, and the limits of queue and step.

use llm_core::Error;
use llm_core::scheduler::{RequestOptions, SchedulerConfig};

use super::simulation::{Simulation, prompt};
use super::{config, options};

fn choices(max_tokens: usize, num_choices: usize) -> RequestOptions {
    RequestOptions { num_choices, ..options(max_tokens) }
}

fn priority(max_tokens: usize, priority: i32) -> RequestOptions {
    RequestOptions { priority, ..options(max_tokens) }
}

#[test]
fn choices_compute_their_prompt_once_and_copy_its_last_block_before_they_write() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add_with(1, prompt(1, 6), choices(4, 3)).unwrap();
    let plan = simulation.step().unwrap();
    assert_eq!((plan.request_ids, plan.logits_indices), (vec![1], vec![5, 5, 5]));
    assert_eq!(simulation.scheduler.stats().num_running, 3);
    let plan = simulation.step().unwrap();
    assert_eq!((plan.request_ids, plan.positions), (vec![1, 2, 3], vec![6, 6, 6]));
    let copied: Vec<i64> = plan.block_copies.iter().map(|copy| copy[0]).collect();
    assert_eq!(copied, [1, 1, 1]);
    assert!(simulation.step().unwrap().block_copies.is_empty());
    simulation.run_out();
    simulation.check_answers();
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.tokens_scheduled, stats.blocks_copied), (6 + 3 * 3, 3));
}

#[test]
fn choices_of_full_blocks_copy_nothing_and_the_last_holder_neither() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add_with(1, prompt(1, 8), choices(3, 2)).unwrap();
    simulation.run_out();
    simulation.add_with(3, prompt(2, 6), choices(3, 2)).unwrap();
    simulation.step();
    simulation.remove(3);
    simulation.run_out();
    simulation.check_answers();
    assert_eq!(simulation.scheduler.stats().blocks_copied, 0);
}

#[test]
fn choices_that_may_not_run_wait() {
    let mut simulation = Simulation::new(config(32, 64));
    simulation.add_with(1, prompt(1, 9), choices(6, 9)).unwrap();
    simulation.step();
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.num_running, stats.num_waiting), (4, 5));
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn any_choice_may_be_removed_before_the_prompt_is_computed() {
    for removed in [&[1, 2][..], &[3], &[1, 2, 3]] {
        let mut simulation = Simulation::new(config(16, 4));
        simulation.add_with(1, prompt(1, 6), choices(4, 3)).unwrap();
        let plan = simulation.schedule().unwrap();
        removed.iter().for_each(|&id| assert!(simulation.remove(id)));
        simulation.finish_step(&plan);
        simulation.run_out();
        simulation.check_answers();
        assert_eq!(simulation.finished.len(), 3 - removed.len());
    }
}

#[test]
fn a_failed_step_is_retried_with_its_copies() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add_with(1, prompt(1, 6), choices(4, 2)).unwrap();
    simulation.step();
    let plan = simulation.schedule().unwrap();
    simulation.model.fail(&plan);
    assert_eq!(simulation.schedule().unwrap().block_copies, plan.block_copies);
    simulation.remove(2);
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn ids_of_choices_must_be_free() {
    let mut simulation = Simulation::new(config(16, 64));
    simulation.add(3, prompt(1, 6), 1).unwrap();
    let error = simulation.add_with(1, prompt(1, 6), choices(1, 3)).unwrap_err();
    assert!(error.to_string().contains("request id 3 is in use"));
    let error = simulation.add_with(u64::MAX, prompt(1, 6), choices(1, 2)).unwrap_err();
    assert!(error.to_string().contains("must fit 64 bits"));
    assert!(simulation.add_with(1, prompt(1, 6), choices(1, 0)).unwrap_err().to_string().contains("`num_choices`"));
}

#[test]
fn a_better_priority_runs_first_and_takes_the_place_of_a_worse_one() {
    let mut simulation = Simulation::new(SchedulerConfig { max_running_requests: 2, ..config(16, 64) });
    simulation.add_with(1, prompt(1, 5), priority(9, 1)).unwrap();
    simulation.add_with(2, prompt(2, 5), priority(9, 1)).unwrap();
    simulation.add_with(3, prompt(3, 5), priority(9, 2)).unwrap();
    assert_eq!(simulation.step().unwrap().request_ids, [1, 2]);
    simulation.add_with(4, prompt(4, 5), priority(9, 0)).unwrap();
    // The newest of the worse priority gives way; the one in the queue is worse still and stays there.
    assert_eq!(simulation.step().unwrap().request_ids, [1, 4]);
    simulation.run_out();
    simulation.check_answers();
    assert_eq!(simulation.scheduler.stats().num_preemptions, 1);
}

#[test]
fn out_of_blocks_the_worst_priority_gives_way_even_if_it_is_oldest() {
    let mut simulation = Simulation::new(config(4, 64));
    simulation.add_with(1, prompt(1, 7), priority(8, 1)).unwrap();
    simulation.add_with(2, prompt(2, 7), priority(8, 0)).unwrap();
    let mut plans = std::iter::from_fn(|| simulation.step());
    assert_eq!(plans.nth(2).unwrap().request_ids, [2]);
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn nobody_gives_way_in_vain() {
    let mut simulation = Simulation::new(config(8, 64));
    simulation.add_with(1, prompt(1, 15), priority(9, 0)).unwrap();
    simulation.add_with(2, prompt(2, 3), priority(9, 1)).unwrap();
    simulation.step();
    // 24 tokens need 6 blocks; request 1 holds 4 of 8 and won't give way.
    simulation.add_with(3, prompt(3, 23), priority(1, 0)).unwrap();
    assert_eq!(simulation.step().unwrap().request_ids, [1, 2]);
    assert_eq!(simulation.scheduler.stats().num_preemptions, 0);
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn decoders_come_before_a_long_prompt_and_its_chunks_are_bounded() {
    let mut simulation = Simulation::new(SchedulerConfig { max_prefill_chunk: Some(3), ..config(16, 8) });
    simulation.add(1, prompt(1, 3), 9).unwrap();
    simulation.step();
    simulation.add(2, prompt(2, 20), 1).unwrap();
    simulation.add(3, prompt(3, 20), 1).unwrap();
    let plan = simulation.step().unwrap();
    assert_eq!((plan.request_ids, plan.query_start), (vec![1, 2, 3], vec![0, 1, 4, 7]));
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn the_first_prompt_advances_even_where_decoders_could_take_the_whole_budget() {
    let mut simulation = Simulation::new(config(16, 2));
    simulation.add_with(1, prompt(1, 1), priority(20, 1)).unwrap();
    simulation.add_with(2, prompt(2, 1), priority(20, 1)).unwrap();
    simulation.step();
    simulation.add_with(3, prompt(3, 9), priority(1, 0)).unwrap();
    simulation.remove(2);
    assert_eq!(simulation.step().unwrap().request_ids, [1, 3]);
    simulation.add_with(4, prompt(4, 1), priority(20, 1)).unwrap();
    for _ in 0..8 {
        assert!(simulation.step().unwrap().request_ids.contains(&3));
    }
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn the_queue_is_bounded_in_tokens_too() {
    let limits = SchedulerConfig { max_waiting_tokens: Some(20), ..config(16, 64) };
    let mut simulation = Simulation::new(limits);
    simulation.add(1, prompt(1, 30), 1).unwrap(); // more than the limit, but nobody waits before it
    let refused = simulation.add(2, prompt(2, 1), 1);
    assert!(matches!(&refused, Err(Error::QueueFull(_))), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("30 tokens wait, with 1 more they would exceed 20"));
    simulation.step();
    simulation.add(3, prompt(3, 12), 1).unwrap();
    assert_eq!(simulation.scheduler.stats().waiting_tokens, 12);
    simulation.add(4, prompt(3, 8), 1).unwrap();
    assert!(simulation.add(5, prompt(3, 1), 1).is_err());
    assert!(simulation.remove(3));
    assert_eq!(simulation.scheduler.stats().waiting_tokens, 8);
    simulation.run_out();
    simulation.check_answers();
}
