//! Random operations against what each request gets alone: no leak, no double free, nobody starves.

use llm_core::Error;
use llm_core::scheduler::{BlockPool, RequestOptions, SchedulerConfig};
use proptest::prelude::*;

use super::simulation::{Simulation, prompt};
use super::twin::PoolTwin;

/// Operations that both tests make together, about; `LLM_PROPTEST_OPS` is for a long run in release.
const DEFAULT_OPERATIONS: u32 = 50_000;
const OPERATIONS_A_CASE: u32 = 100;

fn num_cases() -> u32 {
    let operations = std::env::var("LLM_PROPTEST_OPS").ok().and_then(|text| text.replace('_', "").parse().ok());
    operations.unwrap_or(DEFAULT_OPERATIONS).div_ceil(2 * OPERATIONS_A_CASE)
}

#[derive(Debug, Clone)]
enum Action {
    Add { family: u64, prompt_len: usize, options: RequestOptions },
    Remove(usize),
    Step,
    RemoveInStep(usize),
    PlanOnly,
    FailStep,
    FailRequests,
}

fn any_add() -> impl Strategy<Value = Action> {
    let priority = prop_oneof![4 => Just(0), 1 => -1..2];
    let num_choices = prop_oneof![4 => Just(1usize), 1 => 2..5usize];
    let first_prompt_row = prop_oneof![8 => Just(None), 1 => Just(Some(0)), 1 => (1..30usize).prop_map(Some)];
    (0..4u64, 1..24usize, 1..16usize, priority, num_choices, first_prompt_row).prop_map(
        |(family, prompt_len, max_tokens, priority, num_choices, first_prompt_row)| Action::Add {
            family,
            prompt_len,
            options: RequestOptions { max_tokens, priority, num_choices, first_prompt_row, adapter: 0 },
        },
    )
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => any_add(),
        1 => any::<usize>().prop_map(Action::Remove),
        10 => Just(Action::Step),
        1 => any::<usize>().prop_map(Action::RemoveInStep),
        1 => Just(Action::PlanOnly),
        1 => Just(Action::FailStep),
        1 => Just(Action::FailRequests),
    ]
}

fn any_config() -> impl Strategy<Value = SchedulerConfig> {
    (6..16usize, 1..6usize, 1..24usize, prop::option::of(1..9usize), 1..6usize, any::<bool>()).prop_map(
        |(num_blocks, block_size, max_batch_tokens, max_prefill_chunk, max_running_requests, enable_prefix_caching)| {
            SchedulerConfig {
                num_blocks,
                block_size,
                max_batch_tokens,
                max_prefill_chunk,
                max_running_requests,
                max_waiting_requests: 6,
                max_waiting_tokens: Some(60),
                max_model_len: 64,
                enable_prefix_caching,
            }
        },
    )
}

/// Applies an action; `next_id` numbers the requests.
fn apply(simulation: &mut Simulation, action: Action, next_id: &mut u64) {
    let pick = |simulation: &Simulation, index: usize| {
        let ids: Vec<u64> = simulation.answers.keys().copied().collect();
        if ids.is_empty() { None } else { Some(ids[index % ids.len()]) }
    };
    match action {
        Action::Add { family, prompt_len, options } => {
            let result = simulation.add_with(*next_id, prompt(family, prompt_len), options);
            assert!(
                matches!(result, Ok(()) | Err(Error::ContextLength(_) | Error::Capacity(_) | Error::QueueFull(_))),
                "{result:?}"
            );
            *next_id += options.num_choices as u64;
        }
        Action::Remove(index) => {
            let _ = pick(simulation, index).map(|id| simulation.remove(id));
        }
        Action::Step => drop(simulation.step()),
        Action::RemoveInStep(index) => {
            let plan = simulation.schedule();
            let _ = pick(simulation, index).map(|id| simulation.remove(id));
            if let Some(plan) = plan {
                simulation.finish_step(&plan);
            }
        }
        Action::PlanOnly => drop(simulation.schedule()),
        Action::FailStep => {
            if let Some(plan) = simulation.schedule() {
                simulation.model.fail(&plan);
            }
        }
        Action::FailRequests => {
            if let Some(plan) = simulation.schedule() {
                simulation.model.fail(&plan);
                for id in simulation.scheduler.ids_in_flight() {
                    assert!(simulation.remove(id));
                }
            }
        }
    }
    simulation.scheduler.check_integrity().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(num_cases()))]

    #[test]
    fn every_request_gets_the_tokens_it_gets_alone(
        config in any_config(),
        max_drafts in 0..5usize,
        actions in prop::collection::vec(any_action(), 1..2 * OPERATIONS_A_CASE as usize),
    ) {
        let mut simulation = Simulation::new(config);
        simulation.max_drafts = max_drafts;
        let mut next_id = 1;
        for action in actions {
            apply(&mut simulation, action, &mut next_id);
        }
        simulation.run_out();
        simulation.check_answers();
    }

    #[test]
    fn block_pool_equals_its_twin(
        num_blocks in 1..10usize,
        actions in prop::collection::vec((0..5u8, any::<u32>()), 0..2 * OPERATIONS_A_CASE as usize),
    ) {
        let mut pool = BlockPool::new(num_blocks).unwrap();
        let mut twin = PoolTwin::new(num_blocks);
        for (action, pick) in actions {
            twin.apply(&mut pool, action, pick);
            prop_assert_eq!(pool.free_blocks(), twin.free.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(pool.num_free(), twin.free.len());
            prop_assert_eq!(pool.num_findable(), twin.findable.len());
            let count = |block| twin.held.iter().filter(|&&held| held == block).count() as u32;
            prop_assert!((0..=num_blocks as u32).all(|block| pool.ref_count(block) == count(block)));
            pool.check_integrity(twin.held.iter().copied()).unwrap();
        }
    }
}
