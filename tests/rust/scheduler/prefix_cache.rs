//! What the prefix cache finds, and what it must not.

use llm_core::scheduler::SchedulerConfig;

use super::simulation::{Simulation, alone, prompt};
use super::{config, options};

fn roomy() -> Simulation {
    Simulation::new(config(32, 64))
}

/// Positions that the next step computes for a request.
fn next_positions(simulation: &mut Simulation, id: u64) -> Vec<i64> {
    let plan = simulation.step().unwrap();
    let row = plan.request_ids.iter().position(|other| *other == id).unwrap();
    plan.positions[plan.query_start[row] as usize..plan.query_start[row + 1] as usize].to_vec()
}

#[test]
fn the_next_turn_finds_prompt_and_answer() {
    let mut simulation = roomy();
    simulation.add(1, prompt(1, 9), 8).unwrap();
    simulation.run_out();
    // 17 tokens, of which the last has no keys and values: four blocks of four.
    let history = [prompt(1, 9), alone(&prompt(1, 9), 8, 0), vec![3, 4, 5]].concat();
    simulation.add(2, history.clone(), 2).unwrap();
    assert_eq!(next_positions(&mut simulation, 2), [16, 17, 18, 19]);
    simulation.run_out();
    assert_eq!(simulation.finished[&2], alone(&history, 2, 0));
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.prefix_query_tokens, stats.prefix_hit_tokens), (9 + 20, 16));
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    let mut simulation = roomy();
    for id in 1..=2 {
        simulation.add(id, prompt(1, 8), 1).unwrap();
        let positions = next_positions(&mut simulation, id);
        assert_eq!(positions, if id == 1 { (0..8).collect::<Vec<_>>() } else { vec![4, 5, 6, 7] });
    }
}

#[test]
fn what_is_in_flight_or_failed_is_not_found() {
    let mut simulation = roomy();
    simulation.add(1, prompt(1, 9), 3).unwrap();
    let plan = simulation.schedule().unwrap();
    assert_eq!(simulation.scheduler.stats().blocks_cached, 0);
    simulation.model.fail(&plan);
    simulation.remove(1);
    assert_eq!(simulation.scheduler.stats().blocks_cached, 0);
    simulation.add(2, prompt(1, 9), 3).unwrap();
    assert_eq!(next_positions(&mut simulation, 2), (0..9).collect::<Vec<_>>());
    assert_eq!(simulation.scheduler.stats().blocks_cached, 2);
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn a_prompt_that_differs_early_finds_nothing_after_it() {
    let mut simulation = roomy();
    simulation.add(1, prompt(1, 12), 1).unwrap();
    simulation.run_out();
    let mut other = prompt(1, 12);
    other[1] += 1;
    simulation.add(2, other, 1).unwrap();
    assert_eq!(next_positions(&mut simulation, 2).len(), 12);
}

#[test]
fn running_requests_share_blocks() {
    let mut simulation = roomy();
    simulation.add(1, prompt(1, 9), 8).unwrap();
    simulation.step();
    simulation.add(2, prompt(1, 10), 8).unwrap();
    assert_eq!(next_positions(&mut simulation, 2), [8, 9]);
    let stats = simulation.scheduler.stats();
    assert_eq!(stats.blocks_total - stats.blocks_free, 3 + 1, "two blocks shared, one each of their own");
    simulation.run_out();
    simulation.check_answers();
}

#[test]
fn the_end_of_a_prompt_is_forgotten_before_its_beginning() {
    let mut simulation = Simulation::new(config(8, 64));
    simulation.add(1, prompt(1, 16), 1).unwrap();
    simulation.run_out();
    // 8 blocks, 4 of them hold prompt 1: this takes the 4 others and the last of prompt 1.
    simulation.add(2, prompt(2, 19), 1).unwrap();
    simulation.run_out();
    simulation.add(3, prompt(1, 17), 1).unwrap();
    assert_eq!(next_positions(&mut simulation, 3)[0], 12);
}

#[test]
fn without_it_nothing_is_found() {
    let mut simulation = Simulation::new(SchedulerConfig { enable_prefix_caching: false, ..config(32, 64) });
    for id in 1..=2 {
        simulation.add(id, prompt(1, 12), 2).unwrap();
        simulation.run_out();
    }
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.blocks_cached, stats.prefix_query_tokens, stats.prefix_hit_tokens), (0, 0, 0));
    assert_eq!(stats.tokens_scheduled, 2 * 13);
}

#[test]
fn a_preempted_request_finds_its_own_blocks() {
    let mut simulation = Simulation::new(config(6, 64));
    simulation.add(1, prompt(1, 7), 12).unwrap();
    simulation.add(2, prompt(2, 7), 12).unwrap();
    simulation.run_out();
    simulation.check_answers();
    let stats = simulation.scheduler.stats();
    assert!(stats.num_preemptions > 0);
    // Each token once, and of the twelve that were lost those whose block the other request took.
    assert_eq!(stats.tokens_scheduled, 2 * 18 + 8);
    assert_eq!(stats.prefix_hit_tokens, 0, "only a first look counts");
    assert!(simulation.scheduler.add(3, prompt(1, 4), options(1)).is_ok());
}
