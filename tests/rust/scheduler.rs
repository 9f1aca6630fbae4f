//! Tests of `llm_core::scheduler`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

pub mod fake_model;

use std::collections::{BTreeMap, BTreeSet};

use fake_model::{FakeModel, next_token};
use llm_core::Error;
use llm_core::scheduler::{BlockPool, Scheduler, SchedulerConfig, StepPlan};
use proptest::prelude::*;

const VOCAB: u32 = 50;

fn config(num_blocks: usize, max_batch_tokens: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_batch_tokens,
        max_running_requests: 4,
        max_waiting_requests: 6,
        max_model_len: 64,
    }
}

/// Runs a scheduler with the fake model, each request until it has its tokens.
struct Simulation {
    scheduler: Scheduler,
    model: FakeModel,
    max_tokens: BTreeMap<u64, usize>,
    prompts: BTreeMap<u64, Vec<u32>>,
    finished: BTreeMap<u64, Vec<u32>>,
}

impl Simulation {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            model: FakeModel::new(config.num_blocks, config.block_size),
            max_tokens: BTreeMap::new(),
            prompts: BTreeMap::new(),
            finished: BTreeMap::new(),
        }
    }

    fn add(&mut self, id: u64, prompt: Vec<u32>, max_tokens: usize) -> llm_core::Result<()> {
        self.scheduler.add(id, prompt.clone(), max_tokens)?;
        self.prompts.insert(id, prompt);
        self.max_tokens.insert(id, max_tokens);
        Ok(())
    }

    fn remove(&mut self, id: u64) -> bool {
        self.prompts.remove(&id);
        self.scheduler.remove(id).unwrap()
    }

    fn schedule(&mut self) -> Option<StepPlan> {
        let plan = self.scheduler.schedule().unwrap();
        self.scheduler.check_integrity().unwrap();
        plan
    }

    fn finish_step(&mut self, plan: &StepPlan) {
        let seen = self.model.run(plan);
        let rows = self.scheduler.complete_step().unwrap();
        assert_eq!(rows.len(), plan.logits_indices.len());
        for (id, tokens) in rows.into_iter().zip(seen) {
            let Some(id) = id else { continue };
            let request = self.scheduler.request(id).unwrap();
            assert_eq!(tokens, [&self.prompts[&id], request.output_ids()].concat());
            self.scheduler.append_token(id, next_token(&tokens, VOCAB)).unwrap();
            self.finish_if_done(id);
        }
        self.scheduler.check_integrity().unwrap();
    }

    fn finish_if_done(&mut self, id: u64) {
        let output = self.scheduler.request(id).unwrap().output_ids().to_vec();
        if output.len() == self.max_tokens[&id] {
            self.finished.insert(id, output);
            self.scheduler.remove(id).unwrap();
        }
    }

    fn step(&mut self) -> Option<StepPlan> {
        let plan = self.schedule()?;
        self.finish_step(&plan);
        Some(plan)
    }

    fn run_out(&mut self) {
        // The oldest request advances in each step, so this many are enough for all.
        let mut left: usize = self.prompts.iter().map(|(id, prompt)| prompt.len() + self.max_tokens[id]).sum();
        while self.scheduler.has_unfinished() {
            assert!(left > 0, "a request starves");
            left -= 1;
            assert!(self.step().is_some(), "requests are left but nothing runs");
        }
        let stats = self.scheduler.stats();
        assert_eq!(stats.blocks_free, stats.blocks_total);
    }
}

fn alone(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        tokens.push(next_token(&tokens, VOCAB));
    }
    tokens.split_off(prompt.len())
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|position| ((seed * 31 + position * 17) % u64::from(VOCAB)) as u32).collect()
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
    assert_eq!((plan.block_tables, plan.max_blocks), (vec![0, 0, 1, 2], 2));
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
    assert_eq!(simulation.finished[&1], alone(&prompt(1, 7), 8));
    assert_eq!(simulation.finished[&2], alone(&prompt(2, 7), 8));
}

#[test]
fn planning_again_plans_the_same_work() {
    let mut simulation = Simulation::new(config(8, 5));
    simulation.add(1, prompt(1, 9), 3).unwrap();
    let first = simulation.schedule();
    assert_eq!(simulation.schedule(), first);
    simulation.run_out();
    assert_eq!(simulation.finished[&1], alone(&prompt(1, 9), 3));
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
    assert_eq!(simulation.finished[&1], alone(&prompt(2, 6), 3));
}

#[test]
fn add_refuses_what_can_never_run() {
    let mut scheduler = Scheduler::new(config(8, 8)).unwrap();
    let message = |result: llm_core::Result<()>| result.unwrap_err().to_string();
    assert!(message(scheduler.add(1, vec![], 1)).contains("at least one token"));
    assert!(message(scheduler.add(1, vec![1], 0)).contains("`max_tokens` must be at least 1"));
    let too_long = scheduler.add(1, vec![1; 60], 5);
    assert!(matches!(too_long, Err(Error::Capacity(_))));
    assert!(message(too_long).contains("needs 65 tokens (60 of prompt and `max_tokens` 5), the context holds 64"));
    let too_large = scheduler.add(1, vec![1; 30], 3);
    assert!(matches!(too_large, Err(Error::Capacity(_))));
    assert!(message(too_large).contains("the cache holds 32 (8 blocks of 4)"));
    scheduler.add(1, vec![1; 30], 2).unwrap();
    assert!(message(scheduler.add(1, vec![1], 1)).contains("request id 1 is in use"));
    (2..=6).for_each(|id| scheduler.add(id, vec![1], 1).unwrap());
    assert!(message(scheduler.add(7, vec![1], 1)).contains("the queue is full: 6 requests wait"));
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

#[derive(Debug, Clone)]
enum Action {
    Add { prompt_len: usize, max_tokens: usize },
    Remove(usize),
    Step,
    RemoveInStep(usize),
    PlanOnly,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1..20usize, 1..16usize).prop_map(|(prompt_len, max_tokens)| Action::Add { prompt_len, max_tokens }),
        1 => any::<usize>().prop_map(Action::Remove),
        8 => Just(Action::Step),
        1 => any::<usize>().prop_map(Action::RemoveInStep),
        1 => Just(Action::PlanOnly),
    ]
}

/// Applies an action; `next_id` numbers the requests.
fn apply(simulation: &mut Simulation, action: Action, next_id: &mut u64) {
    let pick = |simulation: &Simulation, index: usize| {
        let ids: Vec<u64> = simulation.prompts.keys().copied().collect();
        if ids.is_empty() { None } else { Some(ids[index % ids.len()]) }
    };
    match action {
        Action::Add { prompt_len, max_tokens } => {
            *next_id += 1;
            let result = simulation.add(*next_id, prompt(*next_id, prompt_len), max_tokens);
            assert!(matches!(result, Ok(()) | Err(Error::Capacity(_) | Error::QueueFull(_))), "{result:?}");
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
    }
}

proptest! {
    #[test]
    fn every_request_gets_the_tokens_it_gets_alone(
        num_blocks in 4..12usize,
        max_batch_tokens in 1..24usize,
        actions in prop::collection::vec(any_action(), 1..120),
    ) {
        let mut simulation = Simulation::new(config(num_blocks, max_batch_tokens));
        let mut next_id = 0;
        for action in actions {
            apply(&mut simulation, action, &mut next_id);
        }
        simulation.run_out();
        for (id, prompt) in &simulation.prompts {
            prop_assert_eq!(&simulation.finished[id], &alone(prompt, simulation.max_tokens[id]));
        }
    }

    #[test]
    fn block_pool_equals_its_model(num_blocks in 1..10usize, actions in prop::collection::vec((0..3u8, any::<u32>()), 0..200)) {
        let mut pool = BlockPool::new(num_blocks).unwrap();
        let mut held: Vec<u32> = Vec::new();
        for (action, pick) in actions {
            let chosen = (!held.is_empty()).then(|| pick as usize % held.len());
            match (action, chosen) {
                (0, _) => match pool.allocate() {
                    Some(block) => {
                        prop_assert!(!held.contains(&block), "block {} was handed out twice", block);
                        held.push(block);
                    }
                    None => prop_assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), num_blocks),
                },
                (1, Some(index)) => {
                    pool.share(held[index]).unwrap();
                    held.push(held[index]);
                }
                (2, Some(index)) => pool.release(held.swap_remove(index)).unwrap(),
                _ => prop_assert!(pool.release(pick % num_blocks as u32).is_err()),
            }
            let in_use = held.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(pool.num_free(), num_blocks - in_use);
            pool.check_integrity(held.iter().copied()).unwrap();
        }
    }
}

#[test]
fn block_pool_reports_misuse() {
    let mut pool = BlockPool::new(2).unwrap();
    let block = pool.allocate().unwrap();
    assert!(pool.can_allocate(1) && !pool.can_allocate(2));
    pool.release(block).unwrap();
    assert!(pool.release(block).is_err());
    assert!(pool.share(9).is_err());
    assert!(pool.check_integrity([0]).is_err());
    assert!(pool.check_integrity([7]).is_err());
    assert!(BlockPool::new(0).is_err());
}
